"""Method → what is trained: PEFT configs, quantisation, frozen weights. The door to PEFT.

What stands behind it: ftcli.models.targets names the layers, ftcli.models.bottleneck is a method of
our own, ftcli.models.virtual_tokens feeds a prefix or a soft prompt to the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from ftcli.config.recipe import Adapter, Full, Lora, LoraKeys, Method, Prefix, Prompt, Qlora
from ftcli.models.bottleneck import BottleneckConfig
from ftcli.models.targets import ENDS, adapter_targets, linear_names, names_of_ends
from ftcli.models.virtual_tokens import begin_as

# Our name of a method's key → where it goes.
THEIR_NAMES = {
    "rank": "LoraConfig.r",
    "alpha": "LoraConfig.lora_alpha",
    "dropout": "LoraConfig.lora_dropout",
    "target_modules": "LoraConfig.target_modules",
    "layers": "LoraConfig.layers_to_transform",
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
    """How the base is quantised while it is loaded."""
    match method:
        case Full() | Lora():
            return None
        case Qlora():
            return _nf4(compute_dtype, method.double_quantization)
        case Adapter() | Prefix() | Prompt():
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
    model: PreTrainedModel, method: Method, seed: int, words: Sequence[int] = ()
) -> PreTrainedModel:
    """Make the method's weights trainable and all others not; raises ModelError.

    What is drawn at random is drawn by the seed; virtual tokens begin as `words`, if any.
    """
    if isinstance(method, Full):
        return model.requires_grad_(True)
    config = _config(model, method)
    torch.manual_seed(seed)
    adapted: PreTrainedModel = get_peft_model(model, config)
    if isinstance(method, Prompt) or (isinstance(method, Prefix) and not method.projection):
        begin_as(adapted, words)
    train_in_fp32(adapted)
    return adapted


def first_words(method: Method, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of what virtual tokens begin as (method.init_text); empty for all else."""
    if not isinstance(method, Prefix | Prompt) or method.init_text is None:
        return []
    return list(tokenizer(method.init_text, add_special_tokens=False)["input_ids"])


def _config(model: PreTrainedModel, method: Lora | Qlora | Adapter | Prefix | Prompt) -> PeftConfig:
    match method:
        case Lora() | Qlora():
            return _lora(model, method)
        case Adapter():
            return BottleneckConfig(
                task_type="CAUSAL_LM",
                target_modules=adapter_targets(model, method.placement),
                bottleneck=method.bottleneck,
                activation=method.activation,
            )
        case Prefix():
            return PrefixTuningConfig(
                task_type="CAUSAL_LM",
                num_virtual_tokens=method.virtual_tokens,
                prefix_projection=method.projection,
                init_weights="zero" if method.projection else None,
            )
        case Prompt():
            return PromptTuningConfig(
                task_type="CAUSAL_LM",
                num_virtual_tokens=method.virtual_tokens,
                prompt_tuning_init=PromptTuningInit.RANDOM,  # begin_as follows
            )
        case _:
            assert_never(method)


def _lora(model: PreTrainedModel, method: LoraKeys) -> LoraConfig:
    targets = method.target_modules
    if isinstance(targets, str) and method.layers is not None:
        targets = linear_names(model)
    saved = method.modules_to_save
    tied = bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=targets,
        layers_to_transform=method.layers,
        rank_pattern=dict(method.rank_pattern),
        use_rslora=method.rslora,
        use_dora=method.dora,
        # Either name is the one matrix of tied ends, and PEFT ties where it reads `lm_head`.
        modules_to_save=names_of_ends(model, ENDS if tied and saved else saved) or None,
        # Else the copy of one end would be trained, and a merge would give it to both.
        ensure_weight_tying=tied and bool(saved),
    )


def train_in_fp32(model: PreTrainedModel) -> None:
    """Hold trained copies of whole modules in fp32, and let them answer in the base's type.

    PEFT copies a module in the base's own type; in bf16 small updates would round to nothing.
    """
    for module in model.modules():
        if not isinstance(module, ModulesToSaveWrapper):
            continue
        # Not by the copy's own type: ends that are tied share a matrix, which is fp32 by now.
        narrow = module.original_module.weight.dtype != torch.float32
        for copy in module.modules_to_save.values():
            if isinstance(copy, nn.Embedding) and narrow:
                copy.register_forward_hook(_answer_as(module.original_module))
            if isinstance(copy, nn.Linear) and narrow:
                copy.register_forward_pre_hook(_read_in_own_type)
            copy.float()


def _read_in_own_type(copy: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """A trained head reads what the layers before it answer in the base's type."""
    weight: Any = copy.weight
    return (inputs[0].to(weight.dtype), *inputs[1:])


def _answer_as(original: Any) -> Callable[[nn.Module, object, Tensor], Tensor]:
    def cast(_: nn.Module, __: object, output: Tensor) -> Tensor:
        return output.to(original.weight.dtype)

    return cast


def keep_training_exact(model: PreTrainedModel) -> None:
    """Keep 4-bit layers as they are when the model is evaluated in the middle of a training.

    bitsandbytes 0.50 repacks the weights in eval mode for a kernel without autograd where the CPU
    has AVX512-BF16; the next training forward then has no gradient.
    """
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.support_avx512bf16_for_cpu = False


@contextmanager
def trained_weights_untouched(model: PreTrainedModel) -> Iterator[None]:
    """Give back the trained weights as they were: TRL 1.16 rounds adapters of a 4-bit base to bf16.

    In bf16 small AdamW updates are lost, and a parent's adapter would not be what it was.
    """
    kept = {name: p.data for name, p in model.named_parameters() if p.requires_grad}
    yield
    for name, parameter in model.named_parameters():
        if name in kept:
            parameter.data = kept[name]
