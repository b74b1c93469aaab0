"""The solver: against all ways tried one by one, and through the plan that train carries out."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from ftcli.errors import ModelError
from ftcli.fit.asked import Asked, options_of
from ftcli.fit.bound import estimate_on, fits
from ftcli.fit.changes import steps
from ftcli.fit.search import CARD_TOKENS
from ftcli.fit.solver import SMALLER_MODELS, Fitted, fit, instead
from ftcli.hardware import GIB, KNOWN_CARDS, Hardware, card_of_size, find_card
from ftcli.loading import Loaded, load_recipe
from ftcli.plan import Profile, make_plan
from ftcli.shapes import Shape, find_shape
from ftcli.stages.estimate_recipe import asked_of_recipe
from ftcli.stages.writing import write_recipe
from ftcli.vram import Choices

LLAMA_7B = find_shape("7b", Path())
CARD_24GB = find_card("24GB").hardware


def asked(choices: Choices, model: str = "7b", **changes: Any) -> Asked:
    rows = choices.micro_batch * choices.gradient_accumulation
    return Asked(find_shape(model, Path()), choices, rows, **changes)


def keys(found: Fitted | None) -> dict[str, Any]:
    assert found is not None
    return {change.key: change.value for change in found.changes}


# Against all ways

MODELS = ("smollm2-135m", "0.5b", "1b", "3b", "7b", "gemma-2-2b", "phi-3-mini", "mixtral-8x7b")


def random_recipe(draw: random.Random) -> dict[str, Any]:
    """A recipe of any kind that `ftcli train` takes, some keys of it left open."""
    model = draw.choice(MODELS)
    mode = "full" if model == "mixtral-8x7b" else draw.choice(["full", "lora", "qlora"])
    method: dict[str, Any] = {"mode": mode}
    if mode != "full":
        method |= {"rank": draw.choice([4, 8, 16]), "alpha": draw.choice([16.0, 32.0])}
        if model != "phi-3-mini":
            method["target_modules"] = draw.choice(["all-linear", ["q_proj", "k_proj", "v_proj"]])
    batch = draw.choice([1, 4, 6, 16])
    rows = [n for n in range(1, batch + 1) if batch % n == 0]
    training = {
        "batch_size": batch,
        "micro_batch_size": draw.choice(["auto", "auto", *rows]),
        "gradient_checkpointing": draw.choice(["auto", True, False]),
        "optimizer": draw.choice(["auto", "adamw", "adamw-8bit", "paged-adamw-8bit", "sgd"]),
        "precision": draw.choice(["auto", "auto", "bf16", "pure-bf16"]),
    }
    attention = draw.choice(["auto", "eager", "flash"]) if model != "gemma-2-2b" else "auto"
    return {
        "name": "shop",
        "model": {"id": model, "attention": attention},
        "method": method,
        "data": {"train": "shop.jsonl", "max_length": draw.choice([100, 256, 300, 1024])},
        "training": training,
    }


def random_card(draw: random.Random, wanted: Asked) -> Hardware:
    """From one that takes it as it is to one that takes nothing of the kind."""
    needed = estimate_on(wanted.shape, wanted.choices, None).high_bytes
    return card_of_size(needed * draw.uniform(0.1, 1.1) / GIB + 0.5).hardware


def random_case(seed: int, folder: Path) -> tuple[Loaded, Asked, Hardware]:
    draw = random.Random(seed)
    file = folder / "shop.yaml"
    file.write_text(yaml.safe_dump(random_recipe(draw), sort_keys=False))
    loaded = load_recipe(file)
    hardware = random_card(draw, asked_of_recipe(loaded, None, {}, None))
    return loaded, asked_of_recipe(loaded, None, {}, hardware), hardware


def every_way(wanted: Asked) -> list[tuple[tuple[int, ...], Choices]]:
    """All ways with their costs, cheapest first; written apart from the solver."""
    choices, shape = wanted.choices, wanted.shape
    lengths = [choices.seq_len]
    lengths += [n for n in range(choices.seq_len - 1, 127, -1) if n % 64 == 0]
    ranks = [choices.rank] + [choices.rank // 2**n for n in range(1, 9)]
    ranks = ranks[:1] + [rank for rank in ranks[1:] if rank >= 4]
    modes = ["full", "lora", "qlora"]
    modes = modes[modes.index(choices.mode) :] if shape.experts == 1 else ["full"]
    optimizers = ["adamw", "adamw-8bit", "paged-adamw-8bit"]
    optimizer = choices.optimizer
    optimizers = [optimizer] if optimizer == "sgd" else optimizers[optimizers.index(optimizer) :]
    free = wanted.open_checkpointing or not choices.gradient_checkpointing
    attentions = [choices.attention]
    if choices.attention == "eager" and not shape.capped_scores:
        attentions.append("sdpa")
    targets = fewer_targets(shape, choices)
    ways = []
    places = (lengths, ranks, modes, targets, optimizers, attentions)
    for place in product(*(range(len(place)) for place in places)):
        length, rank, mode, target, optimizer, attention = (
            values[n] for values, n in zip(places, place, strict=True)
        )
        for checked, checkpointing in enumerate([False, True] if free else [True]):
            for fewer, rows in enumerate(micro_batches(wanted, length)):
                way = replace(
                    choices,
                    seq_len=length,
                    rank=rank,
                    mode=mode,
                    targets=target,
                    optimizer=optimizer,
                    attention=attention,
                    gradient_checkpointing=checkpointing,
                    micro_batch=rows,
                    gradient_accumulation=wanted.batch_rows // rows,
                )
                ways.append(((*place, checked, fewer), way))
    return sorted(ways, key=lambda way: way[0])


def fewer_targets(shape: Shape, choices: Choices) -> list[Any]:
    if shape.experts > 1 or choices.targets != "all-linear":
        queries = [("q_proj", "v_proj")] if choices.targets != "all-linear" else []
        return [choices.targets, *(queries if shape.experts == 1 else [])]
    if shape.fused_queries:
        return ["all-linear", ("qkv_proj", "o_proj"), ("qkv_proj",)]
    return ["all-linear", ("q_proj", "k_proj", "v_proj", "o_proj"), ("q_proj", "v_proj")]


def micro_batches(wanted: Asked, length: int) -> list[int]:
    size = wanted.batch_rows
    if not wanted.open_micro_batch:
        largest = wanted.choices.micro_batch
    else:
        largest = max(1, CARD_TOKENS // length)
    return [n for n in range(min(size, largest), 0, -1) if size % n == 0]


def cheapest_of_all(wanted: Asked, hardware: Hardware) -> tuple[tuple[int, ...], Choices] | None:
    @cache
    def takes(way: Choices) -> bool:
        return fits(estimate_on(wanted.shape, way, hardware), hardware)

    def plain(way: Choices) -> Choices:
        # Full fine-tuning knows neither rank nor targets.
        first = wanted.choices
        return replace(way, rank=first.rank, targets=first.targets) if way.mode == "full" else way

    return next(((cost, plain(w)) for cost, w in every_way(wanted) if takes(plain(w))), None)


@pytest.mark.parametrize("seed", range(50))
def test_no_way_that_fits_is_cheaper(seed: int, tmp_path: Path) -> None:
    loaded, wanted, hardware = random_case(seed, tmp_path)
    found, best = fit(wanted, hardware), cheapest_of_all(wanted, hardware)
    if found is None:
        assert best is None
        return
    assert best is not None
    assert found.choices == best[1]
    assert fits(found.estimate, hardware)
    # The recipe with the changes, through the plan that `ftcli train` would carry out.
    changes = {change.key: change.value for change in found.changes}
    written = load_recipe(write_recipe(loaded, None, {}, changes, tmp_path / "fits.yaml"))
    tokens = written.recipe.data.max_length
    profile = Profile(1000, 1000 * tokens, tokens, 1.0, 0)
    plan = make_plan(written.recipe, wanted.shape, profile, hardware)
    assert plan.estimate == found.estimate
    assert plan.micro_batch.value == found.choices.micro_batch
    assert plan.gradient_checkpointing.value == found.choices.gradient_checkpointing
    assert plan.optimizer.value == found.choices.optimizer
    assert plan.attention.value == found.choices.attention


def test_the_random_cases_are_of_all_kinds(tmp_path: Path) -> None:
    """As they are, with few changes, with many, and not at all: else the test above says little."""
    counts: Counter[str] = Counter()
    for seed in range(50):
        _, wanted, hardware = random_case(seed, tmp_path)
        found = fit(wanted, hardware)
        changed = () if found is None else found.changes
        counts[f"{len(changed)} changes" if found is not None else "nothing"] += 1
        counts.update(change.key for change in changed)
    assert counts["nothing"] >= 5 and counts["0 changes"] >= 5 and counts["1 changes"] >= 5
    assert len([key for key in counts if "." in key]) >= 6, counts


# The changes


@pytest.mark.parametrize(
    ("choices", "size", "changes"),
    [
        (Choices("qlora"), "24GB", {}),
        (Choices("full"), "24GB", {"method.mode": "lora"}),
        (Choices("full"), "8GB", {"method.mode": "qlora"}),
        (Choices("lora", rank=64), "16GB", {"method.mode": "qlora"}),
        (
            Choices("full", precision="pure-bf16"),
            "34GB",
            {"training.optimizer": "paged-adamw-8bit"},
        ),
        (
            Choices("qlora", micro_batch=8, gradient_checkpointing=False),
            "12GB",
            {"training.gradient_checkpointing": True},
        ),
    ],
)
def test_the_cheapest_changes(choices: Choices, size: str, changes: dict[str, Any]) -> None:
    assert keys(fit(asked(choices), find_card(size).hardware)) == changes


def test_rows_at_once_are_given_up_first() -> None:
    found = fit(asked(Choices("lora", micro_batch=8, attention="eager")), CARD_24GB)
    assert list(keys(found)) == ["training.micro_batch_size"]
    assert found is not None
    assert found.choices.micro_batch * found.choices.gradient_accumulation == 8


def test_the_steps_lead_to_what_was_found_and_never_up() -> None:
    start = Choices(
        "lora",
        rank=64,
        micro_batch=16,
        seq_len=8192,
        gradient_checkpointing=False,
        attention="eager",
    )
    wanted = asked(start, "13b", alpha=128.0)
    found = fit(wanted, find_card("12GB").hardware)
    assert found is not None
    assert [step.choices for step in steps(wanted, found.choices)][-1] == found.choices
    sizes = [change.device_bytes for change in found.changes]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == found.estimate.device_bytes
    assert keys(found)["method.alpha"] / keys(found)["method.rank"] == 128 / 64
    for change in found.changes:
        assert len(change.change) > 5 and len(change.cost) > 20


def test_what_is_open_is_no_change() -> None:
    """`train` decides it, from its largest micro-batch down."""
    choices = Choices("lora", gradient_accumulation=16)
    wanted = asked(choices, "smollm2-135m", open_micro_batch=True, open_checkpointing=True)
    found = fit(wanted, CARD_24GB)
    assert found is not None and found.changes == ()
    assert found.choices.micro_batch == 16 == CARD_TOKENS // found.choices.seq_len
    assert not found.choices.gradient_checkpointing


def test_a_shorter_length_says_what_it_cuts() -> None:
    wanted = asked(Choices("qlora", seq_len=8192), "13b", share_longer=lambda tokens: 0.125)
    found = fit(wanted, find_card("12GB").hardware)
    assert found is not None
    *_, last = found.changes
    assert last.key == "data.max_length" and last.value % 64 == 0
    assert last.cost.startswith("the ends of 12.5% of the prepared rows")
    longer = replace(found.choices, seq_len=last.value + 64)
    hardware = find_card("12GB").hardware
    assert not fits(estimate_on(wanted.shape, longer, hardware), hardware)
    unknown = fit(replace(wanted, share_longer=None), find_card("12GB").hardware)
    assert unknown is not None and "nothing is known" in unknown.changes[-1].cost


def test_adapters_on_a_mixture_are_refused_as_by_train() -> None:
    with pytest.raises(ModelError, match="mixture of experts"):
        fit(asked(Choices("lora"), "mixtral-8x7b"), CARD_24GB)
    options = options_of(asked(Choices("full"), "mixtral-8x7b"), CARD_24GB)
    assert options.mode == ("full",)


# Where nothing fits


def test_where_nothing_fits_a_card_and_a_model_that_do_are_named() -> None:
    wanted = asked(Choices("qlora"), "70b")
    assert fit(wanted, CARD_24GB) is None
    found = instead(wanted, CARD_24GB)
    assert found.card is not None and found.model is not None
    better = SMALLER_MODELS[SMALLER_MODELS.index(found.model) - 1]
    too_large = estimate_on(find_shape(better, Path()), wanted.choices, CARD_24GB)
    assert not fits(too_large, CARD_24GB)
    larger = next(card for card in KNOWN_CARDS if card.name == found.card)
    assert fit(wanted, larger.hardware) is not None
    smaller = [
        card
        for card in KNOWN_CARDS
        if CARD_24GB.usable_bytes < card.usable_bytes and card.usable_bytes < larger.usable_bytes
    ]
    for card in smaller:
        nearly = fit(wanted, card.hardware)
        assert nearly is None or nearly.choices.seq_len < 1024
    model = replace(wanted, shape=find_shape(found.model, Path()))
    as_it_is = fit(model, CARD_24GB)
    assert as_it_is is not None and as_it_is.changes == ()


def test_where_no_known_card_does_none_is_named() -> None:
    tiny = card_of_size(0.5).hardware
    found = instead(asked(Choices("full", seq_len=8192), "mixtral-8x22b"), tiny)
    assert found.card is None and found.model is None


def test_the_smaller_models_are_known_from_large_to_small() -> None:
    sizes = [find_shape(name, Path()).parameters for name in SMALLER_MODELS]
    assert sizes == sorted(sizes, reverse=True)
