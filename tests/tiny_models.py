"""Tiny random models of several architectures, and what their tests ask of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.utils import transformers_weight_conversion
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    FalconConfig,
    FalconForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from ftcli.config.recipe import Lora
from ftcli.data.tokenizing.rendering import IGNORED
from ftcli.models.batches import of_tensors
from ftcli.models.loss import summed_loss

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "initializer_range": 0.1,
}
IDS = torch.arange(1, 25).reshape(2, 12)
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def lora(
    targets: str | list[str] = "all-linear", *, rank: int = 4, alpha: float = 6, **keys: Any
) -> Lora:
    return Lora(mode="lora", rank=rank, alpha=alpha, target_modules=targets, **keys)


def shake(model: PreTrainedModel) -> None:
    """B begins at zero; give it numbers, as a training does."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)


def llama(**sizes: Any) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SIZES | sizes)).eval()


def qwen2(**sizes: Any) -> PreTrainedModel:
    """Biases on queries, keys and values, which begin at zero and get numbers here."""
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES | sizes))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def phi3(**sizes: Any) -> PreTrainedModel:
    """Queries, keys and values in one matrix, gate and up in another."""
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    return Phi3ForCausalLM(Phi3Config(**SIZES | ids | sizes)).eval()


def gpt_neox(**sizes: Any) -> PreTrainedModel:
    """Its embeddings are `embed_in`."""
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES | ids | sizes)).eval()


def falcon(**sizes: Any) -> PreTrainedModel:
    """Its embeddings are `word_embeddings`, tied to the head."""
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    return FalconForCausalLM(FalconConfig(**SIZES | ids | sizes)).eval()


def collate(rows: Sequence[Mapping[str, Sequence[int]]], pad_id: int) -> dict[str, Tensor]:
    """input_ids and labels of rows, padded on the right."""
    return {
        name: pad_sequence([torch.tensor(row[name]) for row in rows], True, filler)
        for name, filler in (("input_ids", pad_id), ("labels", IGNORED))
    }


def logits(model: PreTrainedModel, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


def rename_on_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading rules rename queries, as those of some models do: no module has their new name."""

    def renamed(adapter_state_dict: dict[str, Tensor], **_: object) -> dict[str, Tensor]:
        return {name.replace("q_proj", "query"): it for name, it in adapter_state_dict.items()}

    name = "convert_peft_adapter_state_dict_for_transformers"
    monkeypatch.setattr(transformers_weight_conversion, name, renamed)


def loss_of(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """As the trainer computes it."""
    return summed_loss(model, of_tensors(ids, ids)) / ids.numel()


def reload_in_4_bits(
    model: PreTrainedModel, folder: Path, quantization: BitsAndBytesConfig | None
) -> PreTrainedModel:
    model.save_pretrained(folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantization)
    for module in loaded.modules():
        if type(module).__name__ == "Linear4bit":
            module.support_avx512bf16_for_cpu = False
    return loaded.eval()
