"""Flags of `estimate-vram` as overrides of a recipe's keys: estimate, plan, and write them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from ftcli.config.loader import RecipeFile
from ftcli.config.recipe import Full, Lora, LoraKeys, Recipe
from ftcli.config.rewriting import changed, overridden, relocated, rewritten
from ftcli.console import shown_path
from ftcli.data.dataset import Dataset, load_dataset, row_lengths, split_file
from ftcli.errors import FtcliError
from ftcli.memory import Choices
from ftcli.memory.choices import why_no_checkpointing
from ftcli.memory.fit.request import FitRequest
from ftcli.memory.hardware import KNOWN_CARDS, Hardware
from ftcli.memory.known_models import from_here, model_source
from ftcli.memory.trained import trainable_parameters
from ftcli.models.architectures.find import find_architecture
from ftcli.runs.atomic import write_text
from ftcli.training.plan.decide import (
    choose_attention,
    choose_precision,
    count_steps,
    make_plan,
    require_checkpointing,
)
from ftcli.training.plan.optimizations import choose_liger
from ftcli.training.plan.plan import RowStatistics, choices_of

# Flag → the recipe's key.
KEYS = {
    "mode": "method.mode",
    "rank": "method.rank",
    "target_modules": "method.target_modules",
    "dora": "method.dora",
    "modules_to_save": "method.modules_to_save",
    "bottleneck": "method.bottleneck",
    "placement": "method.placement",
    "virtual_tokens": "method.virtual_tokens",
    "projection": "method.projection",
    "four_bit_base": "method.quantization",
    "max_length": "data.max_length",
    "micro_batch": "training.micro_batch_size",
    "optimizer": "training.optimizer",
    "precision": "training.precision",
    "gradient_checkpointing": "training.gradient_checkpointing",
    "embedding_offload": "training.embedding_offload",
    "activation_offload": "training.activation_offload",
    "tiled_mlp": "training.tiled_mlp",
    "attention": "model.attention",
}
# Flags without a key: `ftcli train` supports neither.
ESTIMATED_ONLY = ("loss", "packing")


@dataclass(frozen=True)
class RecipeWithFlags:
    """A recipe with flags as overrides, and the estimator's inputs."""

    loaded: RecipeFile
    """The file with `--set`."""
    model: str | None
    """`--model`, relative to the working directory."""
    settings: Mapping[str, Any]
    """The other flags, by the recipe's keys."""
    recipe: Recipe
    """With `settings`."""
    rows: RowStatistics
    request: FitRequest

    @property
    def tokens_to_train(self) -> float | None:
        """Of all steps, without padding; None where no rows are prepared."""
        if self.request.share_longer is None:
            return None
        steps, _, _ = count_steps(self.recipe, self.rows)
        return steps * self.recipe.training.batch_size * self.rows.mean_tokens

    def planned(self, hardware: Hardware) -> Choices | None:
        """Choices of `ftcli train` on this GPU; None if nothing fits or it refuses the method."""
        if self.request.choices.packing or self.request.choices.loss != "chunked":
            return None
        try:
            return make_plan(self.recipe, self.request.architecture, self.rows, hardware).estimated
        except FtcliError as error:
            if error.code not in ("memory", "method_refused"):
                raise
            return None

    def write(self, changes: Mapping[str, Any], target: Path) -> Path:
        """Write the recipe with `--set`, flags and changes, in this order, and return its path.

        Raises FtcliError for a file that exists, UsageError for keys that contradict each other.
        """
        loaded = self.loaded
        if os.path.lexists(target) and not (target.exists() and target.samefile(loaded.path)):
            raise FtcliError(
                "exists",
                f"--write {shown_path(target)}: the file exists, and only {loaded.shown_path()} "
                "itself may be changed in place; name a new file",
            )
        settings = {**overridden(loaded), **self.settings, **self._model_keys(), **changes}
        wanted, folder = changed(loaded.recipe, settings), target.absolute().parent
        with loaded.path.open(encoding="utf-8-sig", newline="") as file:
            text = file.read()
        settings = relocated(text, settings, wanted, folder)
        write_text(target, rewritten(text, settings, wanted, folder))
        return target

    def _model_keys(self) -> dict[str, Any]:
        """`--model`; a folder as an absolute path."""
        if self.model is None:
            return {}
        keys: dict[str, Any] = {"model.id": from_here(self.model)}
        if self.loaded.recipe.model.revision is not None:
            keys["model.revision"] = None  # it was another model's
        return keys


def with_flags(
    loaded: RecipeFile, model: str | None, flags: Mapping[str, Any], hardware: Hardware | None
) -> RecipeWithFlags:
    """The recipe with flags as overrides; `auto` is the smallest value."""
    settings = {
        KEYS[name]: list(value) if isinstance(value, tuple) else value
        for name, value in flags.items()
        if name in KEYS
    }
    if "four_bit_base" in flags:
        settings[KEYS["four_bit_base"]] = "nf4" if flags["four_bit_base"] else "none"
    recipe = changed(loaded.recipe, settings) if settings else loaded.recipe
    prepared = _prepared(loaded, recipe)
    rows = _rows(recipe, prepared)
    by_flag = find_architecture(from_here(model)) if model is not None else None
    with loaded.locate():
        architecture = by_flag or find_architecture(recipe.model.id, recipe.model.revision)
        if "gradient_checkpointing" not in flags:
            require_checkpointing(recipe, architecture)
        sections, training = recipe.model, recipe.training
        if hardware is not None:
            # As the plan chooses on this GPU.
            precision, _ = choose_precision(recipe, hardware)
            attention, _ = choose_attention(recipe, architecture, hardware)
            sections = sections.model_copy(update={"attention": attention})
            training = training.model_copy(update={"precision": precision})
        choices = choices_of(sections, recipe.method, training, rows, hardware)
        liger = choose_liger(recipe, architecture, hardware or KNOWN_CARDS[0].hardware)
        choices = replace(choices, liger=liger is not None and liger[0])
        recomputes = why_no_checkpointing(choices.mode, architecture) is None
        wanted = choices.gradient_checkpointing and recomputes
        choices = replace(choices, gradient_checkpointing=wanted)
        if model is None and "target_modules" not in flags:
            # Raises for names that match nothing, and for experts that are none, with the line.
            trainable_parameters(architecture, choices)
    request = FitRequest(
        architecture,
        replace(choices, **{name: flags[name] for name in ESTIMATED_ONLY if name in flags}),
        batch_rows=training.batch_size,
        open_micro_batch=training.micro_batch_size == "auto",
        open_checkpointing=training.gradient_checkpointing == "auto" and recomputes,
        open_offload=training.activation_offload == "auto",
        open_ends=training.embedding_offload == "auto",
        open_tiles=training.tiled_mlp == "auto",
        alpha=_alpha(recipe),
        rslora=isinstance(recipe.method, LoraKeys) and recipe.method.rslora,
        share_longer=_share_longer(loaded.output / "data") if prepared is not None else None,
    )
    return RecipeWithFlags(loaded, model, settings, recipe, rows, request)


def _prepared(loaded: RecipeFile, recipe: Recipe) -> Dataset | None:
    """The prepared data, if they are of the recipe's data and model."""
    data, prepared = recipe.data, load_dataset(loaded.output / "data")
    if prepared is None:
        return None
    before, now = prepared.replay, data.replay
    if before is None or now is None:
        same_replay = before is None and now is None
    else:
        same_replay = _same_source(before.source, now.source) and before.ratio == now.ratio
    made_for = (
        same_replay
        and _same_source(prepared.model, model_source(recipe.model.id))
        and _same_source(prepared.train_source, data.train)
        and prepared.max_length == data.max_length
    )
    return prepared if made_for else None


def _same_source(recorded: str, asked: str) -> bool:
    """Whether two paths are equal, or the recorded one was moved and has the same name."""
    was_moved = os.path.isabs(recorded) and not os.path.exists(recorded)
    return recorded == asked or (was_moved and Path(recorded).name == Path(asked).name)


def _rows(recipe: Recipe, prepared: Dataset | None) -> RowStatistics:
    """Of the prepared rows; without them every row has max_length tokens, all of them labels."""
    if prepared is not None:
        return RowStatistics.of(prepared)
    tokens = recipe.data.max_length
    # A full step, which a plan needs.
    count = recipe.training.batch_size
    return RowStatistics(count, count * tokens, tokens, label_share=1.0, validation_tokens=0)


def _alpha(recipe: Recipe) -> float | None:
    """Of the recipe, or the default if its method becomes LoRA; None for other methods."""
    method = Lora(mode="lora") if isinstance(recipe.method, Full) else recipe.method
    return method.alpha if isinstance(method, LoraKeys) else None


def _share_longer(folder: Path) -> Callable[[int], float] | None:
    """Share of rows longer than some tokens; reads the rows only when called."""
    if not split_file(folder, "train").is_file():
        return None

    @cache
    def lengths() -> list[int]:
        return row_lengths(folder, "train")

    return lambda tokens: sum(each > tokens for each in lengths()) / max(1, len(lengths()))
