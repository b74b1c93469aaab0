"""`ftcli train` and `ftcli eval` of a cell, each in a process of its own: memory is a command's
own, and a crash ends one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import FrameType
from typing import Any

from ftcli.config.loader import dump_recipe
from ftcli.config.recipe import holds_4_bits
from ftcli.errors import FtcliError, MachineError, Stopped
from ftcli.evaluation.compare.cells import Asked, Cell
from ftcli.evaluation.scores import Counts
from ftcli.runs.atomic import write_text
from ftcli.runs.results import AnsweredRow, ComparedCell, EvalResult, Score, Side
from ftcli.runs.signals import SIGNALS
from ftcli.training.plan.plan import Plan

# What a run's start and end differ by beyond the seconds it reports, when it was not resumed.
CLOCK_SECONDS = 2.0
# A process that was stopped by one of them ends with its number, as a code or as a signal.
STOPPED = {code: number for number in SIGNALS for code in (-number, 128 + number)}


def ask(*words: str) -> dict[str, Any]:
    """What `ftcli WORDS --json` prints; raises its error as FtcliError, Stopped on a signal."""
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
    """Exit code and stdout of a command; what it says on stderr is seen as it comes.

    SIGINT and SIGTERM are handed on: the first lets the command end its step, a second ends it. The
    code is then that of a stopped command, whatever it was.
    """
    child: subprocess.Popen[str] | None = None
    seen: list[int] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        seen.append(number)
        if child is not None:
            child.send_signal(number)

    earlier = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        # -P: a module of the user's in this folder must not take another's place. A group of its
        # own, or Ctrl-C would reach the process twice.
        command = [sys.executable, "-P", "-m", "ftcli", *words]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0)
        for number in seen[:1]:  # it came while the process was made
            child.send_signal(number)
        out, _ = child.communicate()
        return (128 + seen[0] if seen else child.returncode), out
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _crashed(code: int) -> str:
    if code == -signal.SIGKILL:
        return "its process was killed (signal 9), as a system does that runs out of memory"
    if code < 0:
        return f"its process crashed (signal {-code})"
    return f"its process ended with code {code}; what it printed stands above"


@dataclass(frozen=True)
class Measured:
    """A finished cell, its evaluation, and the loss and tokens of each held-out row."""

    cell: ComparedCell
    evaluation: EvalResult
    losses: Mapping[Side, Counts]
    data: str | None
    """Fingerprint of the prepared rows."""


def measure(cell: Cell, asked: Asked) -> Measured:
    """Train and evaluate a cell, as far as that is not done; raises FtcliError, Stopped."""
    write_text(cell.file, dump_recipe(cell.recipe))
    trained = ask("train", str(cell.file))
    flags = ["--general-text", str(asked.general_text)] if asked.general_text else []
    flags += ["--limit", str(asked.limit)] if asked.limit else []
    # By its recipe, so that what an answer is scored by may change without another training.
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
        four_bit=holds_4_bits(cell.recipe.method),
        run_dir=str(cell.run.path),
        evaluation=key,
        validation_loss=trained["eval_loss"],
        scores=scores_of(evaluation, "tuned"),
        resumed=(end - start).total_seconds() > trained["seconds"] + CLOCK_SECONDS,
        **{name: trained[name] for name in of_training},
    )
    return Measured(measured, evaluation, losses, record.data)


def scores_of(evaluation: EvalResult, side: Side) -> dict[str, Score]:
    """By name, as far as this side has them."""
    found = ((row.name, row.side(side)) for row in evaluation.every_row)
    return {name: score for name, score in found if score is not None}
