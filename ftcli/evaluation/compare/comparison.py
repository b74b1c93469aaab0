"""`ftcli compare`: `train` and `eval` for each method and rate, and one table of what they found.

Run folders are the cache: `train` trains no finished run again, `eval` makes no stored evaluation
again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from ftcli.config.data import AUTO
from ftcli.config.loader import RecipeFile, differences, load_recipe
from ftcli.console import Reporter
from ftcli.data.dataset import load_dataset
from ftcli.errors import FtcliError, Stopped, UsageError
from ftcli.evaluation.compare.cells import (
    Cell,
    CompareOptions,
    MeasuredCell,
    cells_of,
    measure,
    named,
    scores_of,
    split_overrides,
)
from ftcli.evaluation.compare.compare_page import draw, page
from ftcli.evaluation.general_ability import general_text
from ftcli.evaluation.statistics import MIN_ROWS, Counts, compare, holm, to_difference
from ftcli.evaluation.verdicts import listed
from ftcli.memory.shapes import find_shape
from ftcli.runs.atomic import write_text
from ftcli.runs.folder import RunFolder, numbered
from ftcli.runs.results import (
    ComparedBase,
    ComparedCell,
    CompareResult,
    Difference,
    FailedCell,
)
from ftcli.shell import shown_path, shown_source
from ftcli.training.opening import FREE_KEYS

PICTURE = "compare.png"
BASE = ""


def compare_recipe(options: CompareOptions, reporter: Reporter) -> CompareResult:
    """Train and evaluate what is not finished, and write the comparison into its folder.

    Raises FtcliError, also where nothing could be trained; Stopped on a signal.
    """
    loaded = load_recipe(options.recipe, split_overrides(options.overrides)[1])
    _require_held_out(loaded, options)
    with loaded.locate():
        find_shape(loaded.recipe.model.id, loaded.recipe.model.revision)
    general_text(options.general_text)  # one that cannot be read is an error before any training
    folder = _folder(loaded.output, fresh=options.fresh)
    cells = cells_of(options, folder)
    found: dict[str, MeasuredCell | FailedCell] = {}
    try:
        with RunFolder(folder).lock():
            # Changed rows or weights of the base are an error of a finished run: those come first.
            for cell in cells:
                _require_as_begun(cell, options)
            for cell in sorted(cells, key=lambda cell: cell.run.state != "finished"):
                reporter.note(f"{cell.name} ({len(found) + 1} of {len(cells)})")
                _share_data(cells, cell)
                found[cell.name] = _attempt(cell, options, reporter)
            ordered = {cell.name: found[cell.name] for cell in cells}
            result = _result(loaded, options, folder, ordered)
            result.write(folder / "compare.json")
            write_text(folder / "compare.md", page(result, PICTURE))
            draw(result, folder / PICTURE)
    except Stopped as stopped:
        message = f"stopped; what is finished is kept, and the rest goes on with: {options.again}"
        raise Stopped(message, stopped.exit_code - 128) from stopped
    return result


def _require_held_out(loaded: RecipeFile, options: CompareOptions) -> None:
    data, (file, line) = loaded.recipe.data, loaded.place("data.test")
    if data.validation == 0 and options.learning_rates:
        message = (
            "--learning-rates: the best rate is chosen by validation rows, and data.validation is "
            "0; hold some out"
        )
        raise UsageError("flag", message)
    if data.validation == 0 and data.test in (0, AUTO):
        message = (
            "data.validation: found 0, and no data.test; a comparison needs rows that no "
            "method is trained on: hold some out (data.test: 0.1)"
        )
        raise UsageError("recipe", message, file=file, line=line)


def _folder(output: Path, *, fresh: bool) -> Path:
    """The newest of `<output>-compare`, `-compare-2` …, or the next one."""
    first = output.with_name(f"{output.name}-compare")
    there = [path for path in numbered(first) if path.exists()]
    if not there:
        return first
    return first.with_name(f"{first.name}-{len(there) + 1}") if fresh else there[-1]


def _require_as_begun(cell: Cell, options: CompareOptions) -> None:
    """Raises FtcliError (`recipe_changed`) where the run began with another recipe: `train` would
    advise on this run alone."""
    if cell.run.state is not None:
        begun = load_recipe(cell.run.recipe).recipe
        if changed := differences(begun, cell.recipe, FREE_KEYS):
            raise _begun_otherwise(cell.run.path.parent, changed, options)


def _begun_otherwise(folder: Path, changed: Sequence[str], options: CompareOptions) -> FtcliError:
    return FtcliError(
        "recipe_changed",
        f"{shown_path(folder)} was begun with another recipe or other flags:\n  "
        + "\n  ".join(changed)
        + f"\nchange it back to go on, or start over in a new folder:\n  {options.again} --fresh",
    )


def _share_data(cells: Sequence[Cell], cell: Cell) -> None:
    """Give a new run the rows of another as links; `train` prepares them where they do not suit."""
    there = [other.run.data for other in cells if load_dataset(other.run.data) is not None]
    if not there or cell.run.data.exists():
        return
    try:
        shutil.copytree(there[0], cell.run.data, copy_function=os.link)
    except OSError:  # a file system without links
        shutil.rmtree(cell.run.data, ignore_errors=True)


def _attempt(cell: Cell, options: CompareOptions, reporter: Reporter) -> MeasuredCell | FailedCell:
    """Train and evaluate one cell; raises FtcliError where the fault is that of all cells."""
    try:
        return measure(cell, options)
    except Stopped:
        raise
    except FtcliError as error:
        if error.code == "recipe_changed":  # of the rows or of the base
            changed = [line.strip() for line in error.message.splitlines() if " → " in line]
            raise _begun_otherwise(cell.run.path.parent, changed, options) from error
        if error.code.startswith("data_"):
            raise
        reporter.warn(f"{cell.name} failed")
        return FailedCell(name=cell.name, method=cell.method, code=error.code, reason=error.message)


def _result(
    loaded: RecipeFile,
    options: CompareOptions,
    folder: Path,
    found: Mapping[str, MeasuredCell | FailedCell],
) -> CompareResult:
    finished = [each for each in found.values() if isinstance(each, MeasuredCell)]
    failed = [each for each in found.values() if isinstance(each, FailedCell)]
    if not finished:
        reasons = "".join(f"\n  {cell.name}: {cell.reason}" for cell in failed)
        raise FtcliError("compare_failed", f"none of the methods could be trained:{reasons}")
    marks = list(dict.fromkeys(str(each.data) for each in finished))
    if len(marks) > 1:  # they were changed while the cells were trained
        raise _begun_otherwise(folder, [f"data: {' → '.join(marks)} (rows or tokenizer)"], options)
    # A base in 16 bits is the one to compare with, where a method holds it so.
    first = min(finished, key=lambda each: each.cell.four_bit)
    seed, evaluation = loaded.recipe.training.seed, first.evaluation
    losses = {each.cell.name: each.losses["tuned"] for each in finished}
    decision = decide([each.cell for each in finished], losses, first.losses["base"], seed)
    cells = {cell.name: cell for cell in decision.cells}
    return CompareResult(
        run_dir=str(folder),
        recipe=str(loaded.path),
        model=shown_source(loaded.recipe.model.id),
        steps=options.steps,
        seed=seed,
        data=evaluation.data,
        rows=evaluation.rows,
        general_text=evaluation.general_text,
        base=ComparedBase(four_bit=first.cell.four_bit, scores=scores_of(evaluation, "base")),
        cells=tuple(cells.get(name, each) for name, each in found.items()),
        take=decision.take,
        among=decision.among,
        verdict=decision.text,
    )


@dataclass(frozen=True)
class Decision:
    """Cells with their differences; which to take, and those that are as good; a sentence."""

    cells: tuple[ComparedCell, ...]
    take: str | None
    among: tuple[str, ...]
    text: str


def decide(
    cells: Sequence[ComparedCell], losses: Mapping[str, Counts], base: Counts, seed: int
) -> Decision:
    """`losses`: of each cell's name the summed loss and the tokens of each held-out row."""
    # Of each method the rate with the lowest validation loss: the held-out rows choose none.
    lowest_last = sorted(cells, key=lambda cell: cell.validation_loss or 0.0, reverse=True)
    best_rates = {cell.method: cell for cell in lowest_last}.values()
    chosen = sorted(best_rates, key=lambda cell: losses[cell.name].value)
    names = [cell.name for cell in chosen]
    pairs = _pairs({BASE: base} | {name: losses[name] for name in names})
    judged = {
        cell.name: cell.model_copy(
            update={
                "chosen": True,
                "vs_base": pairs[BASE, cell.name],
                "vs_best": pairs.get((names[0], cell.name)),
            }
        )
        for cell in chosen
    }
    best, *others = judged.values()
    equal = [cell for cell in others if cell.vs_best and cell.vs_best.verdict != "worse"]
    helpful = [cell for cell in (best, *equal) if cell.vs_base and cell.vs_base.verdict == "better"]
    # Few trained weights, then little memory, then little time.
    take = min(
        helpful,
        key=lambda cell: (cell.trainable_parameters, cell.peak_memory_bytes, cell.seconds),
        default=None,
    )
    return Decision(
        tuple(judged.get(cell.name, cell) for cell in cells),
        take.name if take else None,
        tuple(cell.name for cell in (best, *equal)),
        _text(take, best, others, equal, seed),
    )


def _pairs(losses: Mapping[str, Counts]) -> dict[tuple[str, str], Difference]:
    """(first, second) in the mapping's order → the loss of the second less that of the first."""
    pairs = combinations(losses, 2)
    compared = {(a, b): compare(losses[a], losses[b]) for a, b in pairs}
    found = {pair: each for pair, each in compared.items() if each is not None}
    # Of all pairs, since which of them is the best is seen on the same rows.
    significant = holm([each.p_value for each in found.values()])
    return {
        pair: to_difference(each, "lower", significant=holds)
        for (pair, each), holds in zip(found.items(), significant, strict=True)
    }


def _text(
    take: ComparedCell | None,
    best: ComparedCell,
    others: Sequence[ComparedCell],
    equal: Sequence[ComparedCell],
    seed: int,
) -> str:
    gain, loss = best.vs_base, f"{best.scores['loss'].value:.3f}"
    assert gain is not None
    if gain.verdict == "too few rows":
        return (
            f"Take none of them yet: {gain.n} held-out rows are too few for a verdict; hold out at "
            f"least {MIN_ROWS} (data.test)."
        )
    if take is None:
        return (
            f"Take none of them yet: with this seed ({seed}) no method is significantly better "
            f"than the base on {gain.n} rows; the loss of the best, {named(best)}, differs from "
            f"the base's by {_shown(gain)}. Train for longer than {_steps([best])}, or try other "
            "learning rates."
        )
    if equal:
        why = (
            f"{listed([named(cell) for cell in equal])} {'is' if len(equal) == 1 else 'are'} not "
            f"significantly worse than {named(best)}, which has the lowest held-out loss "
            f"({loss}), on {gain.n} rows; of those that are better than the base, {named(take)} "
            f"is the lightest ({take.trainable_parameters:,} trainable parameters)"
        )
    else:
        than = f"the base's, by {_shown(gain, -1)}; no other method was trained"
        if others:
            next_best, gap = named(others[0]), _shown(others[0].vs_best)
            than = f"that of every other method; that of {next_best}, the next, is worse by {gap}"
        why = f"its held-out loss of {loss} is better than {than}"
    return (
        f"Take {named(take)}: with this seed ({seed}) {why}. This holds for "
        f"{_steps([best, *others])} at these learning rates; a longer training, other rates or "
        "another seed may order them otherwise."
    )


def _shown(found: Difference | None, sign: int = 1) -> str:
    assert found is not None
    low, high = sorted(sign * end for end in found.interval)
    return f"{sign * found.value:.3f} (95% interval {low:.3f} to {high:.3f}, row by row)"


def _steps(cells: Sequence[ComparedCell]) -> str:
    counts = {min(cell.steps for cell in cells), max(cell.steps for cell in cells)}
    return f"{' to '.join(map(str, sorted(counts)))} step{'s' if max(counts) > 1 else ''}"
