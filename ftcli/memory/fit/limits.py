"""The largest size that fits a GPU, and memory by size; all else stays the same."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, assert_never, get_args

from ftcli.errors import UsageError, did_you_mean
from ftcli.memory import Choices, Estimate
from ftcli.memory.architecture import Architecture
from ftcli.memory.fit.search import estimate_on, fits
from ftcli.memory.hardware import Hardware

Size = Literal["max-length", "micro-batch", "rank"]
SIZES: tuple[Size, ...] = get_args(Size)

# No known model has a context of a million tokens, and no GPU fits a million rows.
MOST = 2**20


@dataclass(frozen=True)
class Limit:
    """The largest value that fits, with its estimate; None: not even 1 does."""

    size: Size
    value: int | None
    estimate: Estimate | None
    choices: Choices
    """With them."""


@dataclass(frozen=True)
class SweepRow:
    """One value, and what it takes."""

    value: int
    estimate: Estimate
    fits: bool | None
    """By the upper bound of the interval; None without a GPU."""


@dataclass(frozen=True)
class Sweep:
    """How memory grows with one size."""

    size: Size
    rows: tuple[SweepRow, ...]


def size_named(name: str, flag: str) -> Size:
    """Raises UsageError (`flag`)."""
    if name not in SIZES:
        raise UsageError(
            "flag",
            f"{flag} {name}: no such size{did_you_mean(name, SIZES)}; sizes: {', '.join(SIZES)}",
        )
    return name


def sizes_of(text: str) -> tuple[Size, tuple[int, ...]]:
    """`max-length=512,1024` → the size and its values in order; raises UsageError (`flag`)."""
    name, _, values = text.partition("=")
    size = size_named(name.strip(), "--sweep")
    parts = [part.strip() for part in values.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and 0 < int(part) <= MOST for part in parts):
        raise UsageError(
            "flag",
            f"--sweep {text}: expected whole numbers from 1 to {MOST}, e.g. {size}=4,8,16",
        )
    return size, tuple(sorted({int(part) for part in parts}))


def with_size(choices: Choices, size: Size, value: int) -> Choices:
    match size:
        case "max-length":
            return replace(choices, seq_len=value)
        case "micro-batch":
            return replace(choices, micro_batch=value)
        case "rank":
            return replace(choices, rank=value)
        case _:
            assert_never(size)


def largest(architecture: Architecture, choices: Choices, size: Size, hardware: Hardware) -> Limit:
    """By bisection: more of a size never takes less (tests/memory/test_vram.py)."""

    def too_large(value: int) -> bool:
        return not fits(
            estimate_on(architecture, with_size(choices, size, value), hardware), hardware
        )

    value = bisect_left(range(MOST + 1), True, lo=1, key=too_large) - 1
    if value == 0:
        return Limit(size, None, None, with_size(choices, size, 1))
    taken = with_size(choices, size, value)
    return Limit(size, value, estimate_on(architecture, taken, hardware), taken)


def sweep(
    architecture: Architecture,
    choices: Choices,
    size: Size,
    values: Iterable[int],
    hardware: Hardware | None,
) -> Sweep:
    """The estimate at each value, all else as it is."""
    rows = []
    for value in values:
        found = estimate_on(architecture, with_size(choices, size, value), hardware)
        rows.append(SweepRow(value, found, None if hardware is None else fits(found, hardware)))
    return Sweep(size, tuple(rows))
