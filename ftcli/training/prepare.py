"""`ftcli prepare`: data in → cleaned, split, tokenised, with every fault named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ftcli.config.loader import Loaded, load_recipe
from ftcli.console import Reporter, shown_path
from ftcli.data.prepared import Prepared, load_prepared, problems_file, read_problems
from ftcli.data.sides import sources_of
from ftcli.evaluation.advice.advising import give_advice, with_probe
from ftcli.evaluation.advice.price import Price, price_of
from ftcli.evaluation.advice.probe import SHOTS
from ftcli.evaluation.advice.record import Advice, advice_file
from ftcli.evaluation.advice.statistics import PreparedRows
from ftcli.hub import require_reachable
from ftcli.memory.shapes import model_source
from ftcli.runs.folder import RunFolder, find_run, free_folder, runs_at
from ftcli.training.job import Job
from ftcli.training.own_place import require_own_place
from ftcli.training.plan.arithmetic import require_hold
from ftcli.training.plan.plan import make_plan, profile_of
from ftcli.training.scene import look
from ftcli.training.scored_files import require_scored_files

__all__ = ["SHOTS", "PrepareResult", "Wanted", "data_folder", "prepare_recipe", "rejected"]

Piece = tuple[str, bool]

# Sentences of advice for a terminal; advice.json holds all.
SENTENCES_SHOWN = 4


@dataclass(frozen=True)
class Wanted:
    """What is asked for besides the rows."""

    preview_rows: int = 0
    probe: bool = False
    """Ask the base itself."""
    shots: int = SHOTS
    """Examples in its prompt."""
    price_per_hour: float | None = None


@dataclass(frozen=True)
class PrepareResult:
    """The preparation, and the previewed rows as (text, trained on) pieces."""

    loaded: Loaded
    prepared: Prepared
    folder: Path
    preview: tuple[tuple[Piece, ...], ...]
    advice: Advice
    price: Price | None = None

    def as_json(self) -> dict[str, Any]:
        """Fields of COMMANDS: names that scripts rely on."""
        p = self.prepared
        return {
            "rows_read": p.rows_read,
            "rows_accepted": p.rows_accepted,
            "rows_rejected": p.rows_rejected,
            "duplicates": p.duplicates,
            "leaks": p.leaks,
            "train_rows": p.train.rows,
            "validation_rows": p.validation.rows,
            "test_rows": p.test.rows,
            "train_tokens": p.train.tokens,
            "trained_tokens": p.train.trained_tokens,
            "answer_tokens_lost": p.answer_tokens_lost,
            **_replayed(p),
            "longest_row": asdict(p.longest),
            "fingerprint": p.fingerprint,
            "problems": [asdict(fault) for fault in read_problems(p, self.folder)],
            "folder": str(self.folder),
            "advice": self.advice.as_json(),
            **({"price": self.price.as_json()} if self.price is not None else {}),
        }


def prepare_recipe(
    recipe: Path, overrides: Sequence[str], wanted: Wanted, reporter: Reporter
) -> PrepareResult:
    """Prepare a recipe's data into its run folder, and advise on them; raises FtcliError."""
    loaded, named = load_recipe(recipe, overrides), find_run(recipe)
    require_scored_files(loaded)
    with loaded.blame():
        require_hold(loaded.recipe)

    from ftcli.data.tokenizing.encode import fingerprint, prepare, preview
    from ftcli.models.load import load_renderer

    with loaded.blame():
        source = model_source(loaded.recipe.model.id, loaded.base)
        require_reachable(source, loaded.recipe.model.revision)
        renderer = load_renderer(loaded, source)
    run = data_folder(loaded.output, fingerprint(loaded, renderer), named)
    with loaded.blame():
        require_own_place(run, loaded)
    with run.lock(), loaded.blame():
        prepared = prepare(loaded, renderer, run.data, reporter)
        previewed = preview(run.data, renderer, wanted.preview_rows)
        shown = tuple(tuple(pieces) for pieces in previewed)
        rows = PreparedRows(run.data, prepared)
        advice = give_advice(loaded, renderer, rows, reporter)
        if wanted.probe:
            advice = with_probe(advice, wanted.shots, loaded, renderer, rows, reporter)
        price = _price(loaded, run, prepared, wanted, reporter)
    return PrepareResult(loaded, prepared, run.data, shown, advice, price)


def _price(
    loaded: Loaded, run: RunFolder, prepared: Prepared, wanted: Wanted, reporter: Reporter
) -> Price | None:
    """Of the training that these rows are for; raises FtcliError as its plan does."""
    if wanted.price_per_hour is None:
        return None
    scene = look(loaded, None)
    plan = make_plan(scene.loaded.recipe, scene.shape, profile_of(prepared), scene.hardware)
    job = Job(scene, run, prepared, plan)
    return price_of(job, wanted.price_per_hour, wanted.shots, reporter)


def data_folder(output: Path, fingerprint: str, named: RunFolder | None = None) -> RunFolder:
    """Where to prepare: never over other data of a training that has begun.

    The run that the user has `named` gets its own data back where they are gone.
    """
    if named is not None and named.read_manifest().get("data") == fingerprint:
        return named
    for run in runs_at(output):
        earlier = load_prepared(run.data)
        if earlier is not None and earlier.fingerprint == fingerprint:
            return run
    return free_folder(output)


def _replayed(prepared: Prepared) -> dict[str, Any]:
    """Rows of data.replay, which no other count holds."""
    found = prepared.replay
    if found is None:
        return {"replay_rows": 0, "replay_tokens": 0, "replay_source": None}
    return {
        "replay_rows": found.rows,
        "replay_tokens": found.tokens,
        "replay_source": found.source,
    }


def _replay_line(prepared: Prepared) -> Iterator[str]:
    """How much of an epoch is replayed, by rows and by what is trained on."""
    found = prepared.replay
    if found is None:
        return
    every = prepared.trained_on
    left_out = {
        "asked in a held-out row too": found.held_out,
        "conversations longer than data.max_length": found.too_long,
    }
    told = "".join(f"; left out {count} {why}" for why, count in left_out.items() if count)
    cut = f"; {found.texts_cut} texts cut to {prepared.max_length}" if found.texts_cut else ""
    yield (
        f"  replay      {found.rows} rows from {found.source}: {found.rows / every.rows:.0%} of "
        f"the rows, {found.trained_tokens / every.trained_tokens:.0%} of the tokens trained on"
        f"{cut}{told}"
    )


def summary(result: PrepareResult) -> list[str]:
    """What a person reads, line by line."""
    p = result.prepared
    held = "".join(
        f", {counts.rows} {name}"
        for name, counts in (("validation", p.validation), ("test", p.test))
        if counts.rows
    )
    files = " + ".join(sources_of(result.loaded.recipe.data).values())
    lines = [f"{files}: {p.rows_read} rows → {p.train.rows} train{held}"]
    if p.problems:
        lines.append(f"  rejected    {p.rows_rejected}   {rejected(p, result.folder)}")
    if p.duplicates:
        lines.append(f"  duplicates  {p.duplicates}   kept the first of each")
    if p.leaks:
        lines.append(
            f"  leaks       {p.leaks}   held-out prompts that stand elsewhere too (allowed)"
        )
    mean, trained = p.train.tokens / p.train.rows, p.train.trained_tokens / p.train.rows
    lines.append(
        f"  tokens      {mean:.0f} a row (longest {p.longest.tokens}, {p.longest.file}:"
        f"{p.longest.line}), {trained:.0f} trained on; {p.answer_tokens_lost} answer tokens lost"
    )
    lines += _replay_line(p)
    asked = result.loaded.output
    if result.folder.parent != asked:
        lines.append(
            f"  written to  {shown_path(result.folder)}, as {shown_path(asked)} holds another run"
        )
    return lines


def rejected(prepared: Prepared, folder: Path | None) -> str:
    """The first rows that are not used, each with the reason, and where the others are named, in
    a folder that stays."""
    named = " · ".join(str(fault) for fault in prepared.problems[:3])
    others = prepared.rows_rejected - 3
    where = f": {shown_path(problems_file(folder))}" if folder is not None else ""
    return named + (f" · {others} more{where}" if others > 0 else "")


def advice_lines(result: PrepareResult) -> list[str]:
    """The verdict and what explains it, then the price."""
    sentences = result.advice.sentences
    lines = list(sentences[:SENTENCES_SHOWN])
    if (others := len(sentences) - SENTENCES_SHOWN) > 0:
        lines[-1] += f" ({others} more: {shown_path(advice_file(result.folder))})"
    if result.price is not None:
        lines += result.price.sentences()
    return lines
