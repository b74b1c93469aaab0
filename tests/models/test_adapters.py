"""Adapters on disk: opened as they were saved, and only on a base that they fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ftcli.errors import ModelError
from ftcli.models import adapters
from ftcli.models.adapters import open_adapter
from ftcli.models.methods import attach
from tests.tiny_models import LINEAR, SIZES, llama, logits, lora, shake


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
    assert f"has 8 weights, and this base takes {takes}" in caught.value.message
    assert caught.value.file == str(saved)


@pytest.mark.fault(20)
@pytest.mark.parametrize("sizes", [{"hidden_size": 32}, {"num_key_value_heads": 4}])
def test_an_adapter_for_layers_of_other_sizes_is_refused(
    saved: Path, sizes: dict[str, int]
) -> None:
    with pytest.raises(ModelError, match="trained on another base"):
        open_adapter(llama(**sizes), saved)


def laguna() -> PreTrainedModel:
    """Its loading rules rename `shared_expert.`, which is also a part of `mlp.shared_experts.`."""
    torch.manual_seed(0)
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    sizes = SIZES | experts | {"head_dim": 16, "shared_expert_intermediate_size": 32}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("laguna", **sizes)).eval()


def test_an_adapter_is_opened_whole_where_loading_rules_rename_its_tensors(tmp_path: Path) -> None:
    shared = [f"shared_experts.{name}" for name in ("gate_proj", "up_proj", "down_proj")]
    adapted = attach(laguna(), lora(["q_proj", "o_proj", *shared]), seed=0)
    shake(adapted)
    adapted.save_pretrained(tmp_path)
    assert torch.equal(logits(open_adapter(laguna(), tmp_path)), logits(adapted))


def test_an_adapter_that_is_not_in_the_model_bit_for_bit_is_refused(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if PEFT returned copies of a model's tensors."""
    given = adapters.get_peft_model_state_dict

    def copies(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return {name: tensor.clone() for name, tensor in given(*args, **kwargs).items()}

    monkeypatch.setattr(adapters, "get_peft_model_state_dict", copies)
    with pytest.raises(ModelError, match="8 of 8 weights differ in the model from"):
        open_adapter(llama(), saved)
