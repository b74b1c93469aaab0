"""Data files and recipes are data: no tag, type or name in them runs anything."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from ftcli.cli import run
from ftcli.data.sources import read_rows
from tests.conftest import pair
from tests.faults.attacks import Attack

pytestmark = pytest.mark.fault(30)

Observed = Callable[[str], None]


@pytest.fixture
def attack(tmp_path: Path) -> Attack:
    return Attack(tmp_path / "executed")


def test_a_tag_of_yaml_builds_no_object(
    write_recipe: Callable[..., Path],
    attack: Attack,
    capsys: pytest.CaptureFixture[str],
    observed: Observed,
) -> None:
    call = f"!!python/object/apply:os.system ['touch {attack.mark}']"
    assert yaml.unsafe_load(call) == 0 and attack.succeeded(), "the payload is a real one"
    attack.mark.unlink()
    recipe = write_recipe()
    text = recipe.read_text()
    payloads = [
        call,
        f"!!python/object/new:os.system ['touch {attack.mark}']",
        "!!python/name:os.system",
        "!!python/module:antigravity",
        "!!binary gASV",
    ]
    for payload in payloads:
        recipe.write_text(f"{text}output: {payload}\n")
        assert run(["train", str(recipe)]) == 2
        assert "is not allowed" in capsys.readouterr().err
        recipe.write_text(text)
        assert run(["train", str(recipe), "--set", f"output={payload}"]) == 2
        assert "is not allowed" in capsys.readouterr().err
    assert not attack.succeeded()
    observed(f"{len(payloads)} tags of Python in a recipe and in --set: exit 2")


def test_a_parquet_files_types_are_not_unpickled(
    tmp_path: Path, attack: Attack, observed: Observed
) -> None:
    """A column of pyarrow's old extension type has a pickle in its metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    marks = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": attack.pickled,
    }
    fields = [pa.field("prompt", pa.string(), metadata=marks), pa.field("completion", pa.string())]
    rows = [pair(number) for number in range(3)]
    table = pa.Table.from_pylist(rows, schema=pa.schema(fields, metadata={b"pandas": b"{}"}))
    pq.write_table(table, tmp_path / "rows.parquet")
    read = list(read_rows(str(tmp_path / "rows.parquet")))
    assert [row.fields for row in read] == rows
    assert not attack.succeeded()
    observed("a pickle in a parquet file's metadata: read as rows, not unpickled")


@pytest.mark.parametrize("name", ["rows.pkl", "rows.pt", "rows.py", "rows.arrow", "rows.npy"])
def test_other_kinds_of_files_are_no_data(
    name: str,
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    attack: Attack,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / name).write_bytes(attack.pickled)
    assert run(["prepare", str(write_recipe(data={"train": name}))]) == 1
    assert name in capsys.readouterr().err
    assert not attack.succeeded()


def test_a_script_next_to_the_rows_is_not_run(
    write_recipe: Callable[..., Path], tmp_path: Path, attack: Attack
) -> None:
    """As loaders of data sets once did: a script of the folder's name."""
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "shop.py").write_text(attack.python)
    (folder / "dataset_infos.json").write_text("{}")
    (folder / "rows.jsonl").write_text("".join(json.dumps(pair(n)) + "\n" for n in range(16)))
    data = {"train": "shop/rows.jsonl", "validation": 4}
    assert run(["prepare", str(write_recipe(data=data))]) == 0
    assert not attack.succeeded()


@pytest.mark.parametrize("command", ["eval", "merge"])
def test_prepared_rows_that_lead_out_of_their_file_are_refused(
    command: str,
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    observed: Observed,
) -> None:
    """In an untrusted run: Arrow would follow an offset out of the file, and crash."""
    recipe = write_recipe(training={"max_steps": 1, "batch_size": 4})
    assert run(["train", str(recipe)]) == 0
    made = tmp_path / "runs" / "tiny"
    for file in (made / "data").glob("*.arrow"):
        held = bytearray(file.read_bytes())
        with file.open("rb") as stream:
            offsets = pa.ipc.open_stream(stream).read_all().column("input_ids").chunks[0].offsets
        place = held.find(struct.pack("<3i", *offsets.to_pylist()[:3]))
        held[place + 4 : place + 8] = struct.pack("<i", 2**30)
        file.write_bytes(held)
    capsys.readouterr()
    assert run([command, str(made)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and ".arrow: not as ftcli prepare wrote it" in lines[0]
    observed("an offset of 4 GB in prepared rows: refused in one line, no crash")
