"""Rows of the user's data, streamed from a file or a hub data set.

A row that cannot be read becomes a `RejectedRow`; a file that cannot be read raises `DataError`.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from ftcli.config.recipe import Data
from ftcli.config.section import data_suffix, looks_like_dataset_id
from ftcli.data.example import Example, RejectedRow, Row
from ftcli.data.formats import (
    pin_system,
    recognise,
    refuse_unsupported,
    require_columns,
    to_example,
)
from ftcli.data.json_rows import read_json, read_jsonl
from ftcli.data.table_rows import EXCEL, read_csv, read_parquet
from ftcli.errors import DataError, did_you_mean
from ftcli.hub import hub_file, hub_files
from ftcli.shell import shown_source

Reader = Callable[[BinaryIO, str], Iterator[Row | RejectedRow]]
# In order of preference, if a hub data set has the same rows in several formats.
READERS: dict[str, Reader] = {
    ".parquet": read_parquet,
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".json": read_json,
}
# Every row has the same columns.
WITH_HEADER = (".csv", ".tsv", ".parquet")
KINDS = "give .jsonl, .json, .csv or .tsv (each also with .gz), or .parquet"
NOT_ROWS = re.compile(r"(^|/)(dataset_infos?|state|config|package)\.json$")
HELD_OUT = re.compile(r"(^|[/_.-])(test|valid|validation|val|dev|eval)([/_.-]|$)", re.IGNORECASE)
# Here the user has chosen the columns, so the others do not matter.
CHOSEN_BY_USER = ("columns", "text")


def read_rows(source: str) -> Iterator[Row | RejectedRow]:
    """Rows of a file or of a hub data set's train split, one at a time.

    Raises DataError: immediately with code `data_missing`, `data_suffix`, `data_ambiguous` or the
    hub's; while reading with `data_cut`, `data_unreadable` or `data_broken`.
    """
    path = Path(source).absolute()
    suffix, name = data_suffix(source), shown_source(source)
    if path.is_file():
        if suffix is None:
            excel = EXCEL if path.suffix.lower() in (".xlsx", ".xls") else ""
            raise DataError("data_suffix", f"unsupported kind of file; {KINDS}{excel}", file=name)
        return read_file(path, READERS[suffix], name)
    if looks_like_dataset_id(source):
        return _read_hub(source, train_files(source, hub_files(source, repo_type="dataset")))
    raise DataError("data_missing", _not_found(path), file=name)


def train_files(repo: str, names: Iterable[str]) -> list[str]:
    """The files of a hub data set's train split: of one kind and in one folder, sorted by name.

    Raises DataError (`data_suffix`: nothing readable; `data_ambiguous`: several subsets).
    """
    suffixes = {name: data_suffix(name) for name in names if not NOT_ROWS.search(name)}
    readable = [name for name, suffix in suffixes.items() if suffix]
    if not readable:
        raise DataError("data_suffix", "no file of this data set is of a supported kind", file=repo)
    split = (
        [name for name in readable if "train" in name.lower()]
        or [name for name in readable if not HELD_OUT.search(name)]
        or readable
    )
    kind = min((suffixes[name] or "" for name in split), key=list(READERS).index)
    files = sorted(name for name in split if suffixes[name] == kind)
    folders = sorted({str(PurePosixPath(name).parent) for name in files})
    if len(folders) > 1:
        raise DataError(
            "data_ambiguous",
            f"several subsets ({', '.join(folders)}); download the file you want with "
            f"`hf download --repo-type dataset {repo} {files[0]}` and name that",
            file=repo,
        )
    return files


def _read_hub(repo: str, names: Iterable[str]) -> Iterator[Row | RejectedRow]:
    for name in names:
        path = hub_file(repo, name, repo_type="dataset")
        yield from read_file(path, READERS[data_suffix(name) or ""], f"{repo}/{name}")


def read_file(path: Path, reader: Reader, file: str) -> Iterator[Row | RejectedRow]:
    """The rows of a file; `file` is its name in messages.

    Raises DataError while reading: `data_cut`, `data_unreadable`, or what the reader raises.
    """
    last = 0
    try:
        with _open(path) as stream:
            for row in reader(stream, file):
                last = row.origin.line
                yield row
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        message = f"cut or damaged gzip file ({error}); copy it again"
        raise DataError("data_cut", message, file=file, line=last + 1) from error
    except OSError as error:
        message = f"cannot be read: {error.strerror or error}"
        raise DataError("data_unreadable", message, file=file) from error


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix.lower() == ".gz" else path.open("rb")


def _not_found(path: Path) -> str:
    folder = path if path.is_dir() else path.parent
    if not folder.is_dir():
        return f"no such file, and no folder {folder}"
    names = sorted(entry.name for entry in folder.iterdir() if data_suffix(entry.name))
    listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    holds = f"{folder} holds {listed or 'no data files'}"
    if path.is_dir():
        return f"a folder, where a file is expected; {holds}"
    return f"no such file{did_you_mean(path.name, names)} ({holds})"


def read_examples(source: str, data: Data) -> Iterator[Example | RejectedRow]:
    """Every row of `source` (as in `read_rows`) as an Example or a RejectedRow, streamed.

    Raises DataError as `read_rows`, and with code `data_format` at the first readable row if the
    data are of an unsupported kind.
    """
    return read_rows_as_examples(read_rows(source), data)


def pinned_system(data: Data) -> str | None:
    """data.system as a template: the name of a column of the training rows becomes `{column}`."""
    first = next((row for row in read_rows(data.train) if isinstance(row, Row)), None)
    return data.system if first is None else pin_system(data, first).system


def format_of(data: Data) -> str | None:
    """The format of the training rows, by the recipe or the first row; None without any row."""
    if data.format != "auto":
        return data.format
    first = next((row for row in read_rows(data.train) if isinstance(row, Row)), None)
    return None if first is None else _choose_format(first, data)


def read_rows_as_examples(
    rows: Iterator[Row | RejectedRow], data: Data
) -> Iterator[Example | RejectedRow]:
    """Rows as examples, in the recipe's format or the one recognised by the first row."""
    format_name = None
    for row in rows:
        if isinstance(row, RejectedRow):
            yield row
            continue
        if format_name is None:
            format_name = _choose_format(row, data)
            data = pin_system(data, row)
            if data_suffix(row.origin.file) in WITH_HEADER:
                require_columns(row, data)
        yield to_example(row, data, format_name)


def _choose_format(first: Row, data: Data) -> str:
    """The recipe's format, or the one that its keys or the first row imply; raises DataError."""
    format_name: str = data.format
    if format_name != "auto":
        if format_name not in CHOSEN_BY_USER:
            refuse_unsupported(first)
    elif data.prompt is not None and data.completion is not None:
        format_name = "columns"
    else:
        format_name = recognise(first)
    if format_name == "text" and data.system is not None:
        raise DataError(
            "data_format",
            "plain text has no turn for data.system; remove that key",
            file=first.origin.file,
            line=first.origin.line,
        )
    return format_name
