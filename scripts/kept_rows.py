"""Rows of a study, kept in a CSV file as they are found, so that it goes on where it stopped."""

from __future__ import annotations

import csv
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

Row = TypeVar("Row")


def read(file: Path, kind: type[Row]) -> list[Row]:
    """The rows of the file, in the order in which they were found."""
    if not file.exists():
        return []
    with file.open(encoding="utf-8", newline="") as lines:
        return [kind(**row) for row in csv.DictReader(lines)]


def append(file: Path, row: Any) -> None:
    """Write a dataclass of texts behind the others; the first brings the header."""
    new = not file.exists()
    with file.open("a", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, [field.name for field in fields(row)])
        if new:
            writer.writeheader()
        writer.writerow(asdict(row))
