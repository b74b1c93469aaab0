"""Method → trainable weights: PEFT configs, their target modules, quantisation, frozen weights.

That the recipe's names match modules is checked before a model is loaded (ftcli.memory.adapted).
bottleneck.py is a method of our own; virtual_tokens.py feeds a prefix or a soft prompt to a model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, assert_never

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    PromptTuningInit,
    get_peft_model,
)
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper, transformers_weight_conversion
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from ftcli.config.recipe import (
    Bottleneck,
    Full,
    Lora,
    LoraKeys,
    Method,
    PrefixTuning,
    PromptTuning,
    Qlora,
)
from ftcli.kernels.expert_stacks import plain_stacks
from ftcli.kernels.experts import use_own_updates
from ftcli.memory.choices import Placement
from ftcli.memory.trained import block_ends
from ftcli.models.architectures.find import architecture_of_model
from ftcli.models.bottleneck import BottleneckConfig
from ftcli.models.targets import expert_names, kind_of, last_name, run_text, shortened, target_names
from ftcli.models.text_forward import idle_modules
from ftcli.models.virtual_tokens import init_virtual_tokens, require_embeddings, require_prefix

ENDS = ("embed_tokens", "lm_head")
"""Recipe names of input embeddings and head."""

# Key of a method → the library's name for it.
LIBRARY_NAMES = {
    "rank": "LoraConfig.r",
    "alpha": "LoraConfig.lora_alpha",
    "dropout": "LoraConfig.lora_dropout",
    "target_modules": "LoraConfig.target_modules",
    "layers": "LoraConfig.target_modules",
    "experts": "LoraConfig.target_parameters",
    "rank_pattern": "LoraConfig.rank_pattern",
    "rslora": "LoraConfig.use_rslora",
    "dora": "LoraConfig.use_dora",
    "modules_to_save": "LoraConfig.modules_to_save",
    "double_quantization": "BitsAndBytesConfig.bnb_4bit_use_double_quant",
    "quantization": "BitsAndBytesConfig.load_in_4bit",
    "virtual_tokens": "PromptLearningConfig.num_virtual_tokens",
    "projection": "PrefixTuningConfig.prefix_projection",
    "init_text": "our embedding of it",
    "bottleneck": "our BottleneckConfig",
    "activation": "our BottleneckConfig",
    "placement": "BottleneckConfig.target_modules",
}


def quantization(method: Method, compute_dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """Quantisation of the base when it is loaded."""
    match method:
        case Full() | Lora():
            return None
        case Qlora():
            return _nf4(compute_dtype, method.double_quantization)
        case Bottleneck() | PrefixTuning() | PromptTuning():
            return _nf4(compute_dtype, True) if method.quantization == "nf4" else None
        case _:
            assert_never(method)


def _nf4(compute_dtype: torch.dtype, double_quantization: bool) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double_quantization,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def attach(
    model: PreTrainedModel, method: Method, seed: int, init_ids: Sequence[int] = ()
) -> PreTrainedModel:
    """Make the method's weights trainable and freeze all others; raises ModelError.

    The seed determines all random weights; virtual tokens are initialised from `init_ids`, if any.
    """
    if isinstance(method, Full):
        return _train_what_text_reaches(model)
    if isinstance(method, PrefixTuning):
        require_prefix(model)
    if isinstance(method, PromptTuning):
        require_embeddings(model)
    config = _config(model, method)
    torch.manual_seed(seed)
    adapted = add_adapters(model, config)
    if isinstance(method, PromptTuning) or (
        isinstance(method, PrefixTuning) and not method.projection
    ):
        init_virtual_tokens(adapted, init_ids)
    train_in_fp32(adapted)
    return adapted


def _train_what_text_reaches(model: PreTrainedModel) -> PreTrainedModel:
    """Make the weights trainable that get a gradient from a text, by one backward pass.

    Not towers, and not the indexers of sparse attention, whose top-k has no gradient. An expert
    that no token of the text is sent to counts as the others of its kind.
    """
    model.requires_grad_(True)
    weights = dict(model.named_parameters())
    if any(weight.is_meta for weight in weights.values()):  # sizes without weights
        return model
    reached: set[str] = set()

    def record(name: str, weight: nn.Parameter) -> None:
        reached.add(kind_of(name))
        weight.grad = None  # all together would take the memory of a second model

    handles = [
        weight.register_post_accumulate_grad_hook(partial(record, name))
        for name, weight in weights.items()
    ]
    try:
        run_text(model)
    finally:
        for handle in handles:
            handle.remove()
    for name, weight in weights.items():
        weight.requires_grad_(kind_of(name) in reached)
    for module in idle_modules(model):  # a whole layer may be of a kind that is reached
        module.requires_grad_(False)
    return model


def init_token_ids(method: Method, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of method.init_text; empty without one."""
    if not isinstance(method, PrefixTuning | PromptTuning) or method.init_text is None:
        return []
    return list(tokenizer(method.init_text, add_special_tokens=False)["input_ids"])


def _config(
    model: PreTrainedModel, method: Lora | Qlora | Bottleneck | PrefixTuning | PromptTuning
) -> PeftConfig:
    match method:
        case Lora() | Qlora():
            return _lora(model, method)
        case Bottleneck():
            return BottleneckConfig(
                task_type="CAUSAL_LM",
                target_modules=adapter_targets(model, method.placement),
                bottleneck=method.bottleneck,
                activation=method.activation,
            )
        case PrefixTuning():
            return PrefixTuningConfig(
                task_type="CAUSAL_LM",
                num_virtual_tokens=method.virtual_tokens,
                prefix_projection=method.projection,
                init_weights="zero" if method.projection else None,
            )
        case PromptTuning():
            architecture = architecture_of_model(model)
            heads = [call.heads for kind in architecture.kinds for call in kind.attention]
            return PromptTuningConfig(
                task_type="CAUSAL_LM",
                # PEFT finds these by the usual keys of a config only, and a prompt needs the width.
                num_layers=architecture.layers,
                num_attention_heads=heads[0] if heads else 1,
                token_dim=architecture.hidden,
                num_virtual_tokens=method.virtual_tokens,
                prompt_tuning_init=PromptTuningInit.RANDOM,  # init_virtual_tokens follows
            )
        case _:
            assert_never(method)


def _lora(model: PreTrainedModel, method: LoraKeys) -> LoraConfig:
    saved = method.modules_to_save
    tied = has_tied_ends(model)
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=shortened(model, target_names(model, method)),
        target_parameters=expert_names(model, method) or None,
        rank_pattern=dict(method.rank_pattern),
        use_rslora=method.rslora,
        use_dora=method.dora,
        # Tied ends are one matrix under two names; PEFT ties them only if it reads `lm_head`.
        modules_to_save=names_of_ends(model, ENDS if tied and saved else saved) or None,
        # Else one end's copy would be trained alone, and a merge would write it to both.
        ensure_weight_tying=tied and bool(saved),
    )


def has_tied_ends(model: PreTrainedModel) -> bool:
    """Whether head and input embeddings are one matrix."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


@contextmanager
def targets_as_named() -> Iterator[None]:
    """Within the block, PEFT adapts the modules that a config names.

    PEFT 0.21 rewrites the names of 25 types (utils/transformers_weight_conversion.py): `up_proj`
    and the like become parameters of experts, and shared experts lose their adapters.
    """
    own = transformers_weight_conversion.convert_peft_config_for_transformers
    transformers_weight_conversion.convert_peft_config_for_transformers = lambda *_, **__: None
    try:
        yield
    finally:
        transformers_weight_conversion.convert_peft_config_for_transformers = own


def rewritten(model: nn.Module, names: Collection[str]) -> set[str]:
    """Names of modules that PEFT rewrites for this model."""
    found = set()
    for name in names:
        config = LoraConfig(target_modules=[name])
        try:
            transformers_weight_conversion.convert_peft_config_for_transformers(config, model, [])
        except ValueError:  # a part of a fused parameter alone
            found.add(name)
            continue
        found.update({name} - {*config.target_modules})
    return found


def add_adapters(model: PreTrainedModel, config: PeftConfig) -> PreTrainedModel:
    """The base with new adapters, where the config says."""
    with targets_as_named(), plain_stacks(model):
        adapted: PreTrainedModel = get_peft_model(model, config)
    use_own_updates(adapted)
    return adapted


def adapter_targets(model: PreTrainedModel, placement: Placement) -> list[str]:
    """Names of the last projections of attention and MLP of all layers, in full where a module
    outside of them has the same."""
    architecture = architecture_of_model(model)
    return shortened(
        model,
        [
            f"{architecture.stack}.{layer}.{each.name}"
            for layer in range(architecture.layers)
            for each in block_ends(architecture.kind_of(layer), placement)
        ],
    )


def names_of_ends(model: PreTrainedModel, ends: Sequence[str]) -> list[str]:
    """The model's names for `embed_tokens` and `lm_head`: GPT-NeoX's embeddings are `embed_in`,
    Falcon's `word_embeddings`, and PEFT ignores a name that matches nothing."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    names = {module: last_name(name) for name, module in model.named_modules()}
    return [names[module] for end, module in zip(ENDS, modules, strict=True) if end in ends]


def shared_weight(adapted: nn.Module) -> str | None:
    """A message naming modules that share the weight of a LoRA layer, because a merge would update
    all of them; None if there are none."""
    holders: dict[int, list[str]] = {}
    for name, module in adapted.named_modules(remove_duplicate=False):
        for weight in module.parameters(recurse=False):
            holders.setdefault(id(weight), []).append(_base_name(name))
    layers = (module for module in adapted.modules() if isinstance(module, LoraLayer))
    found = (holders[id(stored_weight(layer))] for layer in layers)
    names = next((each for each in found if len(each) > 1), None)
    return None if names is None else f"{' and '.join(names)} share one weight"


def stored_weight(layer: Any) -> Tensor:
    """The base's weight under an adapter, as it is stored: a stack may be in 4 bits."""
    base, name = layer.get_base_layer(), getattr(layer, "parameter_name", "weight")
    stored = base.parametrizations[name].original if is_parametrized(base) else getattr(base, name)
    weight: Tensor = stored
    return weight


def _base_name(name: str) -> str:
    """A module's name in the base, without PEFT's wrappers."""
    return name.removeprefix("base_model.model.").removesuffix(".base_layer")


def train_in_fp32(model: PreTrainedModel) -> None:
    """Train modules_to_save in fp32, with outputs in the base's type.

    PEFT copies a module in the base's type; in bf16 small updates would round to zero.
    """
    for module in model.modules():
        if not isinstance(module, ModulesToSaveWrapper):
            continue
        # Not by the copy's type: tied ends share a matrix, which may be fp32 already.
        narrow = module.original_module.weight.dtype != torch.float32
        for copy in module.modules_to_save.values():
            if isinstance(copy, nn.Embedding) and narrow:
                copy.register_forward_hook(_cast_output(module.original_module))
            if isinstance(copy, nn.Linear) and narrow:
                copy.register_forward_pre_hook(_cast_input)
            copy.float()


def _cast_input(copy: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Cast the input of a trained head from the base's type to its own."""
    weight: Any = copy.weight
    return (inputs[0].to(weight.dtype), *inputs[1:])


def _cast_output(original: Any) -> Callable[[nn.Module, object, Tensor], Tensor]:
    def cast(_: nn.Module, __: object, output: Tensor) -> Tensor:
        return output.to(original.weight.dtype)

    return cast


def keep_four_bit_trainable(model: PreTrainedModel) -> None:
    """Keep 4-bit layers trainable after an evaluation during training.

    On a CPU with AVX512-BF16, bitsandbytes 0.50 repacks the weights in eval mode for a kernel
    without autograd; the next training forward then has no gradient.
    """
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.support_avx512bf16_for_cpu = False


@contextmanager
def trainable_weights_restored(model: PreTrainedModel) -> Iterator[None]:
    """Restore trainable weights after the block: TRL 1.16 casts adapters of 4-bit bases to bf16.

    In bf16 small AdamW updates are lost, and the adapter of a parent run would change.
    """
    kept = {name: p.data for name, p in model.named_parameters() if p.requires_grad}
    yield
    for name, parameter in model.named_parameters():
        if name in kept:
            parameter.data = kept[name]
