"""What a recipe asks of memory, for `ftcli estimate-vram RECIPE`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from ftcli.config.loader import Loaded
from ftcli.config.recipe import Full, Lora, LoraKeys, Recipe
from ftcli.config.rewriting import changed
from ftcli.data.prepared import Prepared, load_prepared, row_lengths, split_file
from ftcli.memory import Choices
from ftcli.memory.adapted import adapted
from ftcli.memory.fit.request import FitRequest
from ftcli.memory.hardware import Hardware
from ftcli.memory.shapes import Shape, find_shape, model_source
from ftcli.training.plan.decide import choose_attention, choose_precision, require_checkpointing
from ftcli.training.plan.plan import RowStatistics, choices_of


def request_of_recipe(
    loaded: Loaded, model: str | None, flags: Mapping[str, Any], hardware: Hardware | None
) -> FitRequest:
    """The recipe with flags laid over it; what is `auto` there is at its smallest."""
    recipe = loaded.recipe
    if flags.get("mode", recipe.method.mode) != recipe.method.mode:
        recipe = changed(recipe, {"method.mode": flags["mode"]})  # keeps what that method knows
    training = recipe.training
    prepared = _prepared(loaded)
    shape = _shape(loaded, model)
    with loaded.blame():
        choices = _choices(recipe, shape, _profile(recipe, prepared), hardware)
        if model is None:
            adapted(shape, choices)  # names what matches nothing, at its line
    choices = replace(choices, **flags)
    # Another micro-batch splits the same batch differently.
    accumulation = max(1, training.batch_size // choices.micro_batch)
    return FitRequest(
        shape,
        replace(choices, gradient_accumulation=accumulation),
        batch_rows=training.batch_size,
        open_micro_batch=training.micro_batch_size == "auto" and "micro_batch" not in flags,
        open_checkpointing=(
            training.gradient_checkpointing == "auto"
            and "gradient_checkpointing" not in flags
            and choices.mode != "prefix"
        ),
        alpha=_alpha(recipe),
        rslora=isinstance(recipe.method, LoraKeys) and recipe.method.rslora,
        share_longer=_share_longer(loaded.output / "data") if prepared is not None else None,
    )


def _shape(loaded: Loaded, model: str | None) -> Shape:
    if model is not None:
        return find_shape(model, Path.cwd())
    with loaded.blame():
        return find_shape(loaded.recipe.model.id, loaded.base, loaded.recipe.model.revision)


def _choices(
    recipe: Recipe, shape: Shape, rows: RowStatistics, hardware: Hardware | None
) -> Choices:
    """With a card, in the types and by the kernel that the plan takes on it."""
    require_checkpointing(recipe)
    model, training = recipe.model, recipe.training
    if hardware is not None:
        precision, _ = choose_precision(recipe, hardware)
        attention, _ = choose_attention(recipe, shape, hardware)
        model = model.model_copy(update={"attention": attention})
        training = training.model_copy(update={"precision": precision})
    return choices_of(model, recipe.method, training, rows, hardware)


def _prepared(loaded: Loaded) -> Prepared | None:
    """The preparation, where it is of this data and model."""
    data = loaded.recipe.data
    prepared = load_prepared(loaded.output / "data")
    if prepared is None:
        return None
    replayed = prepared.replay and (prepared.replay.source, prepared.replay.share)
    made_for = (prepared.model, prepared.train_source, prepared.max_length, replayed)
    model = model_source(loaded.recipe.model.id, loaded.base)
    replay = data.replay and (data.replay.source, data.replay.share)
    asked = (model, data.train, data.max_length, replay)
    return prepared if made_for == asked else None


def _profile(recipe: Recipe, prepared: Prepared | None) -> RowStatistics:
    """Of the prepared rows; without them every row is as long as it may be, and all answer."""
    if prepared is not None:
        return RowStatistics.of(prepared)
    tokens = recipe.data.max_length
    return RowStatistics(1, tokens, tokens, labelled_share=1.0, validation_tokens=0)


def _alpha(recipe: Recipe) -> float | None:
    """Of the recipe, or what it gets where its method becomes LoRA; None: it has none."""
    method = Lora(mode="lora") if isinstance(recipe.method, Full) else recipe.method
    return method.alpha if isinstance(method, LoraKeys) else None


def _share_longer(folder: Path) -> Callable[[int], float] | None:
    """The rows are opened only where a shorter length comes into question."""
    if not split_file(folder, "train").is_file():
        return None

    @cache
    def lengths() -> list[int]:
        return row_lengths(folder, "train")

    return lambda tokens: sum(each > tokens for each in lengths()) / max(1, len(lengths()))
