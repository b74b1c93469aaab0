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
from peft.utils import ModulesToSaveWrapper, transformers_weight_conversion
from torch import Tensor, nn
from transformers import (
    BitsAndBytesConfig,
    DynamicLayer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.cache_utils import DynamicSlidingWindowLayer

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
from ftcli.errors import ModelError
from ftcli.kernels.expert_stacks import plain_stacks
from ftcli.kernels.experts import use_own_updates
from ftcli.memory.architecture import Attention
from ftcli.models.architectures.find import architecture_of_model
from ftcli.models.bottleneck import BottleneckConfig
from ftcli.models.device import is_out_of_memory
from ftcli.models.targets import (
    ENDS,
    adapter_targets,
    expert_names,
    kind_of,
    names_of_ends,
    run_text,
    shortened,
    target_names,
)
from ftcli.models.text_forward import idle_modules, is_close
from ftcli.models.virtual_tokens import init_virtual_tokens

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
        _require_prefix(model)
    if isinstance(method, PromptTuning):
        _require_embeddings(model)
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
            (call, *_) = _attention_calls(model)
            return PrefixTuningConfig(
                task_type="CAUSAL_LM",
                # PEFT finds these by the usual keys of a config only.
                num_layers=architecture_of_model(model).layers,
                num_attention_heads=call.kv_heads,
                token_dim=call.kv_heads * call.key_width,
                num_virtual_tokens=method.virtual_tokens,
                prefix_projection=method.projection,
                init_weights="zero" if method.projection else None,
            )
        case PromptTuning():
            architecture = architecture_of_model(model)
            calls = _attention_calls(model)
            return PromptTuningConfig(
                task_type="CAUSAL_LM",
                num_layers=architecture.layers,  # a prompt needs the width only
                num_attention_heads=calls[0].heads if calls else 1,
                token_dim=architecture.hidden,
                num_virtual_tokens=method.virtual_tokens,
                prompt_tuning_init=PromptTuningInit.RANDOM,  # init_virtual_tokens follows
            )
        case _:
            assert_never(method)


def _attention_calls(model: PreTrainedModel) -> list[Attention]:
    """Of the layers of each kind, as they were measured."""
    return [call for kind in architecture_of_model(model).kinds for call in kind.attention]


def _require_prefix(base: PreTrainedModel) -> None:
    """Raise ModelError (`method_refused`) if a layer of the model cannot have a prefix."""
    embeddings = base.get_input_embeddings().weight
    if embeddings.is_meta:  # sizes without weights
        return
    ids = torch.ones((1, 2), dtype=torch.long, device=embeddings.device)
    with torch.no_grad():
        cache = getattr(base.eval()(input_ids=ids, use_cache=True), "cache", None)
    layers = getattr(cache, "layers", ())
    pairs = [(getattr(each, "keys", None), getattr(each, "values", None)) for each in layers]
    shapes = {each.shape if isinstance(each, Tensor) else None for pair in pairs for each in pair}
    plain = all(type(each) in (DynamicLayer, DynamicSlidingWindowLayer) for each in layers)
    if not plain or len(shapes) != 1 or None in shapes:
        raise ModelError(
            "method_refused",
            f"{type(base).__name__}: prefix-tuning needs keys and values of one size in all "
            "layers, and some have others or none; take method.mode: lora",
        )


def _require_embeddings(base: PreTrainedModel) -> None:
    """Raise ModelError (`method_refused`) if the model does not run on embeddings alone."""
    embeddings = base.get_input_embeddings()
    if embeddings.weight.is_meta:  # sizes without weights
        return
    ids = torch.arange(11, 15, device=embeddings.weight.device)[None]
    refusal = f"{type(base).__name__} does not run on embeddings, which a soft prompt is made of"
    try:
        with torch.no_grad():  # other vectors than those of words, which Gemma 4 looks up
            base.train()(inputs_embeds=2 * embeddings(ids) + 1, use_cache=False)
            base.eval()
            of_ids = base(input_ids=ids, use_cache=False).logits
            of_embeddings = base(inputs_embeds=embeddings(ids), use_cache=False).logits
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        reason = f"{refusal} ({str(error).splitlines()[0]}); take method.mode: lora"
        raise ModelError("method_refused", reason) from error
    finally:
        base.eval()
    if not is_close(of_embeddings, of_ids):  # Gemma 3n has more of a word than its embedding
        raise ModelError("method_refused", f"{refusal}, but on ids; take method.mode: lora")


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
