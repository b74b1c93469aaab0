"""What is saved beside trained weights is counted before it is saved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftcli.cli.train import plan_recipe
from ftcli.console import Terminal
from ftcli.models.sibling_files import tokenizer_bytes
from ftcli.runs.atomic import folder_bytes
from ftcli.training.plan.disk_room import run_bytes
from tests.conftest import tiny_tokenizer


def as_texts(values: dict[str, Any]) -> dict[str, Any]:
    """Merges as they were written by older tokenizers."""
    values["model"]["merges"] = [" ".join(merge) for merge in values["model"]["merges"]]
    return values


@pytest.mark.parametrize("texts", [False, True])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_tokenizer_takes_no_more_than_was_counted(
    texts: bool, indent: int | None, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    base, saved = tmp_path / "base", tmp_path / "saved"
    tiny_tokenizer().save_pretrained(base)
    file = base / "tokenizer.json"
    values = json.loads(file.read_text("utf-8"))
    separators = None if indent else (",", ":")
    written = as_texts(values) if texts else values
    file.write_text(
        json.dumps(written, indent=indent, separators=separators, ensure_ascii=False), "utf-8"
    )
    AutoTokenizer.from_pretrained(base).save_pretrained(saved)
    counted, taken = tokenizer_bytes(str(base)), folder_bytes(saved)
    assert taken <= counted + 1000 <= 3 * taken + 1000


def test_weights_and_pictures_are_not_counted(tiny_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    before = tokenizer_bytes(str(base))
    for name in ("picture.png", "model.safetensors.index.json", "pytorch_model.bin"):
        (base / name).write_bytes(b"0" * 100_000)
    assert tokenizer_bytes(str(base)) == before
    assert tokenizer_bytes("nobody/has-this-model") == 0


def test_what_lies_beside_the_weights_is_part_of_a_run(
    write_recipe: Callable[..., Path],
) -> None:
    plan = plan_recipe(write_recipe(), (), init_from=None, reporter=Terminal()).plan
    assert run_bytes(plan, 2, beside_bytes=3_500_000) == run_bytes(plan, 2) + 3_500_000
