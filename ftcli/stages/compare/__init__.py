"""`ftcli compare`: the same rows, seed, evaluation and budget for several methods, in one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ftcli.artifacts import RunFolder, numbered
from ftcli.commands import command, set_flags
from ftcli.console import Reporter
from ftcli.disk import write_json, write_text
from ftcli.errors import FtcliError, Stopped, UsageError
from ftcli.loading import Loaded, load_recipe
from ftcli.metrics.general_text import GeneralText, general_text
from ftcli.shapes import find_shape
from ftcli.stages.compare.cells import (
    METHODS,
    Asked,
    cells_of,
    require_methods,
    short_rate,
    split_overrides,
)
from ftcli.stages.compare.page import page
from ftcli.stages.compare.picture import draw
from ftcli.stages.compare.process import Worker
from ftcli.stages.compare.record import CellRecord, FailedCell
from ftcli.stages.compare.result import Budget, Comparison
from ftcli.stages.compare.running import Outcome, Setting, run_cells
from ftcli.stages.compare.verdict import judge

__all__ = ["METHODS", "Asked", "Comparison", "compare_recipe"]


def compare_recipe(
    recipe: Path, overrides: Sequence[str], asked: Asked, reporter: Reporter
) -> Comparison:
    """Train and evaluate what is not finished, and write the comparison into its folder.

    Raises FtcliError: where nothing could be trained, too; Stopped on a signal.
    """
    asked = replace(asked, methods=require_methods(asked.methods))
    of_methods, others = split_overrides(overrides)
    loaded = load_recipe(recipe, others)
    _require_held_out(loaded, asked)
    with loaded.blame():
        find_shape(loaded.recipe.model.id, loaded.base, loaded.recipe.model.revision)
    text = general_text(asked.general_text)
    folder = comparison_folder(loaded.output, fresh=asked.fresh)
    cells = cells_of(loaded, asked, of_methods, folder)
    worker = Worker(one_process=asked.one_process, reporter=reporter)
    again = _command(recipe, overrides, asked)
    setting = Setting(loaded, asked, folder, text, worker, reporter, again)
    try:
        with RunFolder(folder).lock(), worker.signals():
            found = _comparison(setting, run_cells(setting, cells))
    except Stopped as stopped:
        raise Stopped(
            f"stopped; what is finished is kept, and the rest goes on with: {again}",
            stopped.exit_code - 128,
        ) from stopped
    return found


def comparison_folder(output: Path, *, fresh: bool) -> Path:
    """The newest of `<output>-compare`, `-compare-2` …, or the next one."""
    first = output.with_name(f"{output.name}-compare")
    there = [path for path in numbered(first) if path.exists()]
    if not there:
        return first
    return first.with_name(f"{first.name}-{len(there) + 1}") if fresh else there[-1]


def _require_held_out(loaded: Loaded, asked: Asked) -> None:
    data = loaded.recipe.data
    if data.validation == 0 and asked.learning_rates:
        raise UsageError(
            "flag",
            "--learning-rates: the best rate is chosen by validation rows, and data.validation is "
            "0; hold some out",
        )
    if data.validation == 0 and data.test == 0:
        file, line = loaded.place("data.test")
        raise UsageError(
            "recipe",
            "data.test: found 0, and data.validation is 0 too; a comparison needs rows that no "
            "method is trained on: hold some out (data.test: 0.1)",
            file=file,
            line=line,
        )


def _comparison(setting: Setting, outcome: Outcome) -> Comparison:
    """Scorer and write; raises FtcliError where there is nothing to judge."""
    finished = [cell for cell in outcome.cells if isinstance(cell, CellRecord)]
    if not finished:
        raise FtcliError("compare_failed", _nothing(outcome))
    recipe = setting.loaded.recipe
    found = Comparison(
        folder=setting.folder,
        recipe=setting.loaded.path,
        model=recipe.model.id,
        budget=_budget(setting.asked),
        seed=recipe.training.seed,
        general_text=_text_in_words(setting.text),
        base=outcome.base,
        cells=outcome.cells,
        kept=outcome.kept,
        verdict=judge(finished, outcome.base),
    )
    write_json(setting.folder / "compare.json", found.as_json())
    draw(found, found.picture)
    write_text(setting.folder / "compare.md", page(found))
    return found


def _nothing(outcome: Outcome) -> str:
    failed = [cell for cell in outcome.cells if isinstance(cell, FailedCell)]
    reasons = "\n  ".join(f"{cell.name}: {cell.reason}" for cell in failed)
    return f"none of the methods could be trained:\n  {reasons}"


def _budget(asked: Asked) -> Budget:
    if asked.steps is not None:
        return Budget("steps", asked.steps)
    if asked.seconds is not None:
        return Budget("seconds", asked.seconds)
    return Budget("recipe", None)


def _text_in_words(text: GeneralText) -> str:
    count, words = len(text.passages), sum(len(passage.split()) for passage in text.passages)
    passages = "1 passage" if count == 1 else f"{count} passages"
    return f"{text.name}, {passages}, {words:,} words"


def _command(recipe: Path, overrides: Sequence[str], asked: Asked) -> str:
    """The command that goes on; --fresh would not."""
    words = ["--methods", ",".join(asked.methods)] if asked.methods != METHODS else []
    rates = ",".join(short_rate(rate) for rate in asked.learning_rates)
    given = {
        "--learning-rates": rates or None,
        "--steps": asked.steps,
        "--seconds": f"{asked.seconds:g}" if asked.seconds is not None else None,
        "--general-text": asked.general_text,
        "--limit": asked.limit,
    }
    for flag, value in given.items():
        words += [flag, str(value)] if value is not None else []
    words += ["--one-process"] if asked.one_process else []
    return command("compare", recipe, *words, *set_flags(overrides))
