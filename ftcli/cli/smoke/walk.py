"""The legs of a rehearsal: told one by one, and named where one of them fails."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, get_args

from ftcli.console import Meter, Reporter
from ftcli.errors import FtcliError, MachineError, Stopped
from ftcli.runs.atomic import is_full
from ftcli.runs.signals import StopSignals

Name = Literal[
    "look",
    "prepare",
    "plan",
    "twin",
    "longest batch",
    "train",
    "resume",
    "eval",
    "merge",
    "generate",
]
# Begins the name of a rehearsal's own folder.
TEMPORARY = ".tmp-rehearsal-"
LEGS: tuple[Name, ...] = get_args(Name)


@dataclass(frozen=True)
class Leg:
    """One part of the way: how long it took, and what was found."""

    name: Name
    seconds: float
    detail: str


class RehearsalError(FtcliError):
    """What the real command would have said, and in which leg."""

    def __init__(self, leg: Name, error: FtcliError) -> None:
        super().__init__(error.code, error.message, file=error.file, line=error.line)
        self.exit_code = error.exit_code
        first, *others = str(error).splitlines() or [""]
        # What can be gone on with is gone by then.
        told = [first, *(line for line in others if TEMPORARY not in line)]
        self._text = f"rehearsal, {leg}: " + "\n".join(told)

    def __str__(self) -> str:
        return self._text


@dataclass
class Walk:
    """The legs behind us, and by that the one under way."""

    reporter: Reporter
    legs: list[Leg] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    @property
    def under_way(self) -> Name:
        return LEGS[min(len(self.legs), len(LEGS) - 1)]

    def passed(self, name: Name, detail: str) -> None:
        """The leg is done, and the next one begins."""
        now = time.monotonic()
        leg = Leg(name, now - self.started, detail)
        self.legs.append(leg)
        self.started = now
        place = f"rehearsal {len(self.legs):>2}/{len(LEGS)}"
        self.reporter.note(f"{place}  {leg.name:<13}  {detail} ({leg.seconds:.1f} s)")

    @contextmanager
    def named(self) -> Iterator[None]:
        """Say in an error which leg it has ended."""
        try:
            yield
        except Stopped:
            raise
        except FtcliError as error:
            raise RehearsalError(self.under_way, error) from error
        except OSError as error:
            raise RehearsalError(self.under_way, _of_the_system(error)) from error
        except Exception as error:
            if is_full(error):
                raise RehearsalError(self.under_way, _full()) from error
            error.add_note(f"(in a rehearsal, {self.under_way})")
            raise


def _full() -> FtcliError:
    return MachineError("disk_full", "the disk is full: make room, or name another one in output")


def _of_the_system(error: OSError) -> FtcliError:
    if is_full(error):
        return _full()
    message = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
    return FtcliError("disk", message)


@contextmanager
def stoppable(reporter: Reporter) -> Iterator[None]:
    """Let a signal end the block wherever it stands; raises Stopped."""
    signals = StopSignals(reporter.note)
    try:
        with signals.caught():
            yield
    except (KeyboardInterrupt, Stopped) as error:
        number = signals.number or getattr(error, "exit_code", 128 + signal.SIGINT) - 128
        raise Stopped(
            "rehearsal stopped; of it no more than the prepared data stays", number
        ) from error


def _unseen(done: int) -> None:
    """Nobody looks at a count."""


@dataclass(frozen=True)
class Quiet:
    """Of what the twin's commands say, only warnings are for the user."""

    reporter: Reporter
    stepped: Callable[[int], None] = _unseen
    """Hears of each step of a training."""

    def note(self, text: str) -> None:
        """Nobody reads it."""

    def warn(self, text: str) -> None:
        self.reporter.warn(text)

    @contextmanager
    def meter(self, label: str, total: int) -> Iterator[Meter]:
        yield _Count(self.stepped if label == "step" else _unseen)


@dataclass(frozen=True)
class _Count:
    moved: Callable[[int], None]

    def update(self, done: int, figures: str = "") -> None:
        self.moved(done)


@dataclass(frozen=True)
class StoppingUser:
    """Sees when the first step of a training is done, and stops it behind a later one."""

    walk: Walk
    first_step: str
    stops_at: int

    def __call__(self, done: int) -> None:
        if done == 1:
            self.walk.passed("longest batch", self.first_step)
        # After a real signal the next one would end the program at once.
        waiting = signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        if done == self.stops_at and waiting:
            signal.raise_signal(signal.SIGTERM)
