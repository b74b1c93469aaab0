from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftcli.data import sources
from ftcli.data.example import Origin, RejectedRow, Row
from ftcli.data.sources import read_rows, train_files
from ftcli.errors import DataError


def rows_of(folder: Path, name: str, content: bytes) -> list[tuple[int, object]]:
    """(line, fields or reason) of every row of a file with this content."""
    (folder / name).write_bytes(content)
    return [
        (row.origin.line, row.fields if isinstance(row, Row) else row.reason)
        for row in read_rows(name)
    ]


def error_of(folder: Path, name: str, content: bytes | None = None) -> DataError:
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(read_rows(name))
    return caught.value


# jsonl


def test_origin_names_the_file_as_the_user_wrote_it(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shop.jsonl").write_text('{"a": 1}\nnull\n')
    assert list(read_rows("data/shop.jsonl")) == [
        Row(Origin("data/shop.jsonl", 1), {"a": 1}),
        RejectedRow(Origin("data/shop.jsonl", 2), "null, where an object is expected"),
    ]


@given(
    lines=st.lists(
        st.one_of(
            st.binary(max_size=20),
            st.dictionaries(st.text(max_size=3), st.text(max_size=9), max_size=3).map(
                lambda fields: json.dumps(fields).encode()
            ),
        ).map(lambda line: line.replace(b"\n", b" "))
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_accepted_and_rejected_are_all_lines(tmp_path: Path, lines: list[bytes]) -> None:
    rows = rows_of(tmp_path, "any.jsonl", b"\n".join(lines))
    expected = [number for number, line in enumerate(lines, 1) if line.strip()]
    if lines and lines[0].startswith(b"\xef\xbb\xbf") and not lines[0][3:].strip():
        expected = expected[1:]
    assert [line for line, _ in rows] == expected


# json


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ('[{"a": 1}, {"a": 2}]', [1, 1]),
        ('\ufeff[\n  {\n    "a": 1\n  },\n  {"a": 2}\n]\n', [2, 5]),
        ('{"version": [1], "data": [\n{"a": 1},\n{"a": 2}], "more": 1}', [2, 3]),
        ('{"data": [{"a": 1}, {"a": 2}]}', [1, 1]),
        ('{"a": 1}\n\n{"a": 2}\n', [1, 3]),
    ],
    ids=["one line", "pretty", "data member", "data alone", "object a line"],
)
def test_json_documents_keep_real_lines(tmp_path: Path, content: str, lines: list[int]) -> None:
    rows = rows_of(tmp_path, "rows.json", content.encode())
    assert rows == [(lines[0], {"a": 1}), (lines[1], {"a": 2})]


@pytest.mark.parametrize("content", ["", " \n", "[]", "[ \n ]", '{"data": []}'])
def test_json_without_rows_is_empty(tmp_path: Path, content: str) -> None:
    assert rows_of(tmp_path, "rows.json", content.encode()) == []


def test_json_elements_that_are_no_objects_are_rejects(tmp_path: Path) -> None:
    content = b'[null,\n {"a": 1, "a": 2},\n {"a": NaN},\n {"a": 3}]'
    assert rows_of(tmp_path, "rows.json", content) == [
        (1, "null, where an object is expected"),
        (2, "duplicate key a in one object"),
        (3, "not JSON: NaN is not a JSON value"),
        (4, {"a": 3}),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"a": 1},\n {"a": ', "bad.json:2: not JSON: Expecting value at column 8"),
        (b'[{"a": 1}\n {"a": 2}]', "bad.json:2: not JSON: Expecting ',' delimiter at column 2"),
        (b'[{"a": 1}]\n[{"a": 2}]', "bad.json:2: not JSON: Extra data at column 1"),
        (b'{"data": [{}]}\n{"data": [{}]}', "bad.json:2: not JSON: Extra data at column 1"),
        (b'[{"a": "\xe9"}]', "bad.json:1: not UTF-8: byte 0xe9 at position 9"),
        (b'[{"a": ' + b"[" * 100_000, "bad.json: nested too deeply"),
        (
            b'{\n "train": [{"a": 1}]\n}',
            'bad.json: expected an array of objects, {"data": [...]}, or one object per line',
        ),
    ],
)
def test_a_broken_json_document_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    error = error_of(tmp_path, "bad.json", content)
    assert (error.code, str(error)) == ("data_broken", message)


# csv


def test_csv_values_stay_byte_equal(tmp_path: Path) -> None:
    content = (
        b'\xef\xbb\xbfname;zip\r\nNA;02139\r\nNone;"a ""quoted""\r\nline; 1,5"\r\n;\xc3\xa9 \r\n'
    )
    assert rows_of(tmp_path, "shop.csv", content) == [
        (2, {"name": "NA", "zip": "02139"}),
        (3, {"name": "None", "zip": 'a "quoted"\r\nline; 1,5'}),
        (5, {"name": "", "zip": "é "}),
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_delimiter_is_the_one_in_the_header(tmp_path: Path, delimiter: str) -> None:
    content = f'"a,b;c\td"{delimiter}e\n1{delimiter}2\n'
    assert rows_of(tmp_path, "x.csv", content.encode()) == [(2, {"a,b;c\td": "1", "e": "2"})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'a,b\n1,2\n"open,2\n3,4\n', "bad.csv:3: a quote opened in this row is never closed"),
        (b"a,b,a\n1,2,3\n", "bad.csv:1: duplicate columns: a"),
        (
            b"\xff\xfea\x00",
            "bad.csv:1: header: not UTF-8: byte 0xff; save it as UTF-8 (in Excel: Save as → CSV "
            "UTF-8)",
        ),
    ],
)
def test_a_broken_csv_file_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    error = error_of(tmp_path, "bad.csv", content)
    assert (error.code, str(error)) == ("data_broken", message)


def test_csv_with_a_nameless_index_column_and_a_long_value(tmp_path: Path) -> None:
    content = f",text\n0,{'x' * 200_000}\n".encode()
    assert rows_of(tmp_path, "pandas.csv", content) == [(2, {"text": "x" * 200_000})]


def test_an_empty_csv_file_has_no_rows(tmp_path: Path) -> None:
    assert rows_of(tmp_path, "empty.csv", b"") == []


# parquet


def test_parquet_rows_come_with_their_numbers(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    messages = [[{"role": "user", "content": f"q{number}"}] for number in range(600)]
    parquet.write_table(pyarrow.table({"messages": messages}), tmp_path / "rows.parquet")
    rows = list(read_rows("rows.parquet"))
    assert [row.origin.line for row in rows] == list(range(1, 601))
    assert rows[-1] == Row(Origin("rows.parquet", 600), {"messages": messages[-1]})


def test_a_file_that_is_no_parquet_is_an_error(tmp_path: Path) -> None:
    error = error_of(tmp_path, "bad.parquet", b"PAR1 and no more")
    assert error.code == "data_broken"
    assert str(error).startswith("bad.parquet: not readable as parquet: ")


# gzip, missing and unknown files


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl.gz", b'{"a": "1"}\n'),
        ("rows.JSON.GZ", b'[{"a": "1"}]'),
        ("rows.csv.gz", b"a\n1\n"),
    ],
)
def test_gzip(tmp_path: Path, name: str, content: bytes) -> None:
    rows = rows_of(tmp_path, name, gzip.compress(content))
    assert [fields for _, fields in rows] == [{"a": "1"}]


def test_a_cut_gzip_file_is_an_error(tmp_path: Path) -> None:
    content = gzip.compress(b'{"a": 1}\n' * 1000)[:-20]
    error = error_of(tmp_path, "cut.jsonl.gz", content)
    assert (error.code, 1 < (error.line or 0) <= 1000) == ("data_cut", True)
    assert error.message == (
        "cut or damaged gzip file (Compressed file ended before the end-of-stream marker was "
        "reached); copy it again"
    )


def test_a_file_that_is_no_gzip_is_an_error(tmp_path: Path) -> None:
    assert error_of(tmp_path, "plain.jsonl.gz", b'{"a": 1}\n').code == "data_cut"


def test_a_missing_file_names_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "products.jsonl").touch()
    (tmp_path / "notes.txt").touch()
    error = error_of(tmp_path, "product.jsonl")
    assert (error.code, str(error)) == (
        "data_missing",
        "product.jsonl: no such file; did you mean products.jsonl? "
        f"({tmp_path} holds products.jsonl)",
    )


def test_a_missing_folder_and_a_folder_instead_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    missing = error_of(tmp_path, "dat/shop.csv")
    folder = error_of(tmp_path, "data")
    assert str(missing) == f"dat/shop.csv: no such file, and no folder {tmp_path / 'dat'}"
    assert str(folder) == (
        f"data: a folder, where a file is expected; {tmp_path / 'data'} holds no data files"
    )


@pytest.mark.parametrize("name", ["rows.txt", "rows", "rows.parquet.gz"])
def test_an_unknown_suffix_is_an_error(tmp_path: Path, name: str) -> None:
    error = error_of(tmp_path, name, b"text")
    assert (error.code, str(error)) == (
        "data_suffix",
        f"{name}: unsupported kind of file; give .jsonl, .json, .csv or .tsv (each also "
        "with .gz), or .parquet",
    )


def test_a_workbook_is_an_error_that_says_how_to_export_it(tmp_path: Path) -> None:
    error = error_of(tmp_path, "rows.xlsx", b"PK")
    assert str(error).endswith("or .parquet (in Excel: Save as → CSV UTF-8)")


# hub data sets


def test_a_hub_data_set_is_read_from_its_train_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["README.md", "data/test.jsonl", "data/train-1.jsonl", "data/train-0.jsonl"]
    for name in names:
        path = tmp_path / "hub" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"from": name}))
    monkeypatch.setattr(sources, "hub_files", lambda _repo, **_: names)
    monkeypatch.setattr(sources, "hub_file", lambda _repo, name, **_: tmp_path / "hub" / name)
    assert list(read_rows("openai/gsm8k")) == [
        Row(Origin("openai/gsm8k/data/train-0.jsonl", 1), {"from": "data/train-0.jsonl"}),
        Row(Origin("openai/gsm8k/data/train-1.jsonl", 1), {"from": "data/train-1.jsonl"}),
    ]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["a.jsonl", "test.jsonl", "dataset_infos.json"], ["a.jsonl"]),
        (["train.jsonl", "data/train-0.parquet"], ["data/train-0.parquet"]),
        (["test.csv"], ["test.csv"]),
        (["latest.csv", "data_test.csv"], ["latest.csv"]),
    ],
)
def test_train_files(names: list[str], chosen: list[str]) -> None:
    assert train_files("owner/name", names) == chosen


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["README.md", "a.zip"], "o/n: no file of this data set is of a supported kind"),
        (
            ["main/train.parquet", "socratic/train.parquet"],
            "o/n: several subsets (main, socratic); download the file you want with `hf download "
            "--repo-type dataset o/n main/train.parquet` and name that",
        ),
    ],
)
def test_train_files_that_cannot_be_chosen(names: list[str], message: str) -> None:
    with pytest.raises(DataError) as caught:
        train_files("o/n", names)
    assert str(caught.value) == message
