"""Load tokenizer and base; every failure is a ModelError that says what to do."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ftcli.compat import no_placement_hooks, plain_falcon_layers, stay_in_place
from ftcli.config.recipe import Data, Model, Recipe
from ftcli.data.tokenizing.choose_template import choose_template
from ftcli.data.tokenizing.rendering import Renderer
from ftcli.errors import ModelError
from ftcli.kernels.dequantised import is_four_bit
from ftcli.kernels.expert_stacks import (
    expert_stacks,
    quantise_experts,
    seal_stacks,
    stacks_quantised_on_loading,
)
from ftcli.kernels.experts import use_own_experts
from ftcli.kernels.small_gpu import keep_ends_in_ram
from ftcli.models.architectures.find import architecture_of_config
from ftcli.models.architectures.model_class import mend_text_forward, model_class, open_config
from ftcli.models.device import repeat_keys_if_needed
from ftcli.models.files.quantized_files import dequantise_on_loading, quantise_linear
from ftcli.models.files.untrusted import (
    opening,
    processor_template,
    refuse_foreign_config,
    refuse_foreign_tokenizer,
    refuse_foreign_weights,
)
from ftcli.models.loss import require_known_head
from ftcli.models.methods import keep_four_bit_trainable
from ftcli.models.text_forward import idle_modules

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Names of embeddings and head in all of PACKED_TYPES.
ENDS = ("model.embed_tokens", "lm_head")
# None: sdpa, and eager for a class without it, such as a tower or a model with attention sinks.
ATTENTION = {"sdpa": None, "eager": "eager", "flash": "flash_attention_2"}


def load_renderer(recipe: Recipe, source: str) -> Renderer:
    """Tokenizer and chat template of the recipe's model; raises ModelError, also for weights that
    ftcli does not open."""
    refuse_foreign_weights(source, recipe.model.revision)
    tokenizer = load_tokenizer(source, recipe.model.revision)
    note = choose_template(tokenizer, recipe)
    return renderer_of(tokenizer, recipe.data, note)


def renderer_of(
    tokenizer: PreTrainedTokenizerBase, data: Data, note: str | None = None
) -> Renderer:
    """A renderer for this tokenizer and the recipe's data section."""
    own = f"the chat template of {tokenizer.name_or_path}"
    name = "data.template" if data.template is not None else own
    return Renderer(tokenizer, data.loss_on, tuple(data.template_kwargs.items()), note, name)


def load_tokenizer(source: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """A fast tokenizer from a folder or the hub; raises ModelError. Runs no code from there."""
    refuse_foreign_config(source, revision)
    refuse_foreign_tokenizer(source, revision)
    with opening(source, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=False
        )
        fast = tokenizer.is_fast
    if not fast:
        raise ModelError(
            "tokenizer", f"{source}: its tokenizer has no fast version, which ftcli needs"
        )
    if not tokenizer.chat_template:
        tokenizer.chat_template = processor_template(source, revision)
    return tokenizer


def compute_dtype(precision: str) -> torch.dtype:
    """The dtype of matrix products."""
    return DTYPES["bf16" if precision == "pure-bf16" else precision]


def load_base(
    source: str,
    model: Model,
    *,
    dtype: torch.dtype,
    attention: str,
    device: torch.device,
    quantization: BitsAndBytesConfig | None = None,
    embedding_offload: bool = False,
) -> PreTrainedModel:
    """The base model in evaluation mode, from safetensors; raises ModelError.

    Runs no code of the repository. Towers are frozen, on the CPU and in the type of the files; with
    `embedding_offload` embeddings and head are on the CPU too.
    """
    config = open_config(source, model.revision)
    refuse_foreign_weights(source, model.revision)
    repeat_keys_if_needed(device)
    dequantised, stored = dequantise_on_loading(config, source), config.dtype or torch.float32
    placed = _placed(config, device, quantization, dequantised, embedding_offload)
    stacks: Mapping[str, Sequence[int]] = {}
    if quantization is not None and not dequantised:
        found = architecture_of_config(config).expert_stacks()
        stacks = {name: (each.number, each.rows, each.columns) for _, each, name in found}
    text = config.get_text_config(decoder=True)
    read_as = stored if text is not config and quantization is None else dtype
    with opening(source, "model"), no_placement_hooks(), _quantisable(config, quantization):
        base, loaded = model_class(config).from_pretrained(
            source,
            revision=model.revision,
            dtype=read_as,
            attn_implementation=ATTENTION[attention],
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # else the error names no tensor
            **placed,
        )
    if quantization is not None:
        seal_stacks(base)
    _require_all_weights(base, loaded, source, stacks)
    mend_text_forward(base)
    if quantization is not None:
        architecture = architecture_of_config(config)
        if dequantised:
            linear = [name for name, each in architecture.linear_names() if each.quantises]
            quantise_linear(base, linear, quantization, device)
            quantise_experts(base, quantization, device)
        _require_quantised(base, architecture.quantised_parameters, source)
    use_own_experts(base)
    if embedding_offload:
        keep_ends_in_ram(base, device)
    base.config.get_text_config(decoder=True).use_cache = True
    keep_four_bit_trainable(base)
    with torch.autocast(device.type, torch.bfloat16, enabled=attention == "flash"):
        require_known_head(base)  # flash attention takes 16-bit tensors only
    _set_idle_aside(base, stored)
    if read_as != dtype:
        _cast(base, read_as, dtype)
    return base


def _placed(
    config: PreTrainedConfig,
    device: torch.device,
    quantization: BitsAndBytesConfig | None,
    dequantised: bool,
    embedding_offload: bool,
) -> dict[str, Any]:
    """Arguments of `from_pretrained`: where weights go, and in how many bits."""
    found: dict[str, Any] = {"config": config} if dequantised else {}
    if quantization is not None and not dequantised:
        layers = found["quantization_config"] = _of_measured_layers(quantization, config)
        layers.llm_int8_enable_fp32_cpu_offload = embedding_offload  # else ends in RAM are an error
        found["device_map"] = {"": "cpu"}  # without it 4-bit weights go to the GPU
    on_device = device.type == "cuda" or embedding_offload
    if on_device and (quantization is None or not dequantised):
        # What is dequantised would take 16 bits there.
        found["device_map"] = {"": device} | dict.fromkeys(ENDS * embedding_offload, "cpu")
    return found


def _of_measured_layers(
    quantization: BitsAndBytesConfig, config: PreTrainedConfig
) -> BitsAndBytesConfig:
    """The same, for the linear layers that text reaches: no tower, no head."""
    found = deepcopy(quantization)
    pattern = architecture_of_config(config).unquantised_pattern()
    found.llm_int8_skip_modules = [*(quantization.llm_int8_skip_modules or ()), pattern]
    return found


@contextmanager
def _quantisable(
    config: PreTrainedConfig, quantization: BitsAndBytesConfig | None
) -> Iterator[None]:
    if quantization is None:
        yield
        return
    falcon = config.model_type == "falcon"
    with plain_falcon_layers() if falcon else nullcontext(), stacks_quantised_on_loading():
        yield


def _set_idle_aside(base: PreTrainedModel, stored: torch.dtype) -> None:
    """Freeze modules that do not run on text; keep them on the CPU and in the type of the files."""
    for module in idle_modules(base):
        module.requires_grad_(False).to("cpu")
        for weight in module.parameters():
            weight.data = weight.data.to(stored) if weight.is_floating_point() else weight.data
        stay_in_place(module)


def _cast(base: PreTrainedModel, before: torch.dtype, dtype: torch.dtype) -> None:
    """Cast the weights of one type but those of idle modules; buffers keep theirs."""
    idle = {id(weight) for module in idle_modules(base) for weight in module.parameters()}
    for weight in base.parameters():
        if weight.dtype == before and id(weight) not in idle:
            weight.data = weight.data.to(dtype)
    base.config.dtype = dtype


def _require_all_weights(
    network: PreTrainedModel,
    loaded: Mapping[str, Collection[Any]],
    source: str,
    stacks: Mapping[str, Sequence[int]],
) -> None:
    """Raise ModelError if transformers initialised a weight: missing, or of another size."""
    if missing := sorted(loaded["missing_keys"]):
        raise ModelError(
            "model",
            f"{source}: {len(missing)} weights are in none of its files, {missing[0]} first; they "
            "would be random: download the model again",
        )
    sizes: list[tuple[str, Sequence[int], Sequence[int]]] = sorted(loaded["mismatched_keys"])
    for name, layer in _quantised_layers(
        network
    ):  # transformers 5.24 compares no sizes of 4-bit weights
        found, wanted = layer.weight.quant_state.shape, (layer.out_features, layer.in_features)
        if tuple(found) != wanted:
            sizes.append((f"{name}.weight", found, wanted))
    for stack in expert_stacks(network) if stacks else []:  # nor of stacks
        shape = stacks.get(stack.full_name, stack.shape)
        if tuple(stack.shape) != tuple(shape):
            sizes.append((stack.full_name, stack.shape, shape))
    for name, *pair in sizes:
        before, now = (" × ".join(map(str, size)) for size in pair)
        raise ModelError(
            "model",
            f"{source}: its {name} is {before}, but {now} by its config.json; one of the two "
            "belongs to another model: download both again",
        )


def _quantised_layers(network: PreTrainedModel) -> list[tuple[str, Any]]:
    """Layers with a 4-bit weight: loading leaves some of bitsandbytes' class as they were (the
    twice-used stack of DiffusionGemma)."""
    layers: list[tuple[str, Any]] = [
        (name, each) for name, each in network.named_modules() if is_four_bit(each)
    ]
    return [(name, each) for name, each in layers if hasattr(each.weight, "quant_state")]


def _require_quantised(network: PreTrainedModel, wanted: int, source: str) -> None:
    """Raise ModelError if layers that the estimate counts as 4-bit are not quantised."""
    found = sum(each.in_features * each.out_features for _, each in _quantised_layers(network))
    found += sum(math.prod(each.shape) for each in expert_stacks(network) if each.in_4_bits)
    if found != wanted:
        raise ModelError(
            "method_refused",
            f"{source}: only {found:,} of {wanted:,} weights of its layers are in "
            "4 bits, so the estimate would be wrong; train it without quantisation (method.mode: "
            "lora; method.quantization: none)",
        )
