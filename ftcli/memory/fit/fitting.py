"""The cheapest changes with which a training fits a GPU, their costs, and what else would do."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ftcli.errors import ModelError
from ftcli.memory import Choices, Estimate
from ftcli.memory.adapted import last_names
from ftcli.memory.architecture import Architecture
from ftcli.memory.choices import MODE_NAMES, Optimizer
from ftcli.memory.fit.request import FitRequest, options_of, require_mode
from ftcli.memory.fit.search import Fits, any_fits, cheapest, estimate_on, fits
from ftcli.memory.hardware import KNOWN_CARDS, Card, Hardware
from ftcli.memory.known_models import known_architecture

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
    """What it costs in time or quality, with the source."""
    device_bytes: int
    high_bytes: int


@dataclass(frozen=True)
class Step:
    """A change before its memory is known."""

    change: str
    key: str
    value: Value
    cost: str
    fields: tuple[str, ...]
    """Of `Choices`, which it takes from what was found."""


def steps(asked: FitRequest, found: Choices) -> Iterator[tuple[Step, Choices]]:
    """The steps from what is asked to what was found, each with the choices after it, the cheapest
    kind first.

    What is open and may stay larger than at its smallest is no change.
    """
    # A plan takes it by itself where it is open.
    now = replace(
        asked.choices,
        embedding_offload=found.embedding_offload,
        activation_offload=found.activation_offload,
        tiled_mlp=found.tiled_mlp,
    )
    for step in (*_same_model(now, found), *_other_model(asked, found)):
        now = replace(now, **{field: getattr(found, field) for field in step.fields})
        yield step, now


def _same_model(now: Choices, found: Choices) -> Iterator[Step]:
    """Steps that cost time at most."""
    if found.micro_batch < now.micro_batch:
        parts = found.gradient_accumulation
        yield Step(
            f"micro-batch {now.micro_batch} → {found.micro_batch}, {parts} per step",
            "training.micro_batch_size",
            found.micro_batch,
            "time, if so few rows leave the GPU idle; the gradient stays the same, since the loss "
            "is divided by the label tokens of the whole step",
            ("micro_batch", "gradient_accumulation"),
        )
    if found.gradient_checkpointing and not now.gradient_checkpointing:
        yield Step(
            "gradient checkpointing on",
            "training.gradient_checkpointing",
            True,
            "about a third more time: one more forward pass (Chen et al. 2016); same weights",
            ("gradient_checkpointing",),
        )
    if found.attention != now.attention:
        yield Step(
            f"attention {now.attention} → {found.attention}",
            "model.attention",
            found.attention,
            "nothing: the same result without storing all scores, and faster",
            ("attention",),
        )
    if found.optimizer != now.optimizer:
        yield Step(
            f"optimizer {now.optimizer} → {found.optimizer}",
            "training.optimizer",
            found.optimizer,
            _OPTIMIZER_COSTS[found.optimizer],
            ("optimizer",),
        )


def _other_model(asked: FitRequest, found: Choices) -> Iterator[Step]:
    """Steps that may cost quality."""
    now = asked.choices
    if found.four_bit_base != now.four_bit_base:
        yield Step(
            "the frozen base in 4 bits",
            "method.quantization",
            "nf4",
            "time: 4-bit weights are dequantised in every pass; perhaps quality: NF4 is shown to "
            "cost none for LoRA (QLoRA, tables 2 to 4), not for this method",
            ("four_bit_base",),
        )
    if found.mode != now.mode:
        costs = [_UPDATE_COST] if now.mode == "full" else []
        costs += [_QUANTISED_COST] if found.mode == "qlora" else []
        names = f"{MODE_NAMES[now.mode]} → {MODE_NAMES[found.mode]}"
        yield Step(names, "method.mode", found.mode, "; ".join(costs), ("mode",))
    if found.target_modules != now.target_modules:
        yield Step(
            f"adapters on {', '.join(found.target_modules)} only",
            "method.target_modules",
            list(found.target_modules),
            "some quality: adapters on all linear layers matched full fine-tuning, on fewer they "
            "did not (QLoRA, figure 2)",
            ("target_modules",),
        )
    if found.rank != now.rank:
        yield from _lower_rank(asked, found)
    if found.seq_len != now.seq_len:
        yield Step(
            f"rows of at most {found.seq_len} tokens instead of {now.seq_len}",
            "data.max_length",
            found.seq_len,
            _cost_of_length(asked, found.seq_len),
            ("seq_len",),
        )


_OPTIMIZER_COSTS: dict[Optimizer, str] = {
    "adamw-8bit": "next to nothing: states in 8 bits train as well (Dettmers et al. 2022, table 1)",
    "paged-adamw-8bit": (
        "time, when the GPU is full and 8-bit states move to RAM and back "
        "(QLoRA, Dettmers et al. 2023, section 3)"
    ),
}
_UPDATE_COST = (
    "quality on new knowledge: LoRA learns less, and forgets less (Biderman et al. 2024); its "
    "learning rate is ten times as high (auto: 2e-4)"
)
_QUANTISED_COST = (
    "time: 4-bit weights are dequantised in every pass; quality as LoRA's on 16 bits (QLoRA, "
    "tables 2 to 4)"
)


def _lower_rank(asked: FitRequest, found: Choices) -> Iterator[Step]:
    """With alpha, where a recipe has one: the update's scale stays."""
    rank = asked.choices.rank
    yield Step(
        f"rank {rank} → {found.rank}",
        "method.rank",
        found.rank,
        "capacity for new knowledge: low ranks are enough for a format or a style (LoRA, Hu et "
        "al. 2021, section 7.2)",
        ("rank",),
    )
    if asked.alpha is not None:
        share = found.rank / rank
        alpha = asked.alpha * (math.sqrt(share) if asked.rslora else share)
        scale = "alpha / √rank" if asked.rslora else "alpha / rank"
        yield Step(
            f"alpha {asked.alpha:g} → {alpha:g}",
            "method.alpha",
            alpha,
            f"nothing: the scale of the update, {scale}, stays the same",
            (),
        )


def _cost_of_length(asked: FitRequest, tokens: int) -> str:
    refused = "prepare stops where that loses 1% of the answers, unless data.too_long allows it"
    if asked.share_longer is None:
        return f"the ends of longer rows (how many is not known without prepared data); {refused}"
    return f"the ends of {asked.share_longer(tokens):.1%} of the prepared rows; {refused}"


# One well-known model of each size, the largest first: what to turn to where nothing else fits.
SMALLER_MODELS = (
    "llama-3.1-70b",
    "qwen2.5-32b",
    "qwen2.5-14b",
    "llama-3.1-8b",
    "qwen2.5-7b",
    "qwen2.5-3b",
    "qwen2.5-1.5b",
    "qwen2.5-0.5b",
    "smollm2-360m",
    "smollm2-135m",
)


@dataclass(frozen=True)
class FitResult:
    """The cheapest candidate, as the plan of `ftcli train` takes it."""

    choices: Choices
    estimate: Estimate
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Alternatives:
    """What fits instead where nothing does; None if no known GPU or model fits."""

    card: str | None
    """The smallest known GPU that fits it with all its tokens, perhaps with changes."""
    model: str | None
    """The largest well-known model that fits the GPU with nothing else changed."""


def fit(asked: FitRequest, hardware: Hardware) -> FitResult | None:
    """The cheapest changes with which the training fits; raises ModelError (`method_refused`)."""
    require_mode(asked.choices.mode, asked.architecture)
    found = cheapest(asked.choices, options_of(asked, hardware), _fits(asked, hardware))
    if found is None:
        return None
    changes = []
    for step, choices in steps(asked, found):
        takes = estimate_on(asked.architecture, choices, hardware)
        sizes = (takes.device_bytes, takes.high_bytes)
        changes.append(Change(step.change, step.key, step.value, step.cost, *sizes))
    return FitResult(found, estimate_on(asked.architecture, found, hardware), tuple(changes))


def _fits(asked: FitRequest, hardware: Hardware) -> Fits:
    return lambda candidate: fits(estimate_on(asked.architecture, candidate, hardware), hardware)


def instead(asked: FitRequest, hardware: Hardware) -> Alternatives:
    """Alternatives where nothing fits."""
    return Alternatives(_larger_card(asked, hardware), _smaller_model(asked, hardware))


def _larger_card(asked: FitRequest, hardware: Hardware) -> str | None:
    larger = sorted(
        (card for card in KNOWN_CARDS if card.usable_bytes > hardware.usable_bytes),
        key=lambda card: card.usable_bytes,
    )

    def takes_it(card: Card) -> bool:
        options, tokens = options_of(asked, card.hardware), asked.choices.seq_len
        return any_fits(asked.choices, options, tokens, _fits(asked, card.hardware))

    first = bisect_left(larger, True, key=takes_it)
    return larger[first].name if first < len(larger) else None


def _smaller_model(asked: FitRequest, hardware: Hardware) -> str | None:
    for name in SMALLER_MODELS:
        architecture = known_architecture(name)
        assert architecture is not None, "it is in the table"
        if architecture.parameters < asked.architecture.parameters and _fits_as_asked(
            architecture, asked, hardware
        ):
            return name
    return None


def _fits_as_asked(architecture: Architecture, asked: FitRequest, hardware: Hardware) -> bool:
    """With the recipe's own targets where the model has them, else with all.

    Where it lacks layers or modules that have a rank of their own, nothing is as asked.
    """
    modules = last_names(architecture)
    targets = asked.choices.target_modules
    known = targets == "all-linear" or all(name.rsplit(".", 1)[-1] in modules for name in targets)
    choices = asked.choices if known else replace(asked.choices, target_modules="all-linear")
    try:
        return fits(estimate_on(architecture, choices, hardware), hardware)
    except ModelError:
        return False
