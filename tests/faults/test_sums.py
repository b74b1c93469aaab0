"""Faults 25 and 27: accepted + rejected + duplicates = read, and each rejected row is named."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from ftcli.cli import run
from ftcli.console import shown_path
from ftcli.data.dataset import MOST_REJECTED, rejected_file
from tests.faults.bench import Bench, bench_in

Observed = Callable[[str], None]


@pytest.fixture
def bench(tmp_path: Path, tiny_model: Path) -> Bench:
    return bench_in(tmp_path, tiny_model)


# Accepted + rejected + duplicates = read, whatever the mixture

GOOD = st.integers(0, 6)
BAD = ("no object", "number", "empty", "missing", "forged")


def as_pairs(number: int | str) -> Any:
    match number:
        case "no object":
            return None
        case "number":
            return {"prompt": 5, "completion": "b"}
        case "empty":
            return {"prompt": "a", "completion": " "}
        case "missing":
            return {"prompt": "a"}
        case "forged":
            return {"prompt": "a", "completion": "\ud800"}
        case _:
            return {"prompt": f"a{number}", "completion": "b"}


def as_chat(number: int | str) -> Any:
    pair = as_pairs(number)
    if not isinstance(pair, dict):
        return pair
    turns = [{"from": "human", "value": pair["prompt"]}]
    turns += [{"from": "gpt", "value": pair[key]} for key in ("completion",) if key in pair]
    return {"conversations": turns}


def as_alpaca(number: int | str) -> Any:
    pair = as_pairs(number)
    names = {"prompt": "instruction", "completion": "output"}
    return {names[k]: v for k, v in pair.items()} if isinstance(pair, dict) else pair


def as_text(number: int | str) -> Any:
    pair = as_pairs(number)
    if not isinstance(pair, dict):
        return pair
    if pair["prompt"] == 5 or "completion" not in pair:
        return {"text": None}
    return {"text": pair["prompt"] * (len(pair["completion"].strip()) > 0) + pair["completion"]}


def in_lines(rows: list[Any]) -> tuple[str, bytes]:
    return "mixed.jsonl", "\n".join(json.dumps(row) for row in rows).encode()


def packed(rows: list[Any]) -> tuple[str, bytes]:
    return "mixed.jsonl.gz", gzip.compress(in_lines(rows)[1])


def in_a_document(rows: list[Any]) -> tuple[str, bytes]:
    return "mixed.json", json.dumps({"data": rows}, indent=0).encode()


def in_columns(rows: list[Any]) -> tuple[str, bytes]:
    """CSV: a row that is not a pair of texts has a value too many."""
    written = io.StringIO(newline="")
    writer = csv.writer(written)
    writer.writerow(["prompt", "completion"])
    for row in rows:
        pair = row if isinstance(row, dict) else {}
        texts = [pair.get("prompt"), pair.get("completion")]
        right = all(isinstance(text, str) and text != "\ud800" for text in texts)
        writer.writerow(texts if right else [1, 2, 3])
    return "mixed.csv", written.getvalue().encode()


def in_parquet(rows: list[Any]) -> tuple[str, bytes]:
    """Columns of text: a value that is not text is null."""
    columns: dict[str, list[str | None]] = {"prompt": [], "completion": []}
    for row in rows:
        for name, values in columns.items():
            value = row.get(name) if isinstance(row, dict) else None
            values.append(value if isinstance(value, str) and value != "\ud800" else None)
    sink = io.BytesIO()
    parquet.write_table(pa.table(columns, pa.schema(dict.fromkeys(columns, pa.string()))), sink)
    return "mixed.parquet", sink.getvalue()


MIXTURES: list[tuple[Callable[[int | str], Any], Callable[[list[Any]], tuple[str, bytes]]]] = [
    *((shape, in_lines) for shape in (as_pairs, as_chat, as_alpaca, as_text)),
    *((as_pairs, kind) for kind in (packed, in_a_document, in_columns, in_parquet)),
]


@pytest.mark.fault(25, 27)
@pytest.mark.parametrize(
    ("shape", "kind"), MIXTURES, ids=lambda function: function.__name__.replace("_", " ")
)
def test_the_sum_holds_for_any_mixture(
    shape: Callable[[int | str], Any],
    kind: Callable[[list[Any]], tuple[str, bytes]],
    bench: Bench,
    complete: bool,
    observed: Observed,
) -> None:
    read = 0

    @settings(max_examples=500 if complete else 25, deadline=None)
    @given(
        numbers=st.lists(GOOD | st.sampled_from(BAD), max_size=30),
        validation=st.sampled_from([0, 0.3, 2]),
        deduplicate=st.booleans(),
    )
    def check(numbers: list[int | str], validation: float, deduplicate: bool) -> None:
        nonlocal read
        numbers = [7, 8, 9, *numbers]
        name, content = kind([shape(number) for number in numbers])
        found = bench.of(name, content, validation=validation, deduplicate=deduplicate)
        found.require_sum()
        bad = sum(isinstance(number, str) for number in numbers)
        again = sum(n - 1 for key, n in Counter(numbers).items() if isinstance(key, int))
        assert found.prepared.rows_read == len(numbers)
        assert found.prepared.rows_rejected == bad
        assert found.prepared.duplicates == (again if deduplicate else 0)
        read += len(numbers)

    check()
    words = f"{shape.__name__} {kind.__name__}".replace("_", " ")
    observed(f"{words}: accepted + rejected + duplicates = {read:,} read")


@pytest.mark.fault(25)
def test_all_bad_rows_are_named_however_many(
    bench: Bench, write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    bad = MOST_REJECTED + 500
    lines = ['{"prompt": "a", "completion": "b"}', *["null"] * bad]
    (bench.folder / "bad.jsonl").write_text("\n".join(lines))
    recipe = write_recipe(data={"train": "bad.jsonl", "validation": 0})
    assert run(["prepare", str(recipe), "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    reason = "null, where an object is expected"
    assert output["rejected"] == [
        {"file": "bad.jsonl", "line": line, "reason": reason} for line in range(2, bad + 2)
    ]
    prepared = json.loads((Path(output["run_dir"], "data") / "prepared.json").read_text())
    assert (prepared["rows_rejected"], len(prepared["rejected"])) == (bad, MOST_REJECTED)
    assert run(["prepare", str(recipe)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        f"· {bad - 3} more: {shown_path(rejected_file(Path(output['run_dir'], 'data')))} " in shown
    )


@pytest.mark.fault(25)
def test_rows_that_an_evaluation_leaves_out_are_named(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = shutil.copytree(tiny_run, tmp_path / "run")
    file = tmp_path / "held.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": 5}\n')
    capsys.readouterr()
    assert run(["eval", str(copied), "--data", str(file), "--no-base", "--json"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["rows"] == 1
    assert (
        f"warning: 1 row left out: {file}:2 completion is the number 5, where text is expected"
    ) in output.err.splitlines()
