"""Stacks of experts, 3-D parameters of a mixture of experts: found, in 4 bits, and under LoRA.

bitsandbytes' linear layers are matrices: transformers 5.24 quantises no stack, and PEFT adapts one
by `target_parameters`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations
from transformers import BitsAndBytesConfig, PreTrainedModel

from ftcli.errors import ModelError
from ftcli.kernels.experts import is_replaceable, stack_names

# Weights per scale: the default of bitsandbytes and transformers.
NF4_BLOCK = 64
# A stack's matrices are as wide as layers; narrower 3-D parameters are kernels of convolutions.
NARROWEST = 16


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


def expert_stacks(model: PreTrainedModel) -> list[Stack]:
    """All stacks of a base's decoder, in 4 bits or not, in the order of its modules."""
    decoder = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    found = []
    for path, module in decoder.named_modules(prefix=prefix):
        quantised = getattr(module, "parametrizations", {})
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() == 3 and min(parameter.shape[1:]) >= NARROWEST:
                found.append(Stack(path, module, name))
        found += [Stack(path, module, name) for name in quantised]
    return found


def quantise_experts(
    model: PreTrainedModel, config: BitsAndBytesConfig, device: torch.device
) -> int:
    """Quantise each stack to NF4 on this device, one after the other; returns how many.

    Not those whose rows are no whole blocks: the CPU's kernel of bitsandbytes 0.50 takes the scales
    of other blocks for them (backends/cpu/ops.py, dequantize_4bit).
    """
    from bitsandbytes.nn.parametrize import replace_parameter_4bit  # looks for CUDA, slowly

    stacks = [
        each
        for each in expert_stacks(model)
        if getattr(each.module, each.name).shape[-1] % NF4_BLOCK == 0
    ]
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


def stacks_to_adapt(model: PreTrainedModel) -> list[Stack]:
    """The stacks that LoRA adapts with method.experts; raises ModelError if it cannot.

    Those of modules whose forward is ours (ftcli.kernels.experts): without it PEFT's update of a
    stack takes the memory of the stack, and is wrong in 4 bits.
    """
    stacks = expert_stacks(model)
    if not stacks:
        raise ModelError(
            "method_refused",
            f"{model.config.model_type} has no stacks of experts: remove method.experts",
        )
    found = [each for each in stacks if is_adaptable(each.module)]
    if not found:
        first = stacks[0]
        raise ModelError(
            "method_refused",
            f"{model.config.model_type}: its experts ({first.full_name}) do not run through "
            "transformers' interface for experts, so they cannot take an adapter; remove "
            "method.experts, which leaves them frozen",
        )
    return [each for each in found if each.name in stack_names(each.module)]


def is_adaptable(module: nn.Module) -> bool:
    return is_replaceable(module)


@contextmanager
def plain_stacks(model: PreTrainedModel) -> Iterator[None]:
    """Within the block, stacks in 4 bits look like plain parameters without memory.

    PEFT 0.21 nests the adapters of plain parameters as a module declares them, and those of
    parametrised ones in the order of the alphabet (tuners_utils.py, _inject_parameters): a file of
    one would give each adapter to the other stack of the other.
    """
    hidden = []
    for module in {each.module: None for each in expert_stacks(model) if each.in_4_bits}:
        own, parametrizations = type(module), module.parametrizations
        shapes = {name: getattr(module, name) for name in parametrizations}
        del module.parametrizations
        module.__class__ = type_before_parametrizations(module)
        for name, weight in shapes.items():
            empty = weight.new_empty(1).expand(weight.shape)
            module.register_parameter(name, nn.Parameter(empty, requires_grad=False))
        hidden.append((module, own, parametrizations))
    try:
        yield
    finally:
        for module, own, parametrizations in hidden:
            for name in parametrizations:
                delattr(module, name)
            module.__class__ = own
            module.parametrizations = parametrizations
