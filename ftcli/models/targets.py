"""Which linear layers a method adapts: those of the decoder that a text's gradient reaches."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from inspect import getsource
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ftcli.compat import attention_name
from ftcli.config.recipe import LoraKeys
from ftcli.errors import ModelError
from ftcli.kernels.dequantised import is_four_bit
from ftcli.kernels.expert_stacks import router_names, stacks_to_adapt
from ftcli.models.text_forward import idle_names

# Tokens whose gradient shows what a text reaches.
REACHING_TOKENS = 32
READ_WEIGHT = re.compile(r"self\.(\w+)\.weight\b(?!\.(?:dtype|device))")
CAST_TO_WEIGHT = re.compile(r"\.to\((?:dtype=)?self\.(\w+)\.weight\.dtype")


def target_names(model: PreTrainedModel, method: LoraKeys) -> list[str]:
    """Full names of the linear layers that the method adapts; a full name reaches its layer
    whatever `layers` says. Raises ModelError for a name that reaches none."""
    names, targets = names_with_gradient(model), method.target_modules
    if not names:
        raise ModelError(
            "target_modules",
            f"{type(model).__name__} has no linear layers to adapt (GPT-2's are Conv1D); take "
            "method.mode: full",
        )
    if isinstance(targets, str):
        return [name for name in names if is_in_layers(name, method.layers)]

    def reaches(target: str, name: str) -> bool:
        if name == target:
            return True
        return name.endswith(f".{target}") and is_in_layers(name, method.layers)

    idle = [each for each in targets if not any(reaches(each, name) for name in names)]
    if idle:
        raise ModelError("target_modules", f"no linear layer is called {', '.join(idle)}")
    return [name for name in names if any(reaches(each, name) for each in targets)]


def expert_names(model: PreTrainedModel, method: LoraKeys) -> list[str]:
    """Full names of the stacks of experts that the method adapts; raises ModelError."""
    if not method.experts:
        return []
    found = [name for name in stacks_to_adapt(model) if is_in_layers(name, method.layers)]
    if not found:
        layers = ", ".join(map(str, method.layers or ()))
        raise ModelError("layers", f"layers {layers} have no experts; remove method.experts")
    return found


def shortened(model: nn.Module, names: Collection[str]) -> list[str]:
    """Last names of modules whose last name no other module has; full names of the rest.

    With last names an adapter fits only a base with as many layers.
    """
    known = {*names}
    others = {last_name(name) for name, _ in model.named_modules() if name not in known}
    return sorted({name if last_name(name) in others else last_name(name) for name in names})


def is_in_layers(name: str, layers: Sequence[int] | None) -> bool:
    """Whether a module is in one of these transformer layers; None: in any."""
    numbers = [int(part) for part in name.split(".") if part.isdecimal()]
    return layers is None or numbers[:1] in [[layer] for layer in layers]


def linear_names(model: PreTrainedModel) -> list[str]:
    """Full names of the decoder's linear layers, in the order of its modules.

    Without the head and the routers of experts. Without layers that multiply in another way than
    torch's, and those whose weight their module reads: an adapter would have no effect there (a
    Mamba layer's kernel takes `out_proj.weight`).
    """
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    routers = router_names(model)
    return [
        path
        for parent_path, parent in decoder.named_modules(prefix=prefix)
        for name, module in parent.named_children()
        if _is_linear(module)
        and module is not head
        and name not in _read_weights(parent)
        and (path := f"{parent_path}.{name}".removeprefix(".")) not in routers
    ]


def names_with_gradient(model: PreTrainedModel) -> list[str]:
    """Names of linear layers that a text's gradient reaches, found by one backward pass."""
    names = linear_names(model)
    if model.device.type == "meta":  # sizes without weights
        return names
    idle = tuple(f"{name}." for name in idle_names(model))  # whole layers, too
    running = [name for name in names if not name.startswith(idle)]
    reached = _reached(model, running)
    return [name for name in running if kind_of(name) in reached]


def _reached(model: PreTrainedModel, names: Collection[str]) -> set[str]:
    """Kinds of modules whose outputs get a gradient other than zero from a text.

    Not towers, and not the indexers of sparse attention, whose top-k has no gradient.
    """
    reached: set[str] = set()

    def record(name: str, gradient: Tensor) -> None:
        if gradient.any():
            reached.add(kind_of(name))

    def watch(name: str, _: nn.Module, __: object, output: Tensor) -> Tensor:
        found = output.clone()  # Falcon adds to it in place, which a 4-bit layer's output refuses
        if found.requires_grad:
            found.register_hook(partial(record, name))
        return found

    def begin(_: nn.Module, __: object, output: Tensor) -> Tensor:
        return output.detach().requires_grad_().clone()  # CTRL multiplies it in place

    handles = [model.get_submodule(n).register_forward_hook(partial(watch, n)) for n in names]
    handles.append(model.get_input_embeddings().register_forward_hook(begin))
    try:
        with _frozen(model):
            run_text(model)
    finally:
        for handle in handles:
            handle.remove()
    return reached


def last_name(name: str) -> str:
    """A module's own name."""
    return name.rsplit(".", 1)[-1]


def kind_of(name: str) -> str:
    """A name without its numbers: an expert or a layer counts as the others of its kind."""
    return re.sub(r"\d+", "", name)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Within the block, no parameter takes a gradient."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def run_text(model: PreTrainedModel) -> None:
    """Forward and backward of a short text."""
    device = model.get_input_embeddings().weight.device
    flash = attention_name(model).startswith("flash")  # takes 16 bits only
    with torch.autocast(device.type, torch.bfloat16, enabled=flash):
        ids = torch.arange(1, REACHING_TOKENS, device=device)[None]
        model.eval()(input_ids=ids, use_cache=False).logits.sum().backward()


def _is_linear(module: nn.Module) -> bool:
    """Whether it computes as torch's linear layer; some subclasses do not."""
    if not isinstance(module, nn.Linear):
        return False
    if is_four_bit(module) or type(module).forward is nn.Linear.forward:
        return True
    rows = module.weight.new_ones(2, module.in_features)
    with torch.no_grad():
        try:
            return torch.equal(module(rows), F.linear(rows, module.weight, module.bias))
        except (RuntimeError, TypeError):  # another shape, or several outputs
            return False


def _read_weights(module: nn.Module, pattern: re.Pattern[str] = READ_WEIGHT) -> frozenset[str]:
    """Names of children whose weight the module's class reads, not only its type or device."""
    kinds: Any = type(module).__mro__
    own = kinds[: kinds.index(nn.Module)]
    return frozenset().union(*(_read_in(kind, pattern) for kind in own))


def cast_names(model: nn.Module) -> set[str]:
    """Full names of layers to whose weight's type inputs are cast: packed 4-bit weights are bytes,
    and so would be the inputs (transformers 5.24: the indexers of sparse attention)."""
    return {
        f"{path}.{name}".removeprefix(".")
        for path, parent in model.named_modules()
        for name in _read_weights(parent, CAST_TO_WEIGHT)
    }


@cache
def _read_in(kind: Any, pattern: re.Pattern[str]) -> frozenset[str]:
    try:
        return frozenset(pattern.findall(getsource(kind)))
    except (OSError, TypeError):  # no file, as of classes that a call has made
        return frozenset()
