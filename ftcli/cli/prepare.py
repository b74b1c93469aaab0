"""`ftcli prepare RECIPE`: clean, split and tokenise the data, report rejected rows, advise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ftcli.cli import options
from ftcli.console import (
    Reporter,
    Terminal,
    colours,
    counted,
    print_json,
    print_result,
    shown_path,
    wrapped,
)
from ftcli.errors import UsageError
from ftcli.shell import shown_source

if TYPE_CHECKING:
    from ftcli.config.loader import RecipeFile
    from ftcli.config.recipe import Recipe
    from ftcli.data.dataset import Dataset
    from ftcli.data.tokenizing.rendering import Renderer
    from ftcli.evaluation.advice.advice import Advice
    from ftcli.evaluation.advice.cost import Cost
    from ftcli.runs.folder import RunFolder

Piece = tuple[str, bool]

TRAINED, OTHER, END = "\x1b[32m", "\x1b[2m", "\x1b[0m"
# Sentences of advice on the terminal; advice.json has all.
SENTENCES_SHOWN = 4
# Of --try-prompting; advice.json has all.
ANSWERS_SHOWN = 2


@dataclass(frozen=True)
class PrepareResult:
    """The prepared data, and previewed rows as (text, is label) pieces."""

    loaded: RecipeFile
    prepared: Dataset
    folder: Path
    preview: tuple[tuple[Piece, ...], ...]
    advice: Advice
    cost: Cost | None = None

    def as_json(self) -> dict[str, Any]:
        """A stable shape, for scripts."""
        from ftcli.data.dataset import read_rejected

        p = self.prepared
        return {
            "rows_read": p.rows_read,
            "rows_accepted": p.rows_accepted,
            "rows_rejected": p.rows_rejected,
            "duplicates": p.duplicates,
            "overlap": p.overlap,
            "train_rows": p.train.rows,
            "validation_rows": p.validation.rows,
            "test_rows": p.test.rows,
            "train_tokens": p.train.tokens,
            "label_tokens": p.train.label_tokens,
            "answer_tokens_lost": p.answer_tokens_lost,
            "empty_columns": dict(p.empty_columns),
            **_replayed(p),
            "longest_row": asdict(p.longest),
            "fingerprint": p.fingerprint,
            "rejected": [row.record() for row in read_rejected(p, self.folder)],
            "run_dir": str(self.folder.parent),
            "advice": self.advice.as_json(),
            **({"cost": self.cost.as_json()} if self.cost is not None else {}),
        }


def prepare(
    recipe: options.Recipe,
    preview: Annotated[
        int, typer.Option(metavar="N", min=0, help="Show N rows with their labels.")
    ] = 0,
    try_prompting: Annotated[
        bool,
        typer.Option(
            "--try-prompting", help="Ask the base 30 rows, with and without examples in its prompt."
        ),
    ] = False,
    shots: Annotated[
        int | None,
        typer.Option(
            metavar="K", min=1, help="Examples for --try-prompting and --cost-per-hour (5)."
        ),
    ] = None,
    cost_per_hour: options.CostPerHour = None,
    overrides: options.Overrides = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Read, clean, split and tokenise the data.

    Every rejected row is reported with file, line and reason. Then advises: is fine-tuning right
    for these rows?
    """
    from ftcli.evaluation.eval_rows import SHOTS

    if shots is not None and not try_prompting and cost_per_hour is None:
        raise UsageError(
            "flag",
            "--shots is the number of examples of --try-prompting and --cost-per-hour: add one",
        )
    found = prepare_recipe(
        recipe,
        overrides or (),
        Terminal(),
        preview_rows=preview,
        try_prompting=try_prompting,
        shots=SHOTS if shots is None else shots,
        cost_per_hour=cost_per_hour,
    )
    if json:
        print_json(found.as_json() | {"preview": [list(row) for row in found.preview]})
        return
    for row in found.preview:
        print_result(rendered(row, colours()))
        print_result("")
    if found.preview and not colours():
        print_result("⟦…⟧ marks labels.\n")
    for line in _summary(found):
        print_result(wrapped(line))
    _print_answers(found.advice)
    for line in _advice_lines(found):
        print_result(wrapped(line))


def prepare_recipe(
    recipe: Path,
    overrides: Sequence[str],
    reporter: Reporter,
    *,
    preview_rows: int,
    try_prompting: bool,
    shots: int,
    cost_per_hour: float | None,
) -> PrepareResult:
    """Prepare a recipe's data in its run folder, and give advice; raises FtcliError."""
    from ftcli.config.loader import load_recipe
    from ftcli.evaluation.advice.advice import give_advice, with_prompting
    from ftcli.evaluation.advice.cost import measure_cost
    from ftcli.evaluation.advice.row_statistics import PreparedRows
    from ftcli.evaluation.scoring import require_scored_files
    from ftcli.hub import require_reachable
    from ftcli.memory.known_models import model_source
    from ftcli.runs.folder import find_run
    from ftcli.training.job import TrainJob, open_model, require_separate_output, require_trackers
    from ftcli.training.plan.decide import make_plan
    from ftcli.training.plan.learning_rate import require_l2_sp
    from ftcli.training.plan.plan import RowStatistics

    loaded, named = load_recipe(recipe, overrides), find_run(recipe)
    require_scored_files(loaded)
    with loaded.locate():
        require_l2_sp(loaded.recipe)
    require_rows(loaded.recipe)

    from ftcli.data.tokenizing.tokenize import prepare, preview
    from ftcli.models.load import load_renderer

    with loaded.locate():
        source = model_source(loaded.recipe.model.id)
        require_reachable(source, loaded.recipe.model.revision)
        renderer = load_renderer(loaded.recipe, source)
    run = data_folder(loaded, renderer, named)
    with loaded.locate():
        require_separate_output(run, loaded.recipe)
    with run.lock(), loaded.locate():
        prepared = prepare(loaded.recipe, renderer, run.data, reporter)
        previewed = preview(run.data, renderer, preview_rows)
        shown = tuple(tuple(pieces) for pieces in previewed)
        rows = PreparedRows(run.data, prepared)
        advice = give_advice(loaded.recipe, renderer, rows, reporter)
        if try_prompting:
            advice = with_prompting(advice, shots, loaded.recipe, renderer, rows, reporter)
        cost = None
        if cost_per_hour is not None:
            require_trackers(loaded.recipe)
            model = open_model(loaded.recipe)
            plan = make_plan(
                loaded.recipe, model.architecture, RowStatistics.of(prepared), model.hardware
            )
            job = TrainJob(loaded.recipe, loaded.path, model, prepared, plan, run)
            cost = measure_cost(job, loaded.recipe, cost_per_hour, shots, reporter)
    return PrepareResult(loaded, prepared, run.data, shown, advice, cost)


def require_rows(recipe: Recipe) -> None:
    """Raise DataError for a missing file of rows, before heavy libraries are imported."""
    from ftcli.config.section import data_suffix
    from ftcli.data.sources import read_rows
    from ftcli.data.splits import files_of

    for source in files_of(recipe.data).values():
        if data_suffix(source) is not None:  # a hub data set is checked later
            read_rows(source)


def data_folder(
    loaded: RecipeFile, renderer: Renderer, named: RunFolder | None = None
) -> RunFolder:
    """Where to prepare, without overwriting data of another training.

    The run that the user has `named` gets its own data back if they are missing.
    """
    from ftcli.data.dataset import load_dataset
    from ftcli.data.tokenizing.fingerprint import fingerprint
    from ftcli.runs.folder import free_folder, runs_at

    mark = fingerprint(loaded.recipe, renderer)
    if named is not None and named.read_manifest().get("data") == mark:
        return named
    for run in runs_at(loaded.output):
        earlier = load_dataset(run.data)
        if earlier is not None and earlier.fingerprint == mark:
            return run
    return free_folder(loaded.output)


def _replayed(prepared: Dataset) -> dict[str, Any]:
    """Rows of data.replay; the other counts are without them."""
    found = prepared.replay
    if found is None:
        return {"replay_rows": 0, "replay_tokens": 0, "replay_source": None}
    return {
        "replay_rows": found.rows,
        "replay_tokens": found.tokens,
        "replay_source": shown_source(found.source),
    }


def _replay_line(prepared: Dataset) -> Iterator[str]:
    """The replayed part of an epoch, in rows and in label tokens."""
    found = prepared.replay
    if found is None:
        return
    every = prepared.epoch_counts
    left_out = {
        "with the question of a held-out row": found.held_out,
        "conversations longer than data.max_length": found.too_long,
    }
    left = "".join(f"; without {count} {why}" for why, count in left_out.items() if count)
    cut = f"; {found.texts_cut} texts cut to {prepared.max_length}" if found.texts_cut else ""
    yield (
        f"  replay      {found.rows} rows from {shown_source(found.source)}: "
        f"{found.rows / every.rows:.0%} of the rows, "
        f"{found.label_tokens / every.label_tokens:.0%} of the label tokens{cut}{left}"
    )


def _summary(result: PrepareResult) -> list[str]:
    """The lines of counts."""
    from ftcli.data.splits import sources_of

    p = result.prepared
    held = "".join(
        f", {counts.rows} {name}"
        for name, counts in (("validation", p.validation), ("test", p.test))
        if counts.rows
    )
    files = " + ".join(map(shown_source, sources_of(result.loaded.recipe.data).values()))
    lines = [f"{files}: {p.rows_read} rows → {p.train.rows} train{held}"]
    if p.rejected:
        lines.append(f"  rejected    {p.rows_rejected}   {rejected_rows(p, result.folder)}")
    if p.duplicates:
        lines.append(f"  duplicates  {p.duplicates}   kept the first of each")
    if p.overlap:
        lines.append(
            f"  overlap     {p.overlap}   held-out prompts that are also in another split (allowed)"
        )
    if p.empty_columns:
        empty = (
            f"{counted(rows, 'row')} {'has' if rows == 1 else 'have'} an empty {{{column}}}"
            for column, rows in p.empty_columns.items()
        )
        lines.append(f"  empty       {', '.join(empty)}")
    tokens, labels = p.train.tokens / p.train.rows, p.train.label_tokens / p.train.rows
    lost = p.answer_tokens_lost
    lines.append(
        f"  tokens      {tokens:.0f} per row (longest {p.longest.tokens}, {p.longest.file}:"
        f"{p.longest.line}), {labels:.0f} label tokens; {lost} answer tokens truncated"
    )
    lines += _replay_line(p)
    asked = result.loaded.output
    if result.folder.parent != asked:
        lines.append(
            f"  written to  {shown_path(result.folder)}: {shown_path(asked)} is another run"
        )
    return lines


def rejected_rows(prepared: Dataset, folder: Path | None) -> str:
    """The first rejected rows with their reasons, and the file that lists all, if there is one."""
    from ftcli.data.dataset import rejected_file

    named = " · ".join(str(fault) for fault in prepared.rejected[:3])
    others = prepared.rows_rejected - 3
    where = f": {shown_path(rejected_file(folder))}" if folder is not None else ""
    return named + (f" · {others} more{where}" if others > 0 else "")


def _print_answers(advice: Advice) -> None:
    """What the base wrote, next to the rows' own answers, where no score measures it."""
    prompting = advice.prompting
    if prompting is None or prompting.decided_by:
        return
    from ftcli.cli.evaluate_view import side_by_side

    few_shot = f"base, {counted(prompting.shots, 'example')}"
    print_result("")
    for row in prompting.answers[:ANSWERS_SHOWN]:
        texts = {"your answer": (row.reference, ""), few_shot: (row.few_shot, "")}
        print_result(side_by_side("", row.prompt, texts))


def _advice_lines(result: PrepareResult) -> list[str]:
    """The advice, then the cost."""
    from ftcli.evaluation.advice.advice import advice_file

    sentences = result.advice.sentences
    lines = list(sentences[:SENTENCES_SHOWN])
    if (others := len(sentences) - SENTENCES_SHOWN) > 0:
        lines[-1] += f" ({others} more: {shown_path(advice_file(result.folder))})"
    if result.cost is not None:
        lines += result.cost.sentences()
    return lines


def rendered(row: tuple[Piece, ...], coloured: bool) -> str:
    """The text with labels in another colour, or in brackets."""
    if coloured:
        return "".join(f"{TRAINED if trained else OTHER}{text}{END}" for text, trained in row)
    return "".join(f"⟦{text}⟧" if trained else text for text, trained in row)
