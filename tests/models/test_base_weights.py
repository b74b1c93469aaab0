"""Weights that are not whole are known by the headers of their files."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from ftcli.errors import ModelError
from ftcli.memory.shapes import find_shape
from ftcli.models import base_weights
from ftcli.models.base_weights import require_weights
from tests.conftest import save_tiny_model

EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
SHAPE = find_shape("smollm2-135m", Path())


def checked(folder: Path) -> str:
    return require_weights(str(folder), None, SHAPE)


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def rewrite(folder: Path, **changes: Any) -> None:
    """Change tensors by name; none takes one away."""
    file = folder / "model.safetensors"
    tensors = load_file(file) | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, file)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("model_type", ["llama", "phi3", "gpt_neox", "mixtral"])
def test_a_model_as_transformers_saves_it_is_whole(
    model_type: str, tied: bool, tmp_path: Path
) -> None:
    """Experts are saved one by one and held as one tensor."""
    keys = EXPERTS if model_type == "mixtral" else {}
    folder = save_tiny_model(tmp_path / "model", model_type, tie_word_embeddings=tied, **keys)
    size = (folder / "model.safetensors").stat().st_size
    assert checked(folder).startswith("weights whole (") and size > 300_000


def test_a_missing_and_a_misshapen_tensor_are_named(model: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    rewrite(model, **{name: load_file(model / "model.safetensors")[name][:32].clone()})
    with pytest.raises(ModelError, match=rf"its {name} is 32 × 64, and its config.json makes it "):
        checked(model)
    rewrite(model, **{name: None})
    with pytest.raises(ModelError, match=rf"1 of \d+ weights are in none of its files, {name} fi"):
        checked(model)


def test_a_tied_head_may_be_there_or_not_and_an_untied_one_may_not(tmp_path: Path) -> None:
    head = "lm_head.weight"
    tied = save_tiny_model(tmp_path / "tied")
    assert head not in load_file(tied / "model.safetensors")
    untied = save_tiny_model(tmp_path / "untied", tie_word_embeddings=False)
    rewrite(untied, **{head: None})
    with pytest.raises(ModelError, match=f"{head} first; they would begin at random"):
        checked(untied)


def test_a_missing_shard_is_named(model: Path) -> None:
    names = {"a.weight": "model-1-of-2.safetensors", "b.weight": "model-2-of-2.safetensors"}
    (model / "model.safetensors").rename(model / "model-1-of-2.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(ModelError, match=r"1 of 2 weight files are missing, model-2-of-2\.safe"):
        checked(model)


def test_a_folder_without_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="holds no weights"):
        checked(model)


def test_weights_that_are_to_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    held = ["config.json", "model.safetensors"]
    monkeypatch.setattr(base_weights, "weight_files", lambda *_: ())
    monkeypatch.setattr(base_weights, "hub_files", lambda *_, **__: held)
    assert require_weights("owner/name", None, SHAPE) == (
        "weights on the hub, to be fetched (about 269 MB)"
    )
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 9 * 10**8, 10**8))
    with pytest.raises(ModelError, match=r"about 269 MB, and the disk of .* has 100 MB free"):
        require_weights("owner/name", None, SHAPE)
    held.remove("model.safetensors")
    with pytest.raises(ModelError, match="the repository holds no weights"):
        require_weights("owner/name", None, SHAPE)
