"""Measure an architecture from its config alone: the real class on fake tensors, without weights.

transformers builds the whole model, which gives the counts. Then one layer of each kind runs
forward and backward on a few lengths, and what autograd saves is counted.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import cache, partial
from inspect import getsource
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from ftcli.compat import attention_name, fake_tensors
from ftcli.errors import ModelError
from ftcli.kernels.expert_stacks import router_names
from ftcli.kernels.experts import is_replaceable, stack_names
from ftcli.memory.architecture import (
    LEAST_QUANTISED_WIDTH,
    Architecture,
    Experts,
    Head,
    LayerKind,
    Linear,
    Way,
)
from ftcli.models.architectures.cut_model import (
    CUT_ERRORS,
    CutModel,
    alike_layers,
    as_measured,
    build_model,
    stack_of,
    stretches_positions,
)
from ftcli.models.architectures.model_class import model_class
from ftcli.models.architectures.saved_bytes import LayerRun, Recorder
from ftcli.models.files.untrusted import opening

STRUCTURE = Way(2, True, quantised=False, eager=False, masked=False, trained=False)
# One row of the shortest length.
POINT = (1, 1)
# Keys of a config that say how much is dropped: of attention weights, and of hidden states (Phi-3).
DROPOUTS = ("attention_dropout", "resid_pdrop", "embd_pdrop")
# Subclasses of torch's Linear that ftcli replaces by it when it loads a base in 4 bits.
REPLACED = ("FalconLinear",)
# Private classes of torch: experts that look for their tokens by themselves (DBRX, JetMoe).
ON_VALUES = ("DataDependentOutputException", "DynamicOutputShapeException")
READ_WEIGHT = re.compile(r"self\.(\w+)\.weight\b(?!\.(?:dtype|device))")
CAST_TO_WEIGHT = re.compile(r"\.to\((?:dtype=)?self\.(\w+)\.weight\.dtype")


def config_of(values: Mapping[str, Any]) -> PreTrainedConfig:
    """transformers' config of a config.json; raises ModelError for a type that it does not know."""
    kind = values.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise ModelError(
            "model_type_unknown",
            f"model_type {kind!r} is not in transformers {transformers.__version__}; install a "
            "newer one (pip install --upgrade transformers), or choose another model",
        )
    with opening(str(kind), "config.json"):
        return CONFIG_MAPPING[str(kind)].from_dict(_with_floats(dict(values)))


def _with_floats(value: Any) -> Any:
    """transformers writes an infinity as {"__float__": "Infinity"}."""
    if isinstance(value, list):
        return [_with_floats(each) for each in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"__float__"}:
        return float(value["__float__"])
    return {key: _with_floats(each) for key, each in value.items()}


def measure(config: PreTrainedConfig) -> Architecture:
    """The architecture of the model that a config makes; raises ModelError."""
    with opening(config.model_type, "architecture"):
        kind = model_class(as_measured(config))
        try:
            return _measured_on(kind, config, whole=False)
        except CUT_ERRORS as error:
            _refuse_values(config, error)
        return _measured_on(kind, config, whole=True)


def _refuse_values(config: PreTrainedConfig, error: Exception) -> None:
    if type(error).__name__ in ON_VALUES:
        raise ModelError(
            "not_measured",
            f"{config.model_type}: its class reads values of tensors to choose sizes, so ftcli "
            "cannot measure its memory; choose another model",
        ) from error


def _measured_on(kind: Any, config: PreTrainedConfig, *, whole: bool) -> Architecture:
    """Measured on one layer of each kind, or on the whole model."""
    with fake_tensors():
        model = build_model(kind, config, STRUCTURE)
        parameters = dict(model.named_parameters())
        stack = stack_of(model)
        in_layers = {id(each) for each in model.get_submodule(stack).parameters()}
        groups = alike_layers(model, stack)
        cut = CutModel(model, stack, groups, whole=whole)
        scores = router_names(model)
        run = cut.run(STRUCTURE, POINT)
        checkpoints = _checkpoints(cut)
        trained = cut.run(replace(STRUCTURE, trained=True), POINT, windows=True)
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings().weight
    ends = {id(embeddings), *(id(each) for each in (head.parameters() if head else ()))}
    outer = {
        name: each
        for name, each in parameters.items()
        if id(each) not in in_layers and id(each) not in ends
    }
    idle = {name for name, each in outer.items() if each.grad is None}
    text = config.get_text_config(decoder=True)
    return Architecture(
        model_type=config.model_type,
        hidden=embeddings.shape[1],
        vocab=embeddings.shape[0],
        tied=head is not None and head.weight is embeddings,
        stack=stack,
        kinds=tuple(
            _kind(
                cut.layers[n],
                tuple(layers),
                run.layers[n],
                trained.layers[n].window,
                {name for name in run.layers[n].linear if f"{stack}.{n}.{name}" in scores},
            )
            for n, layers in zip(cut.places, groups, strict=True)
        ),
        outer=tuple(each.numel() for name, each in outer.items() if name not in idle),
        head=_head_kind(run),
        head_bias=head is not None and getattr(head, "bias", None) is not None,
        towers=_towers(model, idle),
        tower_parameters=sum(parameters[name].numel() for name in idle),
        parameters=sum(each.numel() for each in parameters.values()),
        attention=("eager",) if attention_name(model) == "eager" else ("sdpa", "eager"),
        scaled_embeddings=run.scaled_embeddings,
        stored_bytes=stored_bytes(config),
        dropout=any(getattr(text, each, None) for each in DROPOUTS),
        stretched_positions=stretches_positions(text),
        checkpoints=checkpoints,
    )


def stored_bytes(config: PreTrainedConfig) -> Literal[2, 4]:
    """Of one weight in the files, by the config that came with them: loading changes its dtype."""
    return 4 if config.dtype in (torch.float32, "float32") else 2


def _checkpoints(cut: CutModel) -> bool:
    """Whether the class has gradient checkpointing, and its embeddings stay as they are: GIT adds
    to them in place, which torch refuses where they ask for a gradient."""
    try:
        cut.run(STRUCTURE, POINT, checkpointing=True)
    except (ModelError, RuntimeError, ValueError):
        return False
    return True


def _kind(
    layer: nn.Module,
    layers: tuple[int, ...],
    run: LayerRun,
    window: int | None,
    routers: Collection[str],
) -> LayerKind:
    parameters = dict(layer.named_parameters())
    order = {storage: number for number, storage in enumerate(dict.fromkeys(run.linear.values()))}
    modules: dict[str, Any] = dict(layer.named_modules())
    linear = tuple(
        Linear(
            name,
            modules[name].in_features,
            modules[name].out_features,
            order[storage],
            _is_unquantised(modules, name),
        )
        for name, storage in run.linear.items()
        if name in run.differentiable
        and name not in routers
        and _is_linear(modules[name])
        # An adapter has no effect on a weight that the module around it reads: Mamba's kernels.
        and name.rpartition(".")[2] not in read_weights(_parent(modules, name))
    )
    experts = {
        name: each
        for name, each in parameters.items()
        if each.dim() == 3 and min(each.shape[1:]) >= LEAST_QUANTISED_WIDTH
    }
    counted = {f"{each.name}.weight" for each in linear} | experts.keys()
    return LayerKind(
        label=type(layer).__name__,
        layers=layers,
        linear=linear,
        experts=tuple(_experts(modules, name, each) for name, each in experts.items()),
        others=tuple(each.numel() for name, each in parameters.items() if name not in counted),
        norms=tuple(run.norm_calls),
        attention=tuple(run.attention_calls),
        window=window,
    )


def _is_unquantised(modules: Mapping[str, nn.Module], name: str) -> bool:
    kind = type(modules[name])
    if kind is not nn.Linear and kind.__name__ not in REPLACED:
        return True
    return name.rpartition(".")[2] in read_weights(_parent(modules, name), CAST_TO_WEIGHT)


def _parent(modules: Mapping[str, Any], name: str) -> nn.Module:
    parent: nn.Module = modules[name.rpartition(".")[0]]
    return parent


def _experts(modules: Mapping[str, nn.Module], name: str, stack: Tensor) -> Experts:
    parent, (number, rows, columns) = _parent(modules, name), stack.shape
    adaptable = is_replaceable(parent) and name.rpartition(".")[2] in stack_names(parent)
    return Experts(name, number, rows, columns, adaptable)


def _is_linear(module: nn.Linear) -> bool:
    """Whether a module computes what torch's Linear does: subclasses may be routers or groups."""
    if type(module).forward is nn.Linear.forward:
        return True
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    real = {name: draw(each.shape) for name, each in module.named_parameters()}
    read = draw(1, 2, module.in_features)
    try:
        found = torch.func.functional_call(module, real, (read,))
    except (RuntimeError, TypeError, ValueError, AttributeError):  # takes or gives something else
        return False
    wanted = F.linear(read, real["weight"], real.get("bias"))
    same = isinstance(found, Tensor) and found.shape == wanted.shape
    return same and torch.allclose(found, wanted, rtol=1e-3, atol=1e-3)


def _towers(model: PreTrainedModel, idle: Collection[str]) -> tuple[str, ...]:
    """The outermost modules whose parameters are all among `idle`."""
    found: list[str] = []
    for name, module in model.named_modules():
        own = [f"{name}.{each}" for each, _ in module.named_parameters()]
        inside = any(name.startswith(f"{other}.") for other in found)
        if name and own and not inside and all(each in idle for each in own):
            found.append(name)
    return tuple(found)


def _head_kind(run: Recorder) -> Head:
    if "tanh" in run.after_head:
        return "softcapped"
    return "scaled" if run.after_head & {"mul", "div"} else "plain"


def read_weights(module: nn.Module, pattern: re.Pattern[str] = READ_WEIGHT) -> frozenset[str]:
    """Names of children whose weight the module's class reads, not only its type or device."""
    if getattr(module, "slow_but_exact", None) is False:  # only then, in Bloom
        return frozenset()
    kinds: Any = type(module).__mro__
    own = kinds[: kinds.index(nn.Module)]
    return frozenset().union(*(_read_in(kind, pattern) for kind in own))


@cache
def _read_in(kind: Any, pattern: re.Pattern[str]) -> frozenset[str]:
    try:
        return frozenset(pattern.findall(getsource(kind)))
    except (OSError, TypeError):  # no file, as of classes that a call has made
        return frozenset()
