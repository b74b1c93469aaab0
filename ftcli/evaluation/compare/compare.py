"""`ftcli compare`: `train` and `eval` for each method and rate, and one table of what they found.

Run folders are the cache: `train` trains no finished run again, `eval` makes no stored evaluation
again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from ftcli.config.loader import Loaded, differences, load_recipe
from ftcli.console import Reporter
from ftcli.data.prepared import load_prepared
from ftcli.errors import FtcliError, Stopped, UsageError
from ftcli.evaluation.compare.cells import Asked, Cell, cells_of, split_overrides
from ftcli.evaluation.compare.children import Measured, measure, scores_of
from ftcli.evaluation.compare.page import draw, page
from ftcli.evaluation.compare.verdict import decide
from ftcli.evaluation.general_text import general_text
from ftcli.memory.shapes import find_shape
from ftcli.runs.atomic import write_text
from ftcli.runs.folder import RunFolder, numbered
from ftcli.runs.results import ComparedBase, CompareResult, FailedCell
from ftcli.shell import shown_path
from ftcli.training.opening import FREE_KEYS

PICTURE = "compare.png"


def compare_recipe(asked: Asked, reporter: Reporter) -> CompareResult:
    """Train and evaluate what is not finished, and write the comparison into its folder.

    Raises FtcliError, also where nothing could be trained; Stopped on a signal.
    """
    loaded = load_recipe(asked.recipe, split_overrides(asked.overrides)[1])
    _require_held_out(loaded, asked)
    with loaded.blame():
        find_shape(loaded.recipe.model.id, loaded.base, loaded.recipe.model.revision)
    general_text(asked.general_text)  # one that cannot be read is an error before any training
    folder = _folder(loaded.output, fresh=asked.fresh)
    cells = cells_of(asked, folder)
    found: dict[str, Measured | FailedCell] = {}
    try:
        with RunFolder(folder).lock():
            # Changed rows or weights of the base are an error of a finished run: those come first.
            for cell in cells:
                _require_as_begun(cell, asked)
            for cell in sorted(cells, key=lambda cell: cell.run.state != "finished"):
                reporter.note(f"{cell.name} ({len(found) + 1} of {len(cells)})")
                _share_data(cells, cell)
                found[cell.name] = _attempt(cell, asked, reporter)
            ordered = {cell.name: found[cell.name] for cell in cells}
            result = _result(loaded, asked, folder, ordered)
            result.write(folder / "compare.json")
            write_text(folder / "compare.md", page(result, PICTURE))
            draw(result, folder / PICTURE)
    except Stopped as stopped:
        message = f"stopped; what is finished is kept, and the rest goes on with: {asked.again}"
        raise Stopped(message, stopped.exit_code - 128) from stopped
    return result


def _require_held_out(loaded: Loaded, asked: Asked) -> None:
    data, (file, line) = loaded.recipe.data, loaded.place("data.test")
    if data.validation == 0 and asked.learning_rates:
        message = (
            "--learning-rates: the best rate is chosen by validation rows, and data.validation is "
            "0; hold some out"
        )
        raise UsageError("flag", message)
    if data.validation == 0 and data.test == 0:
        message = (
            "data.test: found 0, and data.validation is 0 too; a comparison needs rows that no "
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


def _require_as_begun(cell: Cell, asked: Asked) -> None:
    """Raises FtcliError (`recipe_changed`) where the run was begun with another recipe: said here
    once, and not by `train`, which would advise on the run alone."""
    if cell.run.state is not None:
        begun = load_recipe(cell.run.recipe).recipe
        if changed := differences(begun, cell.recipe, FREE_KEYS):
            raise _begun_otherwise(cell.run.path.parent, changed, asked)


def _begun_otherwise(folder: Path, changed: Sequence[str], asked: Asked) -> FtcliError:
    return FtcliError(
        "recipe_changed",
        f"{shown_path(folder)} was begun with another recipe or other flags:\n  "
        + "\n  ".join(changed)
        + f"\nchange it back to go on, or start over in a new folder:\n  {asked.again} --fresh",
    )


def _share_data(cells: Sequence[Cell], cell: Cell) -> None:
    """Give a new run the rows of another as links; `train` prepares them where they do not suit."""
    there = [other.run.data for other in cells if load_prepared(other.run.data) is not None]
    if not there or cell.run.data.exists():
        return
    try:
        shutil.copytree(there[0], cell.run.data, copy_function=os.link)
    except OSError:  # a file system without links
        shutil.rmtree(cell.run.data, ignore_errors=True)


def _attempt(cell: Cell, asked: Asked, reporter: Reporter) -> Measured | FailedCell:
    """Train and evaluate one cell; raises FtcliError where the fault is that of all cells."""
    try:
        return measure(cell, asked)
    except Stopped:
        raise
    except FtcliError as error:
        if error.code == "recipe_changed":  # of the rows or of the base
            changed = [line.strip() for line in error.message.splitlines() if " → " in line]
            raise _begun_otherwise(cell.run.path.parent, changed, asked) from error
        if error.code.startswith("data_"):
            raise
        reporter.warn(f"{cell.name} failed")
        return FailedCell(name=cell.name, method=cell.method, code=error.code, reason=error.message)


def _result(
    loaded: Loaded, asked: Asked, folder: Path, found: Mapping[str, Measured | FailedCell]
) -> CompareResult:
    finished = [each for each in found.values() if isinstance(each, Measured)]
    failed = [each for each in found.values() if isinstance(each, FailedCell)]
    if not finished:
        reasons = "".join(f"\n  {cell.name}: {cell.reason}" for cell in failed)
        raise FtcliError("compare_failed", f"none of the methods could be trained:{reasons}")
    marks = list(dict.fromkeys(str(each.data) for each in finished))
    if len(marks) > 1:  # they were changed while the cells were trained
        raise _begun_otherwise(folder, [f"data: {' → '.join(marks)} (rows or tokenizer)"], asked)
    # A base in 16 bits is the one to compare with, where a method holds it so.
    first = min(finished, key=lambda each: each.cell.four_bit)
    seed, evaluation = loaded.recipe.training.seed, first.evaluation
    losses = {each.cell.name: each.losses["tuned"] for each in finished}
    decision = decide([each.cell for each in finished], losses, first.losses["base"], seed)
    cells = {cell.name: cell for cell in decision.cells}
    return CompareResult(
        folder=str(folder),
        recipe=str(loaded.path),
        model=loaded.recipe.model.id,
        steps=asked.steps,
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
