"""The largest that fits, how memory grows, and that it never shrinks: what the search rests on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftcli.errors import UsageError
from ftcli.memory import Choices, estimate
from ftcli.memory.fit.limits import size_named, sizes_of, sweep
from ftcli.memory.fit.search import estimate_on
from ftcli.memory.hardware import find_card
from ftcli.memory.shapes import Shape, find_shape

CARD = find_card("4090").hardware
SHAPES = st.sampled_from(
    ["7b", "qwen2.5-7b", "qwen3-0.6b", "gemma-2-2b", "phi-3-mini", "mixtral-8x7b", "smollm2-135m"]
).map(lambda name: find_shape(name, Path()))
CHOICES = st.builds(
    Choices,
    mode=st.sampled_from(["full", "lora", "qlora", "adapter", "prefix", "prompt"]),
    four_bit_base=st.booleans(),
    precision=st.sampled_from(["bf16", "fp16", "fp32", "pure-bf16"]),
    optimizer=st.sampled_from(["adamw", "adamw-8bit", "paged-adamw-8bit", "sgd"]),
    rank=st.integers(1, 128),
    micro_batch=st.integers(1, 8),
    seq_len=st.integers(1, 8192),
    gradient_accumulation=st.sampled_from([1, 4]),
    gradient_checkpointing=st.booleans(),
    attention=st.sampled_from(["sdpa", "eager"]),
    labelled_share=st.floats(0.01, 1),
)


@given(SHAPES, CHOICES, st.sampled_from(["seq_len", "micro_batch", "rank"]), st.integers(1, 64))
def test_more_of_a_size_never_takes_less(
    shape: Shape, choices: Choices, name: str, more: int
) -> None:
    larger = replace(choices, **{name: getattr(choices, name) + more})
    before, after = estimate(shape, choices), estimate(shape, larger)
    assert after.peak_bytes >= before.peak_bytes
    assert after.high_bytes >= before.high_bytes


@given(SHAPES, CHOICES, st.integers(1, 16))
def test_more_layers_never_take_less(shape: Shape, choices: Choices, more: int) -> None:
    deeper = replace(shape, layers=shape.layers + more)
    before, after = estimate(shape, choices), estimate(deeper, choices)
    assert after.peak_bytes >= before.peak_bytes
    assert after.high_bytes >= before.high_bytes


# By a kernel that never holds the scores: eager's are fp32 in any precision, with a 16-bit copy.
KERNEL = {"attention": "sdpa"}
WEIGHTS = {"mode": "full", **KERNEL}
# Of what is otherwise the same: fewer bits, and more.
BITS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"double_quantization": True}, {"double_quantization": False}),
    (KERNEL | {"four_bit_base": True}, KERNEL | {"four_bit_base": False}),
    (KERNEL | {"weights_dtype": "bf16"}, KERNEL | {"weights_dtype": "fp32"}),
    ({"optimizer": "paged-adamw-8bit"}, {"optimizer": "adamw-8bit"}),
    (WEIGHTS | {"precision": "pure-bf16"}, WEIGHTS | {"precision": "bf16"}),
    (WEIGHTS | {"precision": "pure-bf16"}, WEIGHTS | {"precision": "fp32"}),
]


@given(SHAPES, CHOICES, st.sampled_from(BITS))
def test_more_bits_never_take_less(
    shape: Shape, choices: Choices, bits: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    few, many = (replace(choices, **kind) for kind in bits)
    assert estimate(shape, few).high_bytes <= estimate(shape, many).high_bytes


@given(SHAPES, CHOICES.filter(lambda choices: choices.precision != "pure-bf16"))
def test_states_of_8_bits_never_take_more(shape: Shape, choices: Choices) -> None:
    """Beside fp32 weights: bitsandbytes keeps an embedding's states in fp32, AdamW in its type."""
    few, many = (replace(choices, optimizer=name) for name in ("adamw-8bit", "adamw"))
    assert estimate(shape, few).high_bytes <= estimate(shape, many).high_bytes


def test_a_sweep_estimates_each_value_alone() -> None:
    shape, choices = find_shape("7b", Path()), Choices("qlora")
    found = sweep(shape, choices, "seq-len", (512, 2048, 65_536), CARD)
    assert [row.value for row in found.rows] == [512, 2048, 65_536]
    for row in found.rows:
        assert row.estimate == estimate_on(shape, replace(choices, seq_len=row.value), CARD)
    assert [row.fits for row in found.rows] == [True, True, False]
    assert {row.fits for row in sweep(shape, choices, "rank", (8, 16), None).rows} == {None}


def test_a_sweep_is_read_from_its_text() -> None:
    assert sizes_of("seq-len=2048, 512,512") == ("seq-len", (512, 2048))
    assert sizes_of("rank=8") == ("rank", (8,))
    for text in ("seq-len", "seq-len=", "seq-len=0", "seq-len=1k", "rank=-4", "rank=1.5"):
        with pytest.raises(UsageError, match="expected whole numbers"):
            sizes_of(text)


@pytest.mark.parametrize(
    ("name", "near"), [("seqlen", "seq-len"), ("micro_batch", "micro-batch"), ("ranks", "rank")]
)
def test_an_unknown_size_gets_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UsageError) as caught:
        size_named(name, "--max")
    assert str(caught.value) == (
        f"--max {name}: no such size; did you mean {near}?; there is seq-len, micro-batch, rank"
    )
