"""Run the cells of a comparison one after the other, on the same rows, keeping what is finished."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftcli.console import Reporter, shown_path
from ftcli.disk import write_json, write_text
from ftcli.errors import FtcliError, Stopped
from ftcli.loading import Loaded, differences, dump_recipe, load_recipe
from ftcli.metrics.general_text import GeneralText
from ftcli.shapes import model_source
from ftcli.stages.compare.cells import Asked, Cell, by_method
from ftcli.stages.compare.process import Worker
from ftcli.stages.compare.record import (
    BASE_FILE,
    CELL_FILE,
    WEIGHTLESS_KEYS,
    BaseRecord,
    CellRecord,
    FailedCell,
    Side,
    base_mark,
    cell_mark,
    parsed,
    read_base,
    read_cell,
    save_record,
    speed_mark,
)
from ftcli.stages.compare.work import Kind, Task
from ftcli.weights import base_fingerprint

BUDGET_FILE = "budget.json"
# These are evaluated by anew, without another training.
SCORING_KEYS = {"generation", "eval"}


@dataclass(frozen=True)
class Setting:
    """What all cells share."""

    loaded: Loaded
    asked: Asked
    folder: Path
    text: GeneralText
    worker: Worker
    reporter: Reporter
    command: str
    """The one that goes on."""

    def work(
        self, kind: Kind, cell: Cell, *, with_base: bool = False, runs: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Write the cell's recipe, and do a piece of work on it (or on these runs)."""
        write_text(cell.file, dump_recipe(cell.recipe))
        text = self.asked.general_text
        task = Task(
            kind,
            recipe=str(cell.file),
            folder=str(self.folder),
            general_text=str(text.absolute()) if text else None,
            limit=self.asked.limit,
            with_base=with_base,
            runs=runs,
        )
        return self.worker.run(task)


@dataclass(frozen=True)
class Outcome:
    """Cells in the order asked for."""

    base: BaseRecord | None
    cells: tuple[CellRecord | FailedCell, ...]
    kept: tuple[str, ...]


def run_cells(setting: Setting, cells: Sequence[Cell]) -> Outcome:
    """Prepare the rows once, settle the steps, and run every cell that is not finished.

    Raises FtcliError where the data cannot be used or the comparison was begun with another recipe,
    Stopped on a signal; what is wrong with one cell is part of the outcome.
    """
    timed = {"training.max_steps"} if setting.asked.seconds is not None else set()
    _require_unchanged(setting, cells, timed)
    with setting.loaded.blame():
        data: str = setting.work("prepare", cells[0])["fingerprint"]
    _require_same_start(setting, cells, data)
    planned = _with_steps(setting, cells, data)
    return _Round(setting, data, [cell for cell in planned if isinstance(cell, Cell)]).run(planned)


def _require_unchanged(setting: Setting, cells: Sequence[Cell], ignored: set[str]) -> None:
    """A comparison goes on only with what it began with."""
    changed: dict[str, None] = {}
    for cell in cells:
        if cell.run.read_manifest():
            earlier = load_recipe(cell.run.recipe).recipe
            free = WEIGHTLESS_KEYS | SCORING_KEYS | ignored
            changed |= dict.fromkeys(differences(earlier, cell.recipe, free))
    if changed:
        raise _begun_otherwise(setting, list(changed))


def _require_same_start(setting: Setting, cells: Sequence[Cell], data: str) -> None:
    """Rows and base are those of the cells that have begun, finished ones too."""
    model = cells[0].recipe.model
    base = base_fingerprint(model_source(model.id, setting.loaded.base), model.revision)
    changed: dict[str, None] = {}
    for run in (cell.run for cell in cells):
        rows = run.read_manifest().get("data", data)
        if rows != data:
            changed[f"data: {rows} → {data} (rows or tokenizer)"] = None
        kept = run.base_fingerprint() if run.contract.is_file() else None
        if base is not None and kept not in (None, base):
            changed[f"model.id: {kept} → {base} (weights of {model.id})"] = None
    if changed:
        raise _begun_otherwise(setting, list(changed))


def _begun_otherwise(setting: Setting, changed: Sequence[str]) -> FtcliError:
    return FtcliError(
        "recipe_changed",
        f"{shown_path(setting.folder)} was begun with another recipe or other flags:\n  "
        + "\n  ".join(changed)
        + f"\nchange it back to go on, or start over beside it:\n  {setting.command} --fresh",
    )


def _with_steps(setting: Setting, cells: Sequence[Cell], data: str) -> list[Cell | FailedCell]:
    """Under --seconds each method gets the steps that fit; all its rates get the same."""
    if setting.asked.seconds is None:
        return list(cells)
    planned: list[Cell | FailedCell] = []
    for method, group in by_method(cells):
        try:
            steps = _steps(setting, method, group, data)
            planned += [cell.lasting(steps) for cell in group]
        except Stopped:
            raise
        except FtcliError as error:
            if error.code == "recipe_changed":
                raise
            planned += [_failed(setting, cell, error) for cell in group]
    return planned


def _steps(setting: Setting, method: str, group: Sequence[Cell], data: str) -> int:
    """Steps that fit into the seconds, timed once and kept for a comparison that goes on."""
    seconds, file = setting.asked.seconds, setting.folder / BUDGET_FILE
    assert seconds is not None
    budgets = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    key = f"{method}, {seconds:g} s"
    mark = speed_mark(group[0], data)
    found = budgets.get(key, {})
    if found.get("mark") == mark:
        return int(found["steps"])
    for run in (cell.run for cell in group if cell.run.read_manifest()):
        steps = load_recipe(run.recipe).recipe.training.max_steps
        change = f"training.max_steps: {steps} → what fits into {seconds:g} s ({method})"
        raise _begun_otherwise(setting, [change])
    setting.reporter.note(f"{method}: how many steps fit into {seconds:g} s")
    step_seconds = setting.work("time", group[0])["step_seconds"]
    steps = max(1, int(seconds / step_seconds))
    setting.reporter.note(f"{method}: {steps} steps of {step_seconds:.2f} s")
    budgets[key] = {"mark": mark, "step_seconds": step_seconds, "steps": steps}
    write_json(file, budgets)
    return steps


def _failed(setting: Setting, cell: Cell, error: FtcliError) -> FailedCell:
    setting.reporter.warn(f"{cell.name}: {error}")
    asked = cell.recipe.training.learning_rate
    rate = None if asked == "auto" else asked
    return FailedCell(cell.name, cell.method, rate, error.code, error.message)


@dataclass(frozen=True)
class _Round:
    """Every cell once; the base is measured beside the first cell that holds it as most do."""

    setting: Setting
    data: str
    trainable: Sequence[Cell]

    def run(self, planned: Sequence[Cell | FailedCell]) -> Outcome:
        self._require_as_trained()
        base = self._known_base()
        cells: list[CellRecord | FailedCell] = []
        kept: list[str] = []
        for number, cell in enumerate(planned, start=1):
            if isinstance(cell, FailedCell):
                cells.append(cell)
                continue
            record = read_cell(cell, self._mark(cell))
            if record is not None:
                self.setting.reporter.note(f"{cell.name}: finished before")
                kept.append(cell.name)
                cells.append(record)
                continue
            self.setting.reporter.note(f"{cell.name} ({number} of {len(planned)})")
            found, beside = self._attempt(cell, with_base=base is None and self._shows_base(cell))
            base = base or beside
            cells.append(found)
        return Outcome(base or self._late_base(cells), tuple(cells), tuple(kept))

    def _require_as_trained(self) -> None:
        """Figures of a run that is another by now are not shown again; raises FtcliError."""
        kept = [cell for cell in self.trainable if read_cell(cell, self._mark(cell)) is not None]
        if kept:
            self.setting.work("prove", kept[0], runs=[str(cell.run.path) for cell in kept])

    def _attempt(
        self, cell: Cell, *, with_base: bool
    ) -> tuple[CellRecord | FailedCell, BaseRecord | None]:
        try:
            found = self.setting.work("cell", cell, with_base=with_base)
        except Stopped:
            raise
        except FtcliError as error:
            return _failed(self.setting, cell, error), None
        base = self._keep_base(cell, found.pop("base", None))
        known = {
            "mark": self._mark(cell),
            "name": cell.name,
            "method": cell.method,
            "four_bit": cell.four_bit,
            "one_process": self.setting.asked.one_process,
        }
        record = parsed({**found, **known}, CellRecord)
        save_record(record, cell.run.path / CELL_FILE)
        return record, base

    def _keep_base(self, cell: Cell, found: object) -> BaseRecord | None:
        if found is None:
            return None
        base = BaseRecord(self._base_mark(), cell.four_bit, parsed(found, Side))
        save_record(base, self.setting.folder / BASE_FILE)
        return base

    def _late_base(self, cells: Sequence[CellRecord | FailedCell]) -> BaseRecord | None:
        """The base beside a cell that is finished: its own cell failed, or it was deleted."""
        finished = {cell.name for cell in cells if isinstance(cell, CellRecord)}
        there = sorted(
            (cell for cell in self.trainable if cell.name in finished), key=lambda c: c.four_bit
        )
        if not there:
            return None
        self.setting.reporter.note("base")
        return self._attempt(there[0], with_base=True)[1]

    def _shows_base(self, cell: Cell) -> bool:
        """A base in 16 bits is the one to compare with, where some method holds it so."""
        return not cell.four_bit or self._all_four_bit

    @property
    def _all_four_bit(self) -> bool:
        return all(cell.four_bit for cell in self.trainable)

    def _known_base(self) -> BaseRecord | None:
        if not self.trainable:
            return None
        return read_base(self.setting.folder, self._base_mark(), four_bit=self._all_four_bit)

    def _mark(self, cell: Cell) -> str:
        return cell_mark(cell, self.data, self.setting.text.digest, self.setting.asked.limit)

    def _base_mark(self) -> str:
        first, text = self.trainable[0], self.setting.text.digest
        return base_mark(first, self.data, text, self.setting.asked.limit)
