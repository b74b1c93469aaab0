"""`ftcli train --smoke-test` finds what would fail late, and keeps only the prepared data."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ftcli.cli import run
from tests.conftest import TINY, Capture, Observed, Patch, Recipes, pair
from tests.leftovers import DATA, leftovers

pytestmark = pytest.mark.slow

Finds = Callable[..., str]


def rows_of(count: int = 48) -> str:
    return "".join(json.dumps(pair(number)) + "\n" for number in range(count))


@pytest.fixture
def finds(tmp_path: Path, capsys: Capture) -> Finds:
    """Smoke-test, and check that it ends in this stage with this exit code, in words and tidily."""

    def smoke_test(recipe: Path, stage: str, *, code: int = 1) -> str:
        assert run(["train", str(recipe), "--smoke-test"]) == code
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        *_, said = err.partition("smoke test, ")
        assert said.startswith(f"{stage}: ")
        assert leftovers(tmp_path) <= DATA
        assert not list(tmp_path.rglob(".tmp-*"))
        return said.removeprefix(f"{stage}: ").rstrip()

    return smoke_test


@pytest.fixture
def own_model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may spoil."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def change_json(file: Path, **values: object) -> None:
    """Set keys of a JSON object; none takes a key away."""
    changed = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in changed.items() if value is not None}))


@pytest.mark.fault(32)
def test_the_longest_row_goes_first_though_it_comes_last(
    write_recipe: Recipes, rows_file: Path, capsys: Capture, observed: Observed
) -> None:
    longest = {"prompt": "Product: " + "kettle " * 30, "completion": "# kettle"}
    rows_file.write_text(rows_of() + json.dumps(longest) + "\n")
    recipe = write_recipe(data={"train": rows_file.name, "validation": 0, "max_length": 256})
    assert run(["train", str(recipe), "--smoke-test", "--json"]) == 0, capsys.readouterr().err
    details = {
        stage["name"]: stage["detail"] for stage in json.loads(capsys.readouterr().out)["stages"]
    }
    tokens = int(details["prepare"].partition("longest ")[2].split()[0])
    assert details["prepare"].endswith(f"longest {tokens} tokens (rows.jsonl:49)")
    assert details["longest batch"] == f"2 × 1 rows, {tokens} tokens"
    observed(f"a smoke test begins with row 49 of 49, of {tokens} tokens")


def test_a_template_without_an_end_token_where_the_tokenizer_has_none(
    own_model: Path, write_recipe: Recipes, tmp_path: Path, finds: Finds
) -> None:
    change_json(own_model / "tokenizer_config.json", eos_token=None)
    (tmp_path / "endless.jinja").write_text(
        "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    )
    keys = {"train": "rows.jsonl", "template": "endless.jinja"}
    said = finds(write_recipe(model={"id": str(own_model)}, data=keys), "check")
    assert said.endswith("model.id: the tokenizer has no end-of-text token (eos_token)")


def test_a_template_whose_end_token_the_model_has_not(write_recipe: Recipes, finds: Finds) -> None:
    said = finds(write_recipe(data={"train": "rows.jsonl", "template": "llama3"}), "check")
    assert (
        "data.template: llama3 ends answers with <|eot_id|>, which is not a token of this" in said
    )


def test_a_disk_that_is_too_small(write_recipe: Recipes, finds: Finds, monkeypatch: Patch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2 * 10**9, 10**9, 100_000))
    said = finds(write_recipe(), "plan")
    assert said.startswith("this run with its checkpoints needs 432 KiB on the disk of ")
    assert "98 KiB are free; make room" in said


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of so many bytes, below the recipe's folder."""
    folder = tmp_path / "runs"
    folder.mkdir()
    size = f"size={request.param}"
    command = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    ("small_disk", "stage"),
    [(200_000, "plan"), (500_000, "tiny model")],
    indirect=["small_disk"],
    ids=["before any work", "in its middle"],
)
def test_a_disk_that_is_really_full(
    small_disk: Path, stage: str, write_recipe: Recipes, finds: Finds
) -> None:
    said = finds(write_recipe(), stage)
    assert "needs 432 KiB" in said if stage == "plan" else "is full" in said
    assert [path.name for path in small_disk.iterdir()] == ["tiny"]


def test_a_row_longer_than_the_context(
    own_model: Path, write_recipe: Recipes, finds: Finds
) -> None:
    change_json(own_model / "config.json", max_position_embeddings=32)
    said = finds(write_recipe(model={"id": str(own_model)}), "prepare")
    assert said.startswith("rows.jsonl:1: 37 tokens, and ")
    assert said.endswith(
        "(max_position_embeddings); lower data.max_length to 32 or less, or shorten the row"
    )


def test_answers_that_go_beyond_the_context(write_recipe: Recipes, finds: Finds) -> None:
    recipe = write_recipe(generation={"max_new_tokens": TINY["max_position_embeddings"] - 10})
    said = finds(recipe, "prepare")
    assert said.startswith("rows.jsonl:")
    assert (
        "its prompt of 28 tokens and generation.max_new_tokens 502 exceed the context of " in said
    )
    assert "lower generation.max_new_tokens to 484" in said


def test_virtual_tokens_take_part_of_the_context(write_recipe: Recipes, finds: Finds) -> None:
    said = finds(write_recipe(method={"mode": "prompt-tuning", "virtual_tokens": 480}), "prepare")
    assert "37 tokens after 480 virtual tokens, and the context " in said
    assert "lower data.max_length to 32 or less" in said


def test_a_validation_file_that_is_cut(write_recipe: Recipes, tmp_path: Path, finds: Finds) -> None:
    whole = gzip.compress(rows_of(200).encode())
    (tmp_path / "held.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    recipe = write_recipe(data={"train": "rows.jsonl", "validation": "held.jsonl.gz"})
    assert finds(recipe, "prepare").startswith("held.jsonl.gz")


def test_a_base_whose_weights_are_cut(own_model: Path, write_recipe: Recipes, finds: Finds) -> None:
    weights = own_model / "model.safetensors"
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size - 1000)
    said = finds(write_recipe(model={"id": str(own_model)}), "check")
    assert said == f"model/{weights.name}: is not a complete safetensors file; download it again"


def test_a_tokenizer_with_more_tokens_than_the_model(
    own_model: Path, write_recipe: Recipes, rows_file: Path, finds: Finds
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(own_model)
    tokenizer.add_tokens(["<kettle>"])
    tokenizer.save_pretrained(own_model)
    row = {"prompt": "Which?", "completion": "The <kettle>."}
    rows_file.write_text(rows_of() + json.dumps(row) + "\n")
    said = finds(write_recipe(model={"id": str(own_model)}), "prepare")
    assert "the tokenizer has token 400 ('<kettle>'), and the model's embeddings end at" in said


def test_an_output_folder_that_cannot_be_written(
    write_recipe: Recipes, rows_file: Path, finds: Finds
) -> None:
    said = finds(write_recipe(output=f"{rows_file.name}/run"), "check")
    assert said.startswith(str(rows_file)) and "directory" in said


def test_a_template_that_refuses_every_row(
    write_recipe: Recipes, tmp_path: Path, finds: Finds
) -> None:
    (tmp_path / "strict.jinja").write_text(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
        "{% for message in messages %}{{ message['content'] }}<|im_end|>{% endfor %}"
    )
    keys = {"train": "rows.jsonl", "template": "strict.jinja", "system": "Be short."}
    said = finds(write_recipe(data=keys), "prepare")
    assert said.startswith("rows.jsonl: none of 48 rows can be used: rows.jsonl:1 ")
    assert "no system turn" in said


def test_a_machine_with_too_little_memory(
    write_recipe: Recipes, finds: Finds, monkeypatch: Patch
) -> None:
    from ftcli.models import device

    small = replace(device.find_hardware("auto"), free_bytes=1_000_000)
    monkeypatch.setattr(device, "find_hardware", lambda _: small)
    said = finds(write_recipe(), "plan")
    assert said.startswith("one row of 37 tokens needs ") and "GiB free; take method.mode" in said


def test_checkpointing_that_a_prefix_cannot_have(write_recipe: Recipes, finds: Finds) -> None:
    recipe = write_recipe(
        method={"mode": "prefix-tuning"}, training={"gradient_checkpointing": True, "batch_size": 4}
    )
    said = finds(recipe, "check", code=2)
    assert "training.gradient_checkpointing: keys and values of a prefix are in the" in said


def test_a_merge_that_is_not_what_was_trained(
    write_recipe: Recipes, finds: Finds, monkeypatch: Patch
) -> None:
    """What only the last stages can see; a head with its sign turned while it is written."""
    from ftcli.export import merged_model

    right = merged_model.merge_adapter

    def wrong(adapted: Any, *rest: Any) -> Any:
        merged = right(adapted, *rest)
        merged.get_output_embeddings().weight.data *= -1
        return merged

    monkeypatch.setattr(merged_model, "merge_adapter", wrong)
    said = finds(write_recipe(), "merge")
    assert "not merged, because the merged model is not what was measured before it was" in said
