"""What the head and the loss allocate: formula against count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from counting import attach, autocast, build, peak_bytes, rows, tiny_config
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from trl.trainer import utils as trl_utils

import ftcli.memory.activations.head_bytes
import ftcli.models.loss
from ftcli.memory import Choices, Stack
from ftcli.memory.step import CUBLAS_BYTES, step_phases
from ftcli.models.architectures.find import architecture_of
from ftcli.models.batches import of_tensors
from ftcli.models.loss import summed_loss
from ftcli.models.virtual_tokens import causal_model
from tests.tiers import tiers

Loss = Callable[[Any, Tensor, Tensor], Tensor]
ONE_LAYER = {
    "num_hidden_layers": 1,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
HEADS: dict[str, dict[str, Any]] = {
    "plain": tiny_config("llama", **ONE_LAYER),
    "tied": tiny_config("llama", **ONE_LAYER | {"tie_word_embeddings": True}),
    "softcapped": tiny_config("gemma2", **ONE_LAYER),
    "scaled": tiny_config("granite", **ONE_LAYER, logits_scaling=8.0),
}


def head_choices(method: str, precision: Any, head: str, tokens: int, share: float) -> Choices:
    return Choices(
        "full" if method == "full" else "lora",
        precision,
        rank=2,
        modules_to_save=("lm_head",) if method == "lora, head" else (),
        seq_len=tokens,
        label_share=share,
        attention="eager" if head == "softcapped" else "sdpa",
        device="cpu",
    )


class HeadIsDone(Exception):
    """The backward pass has reached the norm before the head."""


def deviation(config: dict[str, Any], choices: Choices, model: Any, loss: Loss) -> float:
    """Formula / count − 1, for the peak from the embeddings to the head's gradients."""
    ids = rows(choices, config["vocab_size"])
    labels = ids.clone()
    labels[:, : choices.seq_len - choices.label_tokens] = -100

    def stop(gradient: Tensor) -> None:
        raise HeadIsDone

    def step() -> None:
        with autocast(choices):
            total = loss(model, ids, labels)
        with pytest.raises(HeadIsDone):
            total.backward()  # type: ignore[no-untyped-call]

    norm = causal_model(model).base_model.norm
    norm.register_forward_hook(lambda module, args, hidden: hidden.register_hook(stop) and None)
    counted = peak_bytes(step)
    phase = step_phases(architecture_of(config), choices)["head and loss"]
    return (phase.total_bytes - CUBLAS_BYTES) / counted - 1


def padded_loss(model: Any, ids: Tensor, labels: Tensor) -> Tensor:
    return summed_loss(model, of_tensors(ids, labels))


def our_deviation(head: str, choices: Choices, **sizes: int) -> float:
    config = HEADS[head] | sizes
    return deviation(config, choices, build(config, choices), padded_loss)


@pytest.mark.parametrize(
    "head",
    tiers(["plain", "softcapped", "tied", "scaled"], "softcapped"),
)
@pytest.mark.parametrize("method", tiers(["lora", "lora, head", "full"], "lora"))
def test_our_head_allocates_what_the_formula_says(
    method: str, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (ftcli.models.loss, ftcli.memory.activations.head_bytes):
        monkeypatch.setattr(module, "LOSS_CHUNK_POSITIONS", 64)
    for precision, tokens, share in (("fp32", 160, 1.0), ("bf16", 96, 0.4)):
        choices = head_choices(method, precision, head, tokens, share)
        off = our_deviation(head, choices, vocab_size=32_000)
        assert abs(off) < 0.025, (precision, off)


@pytest.mark.parametrize("precision", tiers(["bf16", "pure-bf16", "fp32"], "bf16"))
def test_a_trained_head_of_few_labels_is_its_gradient(precision: str) -> None:
    choices = head_choices("full", precision, "plain", 32, 0.5)
    assert abs(our_deviation("plain", choices, vocab_size=32_000, hidden_size=128)) < 0.025


@pytest.mark.slow
@pytest.mark.parametrize(("method", "head"), [("lora", "plain"), ("full", "softcapped")])
def test_our_head_in_chunks_of_their_own_size(method: str, head: str) -> None:
    for precision, tokens, share in (
        ("fp32", 1200, 1.0),
        ("fp32", 1200, 0.2),
        ("bf16", 128, 0.5),
        ("pure-bf16", 128, 0.5),
    ):
        choices = head_choices(method, precision, head, tokens, share)
        off = our_deviation(head, choices, vocab_size=128_256)
        assert abs(off) < 0.02, (precision, tokens, share, off)


@pytest.fixture
def cuda_like_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's kernels as on CUDA, where a tile is folded in place and sums need no copies.

    Its torch fallback makes fp32 copies of whole tiles instead: the same functions run here on
    small blocks of a tile.
    """

    def on_blocks(fold: Callable[..., None], per_row: int) -> Callable[..., None]:
        def call(tile: Tensor, stride: int, *args: Any, **kwargs: Any) -> None:
            start, columns, *rest = args[per_row:]
            for row in range(0, tile.shape[0], 8):
                some = slice(row, row + 8)
                mine = [values[some] for values in args[:per_row]]
                for column in range(0, columns, 512):
                    width = min(512, columns - column)
                    block = tile[some, column : column + width]
                    fold(block, stride, *mine, start + column, width, *rest, **kwargs)

        return call

    def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
        for row in range(0, len(left), 256):
            some = slice(row, row + 256)
            for start in range(0, len(right), 64):
                part = slice(start, start + 64)
                total[some].addmm_(left[some, part].float(), right[part].float())

    name = "trl.kernels.chunked_logprob"
    chunked_logprob = pytest.importorskip(name, reason="a head of TRL since 1.15")
    forward = on_blocks(chunked_logprob._forward_tile, 8)
    backward = on_blocks(chunked_logprob._backward_tile, 5)
    monkeypatch.setattr(chunked_logprob, "_forward_tile", forward)
    monkeypatch.setattr(chunked_logprob, "_backward_tile", backward)
    monkeypatch.setattr(chunked_logprob, "_addmm_fp32", add_product)
    # In the trainer's module this says that only labelled positions are scored, as on CUDA.
    monkeypatch.setattr(trl_utils, "_use_triton", lambda device: True)


def trl_deviation(head: str, choices: Choices, **sizes: int) -> float:
    config = HEADS[head] | sizes
    dtype = torch.float32 if choices.weight_bytes == 4 else torch.bfloat16
    model: Any = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**config, pad_token_id=0),
        dtype=dtype,
        attn_implementation=choices.attention,
    )
    trl_utils.add_fused_lm_head(model)
    model = attach(model, choices).train()
    causal_model(model).get_output_embeddings().to(dtype)  # PEFT trains a copy in the model's type
    model.gradient_checkpointing_enable({"use_reentrant": False})

    def loss(model: Any, ids: Tensor, labels: Tensor) -> Tensor:
        found: Tensor = model(input_ids=ids, labels=labels, fused_lm_head=True).loss
        return found

    return deviation(config, choices, model, loss)


@pytest.mark.usefixtures("cuda_like_kernels")
@pytest.mark.parametrize(
    ("method", "precision", "vocabulary", "tokens"),
    [
        ("lora", "bf16", 1_000, 512),
        ("lora, head", "pure-bf16", 1_000, 512),
        ("full", "bf16", 1_000, 512),
        pytest.param("full", "fp32", 33_000, 128, marks=pytest.mark.slow),
    ],
)
def test_trls_head_allocates_what_the_formula_says(
    method: str, precision: str, vocabulary: int, tokens: int
) -> None:
    choices = with_trls_head(head_choices(method, precision, "plain", tokens, 0.5))
    off = trl_deviation("plain", choices, vocab_size=vocabulary, hidden_size=128)
    assert abs(off) < 0.03


@pytest.mark.slow
@pytest.mark.usefixtures("cuda_like_kernels")
@pytest.mark.parametrize(
    ("method", "precision", "head"),
    [("full", "bf16", "plain"), ("lora", "pure-bf16", "scaled"), ("full", "fp32", "softcapped")],
)
def test_trls_head_of_a_large_vocabulary(method: str, precision: str, head: str) -> None:
    choices = with_trls_head(head_choices(method, precision, head, 128, 1.0))
    assert abs(trl_deviation(head, choices, vocab_size=128_256)) < 0.03


@pytest.mark.slow
@pytest.mark.usefixtures("cuda_like_kernels")
def test_trls_tile_ends_at_4096_positions() -> None:
    choices = with_trls_head(head_choices("lora", "fp32", "plain", 5000, 1.0))
    assert abs(trl_deviation("plain", choices, vocab_size=2_000)) < 0.02


def with_trls_head(choices: Choices) -> Choices:
    return replace(choices, stack=Stack(trl_head=True, saved_bytes=None))
