"""One change that saves memory: the recipe's key, and what it costs in time or quality."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import assert_never

from ftcli.memory import Choices, Estimate
from ftcli.memory.choices import MODE_NAMES, Mode, Optimizer
from ftcli.memory.fit.asked import Asked

Value = str | int | float | bool | list[str]


@dataclass(frozen=True)
class Change:
    """One change, and what the training takes with it and those before it."""

    change: str
    """In words."""
    key: str
    """The recipe's key, and the value it gets."""
    value: Value
    cost: str
    """What it costs in time or quality, and by which source."""
    device_bytes: int
    high_bytes: int


@dataclass(frozen=True)
class Step:
    """A change before its memory is known."""

    change: str
    key: str
    value: Value
    cost: str
    choices: Choices
    """With this step and those before it."""


def steps(asked: Asked, found: Choices) -> Iterator[Step]:
    """The steps from what is asked to what was found, the cheapest kind first.

    What is open and may stay larger than at its smallest is no change.
    """
    now = asked.choices
    cheap = (_micro_batch, _checkpointing, _attention, _optimizer)
    for step in (*cheap, _base, _method, _targets, _rank):
        for one in step(asked, now, found):
            now = one.choices
            yield one
    yield from _length(asked, now, found)


def as_change(step: Step, estimate: Estimate) -> Change:
    return Change(
        step.change, step.key, step.value, step.cost, estimate.device_bytes, estimate.high_bytes
    )


def _micro_batch(asked: Asked, now: Choices, found: Choices) -> Iterator[Step]:
    if found.micro_batch >= now.micro_batch:
        return
    parts = found.gradient_accumulation
    yield Step(
        f"micro-batch {now.micro_batch} → {found.micro_batch}, {parts} of them a step",
        "training.micro_batch_size",
        found.micro_batch,
        "time, where so few rows leave the card idle; the gradient stays the same, since the loss "
        "is divided by the tokens of the whole step",
        replace(now, micro_batch=found.micro_batch, gradient_accumulation=parts),
    )


def _checkpointing(asked: Asked, now: Choices, found: Choices) -> Iterator[Step]:
    if now.gradient_checkpointing or not found.gradient_checkpointing:
        return
    yield Step(
        "gradient checkpointing on",
        "training.gradient_checkpointing",
        True,
        "about a third more time: one more forward pass (Chen et al. 2016); same weights",
        replace(now, gradient_checkpointing=True),
    )


def _attention(asked: Asked, now: Choices, found: Choices) -> Iterator[Step]:
    if now.attention == found.attention:
        return
    yield Step(
        f"attention {now.attention} → {found.attention}",
        "model.attention",
        found.attention,
        "nothing: the same scores in one kernel that never holds them all, and faster",
        replace(now, attention=found.attention),
    )


def _optimizer(asked: Asked, now: Choices, found: Choices) -> Iterator[Step]:
    if now.optimizer == found.optimizer:
        return
    yield Step(
        f"optimizer {now.optimizer} → {found.optimizer}",
        "training.optimizer",
        found.optimizer,
        _cost_of_optimizer(found.optimizer),
        replace(now, optimizer=found.optimizer),
    )


def _cost_of_optimizer(optimizer: Optimizer) -> str:
    match optimizer:
        case "adamw-8bit":
            return "next to nothing: states in 8 bits train as well (Dettmers et al. 2022, table 1)"
        case "paged-adamw-8bit":
            return (
                "time, when the card is full and its 8-bit states move to the host's memory and "
                "back (QLoRA, Dettmers et al. 2023, section 3)"
            )
        case "adamw" | "sgd":
            raise AssertionError(f"{optimizer} is never proposed")
        case _:
            assert_never(optimizer)


def _base(asked: Asked, now: Choices, found: Choices) -> Iterator[Step]:
    if now.four_bit_base == found.four_bit_base:
        return
    yield Step(
        "the frozen base in 4 bits",
        "method.quantization",
        "nf4",
        "time: 4-bit weights are dequantised in every pass; some quality perhaps: that NF4 costs "
        "none is shown for LoRA (QLoRA, tables 2 to 4), and not for this method",
        replace(now, four_bit_base=found.four_bit_base),
    )


def _targets(asked: Asked, now: Choices, found: Choices) -> Iterator[Step]:
    if now.targets == found.targets:
        return
    names: list[str] = [] if isinstance(found.targets, str) else list(found.targets)
    yield Step(
        f"adapters on {', '.join(names)} alone",
        "method.target_modules",
        names,
        "some quality: adapters on all linear layers matched full fine-tuning, on fewer they did "
        "not (QLoRA, figure 2)",
        replace(now, targets=found.targets),
    )


def _method(asked: Asked, now: Choices, found: Choices) -> Iterator[Step]:
    if now.mode == found.mode:
        return
    yield Step(
        f"{MODE_NAMES[now.mode]} → {MODE_NAMES[found.mode]}",
        "method.mode",
        found.mode,
        _cost_of_method(now.mode, found.mode),
        replace(now, mode=found.mode),
    )


def _cost_of_method(old: Mode, new: Mode) -> str:
    update = (
        "quality on what is new to the model: LoRA learns less, and forgets less (Biderman et al. "
        "2024); its learning rate is ten times as high (auto: 2e-4)"
    )
    quantised = (
        "time: 4-bit weights are dequantised in every pass; quality as LoRA's on 16 bits (QLoRA, "
        "tables 2 to 4)"
    )
    if new == "lora":
        return update
    return quantised if old == "lora" else f"{update}; {quantised}"


def _rank(asked: Asked, now: Choices, found: Choices) -> Iterator[Step]:
    if now.rank == found.rank:
        return
    fewer = replace(now, rank=found.rank)
    yield Step(
        f"rank {now.rank} → {found.rank}",
        "method.rank",
        found.rank,
        "room for what is new: low ranks do for a format or a style (LoRA, Hu et al. 2021, "
        "section 7.2)",
        fewer,
    )
    if asked.alpha is not None:
        share = found.rank / now.rank
        alpha = asked.alpha * (math.sqrt(share) if asked.rslora else share)
        scale = "alpha / √rank" if asked.rslora else "alpha / rank"
        yield Step(
            f"alpha {asked.alpha:g} → {alpha:g}",
            "method.alpha",
            alpha,
            f"nothing: {scale}, by which the update is scaled, stays as it is",
            fewer,
        )


def _length(asked: Asked, now: Choices, found: Choices) -> Iterator[Step]:
    if now.seq_len == found.seq_len:
        return
    yield Step(
        f"rows of at most {found.seq_len} tokens instead of {now.seq_len}",
        "data.max_length",
        found.seq_len,
        _cost_of_length(asked, found.seq_len),
        replace(now, seq_len=found.seq_len),
    )


def _cost_of_length(asked: Asked, tokens: int) -> str:
    refused = "prepare stops where that loses 1% of the answers, unless data.allow_truncation"
    if asked.share_longer is None:
        return (
            f"the ends of longer rows, of which nothing is known without prepared data; {refused}"
        )
    return f"the ends of {asked.share_longer(tokens):.1%} of the prepared rows; {refused}"
