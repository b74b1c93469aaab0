"""What of a causal model runs on text, and how its logits are made, measured by forward passes.

Config keys do not say it: one key is a factor in one class, a divisor in another, and unused in a
third (Granite, HyperCLOVA X, Aya Vision).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ftcli.errors import ModelError
from ftcli.models.device import input_device
from ftcli.models.virtual_tokens import causal_model


@dataclass(frozen=True)
class TextForward:
    """How a causal model makes its logits, `cap(scale · head(hidden_scale · hidden))`, and with
    which modules; all are names in the model."""

    head: str
    """The linear layer."""
    backbone: str | None
    """What returns the hidden states; None: only the head's input has them."""
    hidden_scale: float
    scale: float
    softcap: float | None
    idle: tuple[str, ...]
    """Modules with weights that do not run on text: towers, mostly."""
    readers: tuple[str, ...]
    """Modules that read weights of modules in them that do not run, such as a convolution's."""


_KNOWN: WeakKeyDictionary[nn.Module, TextForward] = WeakKeyDictionary()
# Outputs given to the head's place. What follows is linear at SMALL; a softcap is flat at LARGE,
# which is in the range of fp16.
SMALL, LARGE = 2.0**-10, 2.0**14


def text_forward(network: PreTrainedModel) -> TextForward:
    """What runs on text in a causal model without its adapter, measured once; raises ModelError."""
    if network not in _KNOWN:
        training = [module for module in network.modules() if module.training]
        with torch.no_grad():
            try:
                _KNOWN[network] = _measured(network.eval())
            finally:
                for module in training:
                    module.training = True
    return _KNOWN[network]


def _measured(network: PreTrainedModel) -> TextForward:
    ids = few_ids(network)
    calls: list[tuple[nn.Module, Any, Any]] = []
    handles = [
        module.register_forward_hook(lambda *call: calls.append(call))
        for module in network.modules()
    ]
    try:
        logits = network(input_ids=ids, use_cache=False).logits
    except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
        raise not_on_text(type(network).__name__, error) from error
    finally:
        for handle in handles:
            handle.remove()
    names = {module: name for name, module in network.named_modules()}
    head, inputs = _head_call(network, calls, logits)
    scale, softcap = _after(network, head, ids, logits)
    ran = {module for module, *_ in calls}
    idle = _idle(network, ran, ids, logits)
    form = TextForward(names[head], None, 1.0, scale, softcap, idle, _readers(network, ran, idle))
    for module, _, output in reversed(calls):
        hidden = getattr(output, "last_hidden_state", None)
        if module is network or hidden is None or hidden.shape != inputs.shape:
            continue
        if torch.equal(hidden, inputs):
            return replace(form, backbone=names[module])
        if is_close(inputs, hidden * ((inputs * hidden).sum() / (hidden**2).sum())):
            factor = _before(network, module, head, ids)
            return replace(form, backbone=names[module], hidden_scale=factor)
    return form


def _head_call(
    network: PreTrainedModel, calls: Sequence[tuple[nn.Module, Any, Any]], logits: Tensor
) -> tuple[nn.Module, Tensor]:
    """The head, and what it read."""
    made_by = [call for call in calls if _makes(logits, *call)]
    if not made_by:
        raise unknown_head(network, "no linear layer makes them")
    head, (inputs, *_), _ = made_by[-1]
    if others := {name for name, _ in head.named_parameters(recurse=False)} - {"weight", "bias"}:
        raise unknown_head(network, f"its head has other weights, too ({', '.join(others)})")
    return head, inputs


def head_input(network: PreTrainedModel, inputs: Mapping[str, Any]) -> Tensor:
    """What the head of a causal model reads [rows, tokens, hidden]: of the backbone, or of all that
    precedes the head if no module returns that."""
    form = text_forward(network)
    if form.backbone is None:
        return _read_by(network.get_submodule(form.head), network, inputs)
    hidden: Tensor = network.get_submodule(form.backbone)(**inputs).last_hidden_state
    return hidden if form.hidden_scale == 1.0 else hidden * form.hidden_scale


def read_at_head(network: PreTrainedModel) -> None:
    """Have `head_input` run the whole model, for a backbone that does something else by itself."""
    _KNOWN[network] = replace(text_forward(network), backbone=None, hidden_scale=1.0)


def idle_modules(model: PreTrainedModel) -> list[nn.Module]:
    """The modules of a model that have weights and do not run on text."""
    network = causal_model(model)
    return [network.get_submodule(name) for name in text_forward(network).idle]


def _idle(
    network: PreTrainedModel, ran: set[nn.Module], ids: Tensor, logits: Tensor
) -> tuple[str, ...]:
    """Names of the outermost idle modules, but for those with a tied weight.

    In layers that ran, experts may only have had no token.
    """
    active = {each for each in network.modules() if not ran.isdisjoint(each.modules())}
    found: dict[str, nn.Module] = {}

    def look(prefix: str, module: nn.Module) -> None:
        for name, child in module.named_children():
            if child not in active:
                found[prefix + name] = child
            elif not isinstance(module, nn.ModuleList):
                look(f"{prefix}{name}.", child)

    look("", network)
    everywhere = Counter(_names_of_weights(network))
    idle = [
        name
        for name, module in found.items()
        if (own := Counter(_names_of_weights(module)))
        and all(everywhere[each] == count for each, count in own.items())
    ]
    return tuple(idle) if _runs_without(network, idle, ids, logits) else ()


def _readers(network: PreTrainedModel, ran: set[nn.Module], idle: Sequence[str]) -> tuple[str, ...]:
    """Names of the innermost modules that ran around those with weights that did not."""
    modules, found = dict(network.named_modules()), set()
    for name, module in modules.items():
        inside = any(f"{name}.".startswith(f"{other}.") for other in idle)
        if module in ran or inside or not any(True for _ in module.parameters(recurse=False)):
            continue
        while modules[name] not in ran:
            name = name.rpartition(".")[0]
        found.add(name)
    return tuple(sorted(found))


def _names_of_weights(module: nn.Module) -> list[int]:
    """The identity of each weight, as often as it has a name."""
    return [id(each) for _, each in module.named_parameters(remove_duplicate=False)]


def _runs_without(
    network: PreTrainedModel, names: Sequence[str], ids: Tensor, logits: Tensor
) -> bool:
    """Whether no weight of these modules is read, as some are though their module does not run."""
    weights = [each for name in names for each in network.get_submodule(name).parameters()]
    kept = [each.data for each in weights]
    try:
        for each in weights:
            each.data = each.data.new_empty(0)
        found = network(input_ids=ids, use_cache=False).logits
    except (RuntimeError, IndexError):
        return False
    finally:
        for each, data in zip(weights, kept, strict=True):
            each.data = data
    return bool(torch.equal(found.nan_to_num(), logits.nan_to_num()))


def few_ids(network: PreTrainedModel) -> Tensor:
    return torch.arange(1, 5, device=input_device(network))[None]


def _makes(logits: Tensor, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> bool:
    """Whether a call may have been the head's: by the shapes of weight, input and output."""
    weight = getattr(module, "weight", None)
    return (
        isinstance(weight, Tensor)
        and weight.dim() == 2
        and len(weight) == logits.shape[-1]
        and isinstance(output, Tensor)
        and output.shape == logits.shape
        and bool(inputs)
        and inputs[0].is_floating_point()
    )


@contextmanager
def _head_replaced(head: Any, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the block, the head does something else."""
    own = vars(head).get("forward")
    head.forward = function
    try:
        yield
    finally:
        del head.forward
        if own is not None:
            head.forward = own


def _after(
    network: PreTrainedModel, head: nn.Module, ids: Tensor, logits: Tensor
) -> tuple[float, float | None]:
    """Scale and softcap between the head's outputs and the logits, from chosen outputs."""
    between = torch.linspace(-1, 1, 61, device=ids.device).sinh() * 100
    some = torch.cat((between.new_tensor([SMALL, LARGE, -LARGE]), between))
    chosen = some[torch.arange(logits.numel(), device=ids.device) % len(some)].view(logits.shape)
    with _head_replaced(head, lambda _: chosen.clone()):
        found = network(input_ids=ids, use_cache=False).logits.float()
    scale = found.flatten()[0].item() / SMALL
    flat = found.flatten()[1].item()
    softcap = flat if abs(flat) < abs(scale) * LARGE / 2 else None
    expected = scale * chosen
    if softcap is not None:
        expected = softcap * torch.tanh(expected / softcap)
    # In 16 bits, the chosen outputs are rounded.
    if not bool(((found - expected).abs() <= 0.02 * expected.abs()).all()):
        raise unknown_head(network, "more than a scale and a softcap follow its head")
    return (1.0 if abs(scale - 1) < 1e-6 else scale), softcap


def _before(network: PreTrainedModel, backbone: nn.Module, head: nn.Module, ids: Tensor) -> float:
    """The factor between hidden states and the head's input, from hidden states of 1."""

    def ones(_: nn.Module, __: Any, output: Any) -> Any:
        output.last_hidden_state = torch.ones_like(output.last_hidden_state, dtype=torch.float32)
        return output

    handle = backbone.register_forward_hook(ones)
    try:
        read = _read_by(head, network, {"input_ids": ids, "use_cache": False})
    finally:
        handle.remove()
    return read.flatten()[0].item()


def _read_by(head: nn.Module, network: PreTrainedModel, inputs: Mapping[str, Any]) -> Tensor:
    """What the head reads in a forward pass; its product is not computed."""
    read: list[Tensor] = []

    def capture(hidden: Tensor) -> Tensor:
        read.append(hidden)
        return hidden.new_zeros((*hidden.shape[:-1], 1))

    with _head_replaced(head, capture):
        network(**inputs)
    return read[-1]


def not_on_text(model: str, error: Exception) -> ModelError:
    return ModelError(
        "not_a_decoder",
        f"{model} does not run on text alone ({error}); ftcli gives it nothing else",
    )


def is_close(one: Tensor, other: Tensor, within: float = 0.02) -> bool:
    """Whether they differ by no more than the rounding of 16 bits; false for NaN."""
    difference = (one.float() - other.float()).abs().max()
    return bool(difference <= within * one.abs().max())


def unknown_head(network: PreTrainedModel, reason: str) -> ModelError:
    return ModelError(
        "model",
        f"{type(network).__name__} computes its logits in a way that ftcli does not know: "
        f"{reason}; its loss would be wrong, so it can be neither trained nor scored",
    )
