"""JSON → rows: one object per line, or one document.

Refused although Python's parser accepts it: duplicate keys, NaN, and other values that it would
lose or invent.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from functools import partial
from typing import IO, AnyStr, BinaryIO, NoReturn

from ftcli.data.example import Origin, RejectedRow, Row
from ftcli.errors import DataError

# Bytes of a line, or characters of a value: ten times a context of a million tokens.
LONGEST = 50_000_000
# Bytes of a JSON document, which is read into memory whole.
LARGEST_DOCUMENT = 500_000_000
JSON_SPACE = re.compile(r"[ \t\r\n]*")


def lines_of(stream: IO[AnyStr], file: str) -> Iterator[AnyStr]:
    """Each line with its end; raises DataError (`data_broken`) for one longer than LONGEST."""
    number = 0
    while line := stream.readline(LONGEST + 1):
        number += 1
        if len(line) > LONGEST:
            raise DataError(
                "data_broken",
                f"a line of more than {LONGEST // 10**6} MB, too long for a row; put each row on a "
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
            f"a JSON document of more than {LARGEST_DOCUMENT // 10**6} MB, which would be read "
            "into memory whole; write one object per line (jsonl)",
            file=file,
        )
    return content


def read_jsonl(lines: BinaryIO, file: str) -> Iterator[Row | RejectedRow]:
    """One object per line; blank lines are skipped, any other is a Row or a RejectedRow."""
    for number, line in enumerate(lines_of(lines, file), 1):
        stripped = (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).strip()
        if stripped:
            yield _line_row(stripped, Origin(file, number))


def read_json(stream: BinaryIO, file: str) -> Iterator[Row | RejectedRow]:
    """An array of objects, `{"data": [...]}` or, as jsonl, one object per line.

    The text of a document is kept in memory, its rows are not. A row's line is where it begins.
    Raises DataError (`data_broken`) if the document is not JSON, or none of the three.
    """
    by_line = _is_jsonl(stream)
    stream.seek(0)
    if by_line:
        yield from read_jsonl(stream, file)
        return
    try:
        yield from _array_rows(document_of(stream, file).decode("utf-8-sig"), file)
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError("data_broken", _not_utf8(error), file=file, line=line) from error
    except json.JSONDecodeError as error:
        raise DataError("data_broken", _not_json(error), file=file, line=error.lineno) from error
    except RecursionError as error:
        raise DataError("data_broken", "nested too deeply", file=file) from error


def json_kind(value: object) -> str:
    """The kind of a value, as JSON calls it: `null`, `the number 5`, `text`, `a list` ..."""
    match value:
        case None | bool():
            return json.dumps(value)
        case int() | float():
            return f"the number {value}"
        case str():
            return "text"
        case list():
            return "a list"
        case dict():
            return "an object"
        case _:
            return f"a value of type {type(value).__name__}"


class Number(float):
    """A number that Python would not write as the file does, such as `1.10`."""

    written: str

    def __str__(self) -> str:
        return self.written


class _NotAcceptedError(ValueError):
    """A value that Python's parser accepts, although it loses or invents something."""


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise _NotAcceptedError(f"duplicate key {repeated} in one object")
    return fields


def _no_constant(word: str) -> NoReturn:
    raise _NotAcceptedError(f"not JSON: {word} is not a JSON value")


def _number(written: str) -> float:
    value = float(written)
    if repr(value) == written:
        return value
    number = Number(value)
    number.written = written
    return number


def _integer(digits: str) -> float:
    if digits == "-0":
        return _number(digits)
    try:
        return int(digits)
    except ValueError as error:  # Python converts at most 4300 digits
        raise _NotAcceptedError(f"a number of {len(digits)} digits") from error


STRICT = json.JSONDecoder(
    object_pairs_hook=_unique_keys,
    parse_constant=_no_constant,
    parse_float=_number,
    parse_int=_integer,
)
# Finds the end of any value.
LENIENT = json.JSONDecoder(parse_int=str)


def _line_row(line: bytes, origin: Origin) -> Row | RejectedRow:
    try:
        return _object_row(STRICT.decode(line.decode("utf-8")), origin)
    except UnicodeDecodeError as error:
        return RejectedRow(origin, _not_utf8(error))
    except json.JSONDecodeError as error:
        return RejectedRow(origin, f"{_not_json(error)}{_hint(line)}")
    except RecursionError:
        return RejectedRow(origin, "nested too deeply")
    except _NotAcceptedError as error:
        return RejectedRow(origin, str(error))


def _object_row(value: object, origin: Origin) -> Row | RejectedRow:
    if isinstance(value, dict):
        return Row(origin, value)
    return RejectedRow(origin, f"{json_kind(value)}, where an object is expected")


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8: byte 0x{error.object[error.start]:02x} at position {error.start + 1}"


def _not_json(error: json.JSONDecodeError) -> str:
    return f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}"


def _hint(line: bytes) -> str:
    """A common cause of broken lines."""
    if line.startswith(codecs.BOM_UTF8):
        return "; it begins with a byte order mark, as in joined files"
    if b"\r" in line:
        return "; lines must end in a line feed, and this one contains carriage returns"
    return ""


def _is_jsonl(stream: BinaryIO) -> bool:
    # A document on one line may be longer than any row; it is not one either.
    lines = iter(partial(stream.readline, LONGEST), b"")
    first = next((line for line in lines if line.strip(codecs.BOM_UTF8 + b" \t\r\n")), b"")
    try:
        value = LENIENT.decode(first.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and not isinstance(value.get("data"), list)


def _array_rows(text: str, file: str) -> Iterator[Row | RejectedRow]:
    if not text.strip():
        return
    start = _array_start(text)
    if start is None:
        expected = 'expected an array of objects, {"data": [...]}, or one object per line'
        raise DataError("data_broken", expected, file=file)
    line, counted = 1, 0
    position = _after_space(text, start + 1)
    more = not text.startswith("]", position)
    while more:
        line, counted = line + text.count("\n", counted, position), position
        row, position = _element(text, position, Origin(file, line))
        yield row
        position = _after_space(text, position)
        more = text.startswith(",", position)
        position = _after_space(text, position + 1) if more else position
    if not text.startswith("]", position):
        raise json.JSONDecodeError("Expecting ',' delimiter", text, position)
    _check_end(text, _after_space(text, position + 1), in_object=_after_space(text, 0) < start)


def _check_end(text: str, position: int, *, in_object: bool) -> None:
    """Nothing follows the array but, in an object, its closing brace or further members."""
    if in_object and text.startswith(",", position):
        return
    if in_object and text.startswith("}", position):
        position = _after_space(text, position + 1)
    if position < len(text):
        raise json.JSONDecodeError("Extra data", text, position)


def _array_start(text: str) -> int | None:
    """Where the array of rows begins: the document itself, or its member `data`."""
    position = _after_space(text, 0)
    if text.startswith("[", position):
        return position
    while text.startswith(("{", ","), position):
        key, position = LENIENT.raw_decode(text, _after_space(text, position + 1))
        position = _after_space(text, _after_space(text, position) + 1)  # past the colon
        if key == "data" and text.startswith("[", position):
            return position
        _, position = LENIENT.raw_decode(text, position)
        position = _after_space(text, position)
    return None


def _element(text: str, position: int, origin: Origin) -> tuple[Row | RejectedRow, int]:
    """The row that begins at `position`, and where it ends."""
    try:
        value, end = STRICT.raw_decode(text, position)
    except _NotAcceptedError as error:
        return RejectedRow(origin, str(error)), LENIENT.raw_decode(text, position)[1]
    return _object_row(value, origin), end


def _after_space(text: str, position: int) -> int:
    match = JSON_SPACE.match(text, position)
    return match.end() if match else position
