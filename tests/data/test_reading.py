from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ftcli.config.recipe import Data
from ftcli.data.example import Example, Message, RejectedRow
from ftcli.data.sources import format_of, read_examples
from ftcli.errors import DataError


def write_jsonl(folder: Path, *rows: object) -> None:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(folder: Path, **keys: Any) -> list[str]:
    """Each row as `line: role content | ...` or `line: reason`."""
    data = Data.model_validate({"train": "rows.jsonl", **keys})
    return [_line(result) for result in read_examples("rows.jsonl", data)]


def _line(result: Example | RejectedRow) -> str:
    if isinstance(result, RejectedRow):
        return f"{result.origin.line}: {result.reason}"
    turns = " | ".join(f"{message.role} {message.content}" for message in result.messages)
    return f"{result.origin.line}: {turns or result.text}"


def test_the_first_readable_row_decides_the_format(tmp_path: Path) -> None:
    late = {"prompt": "b", "completion": "B", "text": "late column"}
    write_jsonl(tmp_path, None, {"prompt": "a", "completion": "A"}, late, {"text": "c"})
    assert read(tmp_path) == [
        "1: null, where an object is expected",
        "2: user a | assistant A",
        "3: user b | assistant B",
        "4: no pair of columns such as prompt/completion in text",
    ]


def test_prompt_and_completion_in_the_recipe_mean_columns(tmp_path: Path) -> None:
    write_jsonl(tmp_path, {"q": "a", "a": "A"})
    assert read(tmp_path, prompt="Q: {q}", completion="a") == ["1: user Q: a | assistant A"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"prompt": "Q: {qs}", "completion": "a"}, "data.prompt: no column qs; did you mean q?"),
        ({"prompt": "q", "completion": "b"}, "data.completion: no column b; the columns are q, a"),
        (
            {"prompt": "q", "completion": "a", "system": "As {who}"},
            "data.system: no column who; the columns are q, a",
        ),
    ],
)
def test_a_column_missing_in_the_header_is_one_error(
    suffix: str, keys: dict[str, str], message: str, tmp_path: Path
) -> None:
    if suffix == "csv":
        (tmp_path / "rows.csv").write_text("q,a\nb,B\nc,C\n")
    else:
        table = pa.table({"q": ["b", "c"], "a": ["B", "C"]})
        pq.write_table(table, tmp_path / "rows.parquet")
    data = Data.model_validate({"train": f"rows.{suffix}", **keys})
    with pytest.raises(DataError) as caught:
        list(read_examples(data.train, data))
    assert (caught.value.code, str(caught.value)) == ("data_format", f"rows.{suffix}: {message}")


def test_newlines_at_the_end_of_a_template_are_left_out(tmp_path: Path) -> None:
    write_jsonl(tmp_path, {"q": "a\n", "a": "A"})
    keys = {"prompt": "Q:\n{q}\n", "completion": "a\n", "system": "Be brief.\n\n"}
    assert read(tmp_path, **keys) == ["1: system Be brief. | user Q:\na\n | assistant A"]


def test_empty_columns_of_templates_are_noted(tmp_path: Path) -> None:
    rows = ({"q": "a", "x": "", "y": " ", "a": "A"}, {"q": "a", "x": "1", "y": 0, "a": "A"})
    write_jsonl(tmp_path, *rows)
    data = Data(train="rows.jsonl", prompt="{q}{x}{x}", completion="{a} {y}")
    found = [row for row in read_examples("rows.jsonl", data) if isinstance(row, Example)]
    assert [row.empty_columns for row in found] == [("x", "y"), ()]


def test_a_column_named_as_system_prompt_is_missed_where_it_lacks(tmp_path: Path) -> None:
    row = {"prompt": "a", "completion": "A"}
    write_jsonl(tmp_path, {**row, "persona": "p"}, row)
    assert read(tmp_path, system="persona") == [
        "1: system p | user a | assistant A",
        "2: data.system: no column persona; the columns are prompt, completion",
    ]


def test_a_named_format_does_not_take_other_kinds_of_data(tmp_path: Path) -> None:
    write_jsonl(tmp_path, {"messages": [], "chosen": "c", "rejected": "r"})
    with pytest.raises(DataError) as caught:
        read(tmp_path, format="messages")
    assert caught.value.code == "data_format"


def test_a_named_format_is_not_recognised_again(tmp_path: Path) -> None:
    write_jsonl(tmp_path, {"instruction": "a", "context": "c", "response": "A"})
    assert read(tmp_path, format="pairs") == ["1: user a | assistant A"]


def test_plain_text_has_no_system_prompt(tmp_path: Path) -> None:
    write_jsonl(tmp_path, {"text": "a"})
    assert read(tmp_path) == ["1: a"]
    with pytest.raises(DataError) as caught:
        read(tmp_path, system="Be kind.")
    assert str(caught.value) == (
        "rows.jsonl:1: plain text has no turn for data.system; remove that key"
    )


def test_a_missing_file_is_an_error_before_the_first_row(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        read_examples("rows.jsonl", Data(train="rows.jsonl"))


def test_an_empty_file_has_no_examples(tmp_path: Path) -> None:
    write_jsonl(tmp_path)
    assert read(tmp_path) == []


def test_examples_are_streamed(tmp_path: Path) -> None:
    write_jsonl(tmp_path, {"text": "a"}, {"text": "b", "chosen": "c"})
    examples = read_examples("rows.jsonl", Data(train="rows.jsonl"))
    first = next(examples)
    assert isinstance(first, Example)
    assert first.text == "a"


def test_a_csv_file_end_to_end(tmp_path: Path) -> None:
    content = '\ufeffquestion;answer\r\n"Size;\nzip?";02139\r\nempty;\r\nWho?;NA\r\n'
    (tmp_path / "shop.csv").write_text(content, newline="")
    results = list(read_examples("shop.csv", Data(train="shop.csv")))
    assert [str(result.origin) for result in results] == ["shop.csv:2", "shop.csv:4", "shop.csv:5"]
    assert isinstance(results[0], Example)
    assert results[0].messages == (Message("user", "Size;\nzip?"), Message("assistant", "02139"))
    assert isinstance(results[1], RejectedRow)
    assert results[1].reason == "answer is empty"
    assert isinstance(results[2], Example)
    assert results[2].answer == "NA"


@pytest.mark.parametrize(
    ("row", "keys", "name"),
    [
        ({"prompt": "a", "completion": "b"}, {}, "pairs"),
        ({"text": "a"}, {}, "text"),
        ({"q": "a", "a": "b"}, {"prompt": "q", "completion": "a"}, "columns"),
        ({"prompt": "a", "completion": "b"}, {"format": "alpaca"}, "alpaca"),
    ],
)
def test_the_format_is_known_before_the_rows_are_read(
    row: dict[str, str], keys: dict[str, str], name: str, tmp_path: Path
) -> None:
    write_jsonl(tmp_path, None, row)
    assert format_of(Data.model_validate({"train": "rows.jsonl", **keys})) == name


def test_data_without_a_row_have_no_format(tmp_path: Path) -> None:
    write_jsonl(tmp_path)
    assert format_of(Data(train="rows.jsonl")) is None
