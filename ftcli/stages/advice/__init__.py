"""Is fine-tuning the right thing for these rows? Statistics, a probe of the base, a verdict."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcli.console import Reporter
from ftcli.disk import write_json
from ftcli.loading import Loaded
from ftcli.prepared import Prepared
from ftcli.stages.advice.probe import probe_base, probe_key
from ftcli.stages.advice.rows import PreparedRows
from ftcli.stages.advice.statistics import statistics_of
from ftcli.stages.advice.wording import Advice, advise_on, size_in_words

if TYPE_CHECKING:
    from ftcli.engine.rendering import Renderer

# Goes up when the same rows would give other statistics.
VERSION = 2
STATISTICS = (
    "rows",
    "near_duplicates",
    "format",
    "same_prompt_different_answers",
    "lengths",
    "instruction",
)


@dataclass(frozen=True)
class Given:
    """What is advised, and what it rests on."""

    advice: Advice
    found: Mapping[str, Any]
    """The statistics by name; empty where they could not be gathered."""
    probe: Mapping[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """Fields of advice.json, as the report and `prepare --json` show them."""
        return {
            **{name: self.found.get(name) for name in STATISTICS},
            "probe": self.probe,
            "verdict": self.advice.verdict,
            "sentences": list(self.advice.sentences),
        }


def advice_file(folder: Path) -> Path:
    """Where the advice stands in a data folder."""
    return folder / "advice.json"


def give_advice(
    loaded: Loaded, renderer: Renderer, prepared: Prepared, folder: Path, reporter: Reporter
) -> Given:
    """Advice on a preparation: looked up beside it, or made and kept there.

    A preparation never fails for want of advice: what goes wrong is said.
    """
    try:
        kept = _kept(folder, prepared)
        found = kept or statistics_of(
            PreparedRows(folder, prepared), lambda text: _tokens(renderer, text), reporter
        )
        given = _advised(loaded, found, _same_probe(kept.get("probe"), loaded, prepared))
        if {**kept, **given.as_json()} != kept:
            keep(given, prepared, folder)
    except Exception as error:  # noqa: BLE001 - whatever it is, the rows are prepared
        reporter.warn(f"no advice on these rows: {type(error).__name__}: {error}")
        rows = prepared.rows_accepted
        return Given(Advice("fine-tune", (size_in_words(rows),)), {})
    return given


def probed(
    given: Given,
    shots: int,
    loaded: Loaded,
    renderer: Renderer,
    rows: PreparedRows,
    reporter: Reporter,
) -> Given:
    """The advice once the base itself was asked, or where it was asked the same before.

    Raises FtcliError as `probe_base`.
    """
    if not given.found or (given.probe is not None and given.probe["shots_asked"] == shots):
        return given
    probe = probe_base(loaded, renderer, rows, given.found["format"], shots, reporter)
    given = _advised(loaded, given.found, probe)
    keep(given, rows.prepared, rows.folder)
    return given


def keep(given: Given, prepared: Prepared, folder: Path) -> None:
    """Write it beside the preparation."""
    mark = {"version": VERSION, "fingerprint": prepared.fingerprint}
    write_json(advice_file(folder), {**mark, **given.as_json()})


def _advised(loaded: Loaded, found: Mapping[str, Any], probe: Mapping[str, Any] | None) -> Given:
    set_already = loaded.recipe.eval.format is not None
    return Given(advise_on(found, probe, format_is_set=set_already), found, probe)


def _same_probe(
    probe: Mapping[str, Any] | None, loaded: Loaded, prepared: Prepared
) -> Mapping[str, Any] | None:
    """An earlier probe, where the same model would be asked the same."""
    if probe is None or probe["key"] != probe_key(loaded, prepared, probe["shots_asked"]):
        return None
    return probe


def _kept(folder: Path, prepared: Prepared) -> dict[str, Any]:
    """What stands there of the same rows; nothing where it is missing, old or cannot be read."""
    try:
        kept = json.loads(advice_file(folder).read_text(encoding="utf-8"))
        same = (kept["version"], kept["fingerprint"]) == (VERSION, prepared.fingerprint)
        return dict(kept) if same and all(name in kept for name in STATISTICS) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _tokens(renderer: Renderer, text: str) -> int:
    return len(renderer.tokenizer(text, add_special_tokens=False)["input_ids"])
