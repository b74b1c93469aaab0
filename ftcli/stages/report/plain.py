"""JSON of a run folder, taken for what it is: another version, or anyone, may have written it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Plain = Mapping[str, Any]


def number(value: object) -> float | None:
    """A finite number; none for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def count(value: object) -> int:
    """A whole number from zero on; 0 for anything else."""
    found = number(value)
    return int(found) if found is not None and found >= 0 else 0


def text(value: object) -> str:
    """A text; empty for anything else."""
    return value if isinstance(value, str) else ""


def mapping(value: object) -> Plain:
    """An object; empty for anything else."""
    return value if isinstance(value, dict) else {}


def items(value: object) -> list[Any]:
    """An array; empty for anything else."""
    return value if isinstance(value, list) else []


def pair(value: object) -> tuple[float, float] | None:
    """An interval `[low, high]`; none for anything else."""
    found = [number(each) for each in items(value)]
    if len(found) != 2 or found[0] is None or found[1] is None:
        return None
    return found[0], found[1]


@dataclass
class Reading:
    """Reads files, and keeps in words which of them could not be read."""

    folder: Path
    problems: list[str] = field(default_factory=list)

    def object_in(self, file: Path) -> Plain:
        """One JSON object; empty where the file is not there or holds none."""
        try:
            return dict(json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, RecursionError) as error:
            self.note(file, f"cannot be read ({error})")
            return {}

    def lines_in(self, file: Path) -> Iterator[Plain]:
        """The objects of a JSON-lines file, each with its line; what is no object is told once."""
        broken = 0
        try:
            with file.open(encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    found = _object(line)
                    if found is None:
                        broken += bool(line.strip())
                    else:
                        yield found
        except FileNotFoundError:
            return
        except OSError as error:
            self.note(file, f"cannot be read ({error})")
        if broken:
            self.note(file, f"{broken} of its lines are no JSON objects and are left out")

    def text_in(self, file: Path) -> str:
        """A whole text file; empty where it is not there."""
        try:
            return file.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        except OSError as error:
            self.note(file, f"cannot be read ({error})")
            return ""

    def note(self, file: Path, what: str) -> None:
        """Keep what is wrong with a file."""
        self.problems.append(f"{file.relative_to(self.folder)}: {what}")


def _object(line: str) -> Plain | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
