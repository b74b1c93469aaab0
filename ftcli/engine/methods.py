"""Method → what is trained: PEFT configs, quantisation, frozen weights. The only door to PEFT."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import assert_never

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from ftcli.errors import ModelError, did_you_mean
from ftcli.recipe import Full, Lora, LoraKeys, Method, Qlora

# Our name of a method's key → where it goes.
THEIR_NAMES = {
    "rank": "LoraConfig.r",
    "alpha": "LoraConfig.lora_alpha",
    "dropout": "LoraConfig.lora_dropout",
    "target_modules": "LoraConfig.target_modules",
    "double_quantization": "BitsAndBytesConfig.bnb_4bit_use_double_quant",
}


def quantization(method: Method, compute_dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """How the base is quantised while it is loaded."""
    match method:
        case Full() | Lora():
            return None
        case Qlora():
            return BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=method.double_quantization,
                bnb_4bit_compute_dtype=compute_dtype,
            )
        case _:
            assert_never(method)


def attach(model: PreTrainedModel, method: Method, seed: int) -> PreTrainedModel:
    """Make the method's weights trainable and all others not; raises ModelError."""
    match method:
        case Full():
            return model.requires_grad_(True)
        case Lora() | Qlora():
            return _with_lora(model, method, seed)
        case _:
            assert_never(method)


def keep_training_exact(model: PreTrainedModel) -> None:
    """Keep 4-bit layers as they are when the model is evaluated in the middle of a training.

    bitsandbytes 0.50 repacks the weights in eval mode for a kernel without autograd where the CPU
    has AVX512-BF16; the next training forward then has no gradient.
    """
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.support_avx512bf16_for_cpu = False


@contextmanager
def trained_weights_untouched(model: PreTrainedModel) -> Iterator[None]:
    """Give back the trained weights as they were: TRL 1.16 rounds adapters of a 4-bit base to bf16.

    In bf16 small AdamW updates are lost, and a parent's adapter would not be what it was.
    """
    kept = {name: p.data for name, p in model.named_parameters() if p.requires_grad}
    yield
    for name, parameter in model.named_parameters():
        if name in kept:
            parameter.data = kept[name]


def save_weights(model: PreTrainedModel, folder: Path) -> None:
    """Save a model or its adapter, without asking the hub for the base's vocabulary."""
    if isinstance(model, PeftModel):
        model.save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's own card; the run folder has ours
    else:
        model.save_pretrained(folder)


def open_adapter(
    model: PreTrainedModel, folder: Path, *, trainable: bool = False
) -> PreTrainedModel:
    """The base with a saved adapter on it; raises ModelError where a weight of it is missing."""
    try:
        adapted = PeftModel.from_pretrained(model, folder, is_trainable=trainable)
    except (RuntimeError, ValueError) as error:  # other sizes; none of its modules
        raise ModelError(
            "adapter_incomplete", f"it was made for another base: {error}", file=str(folder)
        ) from error
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        saved = len(list(file.keys()))
    wanted = sum(name.endswith("weight") for name in _adapter_names(adapted))
    if saved != wanted:
        raise ModelError(
            "adapter_incomplete",
            f"holds {saved} weights, and this base takes {wanted}: it was made for another base",
            file=str(folder),
        )
    return adapted


def _adapter_names(model: PreTrainedModel) -> list[str]:
    return [name for name, _ in model.named_parameters() if ".lora_" in name]


def _with_lora(model: PreTrainedModel, method: LoraKeys, seed: int) -> PreTrainedModel:
    targets = method.target_modules
    if not isinstance(targets, str):
        _require_targets(model, targets)
    torch.manual_seed(seed)  # A is drawn at random; the same recipe gives the same adapter
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=targets,
    )
    return get_peft_model(model, config)


def _require_targets(model: PreTrainedModel, targets: list[str]) -> None:
    """PEFT drops a name that matches nothing as long as another one matches."""
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    known = sorted({name.rsplit(".", 1)[-1] for name in linear})
    output = {name for name in known if name in ("lm_head", "embed_out")}
    wrong = [t for t in targets if not any(n == t or n.endswith(f".{t}") for n in linear)]
    if wrong:
        names = ", ".join(f"{target}{did_you_mean(target, known)}" for target in wrong)
        raise ModelError(
            "target_modules",
            f"method.target_modules: no linear layer is called {names} "
            f"(there is {', '.join(n for n in known if n not in output)})",
        )
    if chosen := output & set(targets):
        raise ModelError(
            "target_modules",
            f"method.target_modules: {chosen.pop()} cannot take an adapter: the loss is computed "
            "from its weight directly",
        )
