"""Tiny models as ftcli builds them, and what a forward or backward pass of them allocates.

Allocations are those that torch reports to its profiler, so that closures (checkpointing) and
buffers inside operations count as tensors do. Weights exist before the count begins.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from typing import Any, assert_never

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

import ftcli.models.methods
from ftcli.config.recipe import Bottleneck, Full, Lora, Method, PrefixTuning, PromptTuning, Qlora
from ftcli.kernels.dequantised import cache_dequantised
from ftcli.kernels.experts import use_own_experts
from ftcli.kernels.lora import fuse_lora
from ftcli.memory import Choices
from ftcli.models.architectures.model_class import mend_text_forward, model_class
from ftcli.models.batches import Batch, of_tensors, packed
from ftcli.models.loss import _hidden
from ftcli.models.methods import keep_four_bit_trainable, quantization
from ftcli.models.text_forward import text_forward
from ftcli.models.virtual_tokens import causal_model

gc.freeze()  # what the libraries made lives on; without it each collection below takes 0.3 s

SIZES: dict[str, Any] = {
    "num_hidden_layers": 4,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 64,
    "tie_word_embeddings": False,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
BY_FAMILY: dict[str, dict[str, Any]] = {
    "mixtral": EXPERTS,
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 176},
    "gemma3_text": {"query_pre_attn_scalar": 32},
}


def tiny_config(family: str, **changes: Any) -> dict[str, Any]:
    return {"model_type": family, **SIZES, **BY_FAMILY.get(family, {}), **changes}


def build(config: dict[str, Any] | PreTrainedConfig, choices: Choices) -> Any:
    """A model in training mode with its method attached."""
    dtype = torch.float32 if choices.weight_bytes == 4 else torch.bfloat16
    if isinstance(config, dict):
        config = AutoConfig.for_model(**config, pad_token_id=0)
    model: Any = model_class(config).from_config(
        config, dtype=dtype, attn_implementation=choices.attention
    )
    mend_text_forward(model)
    if choices.quantization is not None:
        model = quantised(model, choices)
    use_own_experts(model)  # as ftcli.models.load does
    text_forward(model)
    model = attach(model, choices).train()
    if choices.keeps_dequantised:
        cache_dequantised(model)
    if choices.fused_lora:
        fuse_lora(model)
    if choices.checkpointing:
        base = causal_model(model)
        base.gradient_checkpointing_enable({"use_reentrant": False})
        if choices.mode != "full":
            base.enable_input_require_grads()
    return model


def quantised(model: Any, choices: Choices) -> Any:
    """The same model with NF4 weights, loaded as in ftcli.models.load."""
    compute = torch.float32 if choices.precision == "fp32" else torch.bfloat16
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=model.dtype,
            attn_implementation=choices.attention,
            quantization_config=quantization(method_of(choices), compute),
        )
    keep_four_bit_trainable(loaded)
    return loaded


def attach(model: Any, choices: Choices) -> Any:
    """Attach with ftcli's own function, with the dropout of the estimated device."""
    adapted: Any = ftcli.models.methods.attach(model, method_of(choices), seed=0)
    if choices.dropout > 0 and choices.device == "cuda":
        for module in adapted.modules():
            if hasattr(module, "lora_dropout"):
                for name in module.lora_dropout:
                    module.lora_dropout[name] = CudaDropout(choices.dropout)
    return adapted


def method_of(choices: Choices) -> Method:
    """The section of a recipe that `choices_of_method` turns into these choices."""
    base: Any = {"quantization": "nf4" if choices.four_bit_base else "none"}
    match choices.mode:
        case "full":
            return Full(mode="full")
        case "lora":
            return Lora(mode="lora", **_lora_keys(choices))
        case "qlora":
            double = choices.double_quantization
            return Qlora(mode="qlora", double_quantization=double, **_lora_keys(choices))
        case "bottleneck":
            width, place = choices.bottleneck, choices.placement
            return Bottleneck(mode="bottleneck", bottleneck=width, placement=place, **base)
        case "prefix-tuning":
            tokens, network = choices.virtual_tokens, choices.projection
            return PrefixTuning(
                mode="prefix-tuning", virtual_tokens=tokens, projection=network, **base
            )
        case "prompt-tuning":
            return PromptTuning(mode="prompt-tuning", virtual_tokens=choices.virtual_tokens, **base)
        case _:
            assert_never(choices.mode)


def _lora_keys(choices: Choices) -> dict[str, Any]:
    targets = choices.target_modules
    return {
        "rank": choices.rank,
        "dropout": choices.dropout,
        "target_modules": targets if isinstance(targets, str) else list(targets),
        "layers": None if choices.layers is None else list(choices.layers),
        "rank_pattern": dict(choices.rank_pattern),
        "dora": choices.dora,
        "modules_to_save": list(choices.modules_to_save),
    }


class CudaDropout(nn.Module):
    """Dropout by the operation that torch uses on CUDA, which keeps a mask of one byte; nn.Dropout
    on the CPU keeps the numbers that it multiplies by."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return torch.native_dropout(x, self.rate, True)[0]


def trained(model: Any) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def rows(choices: Choices, vocabulary: int = 64) -> Tensor:
    return torch.randint(1, vocabulary - 1, (choices.micro_batch, choices.seq_len))


def autocast(choices: Choices) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=choices.autocast)


def batch_of(choices: Choices) -> Batch:
    """Random ids; packed ones as rows of the maximum length."""
    ids = rows(choices)
    if not choices.packed_rows:
        return of_tensors(ids, ids)
    length = choices.longest_row or choices.seq_len
    starts = range(0, choices.seq_len, length)
    return packed_batch([ids[0, start : start + length].tolist() for start in starts])


def packed_batch(rows: list[list[int]], *, share: bool = False) -> Batch:
    """Padding-free rows; every token has a label."""
    return packed([{"input_ids": row, "labels": row} for row in rows], share_prefix=share)


def kept_by_layers(model: Any, choices: Choices, batch: Batch) -> int:
    """Bytes that are alive after a forward pass up to the head, without its result."""

    def forward() -> Tensor:
        with autocast(choices):
            return _hidden(model, batch)

    with torch.no_grad():
        forward()  # what is set up once
    allocated: list[int] = []
    result = allocations(forward, allocated)
    return sum(allocated) - result.untyped_storage().nbytes()


def peak_bytes(run: Callable[[], object]) -> int:
    """Peak of the allocated bytes during `run`."""
    allocated: list[int] = []
    # A CPU with bf16 packs the matrices of a product into buffers, which no card does.
    with torch.backends.mkldnn.flags(enabled=False):
        allocations(run, allocated)
    alive = peak = 0
    for change in allocated:
        alive += change
        peak = max(peak, alive)
    return peak


def allocations(run: Callable[[], Any], allocated: list[int]) -> Any:
    """Run, and list every allocation (positive) and release (negative) in order."""
    gc.collect()  # or the remains of another model may be released in between
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()
    events: Any = profiler.profiler
    memory = [event for event in events.kineto_results.events() if event.name() == "[memory]"]
    memory.sort(key=lambda event: event.start_ns())
    allocated.extend(event.nbytes() for event in memory)
    return result
