"""Lines of a data file, none without end: a .gz of 10 MB may hold one of 10 GB."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, AnyStr, BinaryIO

from ftcli.errors import DataError

# Bytes of a line, or characters of a value: ten times what a context of a million tokens holds.
LONGEST = 50_000_000
# Bytes of a JSON document, which is held in memory whole.
LARGEST_DOCUMENT = 500_000_000


def lines_of(stream: IO[AnyStr], file: str) -> Iterator[AnyStr]:
    """Each line with its end; raises DataError (`data_broken`) for one longer than LONGEST."""
    number = 0
    while line := stream.readline(LONGEST + 1):
        number += 1
        if len(line) > LONGEST:
            raise DataError(
                "data_broken",
                f"a line of more than {LONGEST // 10**6} MB, which no row is; put each row on a "
                "line of its own",
                file=file,
                line=number,
            )
        yield line


def document_of(stream: BinaryIO, file: str) -> bytes:
    """All of a stream; raises DataError (`data_broken`) beyond LARGEST_DOCUMENT."""
    content = stream.read(LARGEST_DOCUMENT + 1)
    if len(content) > LARGEST_DOCUMENT:
        raise DataError(
            "data_broken",
            f"a JSON document of more than {LARGEST_DOCUMENT // 10**6} MB, which is held in memory "
            "whole; write one object a line (jsonl)",
            file=file,
        )
    return content
