"""A model on fake tensors, cut to one layer of each kind, and one pass of it.

A fused attention kernel and the products of experts are replaced by functions that save what these
save, and compute nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights
from transformers.integrations import sdpa_attention
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from ftcli.compat import attention_name, attention_named, replaced, rows_known_as_padded
from ftcli.errors import ModelError
from ftcli.kernels.experts import use_own_experts
from ftcli.memory.architecture import MLP, Attention, Way
from ftcli.models.architectures.model_class import mend_text_forward
from ftcli.models.architectures.saved_bytes import (
    FusedAttention,
    GroupedProduct,
    Recorder,
    TiledMlp,
)
from ftcli.models.text_forward import not_on_text

NAME = "ftcli_counted"
# Tokens of the shortest row; linear attention works in chunks of at most 256.
TOKENS = 256
# What a pass that counts the layers raises on a cut model: Gemma 3n, Zamba 2, Mllama.
CUT_ERRORS = (ModelError, RuntimeError, LookupError)
# Rotations whose angles depend on the longest row (transformers 5.24, modeling_rope_utils.py).
STRETCHED = ("dynamic", "longrope")


def as_measured(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy without what changes no size but may need other packages, or values."""
    config = deepcopy(config)
    text = config.get_text_config(decoder=True)
    for each in (config, text):
        each.__dict__.pop("quantization_config", None)
        each.pad_token_id = 0  # a type's own may be beyond a small vocabulary
    _plain_positions(text)
    return config


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


def stretches_positions(text: PreTrainedConfig) -> bool:
    return any(kind.get("rope_type") in STRETCHED for kind in _rotations(text))


def build_model(kind: Any, config: PreTrainedConfig, way: Way) -> PreTrainedModel:
    """The whole model; call it within `fake_tensors`."""
    dtype = torch.float32 if way.weight_bytes == 4 else torch.bfloat16
    build = partial(kind.from_config, dtype=dtype)
    config = as_measured(config)
    with no_init_weights(), _casts_in_place():
        try:
            name = "eager" if way.eager else "sdpa"
            model: PreTrainedModel = build(config, attn_implementation=name)
        except ValueError:  # its class has no sdpa
            model = build(config, attn_implementation="eager")
    model.tie_weights()
    mend_text_forward(model)
    use_own_experts(model)
    return model.train()


def _casts_in_place() -> AbstractContextManager[None]:
    """Within the block, `to` casts fake tensors: torch 2.13 refuses to swap them (modules that
    keep a type of their own: DeepSeek V4's norms)."""

    def cast(one: Tensor, other: Tensor) -> None:
        one.data = other.data

    return replaced(torch.utils, "swap_tensors", cast)


def stack_of(model: PreTrainedModel) -> str:
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


def alike_layers(model: PreTrainedModel, stack: str) -> list[list[int]]:
    """Numbers of layers, those together that have one class, type and sizes."""
    types = getattr(model.config.get_text_config(decoder=True), "layer_types", None) or []
    groups: dict[object, list[int]] = {}
    for number, layer in enumerate(model.get_submodule(stack)):
        sizes = tuple((name, each.shape) for name, each in layer.named_parameters())
        kind = types[number] if number < len(types) else ""
        groups.setdefault((type(layer), kind, sizes), []).append(number)
    return list(groups.values())


class CutModel:
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
        checkpointing: bool = False,
    ) -> Recorder:
        """One forward and backward pass of (rows, multiple of TOKENS); `windows`: the kernel gets
        the masks of sliding windows."""
        rows, tokens = point[0], point[1] * TOKENS
        recorder = Recorder(rows * tokens)
        model = self._model
        model.zero_grad()
        model.requires_grad_(way.trained)
        with ExitStack() as contexts:
            if checkpointing:
                contexts.enter_context(_layers_computed_again(model))
            embeddings = model.get_input_embeddings()
            handle = embeddings.register_forward_hook(partial(_ask_for_gradient, recorder))
            contexts.callback(handle.remove)
            contexts.callback(recorder.remove)
            recorder.watch(model, self.layers, self._head)
            if not way.eager:
                contexts.enter_context(_counted_attention(model, recorder, way, windows))
            contexts.enter_context(_counted_experts())
            if way.tiled:
                contexts.enter_context(_counted_mlps(self.layers, way))
            if way.quantised:
                contexts.enter_context(_quantised_types(self.layers))
            contexts.enter_context(
                torch.autograd.graph.saved_tensors_hooks(recorder.pack, lambda each: each)
            )
            contexts.enter_context(recorder)
            with torch.autocast("cpu", torch.bfloat16, enabled=way.autocast):
                ids = torch.zeros(rows, tokens, dtype=torch.long)
                try:
                    logits = model(input_ids=ids, use_cache=False).logits
                except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
                    raise not_on_text(model.config.model_type, error) from error
            recorder.end_of_forward()
            logits.backward(torch.empty_like(logits))
        return recorder


def _ask_for_gradient(recorder: Recorder, _: nn.Module, __: Any, output: Tensor) -> Tensor:
    if not output.requires_grad:
        output = output.requires_grad_(True).clone()  # CTRL multiplies it in place
    recorder.embedded(output)
    return output


@contextmanager
def _layers_computed_again(model: PreTrainedModel) -> Iterator[None]:
    """Gradient checkpointing within the block; raises ValueError for a class without."""
    model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    model.enable_input_require_grads()
    try:
        yield
    finally:
        model.disable_input_require_grads()
        model.gradient_checkpointing_disable()


def _configs(model: PreTrainedModel) -> list[PreTrainedConfig]:
    """Every object that a module of the model reads as the text's config."""
    found: dict[int, PreTrainedConfig] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig):
            text = config.get_text_config(decoder=True)
            found[id(text)] = text
    return list(found.values())


@contextmanager
def _counted_attention(
    model: PreTrainedModel, recorder: Recorder, way: Way, windows: bool
) -> Iterator[None]:
    """Within the block, attention saves what a fused kernel saves, and computes nothing."""
    masks, own_heads = dict[int, int | None](), dict[int, int]()
    capped, eager = False, attention_name(model) == "eager"

    def mask(
        batch_size: int,
        q_length: int,
        kv_length: int,
        local_size: int | None = None,
        allow_is_causal_skip: bool = True,
        device: Any = None,
        **_: Any,
    ) -> Tensor | None:
        # Written-out attention always has one, which MPT casts.
        wanted = way.masked or eager or (windows and local_size is not None)
        if allow_is_causal_skip and not wanted:
            return None
        made = torch.zeros(batch_size, 1, q_length, kv_length, dtype=torch.bool, device=device)
        masks[recorder.storage_of(made)] = local_size
        return made

    def sdpa(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any
    ) -> Tensor:
        window = None if attn_mask is None else masks.get(recorder.storage_of(attn_mask))
        heads = query.shape[1], own_heads.get(recorder.storage_of(key), key.shape[1])
        recorder.attends(Attention(*heads, key.shape[3], value.shape[3], capped), window)
        if way.autocast:
            query, key, value = (each.to(torch.bfloat16) for each in (query, key, value))
        found: Tensor = FusedAttention.apply(query, key, value, attn_mask)
        return found

    def attend(*args: Any, softcap: float | None = None, **kwargs: Any) -> Any:
        nonlocal capped
        capped = softcap is not None
        return sdpa_attention.sdpa_attention_forward(*args, **kwargs)

    def repeat_kv(states: Tensor, times: int) -> Tensor:
        repeated = repeat(states, times)
        own_heads[recorder.storage_of(repeated)] = states.shape[1]
        return repeated

    repeat = sdpa_attention.repeat_kv
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, mask)
    ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] = mask
    with (
        replaced(F, "scaled_dot_product_attention", sdpa),
        replaced(sdpa_attention, "repeat_kv", repeat_kv),
        # Whether rows are packed is read from the values of positions, which fake tensors lack.
        rows_known_as_padded(),
        attention_named(model, NAME) if eager else nullcontext(),
    ):
        try:
            yield
        finally:
            del ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]


def _counted_experts() -> AbstractContextManager[None]:
    """Within the block, products of experts save what grouped_mm saves, and compute nothing."""

    def grouped_mm(rows: Tensor, weights: Tensor, *, offs: Tensor, **_: Any) -> Tensor:
        if rows.dim() == 2 and weights.dim() == 2:  # the gradient of the weights
            return rows.new_empty(offs.shape[0], rows.shape[0], weights.shape[1])
        found: Tensor = GroupedProduct.apply(rows, weights)
        return found

    return replaced(F, "grouped_mm", grouped_mm)


@contextmanager
def _counted_mlps(layers: Sequence[nn.Module], way: Way) -> Iterator[None]:
    """Within the block, MLPs save what tiles of them save, and compute nothing."""
    mlps: list[Any] = [layer.get_submodule(MLP) for layer in layers]
    # The type that linear modules return: see `_quantised_types`.
    dtype = torch.bfloat16 if way.autocast and not way.quantised else None
    for mlp in mlps:
        mlp.forward = lambda hidden: TiledMlp.apply(hidden, dtype)
    try:
        yield
    finally:
        for mlp in mlps:
            del mlp.forward


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
