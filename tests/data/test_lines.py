"""Files with an endless line, value or document take little memory."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import pytest

from ftcli.data import json_rows, table_rows
from ftcli.data.json_rows import lines_of
from ftcli.data.prompts import read_prompt_rows
from ftcli.data.sources import read_rows
from ftcli.errors import DataError


@pytest.fixture(autouse=True)
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (json_rows, table_rows):
        monkeypatch.setattr(module, "LONGEST", 5_000_000)
    monkeypatch.setattr(json_rows, "LARGEST_DOCUMENT", 20_000_000)


def bomb(path: Path, start: bytes, end: bytes = b"") -> Path:
    """A small .gz of 100 MB, most of it one letter."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(start)
        for _ in range(100):
            file.write(b"a" * 1_000_000)
        file.write(end)
    assert path.stat().st_size < 1_000_000
    return path


@pytest.mark.parametrize(
    ("name", "start", "end", "place", "reason"),
    [
        ("a.jsonl.gz", b'{"prompt": "a"}\n{"prompt": "', b'"}\n', 2, "a line of more than 5 MB"),
        ("a.json.gz", b'{"prompt": "a"}\n{"prompt": "', b'"}\n', 2, "a line of more than 5 MB"),
        ("a.json.gz", b'[{"prompt": "', b'"}]', None, "a JSON document of more than 20 MB"),
        ("a.csv.gz", b"prompt,completion\na,b\nc,", b"\n", 3, "a line of more than 5 MB"),
        ("a.csv.gz", b"", b"", 1, "a line of more than 5 MB"),
    ],
)
def test_a_small_gz_that_holds_one_long_line_is_refused(
    name: str, start: bytes, end: bytes, place: int | None, reason: str, tmp_path: Path
) -> None:
    import tracemalloc

    bomb(tmp_path / name, start, end)
    tracemalloc.start()
    with pytest.raises(DataError, match=reason) as caught:
        list(read_rows(name))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (caught.value.file, caught.value.line) == (name, place)
    assert peak < 80_000_000


def test_a_value_over_many_lines_is_bounded_too(tmp_path: Path) -> None:
    rows = b"c\n" * 4_000_000
    (tmp_path / "a.csv").write_bytes(b'prompt,completion\na,b\n"' + rows)
    with pytest.raises(DataError, match="a value of more than 5 MB; is a quote never closed") as e:
        list(read_rows("a.csv"))
    assert e.value.line == 3


def test_prompts_of_a_text_file_are_bounded(tmp_path: Path) -> None:
    bomb(tmp_path / "a.txt.gz", b"one\n")
    with pytest.raises(DataError, match="a line of more than 5 MB"):
        list(read_prompt_rows("a.txt.gz"))


def test_lines_are_given_as_they_are() -> None:
    content = b"a\r\n\n b\n" + b"c" * 4_999_999 + b"\nlast"
    assert b"".join(lines_of(io.BytesIO(content), "a")) == content
    assert list(lines_of(io.BytesIO(content), "a")) == list(io.BytesIO(content))
