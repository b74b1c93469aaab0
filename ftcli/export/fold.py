"""Fold an adapter into its base: layer after layer, one copy of the weights in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from ftcli.console import Reporter
from ftcli.errors import ModelError
from ftcli.export.parity import Part, parts_of
from ftcli.models.targets import shared_weight
from ftcli.models.virtual_tokens import causal_model

# Weights that share a scale: bitsandbytes' and transformers' own number, which training takes.
NF4_BLOCK = 64


@dataclass(frozen=True)
class FourBits:
    """How a training held the layers that it quantised."""

    layers: frozenset[str]
    """Their names in the base; bitsandbytes passes over the head."""
    double_quantization: bool
    dtype: torch.dtype
    """Of the weights when they were quantised."""
    device: torch.device


def four_bit_layers(model: PreTrainedModel) -> frozenset[str]:
    """Names of the layers that a model holds in 4 bits, without what PEFT adds to them."""
    modules = causal_model(model).named_modules()
    names = (name for name, module in modules if type(module).__name__ == "Linear4bit")
    return frozenset(name.removesuffix(".base_layer") for name in names)


def layers_to_fold(adapted: PeftModel, four_bits: FourBits | None) -> list[tuple[str, nn.Module]]:
    """The layers that change: those with an adapter, and those that training quantised."""
    quantised = four_bits.layers if four_bits is not None else frozenset()
    return [
        (name, module)
        for name, module in causal_model(adapted).named_modules()
        if isinstance(module, BaseTunerLayer) or name in quantised
    ]


def fold(
    adapted: PeftModel, stored: torch.dtype, four_bits: FourBits | None, reporter: Reporter
) -> PreTrainedModel:
    """The base with the update added to its weights, all in one type; raises ModelError.

    `four_bits` rounds the weights as training did first; none: takes them as they are.
    """
    if (shared := shared_weight(adapted)) is not None:
        raise ModelError(
            "merge_shared",
            f"{shared}, which can hold the update of one alone; use the adapter as it is (ftcli "
            "generate)",
        )
    layers = layers_to_fold(adapted, four_bits)
    with reporter.meter("merge", len(layers)) as meter:
        for done, (name, layer) in enumerate(layers, start=1):
            weight = base_layer_of(layer).weight
            add_update(name, layer, four_bits)
            weight.data = weight.data.to(stored)
            meter.update(done)
    return without_adapter(adapted, stored)


def base_layer_of(layer: nn.Module) -> Any:
    """The layer that holds the weight, below an adapter where there is one."""
    return layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer


def add_update(name: str, layer: nn.Module, four_bits: FourBits | None) -> None:
    """Give a layer the weight that it was trained with, plus its update, in fp32.

    The sum is PEFT's own: it would else round the update to the weight's type before it adds.
    Raises ModelError where the sum is no number.
    """
    base = base_layer_of(layer)
    weight = base.weight.data
    if four_bits is not None and name in four_bits.layers:
        weight = as_quantised(base, four_bits)
    base.weight.data = weight.float()
    if isinstance(layer, BaseTunerLayer):
        try:
            layer.merge(safe_merge=True)
        except ValueError as error:  # safe_merge has found NaN or infinity
            raise ModelError("adapter_broken", f"{name}: its update is no number") from error


def merged_parts(
    adapted: PeftModel,
    dtype: torch.dtype,
    stored: torch.dtype | None,
    four_bits: FourBits | None,
) -> list[Part]:
    """The parts of the model that `fold` makes, each merged while it computes in `dtype`.

    Their weights are rounded to `stored` first; None: not rounded.
    """
    layers = {layer: name for name, layer in layers_to_fold(adapted, four_bits)}
    return [
        _MergedPart(module, dtype, layers.get(module), stored, four_bits)
        for module in parts_of(causal_model(adapted))
    ]


class _MergedPart(Part):
    """A part with its update in its weight, whose adapter computes nothing."""

    def __init__(
        self,
        module: nn.Module,
        dtype: torch.dtype,
        name: str | None,
        stored: torch.dtype | None,
        four_bits: FourBits | None,
    ) -> None:
        super().__init__(module, dtype)
        self.name, self.rounded_to, self.four_bits = name, stored, four_bits

    def widen(self, *_: object) -> None:
        self.stored = [(each, each.data) for each in self.module.parameters()]
        if self.name is not None:
            add_update(self.name, self.module, self.four_bits)
        elif isinstance(self.module, BaseTunerLayer):
            self.module.merged_adapters.extend(self.module.active_adapters)  # `unload` drops them
        for parameter, data in self.stored:
            if not data.is_floating_point():
                continue
            if self.rounded_to is not None:
                require_in_range(parameter.data, self.rounded_to)
                parameter.data = parameter.data.to(self.rounded_to)
            parameter.data = parameter.data.to(self.dtype)

    def restore(self, *_: object) -> None:
        super().restore()
        if isinstance(self.module, BaseTunerLayer):
            self.module.merged_adapters.clear()


def require_in_range(weight: Tensor, stored: torch.dtype) -> None:
    """Raise ModelError where a weight is larger than the type holds; fp16 ends at 65,504."""
    largest = weight.abs().max().item()
    if largest > torch.finfo(stored).max:
        raise ModelError(
            "merge_range",
            f"a weight of {largest:.3g} is beyond what {dtype_name(stored)} holds "
            f"({torch.finfo(stored).max:.6g}); take --dtype bf16 or fp32",
        )


def dtype_name(dtype: torch.dtype) -> str:
    """`bfloat16`."""
    return str(dtype).removeprefix("torch.")


def as_quantised(layer: Any, four_bits: FourBits) -> Tensor:
    """The weight of a linear layer as 4 bits hold it."""
    return nf4_round_trip(layer.weight.data.to(four_bits.dtype), four_bits)


def nf4_round_trip(weight: Tensor, four_bits: FourBits) -> Tensor:
    """[out, in] → what a 4-bit layer computes with, in the weight's own type and place."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit  # looks for CUDA, slowly

    packed, state = quantize_4bit(
        weight.contiguous().to(four_bits.device),
        blocksize=NF4_BLOCK,
        compress_statistics=four_bits.double_quantization,
        quant_type="nf4",
    )
    whole: Tensor = dequantize_4bit(packed, state)
    return whole.to(weight.device)


def without_adapter(adapted: PeftModel, stored: torch.dtype) -> PreTrainedModel:
    """The base with its folded layers and the modules that were trained whole, all in one type."""
    model: PreTrainedModel = adapted.unload()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(stored)
    _untie_what_differs(model)
    return model


def _untie_what_differs(model: PreTrainedModel) -> None:
    """Where one end of tied embeddings was trained alone, the config may not tie them again."""
    head, words = model.get_output_embeddings(), model.get_input_embeddings()
    config = model.config.get_text_config()
    if head is not None and getattr(config, "tie_word_embeddings", False):
        config.tie_word_embeddings = head.weight.data_ptr() == words.weight.data_ptr()
