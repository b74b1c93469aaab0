"""`ftcli compare`: `train` and `eval` for each method and learning rate, in one table.

Run folders are the cache: `train` skips finished runs, `eval` reads stored evaluations.
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
    cell_label,
    cells_of,
    measure,
    scores_of,
    split_overrides,
)
from ftcli.evaluation.compare.compare_page import draw, page
from ftcli.evaluation.general_ability import general_text
from ftcli.evaluation.statistics import MIN_ROWS, Counts, compare, holm, to_difference
from ftcli.evaluation.verdicts import join_words
from ftcli.models.architectures.find import find_architecture
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

    Raises FtcliError, also if no cell could be trained; Stopped on a signal.
    """
    loaded = load_recipe(options.recipe, split_overrides(options.overrides)[1])
    _require_held_out(loaded, options)
    with loaded.locate():
        find_architecture(loaded.recipe.model.id, loaded.recipe.model.revision)
    general_text(options.general_text)  # an unreadable file is an error before any training
    folder = _folder(loaded.output, fresh=options.fresh)
    cells = cells_of(options, folder)
    found: dict[str, MeasuredCell | FailedCell] = {}
    try:
        with RunFolder(folder).lock():
            for cell in cells:
                _require_same_recipe(cell, options)
            # Finished runs first: they show whether rows or base weights have changed since.
            for cell in sorted(cells, key=lambda cell: cell.run.state != "finished"):
                reporter.note(f"{cell.name} ({len(found) + 1} of {len(cells)})")
                _link_data(cells, cell)
                found[cell.name] = _attempt(cell, options, reporter)
            ordered = {cell.name: found[cell.name] for cell in cells}
            result = _result(loaded, options, folder, ordered)
            result.write(folder / "compare.json")
            write_text(folder / "compare.md", page(result, PICTURE))
            draw(result, folder / PICTURE)
    except Stopped as stopped:
        message = f"stopped; finished runs are kept; resume the others with: {options.again}"
        raise Stopped(message, stopped.exit_code - 128) from stopped
    return result


def _require_held_out(loaded: RecipeFile, options: CompareOptions) -> None:
    data, (file, line) = loaded.recipe.data, loaded.place("data.test")
    if data.validation == 0 and options.learning_rates:
        message = (
            "--learning-rates: the best rate is chosen by validation rows, and data.validation is "
            "0; set data.validation: 0.1"
        )
        raise UsageError("flag", message)
    if data.validation == 0 and data.test in (0, AUTO):
        message = (
            "data.validation: found 0, and no data.test; a comparison needs rows that no "
            "method is trained on: set data.test: 0.1"
        )
        raise UsageError("recipe", message, file=file, line=line)


def _folder(output: Path, *, fresh: bool) -> Path:
    """The newest of `<output>-compare`, `-compare-2` …, or the next one."""
    first = output.with_name(f"{output.name}-compare")
    there = [path for path in numbered(first) if path.exists()]
    if not there:
        return first
    return first.with_name(f"{first.name}-{len(there) + 1}") if fresh else there[-1]


def _require_same_recipe(cell: Cell, options: CompareOptions) -> None:
    """Raise FtcliError (`recipe_changed`) if the run began with another recipe.

    `train` checks this too, but its advice is for a single run.
    """
    if cell.run.state is not None:
        begun = load_recipe(cell.run.recipe).recipe
        if changed := differences(begun, cell.recipe, FREE_KEYS):
            raise _recipe_changed(cell.run.path.parent, changed, options)


def _recipe_changed(folder: Path, changed: Sequence[str], options: CompareOptions) -> FtcliError:
    return FtcliError(
        "recipe_changed",
        f"{shown_path(folder)} was started with another recipe or other flags:\n  "
        + "\n  ".join(changed)
        + f"\nchange it back to resume, or start over in a new folder:\n  {options.again} --fresh",
    )


def _link_data(cells: Sequence[Cell], cell: Cell) -> None:
    """Hard-link another run's prepared rows into a new run; `train` checks that they fit."""
    prepared = [other.run.data for other in cells if load_dataset(other.run.data) is not None]
    if not prepared or cell.run.data.exists():
        return
    try:
        shutil.copytree(prepared[0], cell.run.data, copy_function=os.link)
    except OSError:  # a file system without links
        shutil.rmtree(cell.run.data, ignore_errors=True)


def _attempt(cell: Cell, options: CompareOptions, reporter: Reporter) -> MeasuredCell | FailedCell:
    """Train and evaluate one cell; raises FtcliError for an error that all cells would have."""
    try:
        return measure(cell, options)
    except Stopped:
        raise
    except FtcliError as error:
        if error.code == "recipe_changed":  # of the rows or of the base
            changed = [line.strip() for line in error.message.splitlines() if " → " in line]
            raise _recipe_changed(cell.run.path.parent, changed, options) from error
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
    prints = list(dict.fromkeys(str(each.fingerprint) for each in finished))
    if len(prints) > 1:  # the rows changed while the cells were trained
        raise _recipe_changed(folder, [f"data: {' → '.join(prints)} (rows or tokenizer)"], options)
    # Compare with the 16-bit base if any method uses it.
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
    """Cells with their differences, the cell to take, and the cells not worse than the best."""

    cells: tuple[ComparedCell, ...]
    take: str | None
    among: tuple[str, ...]
    text: str


def decide(
    cells: Sequence[ComparedCell], losses: Mapping[str, Counts], base: Counts, seed: int
) -> Decision:
    """`losses`: cell name → summed loss and tokens of each held-out row."""
    # The best rate of a method is chosen by validation loss, not by held-out rows.
    lowest_last = sorted(cells, key=lambda cell: cell.validation_loss or 0.0, reverse=True)
    best_rates = {cell.method: cell for cell in lowest_last}.values()
    chosen = sorted(best_rates, key=lambda cell: losses[cell.name].value)
    names = [cell.name for cell in chosen]
    pairs = _pairs({BASE: base} | {name: losses[name] for name in names})
    compared = {
        cell.name: cell.model_copy(
            update={
                "chosen": True,
                "vs_base": pairs[BASE, cell.name],
                "vs_best": pairs.get((names[0], cell.name)),
            }
        )
        for cell in chosen
    }
    best, *others = compared.values()
    equal = [cell for cell in others if cell.vs_best and cell.vs_best.verdict != "worse"]
    helpful = [cell for cell in (best, *equal) if cell.vs_base and cell.vs_base.verdict == "better"]
    # Fewest trainable parameters, then least memory, then least time.
    take = min(
        helpful,
        key=lambda cell: (cell.trainable_parameters, cell.peak_memory_bytes, cell.seconds),
        default=None,
    )
    return Decision(
        tuple(compared.get(cell.name, cell) for cell in cells),
        take.name if take else None,
        tuple(cell.name for cell in (best, *equal)),
        _text(take, best, others, equal, seed),
    )


def _pairs(losses: Mapping[str, Counts]) -> dict[tuple[str, str], Difference]:
    """(first, second) in the mapping's order → the loss of the second minus that of the first."""
    pairs = combinations(losses, 2)
    compared = {(a, b): compare(losses[a], losses[b]) for a, b in pairs}
    found = {pair: each for pair, each in compared.items() if each is not None}
    # Corrected for all pairs, because the same rows show which method is best.
    significant = holm([each.p_value for each in found.values()])
    return {
        pair: to_difference(each, "lower", significant=is_significant)
        for (pair, each), is_significant in zip(found.items(), significant, strict=True)
    }


def _text(
    take: ComparedCell | None,
    best: ComparedCell,
    others: Sequence[ComparedCell],
    equal: Sequence[ComparedCell],
    seed: int,
) -> str:
    gain, loss, label = best.vs_base, f"{best.scores['loss'].value:.3f}", cell_label(best)
    assert gain is not None
    if gain.verdict == "too few rows":
        return (
            f"Take none of them yet: {gain.n} held-out rows are too few for a verdict; take at "
            f"least {MIN_ROWS} (data.test)."
        )
    if take is None:
        return (
            f"Take none of them yet: with this seed ({seed}) no method is significantly better "
            f"than the base on {gain.n} rows; the loss of the best, {label}, differs from the "
            f"base's by {_difference(gain)}. Train for longer than {_steps([best])}, or try other "
            "learning rates."
        )
    if equal:
        labels = join_words([cell_label(cell) for cell in equal])
        why = (
            f"{labels} {'is' if len(equal) == 1 else 'are'} not significantly worse than {label}, "
            f"which has the lowest held-out loss ({loss}), on {gain.n} rows; of the methods that "
            f"are better than the base, {cell_label(take)} has the fewest trainable parameters "
            f"({take.trainable_parameters:,})"
        )
    elif others:
        next_best, gap = cell_label(others[0]), _difference(others[0].vs_best)
        why = f"it has the lowest held-out loss ({loss}); the next, {next_best}, is worse by {gap}"
    else:
        why = (
            f"its held-out loss ({loss}) is better than the base's by {_difference(gain, -1)}; no "
            "other method was trained"
        )
    return (
        f"Take {cell_label(take)}: with this seed ({seed}) {why}. Measured with "
        f"{_steps([best, *others])} at these learning rates; longer training, other rates or "
        "another seed may change the order."
    )


def _difference(found: Difference | None, sign: int = 1) -> str:
    assert found is not None
    low, high = sorted(sign * end for end in found.interval)
    return f"{sign * found.value:.3f} (95% interval {low:.3f} to {high:.3f}, paired by row)"


def _steps(cells: Sequence[ComparedCell]) -> str:
    counts = {min(cell.steps for cell in cells), max(cell.steps for cell in cells)}
    return f"{' to '.join(map(str, sorted(counts)))} step{'s' if max(counts) > 1 else ''}"
