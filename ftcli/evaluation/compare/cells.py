"""The cells of a comparison: one recipe for each method and learning rate.

`ftcli train` and `ftcli eval` run each in a process of its own, so that its memory is measured and
a crash ends no other cell.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import product
from pathlib import Path
from types import FrameType
from typing import Any

from ftcli.config.loader import dump_recipe, load_recipe
from ftcli.config.recipe import METHOD_CLASSES, Recipe, has_4_bit_base
from ftcli.errors import FtcliError, MachineError, Stopped, UsageError, did_you_mean
from ftcli.evaluation.statistics import Counts
from ftcli.runs.atomic import write_text
from ftcli.runs.folder import RunFolder
from ftcli.runs.results import AnsweredRow, ComparedCell, EvalResult, Score, Side
from ftcli.runs.signals import SIGNALS
from ftcli.shell import command, set_flags
from ftcli.training.plan.plan import Plan

METHODS = tuple(METHOD_CLASSES)
# The same update on a 16-bit or a 4-bit base: both take the same keys and learning rate.
LOW_RANK = {"lora", "qlora"}
# A run that took longer than the seconds it reports, and this, was resumed.
CLOCK_SECONDS = 2.0
# Exit codes of a process that a signal stopped → the signal.
STOPPED = {code: number for number in SIGNALS for code in (-number, 128 + number)}


@dataclass(frozen=True)
class CompareOptions:
    """Flags of `ftcli compare`."""

    recipe: Path
    overrides: tuple[str, ...] = ()
    methods: tuple[str, ...] = METHODS
    learning_rates: tuple[float, ...] = ()
    steps: int | None = None
    """None: as many as the recipe says."""
    general_text: Path | None = None
    limit: int | None = None
    fresh: bool = False

    @property
    def again(self) -> str:
        """The command that resumes: without --fresh."""
        given = {
            "--methods": ",".join(self.methods) if self.methods != METHODS else None,
            "--learning-rates": ",".join(map(short_rate, self.learning_rates)),
            "--steps": self.steps,
            "--general-text": self.general_text,
            "--limit": self.limit,
        }
        flags = [word for name, value in given.items() if value for word in (name, str(value))]
        return command("compare", self.recipe, *flags, *set_flags(self.overrides))


@dataclass(frozen=True)
class Cell:
    """One run of the comparison; its recipe has absolute paths."""

    name: str
    method: str
    recipe: Recipe

    @property
    def run(self) -> RunFolder:
        return RunFolder(Path(str(self.recipe.output)))

    @property
    def file(self) -> Path:
        """Where its recipe is written, next to its run folder."""
        return self.run.path.with_name(f"{self.name}.yaml")


def require_methods(methods: Sequence[str]) -> tuple[str, ...]:
    """The named methods, each once; raises UsageError for an unknown one."""
    known = f"there is {', '.join(METHODS)}"
    for name in methods:
        if name not in METHODS:
            hint = did_you_mean(name, METHODS)
            raise UsageError("method_unknown", f"--methods: no method {name!r}{hint} ({known})")
    if not methods:
        raise UsageError("flag", f"--methods names no method; {known}")
    return tuple(dict.fromkeys(methods))


def split_overrides(overrides: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """(key, override) of `method.<key>`, and the other overrides; raises UsageError."""
    of_methods, others = [], []
    for override in overrides:
        section, *keys = override.partition("=")[0].strip().split(".")
        if section != "method":
            others.append(override)
        elif keys in ([], ["mode"]):
            raise UsageError(
                "flag",
                f"--set {override}: --methods names the methods to compare; set single keys, as "
                "method.rank=8, for every method that has them",
            )
        else:
            of_methods.append((keys[0], override))
    return of_methods, others


def cells_of(options: CompareOptions, folder: Path) -> tuple[Cell, ...]:
    """A cell for each method and rate, its run in `folder`; raises RecipeError and UsageError."""
    of_methods, others = split_overrides(options.overrides)
    own = load_recipe(options.recipe, others).recipe.method
    known = {method: METHOD_CLASSES[method].model_fields for method in options.methods}
    every = {key for fields in known.values() for key in fields}
    for key, override in of_methods:
        if key not in every:
            hint = f"(of {', '.join(known)}) has method.{key}{did_you_mean(key, every)}"
            raise UsageError("flag", f"--set {override}: no method compared {hint}")
    cells = []
    for method, rate in product(options.methods, options.learning_rates or (None,)):
        section: dict[str, object] = {"mode": method}
        flags = [] if rate is None else [f"training.learning_rate={rate!r}"]
        if method == own.mode or {method, own.mode} <= LOW_RANK:
            kept = own.model_dump(mode="json").items()
            section = {key: value for key, value in kept if key in known[method]} | section
        else:  # the recipe's learning rate is for its own method
            flags = flags or ["training.learning_rate=auto"]
        flags.append(f"method={json.dumps(section, ensure_ascii=False)}")
        flags += [override for key, override in of_methods if key in known[method]]
        cell = load_recipe(options.recipe, [*others, *flags]).recipe
        name = method if rate is None else f"{method}-{short_rate(rate)}"
        changes: dict[str, object] = {"name": f"{cell.name}-{name}", "output": str(folder / name)}
        if options.steps is not None:
            changes["training"] = cell.training.model_copy(update={"max_steps": options.steps})
        cells.append(Cell(name, method, cell.model_copy(update=changes)))
    return tuple(cells)


def ask(*words: str) -> dict[str, Any]:
    """The JSON that `ftcli WORDS --json` prints; raises its error as FtcliError, or Stopped."""
    code, out = run([*words, "--json"])
    if code in STOPPED:
        raise Stopped("stopped", STOPPED[code])
    try:
        found: dict[str, Any] = json.loads(out)
    except ValueError as error:
        raise MachineError("crashed", _crashed(code)) from error
    if "error" in found:
        raise FtcliError(found["error"]["code"], found["error"]["message"])
    return found


def run(words: Sequence[str]) -> tuple[int, str]:
    """Exit code and stdout of a command; its stderr is shown immediately.

    SIGINT and SIGTERM are passed on: the first lets the command finish its step, a second ends it.
    The code is then that of a stopped command.
    """
    child: subprocess.Popen[str] | None = None
    seen: list[int] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        seen.append(number)
        if child is not None:
            child.send_signal(number)

    earlier = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        # -P: modules in the user's folder must not shadow libraries. A process group of its own,
        # or Ctrl-C would reach the process twice.
        command = [sys.executable, "-P", "-m", "ftcli", *words]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0)
        for number in seen[:1]:  # it came while the process was started
            child.send_signal(number)
        out, _ = child.communicate()
        return (128 + seen[0] if seen else child.returncode), out
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _crashed(code: int) -> str:
    if code == -signal.SIGKILL:
        return "its process was killed (signal 9): the system may have run out of memory"
    if code < 0:
        return f"its process crashed (signal {-code})"
    return f"its process ended with code {code}; its output is above"


@dataclass(frozen=True)
class MeasuredCell:
    """A finished cell, its evaluation, and the loss and tokens of each held-out row."""

    cell: ComparedCell
    evaluation: EvalResult
    losses: Mapping[Side, Counts]
    fingerprint: str | None
    """Of the prepared rows."""


def measure(cell: Cell, options: CompareOptions) -> MeasuredCell:
    """Train and evaluate a cell unless that is done; raises FtcliError or Stopped."""
    write_text(cell.file, dump_recipe(cell.recipe))
    trained = ask("train", str(cell.file))
    flags = ["--general-text", str(options.general_text)] if options.general_text else []
    flags += ["--limit", str(options.limit)] if options.limit else []
    # By its recipe, so that `eval:` may change without another training.
    key = ask("eval", str(cell.file), *flags)["key"]
    evaluation, record = EvalResult.read(cell.run.evaluation(key)), cell.run.record()
    lines = (cell.run.evaluations / evaluation.answers).read_bytes().splitlines()
    rows = [AnsweredRow.model_validate_json(line).sides for line in lines]
    sides: tuple[Side, ...] = ("base", "tuned")
    losses = {
        side: Counts(
            tuple(row[side].loss for row in rows),
            tuple(float(row[side].loss_tokens) for row in rows),
        )
        for side in sides
    }
    start, end = (datetime.fromisoformat(at or "") for at in (record.started, record.finished))
    of_training = trained.keys() & ComparedCell.model_fields.keys() - {"state", "run_dir"}
    measured = ComparedCell(
        name=cell.name,
        method=cell.method,
        learning_rate=Plan.read(cell.run.plan).training.learning_rate,
        four_bit=has_4_bit_base(cell.recipe.method),
        run_dir=str(cell.run.path),
        evaluation=key,
        validation_loss=trained["eval_loss"],
        scores=scores_of(evaluation, "tuned"),
        resumed=(end - start).total_seconds() > trained["seconds"] + CLOCK_SECONDS,
        **{name: trained[name] for name in of_training},
    )
    return MeasuredCell(measured, evaluation, losses, record.data)


def scores_of(evaluation: EvalResult, side: Side) -> dict[str, Score]:
    """This side's scores by name."""
    found = ((row.name, row.side(side)) for row in evaluation.every_row)
    return {name: score for name, score in found if score is not None}


def cell_label(cell: ComparedCell) -> str:
    """`lora at 2e-4`."""
    return f"{cell.method} at {short_rate(cell.learning_rate)}"


def short_rate(rate: float) -> str:
    """`2e-4`: short, for names of folders and for tables."""
    mantissa, _, exponent = f"{rate:e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
