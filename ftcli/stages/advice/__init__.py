"""Is fine-tuning the right thing for these rows? Statistics, a probe of the base, a verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftcli.console import Reporter
from ftcli.loading import Loaded
from ftcli.stages.advice.probe import probe_base, probe_key
from ftcli.stages.advice.record import Advice, read_advice
from ftcli.stages.advice.sentences import advise_on, size_in_words
from ftcli.stages.advice.statistics import PreparedRows, statistics_of

if TYPE_CHECKING:
    from ftcli.engine.rendering import Renderer


def give_advice(
    loaded: Loaded, renderer: Renderer, rows: PreparedRows, reporter: Reporter
) -> Advice:
    """Advice on a preparation: read where it was kept, else made and kept.

    A preparation never fails for want of advice: a warning says what went wrong.
    """
    prepared = rows.prepared
    try:
        kept = read_advice(rows.folder, prepared.fingerprint)
        found = kept or statistics_of(rows, renderer, reporter)
        probe = found.probe
        if probe is not None and probe.key != probe_key(loaded, prepared, probe.shots_asked):
            found = found.model_copy(update={"probe": None})
        return _advised(loaded, found, kept, rows)
    except Exception as error:  # noqa: BLE001 - whatever it is, the rows are prepared
        reporter.warn(f"no advice on these rows: {type(error).__name__}: {error}")
        count = prepared.rows_accepted
        size = size_in_words(count)
        return Advice(fingerprint=prepared.fingerprint, rows=count, sentences=(size,))


def with_probe(
    advice: Advice,
    shots: int,
    loaded: Loaded,
    renderer: Renderer,
    rows: PreparedRows,
    reporter: Reporter,
) -> Advice:
    """The advice with scores of the base, which is asked unless the advice has the same scores.

    Raises FtcliError as `probe_base`.
    """
    same = advice.probe is not None and advice.probe.shots_asked == shots
    if same or advice.lengths is None:
        return advice
    probe = probe_base(loaded, renderer, rows, advice.format, shots, reporter)
    return _advised(loaded, advice.model_copy(update={"probe": probe}), advice, rows)


def _advised(loaded: Loaded, found: Advice, kept: Advice | None, rows: PreparedRows) -> Advice:
    """With its verdict; written where that is not what was kept."""
    recipe = loaded.recipe
    has_format, replays = recipe.eval.format is not None, recipe.data.replay is not None
    advice = advise_on(found, format_is_set=has_format, replays=replays)
    if advice != kept:
        advice.write(rows.folder)
    return advice
