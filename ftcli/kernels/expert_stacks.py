"""Stacks of experts, 3-D parameters of a mixture of experts: found, in 4 bits, and under LoRA.

bitsandbytes' linear layers are matrices: transformers 5.24 quantises no stack, and PEFT adapts one
by `target_parameters`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations
from transformers import BitsAndBytesConfig, PreTrainedModel

from ftcli.memory.architecture import LEAST_QUANTISED_WIDTH, NF4_BLOCK


class Stack(NamedTuple):
    """A 3-D parameter [experts, out, in], or [experts, in, out]."""

    path: str
    """Full name of its module."""
    module: Any
    name: str

    @property
    def full_name(self) -> str:
        return f"{self.path}.{self.name}"

    @property
    def in_4_bits(self) -> bool:
        return is_parametrized(self.module, self.name)

    @property
    def shape(self) -> torch.Size:
        if not self.in_4_bits:
            return torch.Size(getattr(self.module, self.name).shape)
        (dequantise,) = self.module.parametrizations[self.name]
        return torch.Size(dequantise.quant_state.shape)


def expert_stacks(model: PreTrainedModel) -> list[Stack]:
    """All stacks of a base's decoder, in 4 bits or not, in the order of its modules."""
    decoder = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    found = []
    for path, module in decoder.named_modules(prefix=prefix):
        quantised = getattr(module, "parametrizations", {})
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() == 3 and min(parameter.shape[1:]) >= LEAST_QUANTISED_WIDTH:
                found.append(Stack(path, module, name))
        found += [Stack(path, module, name) for name in quantised]
    return found


def quantise_experts(
    model: PreTrainedModel, config: BitsAndBytesConfig, device: torch.device
) -> int:
    """Quantise each stack to NF4 on this device, one after the other; returns how many."""
    from bitsandbytes.nn.parametrize import replace_parameter_4bit  # looks for CUDA, slowly

    stacks = [each for each in expert_stacks(model) if _is_quantisable(each)]
    for stack in stacks:
        parameter = getattr(stack.module, stack.name)
        parameter.data = parameter.data.to(device)
        replace_parameter_4bit(
            stack.module,
            stack.name,
            compress_statistics=config.bnb_4bit_use_double_quant,
            quant_type=config.bnb_4bit_quant_type,
            blocksize=NF4_BLOCK,
        )
    return len(stacks)


def _is_quantisable(stack: Stack) -> bool:
    """Not in 4 bits yet, and each row of whole blocks: to others the CPU's kernel of bitsandbytes
    0.50 gives the scales of other blocks (backends/cpu/ops.py, dequantize_4bit)."""
    return not stack.in_4_bits and stack.shape[-1] % NF4_BLOCK == 0


@contextmanager
def stacks_quantised_on_loading() -> Iterator[None]:
    """Within the block, `from_pretrained` quantises each stack as it reads it, as it does with
    linear layers: no more than one is in 16 bits. `seal_stacks` follows."""
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    mapping: dict[str, Any] = AUTO_QUANTIZER_MAPPING
    own = mapping["bitsandbytes_4bit"]
    mapping["bitsandbytes_4bit"] = _quantizer_of_stacks()
    try:
        yield
    finally:
        mapping["bitsandbytes_4bit"] = own


@cache
def _quantizer_of_stacks() -> type[Any]:
    """A class, made on request because bitsandbytes looks for CUDA when it is imported, slowly."""
    from bitsandbytes.nn import Params4bit
    from transformers.integrations.bitsandbytes import Bnb4bitQuantize
    from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

    class Operation(Bnb4bitQuantize):
        def convert(self, input_dict: Any, **keywords: Any) -> dict[str, Any]:
            config = self.hf_quantizer.quantization_config
            found: dict[str, Any] = {}
            for name, given in input_dict.items():
                if name not in self.hf_quantizer.stacks:
                    found |= super().convert({name: given}, **keywords)
                    continue
                stack = given[0] if isinstance(given, list) else given
                found[name] = Params4bit(
                    stack,
                    requires_grad=False,
                    blocksize=NF4_BLOCK,
                    compress_statistics=config.bnb_4bit_use_double_quant,
                    quant_type=config.bnb_4bit_quant_type,
                ).to(stack.device)
            return found

    class Quantizer(Bnb4BitHfQuantizer):
        stacks: frozenset[str] | None = None

        def param_needs_quantization(self, model: Any, param_name: str, **keywords: Any) -> bool:
            if self.stacks is None:
                found = expert_stacks(model)
                self.stacks = frozenset(each.full_name for each in found if _is_quantisable(each))
            return param_name in self.stacks or super().param_needs_quantization(
                model, param_name, **keywords
            )

        def get_quantize_ops(self) -> Operation:
            return Operation(self)

    return Quantizer


def seal_stacks(model: PreTrainedModel) -> None:
    """Make each stack that was quantised on loading a parameter that dequantises when it is read,
    as `quantise_experts` does."""
    from bitsandbytes.nn.parametrize import replace_parameter_4bit_prequantized

    for module in list(model.modules()):
        stacks = {
            name: parameter
            for name, parameter in module.named_parameters(recurse=False)
            if not isinstance(module, nn.Linear) and hasattr(parameter, "quant_state")
        }
        for name, parameter in stacks.items():
            state = parameter.quant_state.as_dict(packed=True)
            setattr(module, name, nn.Parameter(parameter.data, requires_grad=False))
            replace_parameter_4bit_prequantized(module, name, state, parameter.device)


def router_names(model: PreTrainedModel) -> set[str]:
    """Names of linear layers that give each expert a score.

    They stand where the experts do, with an output per expert and no second layer of this size next
    to them: gate and up of a shared expert are two.
    """
    found: set[str] = set()
    for block, experts in {
        (each.path.rpartition(".")[0], each.shape[0]) for each in expert_stacks(model)
    }:
        for path, parent in model.get_submodule(block).named_modules(prefix=block):
            linear = {
                f"{path}.{name}": child.out_features
                for name, child in parent.named_children()
                if isinstance(child, nn.Linear)
            }
            scores = [name for name, outputs in linear.items() if outputs == experts]
            found.update(scores if len(scores) == 1 else ())
    return found


@contextmanager
def plain_stacks(model: PreTrainedModel) -> Iterator[None]:
    """Within the block, stacks in 4 bits look like plain parameters without memory.

    PEFT 0.21 nests the adapters of plain parameters as a module declares them, and those of
    parametrised ones in the order of the alphabet (tuners_utils.py, _inject_parameters): a file of
    one would give each adapter to the other stack of the other.
    """
    stacks = [each for each in expert_stacks(model) if each.in_4_bits]
    plain = [_placeholder(each) for each in stacks]
    classes = {each.module: type(each.module) for each in stacks}
    hidden = {module: module.parametrizations for module in classes}
    for module in classes:
        module.__class__ = type_before_parametrizations(module)
        del module.parametrizations
    for each, placeholder in zip(stacks, plain, strict=True):
        each.module.register_parameter(each.name, placeholder)
    try:
        yield
    finally:
        for each in stacks:
            delattr(each.module, each.name)
        for module, own in classes.items():
            module.__class__ = own
            module.parametrizations = hidden[module]


def _placeholder(stack: Stack) -> nn.Parameter:
    """A parameter of the stack's shape, type and device, all of one element."""
    parametrized = stack.module.parametrizations[stack.name]
    dtype = parametrized[0].quant_state.dtype
    element = torch.empty(1, dtype=dtype, device=parametrized.original.device)
    return nn.Parameter(element.expand(stack.shape), requires_grad=False)
