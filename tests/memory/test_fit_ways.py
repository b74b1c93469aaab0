"""The solver against all ways tried one by one, and through the plan that train carries out."""

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

from ftcli.config.loader import load_recipe
from ftcli.config.recipe import Recipe
from ftcli.memory import Choices
from ftcli.memory.adapted import last_names
from ftcli.memory.architecture import PACKED_TYPES, Architecture
from ftcli.memory.fit.fitting import fit
from ftcli.memory.fit.request import FitRequest
from ftcli.memory.fit.search import CARD_TOKENS, estimate_on, fits
from ftcli.memory.hardware import GIB, Hardware, card_of_size
from ftcli.training.estimate.overrides import RecipeWithFlags, with_flags
from ftcli.training.plan.decide import make_plan
from ftcli.training.plan.plan import RowStatistics
from tests.tiers import tiers

FROZEN = ("bottleneck", "prefix-tuning", "prompt-tuning")
MODELS = ("smollm2-135m", "0.5b", "1b", "3b", "7b", "gemma-2-2b", "phi-3-mini", "mixtral-8x7b")


def random_recipe(draw: random.Random) -> dict[str, Any]:
    """A random recipe of `ftcli train`, with some auto keys."""
    model = draw.choice(MODELS)
    method = {"mode": "full"} if model == "mixtral-8x7b" else random_method(draw, model)
    batch = draw.choice([1, 4, 6, 16])
    rows = [n for n in range(1, batch + 1) if batch % n == 0]
    training = {
        "batch_size": batch,
        "micro_batch_size": draw.choice(["auto", "auto", *rows]),
        "gradient_checkpointing": draw.choice(
            ["auto", False] if method["mode"] == "prefix-tuning" else ["auto", True, False]
        ),
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


def random_method(draw: random.Random, model: str) -> dict[str, Any]:
    mode = draw.choice(
        ["full", "lora", "lora", "qlora", "bottleneck", "prefix-tuning", "prompt-tuning"]
    )
    if mode in ("lora", "qlora"):
        return {"mode": mode, **random_lora_keys(draw, model)}
    keys: dict[str, list[Any]] = {
        "full": {},
        "bottleneck": {"bottleneck": [8, 64], "placement": ["both", "mlp", "attention"]},
        "prefix-tuning": {"virtual_tokens": [5, 100], "projection": [True, False]},
        "prompt-tuning": {"virtual_tokens": [5, 100]},
    }[mode]
    if mode != "full":
        keys["quantization"] = ["none", "none", "nf4"]
    return {"mode": mode, **{name: draw.choice(values) for name, values in keys.items()}}


def random_lora_keys(draw: random.Random, model: str) -> dict[str, Any]:
    """Three in four have more than rank, alpha and targets."""
    keys: dict[str, Any] = {"rank": draw.choice([4, 8, 16]), "alpha": draw.choice([16.0, 32.0])}
    if model != "phi-3-mini":
        keys["target_modules"] = draw.choice(["all-linear", ["q_proj", "k_proj", "v_proj"]])
    extras: dict[str, Any] = {
        "dora": True,
        "rslora": True,
        "layers": [3, 5, 8],
        "modules_to_save": ["embed_tokens"],
        "rank_pattern": {"qkv_proj" if model == "phi-3-mini" else "layers.1.*.q_proj": 64},
    }
    chosen = draw.sample(sorted(extras), draw.choice([0, 1, 1, 2]))
    keys |= {name: extras[name] for name in chosen}
    if "layers" in keys:
        keys.pop("rank_pattern", None)  # none of them is layer 1
    return keys


def random_card(draw: random.Random, wanted: FitRequest) -> Hardware:
    """From a GPU that fits the request as it is to one that fits none."""
    needed = estimate_on(wanted.architecture, wanted.choices, None).high_bytes
    return card_of_size(needed * draw.uniform(0.08, 1.1) / GIB + 0.8).hardware


def random_case(seed: int, folder: Path) -> tuple[RecipeWithFlags, FitRequest, Hardware]:
    draw = random.Random(seed)
    file = folder / "shop.yaml"
    file.write_text(yaml.safe_dump(random_recipe(draw), sort_keys=False))
    loaded = load_recipe(file)
    hardware = random_card(draw, with_flags(loaded, None, {}, None).request)
    found = with_flags(loaded, None, {}, hardware)
    return found, found.request, hardware


def every_way(wanted: FitRequest) -> list[tuple[tuple[int, ...], Choices]]:
    """All candidates with their costs, cheapest first; independent of the search."""
    places = values_of(wanted)
    ways = []
    for place in product(*(range(len(values)) for values in places.values())):
        taken = {name: values[n] for (name, values), n in zip(places.items(), place, strict=True)}
        goes_with_it = taken["activation_offload"] or taken["tiled_mlp"]
        if goes_with_it and not taken["gradient_checkpointing"]:
            continue  # both go with it
        for fewer, rows in enumerate(micro_batches(wanted, taken["seq_len"])):
            accumulation = wanted.batch_rows // rows
            taken |= {"micro_batch": rows, "gradient_accumulation": accumulation}
            ways.append(((*place, fewer), replace(wanted.choices, **taken)))
    return sorted(ways, key=lambda way: way[0])


def values_of(wanted: FitRequest) -> dict[str, list[Any]]:
    """The values of each choice, cheapest first; the most expensive choice first."""
    choices, architecture = wanted.choices, wanted.architecture
    optimizers = ["adamw", "adamw-8bit", "paged-adamw-8bit"]
    settled = choices.attention != "eager" or "sdpa" not in architecture.attention
    longest = choices.seq_len
    return {
        "seq_len": [longest, *(n for n in range(longest - 1, 127, -1) if n % 64 == 0)],
        **method_values(wanted),
        "target_modules": fewer_targets(architecture, choices),
        "optimizer": (
            ["sgd"]
            if choices.optimizer == "sgd"
            else optimizers[optimizers.index(choices.optimizer) :]
        ),
        "attention": [choices.attention] if settled else ["eager", "sdpa"],
        "embedding_offload": (
            [False, True]
            if architecture.model_type in PACKED_TYPES
            and choices.mode in ("lora", "qlora", "bottleneck")
            and not choices.modules_to_save
            else [False]
        ),
        "activation_offload": [False, True] if True in checkpointings(wanted) else [False],
        "tiled_mlp": (
            [False, True]
            if True in checkpointings(wanted) and architecture.model_type in PACKED_TYPES
            else [False]
        ),
        "gradient_checkpointing": checkpointings(wanted),
    }


def method_values(wanted: FitRequest) -> dict[str, list[Any]]:
    choices = wanted.choices
    ranks = [choices.rank]
    if choices.mode in FROZEN:
        bases = [True] if choices.four_bit_base else [False, True]
        return {"rank": ranks, "mode": [choices.mode], "four_bit_base": bases}
    if not choices.rank_pattern:
        ranks += [rank for n in range(1, 9) if (rank := choices.rank // 2**n) >= 4]
    modes = ["full", "lora", "qlora"]
    modes = modes[modes.index(choices.mode) :]
    return {"rank": ranks, "mode": modes, "four_bit_base": [False]}


def checkpointings(wanted: FitRequest) -> list[bool]:
    if wanted.choices.mode == "prefix-tuning":
        return [False]
    asked = wanted.choices.gradient_checkpointing and not wanted.open_checkpointing
    return [True] if asked else [False, True]


def fewer_targets(architecture: Architecture, choices: Choices) -> list[Any]:
    if choices.mode in FROZEN or choices.rank_pattern:
        return [choices.target_modules]
    if choices.target_modules != "all-linear":
        return [choices.target_modules, ("q_proj", "v_proj")]
    names = last_names(architecture)
    if names == ["q_proj", "k_proj", "v_proj", "o_proj"]:  # the experts are not linear
        return ["all-linear", ("q_proj", "v_proj")]
    if "qkv_proj" in names:
        return ["all-linear", ("qkv_proj", "o_proj"), ("qkv_proj",)]
    return ["all-linear", ("q_proj", "k_proj", "v_proj", "o_proj"), ("q_proj", "v_proj")]


def micro_batches(wanted: FitRequest, length: int) -> list[int]:
    size = wanted.batch_rows
    if not wanted.open_micro_batch:
        largest = wanted.choices.micro_batch
    else:
        largest = max(1, CARD_TOKENS // length)
    return [n for n in range(min(size, largest), 0, -1) if size % n == 0]


def cheapest_of_all(
    wanted: FitRequest, hardware: Hardware
) -> tuple[tuple[int, ...], Choices] | None:
    @cache
    def takes(way: Choices) -> bool:
        return fits(estimate_on(wanted.architecture, way, hardware), hardware)

    def plain(way: Choices) -> Choices:
        # Full fine-tuning knows neither rank nor targets.
        first = wanted.choices
        return (
            replace(way, rank=first.rank, target_modules=first.target_modules)
            if way.mode == "full"
            else way
        )

    return next(((cost, plain(w)) for cost, w in every_way(wanted) if takes(plain(w))), None)


def padded(recipe: Recipe) -> Recipe:
    """As --fit counts: packed, a micro-batch of the longest rows takes no more."""
    training = recipe.training.model_copy(update={"packing": False})
    return recipe.model_copy(update={"training": training})


SEEDS = range(90)


@pytest.mark.parametrize("seed", tiers(SEEDS, *SEEDS[::10]))
def test_no_candidate_that_fits_is_cheaper(seed: int, tmp_path: Path) -> None:
    recipe, wanted, hardware = random_case(seed, tmp_path)
    found, best = fit(wanted, hardware), cheapest_of_all(wanted, hardware)
    if found is None:
        assert best is None
        return
    assert best is not None
    assert found.choices == best[1]
    assert fits(found.estimate, hardware)
    # The recipe with the changes, through the plan that `ftcli train` would carry out.
    changes = {change.key: change.value for change in found.changes}
    written = load_recipe(recipe.write(changes, tmp_path / "fits.yaml"))
    tokens = written.recipe.data.max_length
    profile = RowStatistics(1000, 1000 * tokens, tokens, 1.0, 0)
    plan = make_plan(padded(written.recipe), wanted.architecture, profile, hardware)
    assert replace(plan.estimated, weights_dtype="auto") == found.choices
    assert plan.estimate == found.estimate
    assert plan.training.micro_batch_size == found.choices.micro_batch
    packed = make_plan(written.recipe, wanted.architecture, profile, hardware)
    assert fits(packed.estimate, hardware)
    assert plan.training.gradient_checkpointing == found.choices.gradient_checkpointing
    assert plan.training.optimizer == found.choices.optimizer
    assert plan.model.attention == found.choices.attention


@pytest.mark.slow
def test_the_random_cases_are_of_all_kinds(tmp_path: Path) -> None:
    """Fit as they are, with few changes, with many, and not at all: the test above needs all."""
    counts: Counter[str] = Counter()
    for seed in SEEDS:
        _, wanted, hardware = random_case(seed, tmp_path)
        found = fit(wanted, hardware)
        changed = () if found is None else found.changes
        counts[f"{len(changed)} changes" if found is not None else "nothing"] += 1
        counts.update(change.key for change in changed)
        counts[wanted.choices.mode] += 1
    assert counts["nothing"] >= 5 and counts["0 changes"] >= 5 and counts["1 changes"] >= 5
    assert len([key for key in counts if "." in key]) >= 7, counts
    modes = ("full", "lora", "qlora", "bottleneck", "prefix-tuning", "prompt-tuning")
    assert min(counts[mode] for mode in modes) >= 5, counts
