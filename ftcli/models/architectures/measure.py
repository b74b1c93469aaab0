"""Measure an architecture from its config alone: the real class on fake tensors, without weights.

transformers builds the whole model, which gives the counts. Then one layer of each kind runs
forward and backward on a few lengths, and what autograd saves is counted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CONFIG_MAPPING,
    AttentionInterface,
    AttentionMaskInterface,
    PreTrainedConfig,
    PreTrainedModel,
    masking_utils,
)
from transformers.initialization import no_init_weights
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from ftcli.compat import attention_name, attention_named, fake_tensors
from ftcli.errors import ModelError
from ftcli.kernels.expert_stacks import router_names
from ftcli.kernels.experts import use_own_experts
from ftcli.memory.architecture import (
    LEAST_QUANTISED_WIDTH,
    Architecture,
    Bytes,
    Experts,
    Head,
    LayerKind,
    Linear,
    Measured,
    Saved,
    Shared,
    Way,
)
from ftcli.models.architectures.saved_bytes import (
    FusedAttention,
    GroupedProduct,
    LayerRun,
    Recorder,
)
from ftcli.models.files.untrusted import opening
from ftcli.models.load import mend_text_forward, model_class
from ftcli.models.targets import CAST_TO_WEIGHT, read_weights

NAME = "ftcli_counted"
# Tokens of the shortest row; linear attention works in chunks of at most 256.
TOKENS = 256
# (rows, multiple of TOKENS): as many as the terms of the fit.
POINTS = ((1, 1), (1, 2), (2, 1), (2, 2))
# Long enough that the scores of written-out attention outweigh all else in a layer's backward pass.
LONG = ((1, 8), (1, 16))

STRUCTURE = Way(2, True, quantised=False, eager=False, masked=False, trained=False)
# Rotations whose angles depend on the longest row (transformers 5.24, modeling_rope_utils.py).
STRETCHED = ("dynamic", "longrope")
# Keys of a config that say how much is dropped: of attention weights, and of hidden states (Phi-3).
DROPOUTS = ("attention_dropout", "resid_pdrop", "embd_pdrop")


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


def _as_measured(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy without what changes no size but may need other packages, or values."""
    config = deepcopy(config)
    text = config.get_text_config(decoder=True)
    for each in (config, text):
        each.__dict__.pop("quantization_config", None)
        each.pad_token_id = 0  # a type's own may be beyond a small vocabulary
    _plain_positions(text)
    return config


def measure(config: PreTrainedConfig) -> Architecture:
    """The architecture of the model that a config makes; raises ModelError."""
    with opening(config.model_type, "architecture"):
        try:
            return _measured_on(config, whole=False)
        except (RuntimeError, ValueError, IndexError):  # its forward counts the layers (Gemma 3n)
            return _measured_on(config, whole=True)


def _measured_on(config: PreTrainedConfig, *, whole: bool) -> Architecture:
    """Measured on one layer of each kind, or on the whole model."""
    kind = model_class(_as_measured(config))
    with fake_tensors():
        model = _build(kind, config, STRUCTURE)
        parameters = dict(model.named_parameters())
        stack = _stack(model)
        in_layers = {id(each) for each in model.get_submodule(stack).parameters()}
        groups = _alike(model, stack)
        cut = _Cut(model, stack, groups, whole=whole)
        scores = router_names(model)
        run = cut.run(STRUCTURE, POINTS[0])
        trained = cut.run(replace(STRUCTURE, trained=True), POINTS[0], windows=True)
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
        stored_bytes=4 if config.dtype in (torch.float32, "float32") else 2,
        dropout=any(getattr(text, each, None) for each in DROPOUTS),
        stretched_positions=_stretches_positions(text),
    )


def _build(kind: Any, config: PreTrainedConfig, way: Way) -> PreTrainedModel:
    """The whole model; call it within `fake_tensors`."""
    dtype = torch.float32 if way.weight_bytes == 4 else torch.bfloat16
    build = partial(kind.from_config, dtype=dtype)
    config = _as_measured(config)
    with no_init_weights():
        try:
            name = "eager" if way.eager else "sdpa"
            model: PreTrainedModel = build(config, attn_implementation=name)
        except ValueError:  # its class has no sdpa
            model = build(config, attn_implementation="eager")
    model.tie_weights()
    mend_text_forward(model)
    use_own_experts(model)
    return model.train()


def _stack(model: PreTrainedModel) -> str:
    """Name of the list of the text's layers: the one with most weights."""
    text = model.config.get_text_config(decoder=True)
    found: dict[str, int] = {}
    owners = {"": model.config}
    for name, module in model.named_modules():
        if isinstance(module, PreTrainedModel):
            owners[name] = module.config
        above = name.rpartition(".")[0]
        while above not in owners:
            above = above.rpartition(".")[0]
        own = owners[above].get_text_config(decoder=True)
        nested = any(name.startswith(f"{other}.") for other in found)
        if isinstance(module, nn.ModuleList) and own.model_type == text.model_type and not nested:
            found[name] = sum(each.numel() for each in module.parameters())
    if not found:
        raise ModelError("not_a_decoder", f"{model.config.model_type} has no list of layers")
    same = [each for each in found if len(model.get_submodule(each)) == text.num_hidden_layers]
    return max(same or found, key=found.__getitem__)


def _alike(model: PreTrainedModel, stack: str) -> list[list[int]]:
    """Numbers of layers, those together that have one class, type and sizes."""
    types = getattr(model.config.get_text_config(decoder=True), "layer_types", None) or []
    groups: dict[object, list[int]] = {}
    for number, layer in enumerate(model.get_submodule(stack)):
        sizes = tuple((name, each.shape) for name, each in layer.named_parameters())
        kind = types[number] if number < len(types) else ""
        groups.setdefault((type(layer), kind, sizes), []).append(number)
    return list(groups.values())


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
            name.rpartition(".")[2] in read_weights(_parent(modules, name), CAST_TO_WEIGHT),
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
        experts=tuple(Experts(name, *each.shape) for name, each in experts.items()),
        others=tuple(each.numel() for name, each in parameters.items() if name not in counted),
        norms=tuple(run.norm_calls),
        attention=tuple(run.attention_calls),
        window=window,
    )


def _parent(modules: Mapping[str, Any], name: str) -> nn.Module:
    parent: nn.Module = modules[name.rpartition(".")[0]]
    return parent


def _is_linear(module: nn.Linear) -> bool:
    """Whether a module computes what torch's Linear does: subclasses may be routers or groups."""
    if type(module).forward is nn.Linear.forward:
        return True
    real = {name: torch.randn(each.shape) for name, each in module.named_parameters()}
    read = torch.randn(1, 2, module.in_features)
    try:
        found = torch.func.functional_call(module, real, (read,))
    except (RuntimeError, TypeError, ValueError, AttributeError):  # takes or gives something else
        return False
    wanted = F.linear(read, real["weight"], real.get("bias"))
    return isinstance(found, Tensor) and torch.allclose(found, wanted, rtol=1e-3, atol=1e-3)


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


def _plain_positions(text: PreTrainedConfig) -> None:
    """Rotate positions as usual: the sizes are the same, and stretched ones ask for the values of
    positions, which fake tensors lack."""
    for kind in _rotations(text):
        if kind.get("rope_type") in STRETCHED:
            kind["rope_type"] = "default"


def _rotations(text: PreTrainedConfig) -> list[Any]:
    """`rope_parameters`, maybe by layer type (transformers 5.24, modeling_rope_utils.py)."""
    found = getattr(text, "rope_parameters", None) or {}
    return [kind for kind in (found, *found.values()) if isinstance(kind, dict)]


def _stretches_positions(text: PreTrainedConfig) -> bool:
    return any(kind.get("rope_type") in STRETCHED for kind in _rotations(text))


class _Cut:
    """A model whose stack is cut to one layer of each kind, unless `whole`."""

    def __init__(
        self, model: PreTrainedModel, stack: str, kinds: Sequence[Sequence[int]], *, whole: bool
    ) -> None:
        self._model, self._head = model, model.get_output_embeddings()
        above, _, name = stack.rpartition(".")
        self.layers = list(model.get_submodule(stack))
        numbers = [layers[0] for layers in kinds]
        self.places = numbers if whole else list(range(len(numbers)))
        """Of one layer of each kind, in `layers`."""
        if whole:
            return
        total, self.layers = len(self.layers), [self.layers[number] for number in numbers]
        setattr(model.get_submodule(above), name, nn.ModuleList(self.layers))
        for config in _configs(model):
            for key, value in list(vars(config).items()):
                if isinstance(value, list) and len(value) == total:
                    setattr(config, key, [value[number] for number in numbers])
            if getattr(config, "num_hidden_layers", None) == total:
                config.num_hidden_layers = len(numbers)

    def run(
        self,
        way: Way,
        point: tuple[int, int],
        *,
        windows: bool = False,
    ) -> Recorder:
        """One forward and backward pass of (rows, multiple of TOKENS); `windows`: the kernel gets
        the masks of sliding windows."""
        rows, tokens = point[0], point[1] * TOKENS
        recorder = Recorder(rows * tokens)
        model = self._model
        model.zero_grad()
        model.requires_grad_(way.trained)
        embeddings = model.get_input_embeddings()
        handle = embeddings.register_forward_hook(partial(_ask_for_gradient, recorder))
        recorder.watch(model, self.layers, self._head)
        try:
            with ExitStack() as contexts:
                if not way.eager:
                    contexts.enter_context(_counted_attention(model, recorder, way, windows))
                contexts.enter_context(_counted_experts())
                if way.quantised:
                    contexts.enter_context(_quantised_types(self.layers))
                contexts.enter_context(
                    torch.autograd.graph.saved_tensors_hooks(recorder.pack, lambda each: each)
                )
                contexts.enter_context(recorder)
                with torch.autocast("cpu", torch.bfloat16, enabled=way.autocast):
                    ids = torch.zeros(rows, tokens, dtype=torch.long)
                    logits = model(input_ids=ids, use_cache=False).logits
                recorder.end_of_forward()
                logits.backward(torch.empty_like(logits))
        finally:
            handle.remove()
            recorder.remove()
        return recorder


def _ask_for_gradient(recorder: Recorder, _: nn.Module, __: Any, output: Tensor) -> Tensor:
    if not output.requires_grad:
        output = output.requires_grad_(True).clone()  # CTRL multiplies it in place
    recorder.embedded(output)
    return output


def _configs(model: PreTrainedModel) -> list[PreTrainedConfig]:
    """Every object that a module of the model reads as the text's config."""
    found: dict[int, PreTrainedConfig] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig):
            text = config.get_text_config(decoder=True)
            found[id(text)] = text
    return list(found.values())


def _not_packed(*_: Any) -> None:
    return None


@contextmanager
def _counted_attention(
    model: PreTrainedModel, recorder: Recorder, way: Way, windows: bool
) -> Iterator[None]:
    """Within the block, attention saves what a fused kernel saves, and computes nothing."""
    masks: dict[int, int | None] = {}
    capped = False

    def mask(
        batch_size: int,
        q_length: int,
        kv_length: int,
        local_size: int | None = None,
        allow_is_causal_skip: bool = True,
        device: Any = None,
        **_: Any,
    ) -> Tensor | None:
        wanted = way.masked or (windows and local_size is not None)
        if allow_is_causal_skip and not wanted:
            return None
        made = torch.zeros(batch_size, 1, q_length, kv_length, dtype=torch.bool, device=device)
        masks[recorder.storage_of(made)] = local_size
        return made

    def sdpa(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any
    ) -> Tensor:
        window = None if attn_mask is None else masks.get(recorder.storage_of(attn_mask))
        recorder.attends(query, key, value, window, capped)
        if way.autocast:
            query, key, value = (each.to(torch.bfloat16) for each in (query, key, value))
        found: Tensor = FusedAttention.apply(query, key, value, attn_mask)
        return found

    def attend(*args: Any, softcap: float | None = None, **kwargs: Any) -> Any:
        nonlocal capped
        capped = softcap is not None
        return sdpa_attention_forward(*args, **kwargs)

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, mask)
    function: Any = F
    own, function.scaled_dot_product_attention = function.scaled_dot_product_attention, sdpa
    ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] = mask
    # Whether rows are packed is read from the values of positions, which fake tensors lack.
    packed: Any = masking_utils
    find, packed.find_packed_sequence_indices = packed.find_packed_sequence_indices, _not_packed
    eager = attention_name(model) == "eager"
    try:
        with attention_named(model, NAME) if eager else nullcontext():
            yield
    finally:
        function.scaled_dot_product_attention = own
        packed.find_packed_sequence_indices = find
        del ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]


@contextmanager
def _counted_experts() -> Iterator[None]:
    """Within the block, products of experts save what grouped_mm saves, and compute nothing."""

    def grouped_mm(rows: Tensor, weights: Tensor, *, offs: Tensor, **_: Any) -> Tensor:
        if rows.dim() == 2 and weights.dim() == 2:  # the gradient of the weights
            return rows.new_empty(offs.shape[0], rows.shape[0], weights.shape[1])
        found: Tensor = GroupedProduct.apply(rows, weights)
        return found

    function: Any = F
    own, function.grouped_mm = function.grouped_mm, grouped_mm
    try:
        yield
    finally:
        function.grouped_mm = own


@contextmanager
def _quantised_types(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Within the block, linear modules return the type of what they read, as Linear4bit does."""
    hooks = [
        module.register_forward_hook(lambda _, args, output: output.to(args[0].dtype))
        for layer in layers
        for module in layer.modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Measurer:
    """Measures ways of computing; keeps the models that it builds."""

    def __init__(self, config: PreTrainedConfig) -> None:
        """Raises ModelError."""
        self._config, self._kind = config, model_class(_as_measured(config))
        self._cuts: dict[tuple[int, bool], tuple[AbstractContextManager[object], _Cut]] = {}
        self._runs: dict[tuple[Way, tuple[int, int]], Recorder] = {}
        self._whole = False

    def way(self, way: Way) -> Measured:
        """What the layers of each kind save in one way."""
        runs = [self._run(way, point) for point in POINTS]
        passing = replace(way, trained=False)
        peaks = [POINTS[0], *(LONG if way.eager or way.masked else ())]
        alone = [self._run(passing, point) for point in peaks]
        return Measured(
            way=way,
            kinds=tuple(
                _saved(
                    [run.layers[place] for run in runs],
                    runs[-1].saved,
                    [run.layers[place].temporaries for run in alone],
                )
                for place in self._cut(way)[1].places
            ),
            shared_saved=_shared([run.shared_saved for run in runs]),
            shared_passed=_shared([run.shared_passed for run in runs]),
            last_norm=_fit([run.last_norm for run in runs]),
        )

    def _run(self, way: Way, point: tuple[int, int]) -> Recorder:
        if (way, point) not in self._runs:
            with opening(self._config.model_type, "architecture"):
                try:
                    found = self._run_once(way, point)
                except (RuntimeError, ValueError, IndexError):  # as in `measure`
                    if self._whole:
                        raise
                    self._whole = True
                    self._cuts.clear()
                    found = self._run_once(way, point)
            self._runs[way, point] = found
        return self._runs[way, point]

    def _run_once(self, way: Way, point: tuple[int, int]) -> Recorder:
        mode, cut = self._cut(way)
        with mode:
            return cut.run(way, point)

    def _cut(self, way: Way) -> tuple[AbstractContextManager[object], _Cut]:
        key = (way.weight_bytes, way.eager)
        if key not in self._cuts:
            mode = fake_tensors()
            with mode:
                model = _build(self._kind, self._config, way)
                stack = _stack(model)
                cut = _Cut(model, stack, _alike(model, stack), whole=self._whole)
            self._cuts[key] = mode, cut
        return self._cuts[key]


def _saved(runs: Sequence[LayerRun], saved: set[int], temporaries: Sequence[int]) -> Saved:
    last = runs[-1]
    order = {storage: number for number, storage in enumerate(dict.fromkeys(last.linear.values()))}
    return Saved(
        kept=_fit([run.kept for run in runs]),
        norms=_fit([run.norms for run in runs]),
        before=tuple((name, _fit([run.before[name] for run in runs])) for name in last.before),
        inputs=tuple(number for storage, number in order.items() if storage in saved),
        temporaries=_largest(*temporaries),
    )


def _largest(short: int, *long: int) -> tuple[Bytes, ...]:
    """Of a short row, and the line through two long ones: the scores outweigh the rest there."""
    found = Bytes(round(short / TOKENS, 3))
    if not long:
        return (found,)
    tokens = [multiple * TOKENS for _, multiple in LONG]
    near, far = (peak / each for peak, each in zip(long, tokens, strict=True))
    per_pair = (far - near) / (tokens[1] - tokens[0])
    return found, Bytes(round(near - per_pair * tokens[0], 3), round(per_pair, 3))


def _terms(found: Sequence[int]) -> list[float]:
    """Coefficients of 1, s, b·s and b·s²."""
    rows = [[1.0, s * TOKENS, b * s * TOKENS, b * (s * TOKENS) ** 2] for b, s in POINTS]
    solved: Tensor = torch.linalg.solve(
        torch.tensor(rows, dtype=torch.float64), torch.tensor(found, dtype=torch.float64)
    )
    return [round(each, 3) for each in solved.tolist()]


def _fit(found: Sequence[int]) -> Bytes:
    _, _, per_token, per_pair = _terms(found)
    return Bytes(per_token, per_pair)


def _shared(found: Sequence[int]) -> Shared:
    return Shared(*_terms(found)[1:])
