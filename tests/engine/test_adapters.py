"""Adapters on disk: opened as they were saved, on what they fit and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ftcli.engine.adapters import open_adapter
from ftcli.engine.methods import attach
from ftcli.errors import ModelError
from tests.engine.models import LINEAR, llama, logits, lora, shake


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    adapted = attach(llama(), lora(["q_proj", "v_proj"]), seed=0)
    shake(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("trainable", [False, True])
def test_an_adapter_is_opened_as_it_was_saved(tmp_path: Path, trainable: bool) -> None:
    base = llama()
    weights = {name: weight.clone() for name, weight in base.state_dict().items()}
    adapted = attach(base, lora(), seed=0)
    shake(adapted)
    adapted.save_pretrained(tmp_path)
    again = llama()
    again.load_state_dict(weights)
    opened = open_adapter(again, tmp_path, trainable=trainable)
    assert torch.equal(logits(opened), logits(adapted))
    trained = [p for p in opened.parameters() if p.requires_grad]
    assert len(trained) == (2 * 2 * len(LINEAR) if trainable else 0)


@pytest.mark.fault(20)
@pytest.mark.parametrize(("layers", "takes"), [(1, 4), (3, 12)])
def test_an_adapter_with_weights_too_many_or_too_few_is_refused(
    saved: Path, layers: int, takes: int
) -> None:
    with pytest.raises(ModelError) as caught:
        open_adapter(llama(num_hidden_layers=layers), saved)
    assert f"holds 8 weights, and this base takes {takes}" in caught.value.message
    assert caught.value.file == str(saved)


@pytest.mark.fault(20)
@pytest.mark.parametrize("sizes", [{"hidden_size": 32}, {"num_key_value_heads": 4}])
def test_an_adapter_for_layers_of_other_sizes_is_refused(
    saved: Path, sizes: dict[str, int]
) -> None:
    with pytest.raises(ModelError, match="made for another base"):
        open_adapter(llama(**sizes), saved)
