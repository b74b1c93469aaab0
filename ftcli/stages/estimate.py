"""`ftcli estimate-vram`: what a training will need, from a recipe or from flags alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcli.errors import UsageError
from ftcli.hardware import Card
from ftcli.shapes import Shape, find_shape, model_source
from ftcli.vram import Choices, Estimate, TextbookFigure, card_fits, estimate, textbook

if TYPE_CHECKING:
    from ftcli.loading import Loaded


@dataclass(frozen=True)
class EstimateResult:
    """An estimate with what it was asked for; `textbook` only for full fine-tuning."""

    shape: Shape
    choices: Choices
    estimate: Estimate
    card: Card | None
    textbook: tuple[TextbookFigure, ...]

    @property
    def fits_card(self) -> bool | None:
        """Whether it fits the card asked about."""
        return None if self.card is None else card_fits(self.estimate.reserved_bytes, self.card)

    def as_json(self) -> dict[str, Any]:
        """Fields of COMMANDS: names that scripts rely on."""
        found = self.estimate
        fits = dict(found.fits)
        if self.card is not None and self.fits_card is not None:
            fits[self.card.name] = self.fits_card
        return {
            "peak_bytes": found.peak_bytes,
            "device_bytes": found.device_bytes,
            "breakdown": found.breakdown,
            "peak_phase": found.peak_phase,
            "phases": found.phases,
            "trainable_parameters": found.trainable_parameters,
            "total_parameters": found.total_parameters,
            "fits": fits,
            "assumptions": found.assumptions | {"choices": _plain(self.choices)},
            "textbook": [figure._asdict() for figure in self.textbook],
        }


def estimate_memory(
    recipe: Path | None,
    overrides: list[str],
    model: str | None,
    flags: dict[str, Any],
    card: Card | None,
) -> EstimateResult:
    """Estimate a recipe, a model named by a flag, or a recipe changed by flags."""
    if recipe is None:
        if model is None:
            raise UsageError("usage", "give a RECIPE, or --model (7b, a hub id, a config.json)")
        if overrides:
            raise UsageError("flag", "--set changes a recipe, and none is given")
        shape, choices = find_shape(model, Path.cwd()), Choices(mode="lora")
    else:
        shape, choices = _from_recipe(recipe, overrides, model)
    # Another micro-batch splits the same batch differently.
    batch_rows = choices.micro_batch * choices.gradient_accumulation
    wanted = replace(choices, **flags)
    if recipe is not None:
        wanted = replace(wanted, gradient_accumulation=max(1, batch_rows // wanted.micro_batch))
    found = estimate(shape, wanted, card.compute_capability if card else None)
    figures = tuple(textbook(shape)) if wanted.mode == "full" else ()
    return EstimateResult(shape, wanted, found, card, figures)


def _from_recipe(recipe: Path, overrides: list[str], model: str | None) -> tuple[Shape, Choices]:
    """The least that the recipe's training takes: what is `auto` there is at its smallest."""
    from ftcli.loading import load_recipe
    from ftcli.plan import Profile, vram_choices

    loaded = load_recipe(recipe, overrides)
    tokens = _longest_tokens(loaded)
    training = loaded.recipe.training
    attention = loaded.recipe.model.attention
    choices = vram_choices(
        loaded.recipe,
        Profile(1, tokens, tokens, labelled_share=1.0, validation_tokens=0),
        "bf16" if training.precision == "auto" else training.precision,
        loaded.recipe.model.dtype,
        "sdpa" if attention == "auto" else attention,
    )
    optimizer = "adamw" if training.optimizer == "auto" else training.optimizer
    choices = replace(choices, optimizer=optimizer)
    if model is not None:
        return find_shape(model, Path.cwd()), choices
    with loaded.blame():
        shape = find_shape(loaded.recipe.model.id, loaded.base, loaded.recipe.model.revision)
        shape.target_modules(choices.targets)  # names what matches nothing, at its line
    return shape, choices


def _longest_tokens(loaded: Loaded) -> int:
    """Of the prepared rows, where the preparation is of this data and model; else the limit."""
    from ftcli.prepared import load_prepared

    data = loaded.recipe.data
    prepared = load_prepared(loaded.output / "data")
    if prepared is None:
        return data.max_length
    made_for = (prepared.model, prepared.train_source, prepared.max_length)
    asked = (model_source(loaded.recipe.model.id, loaded.base), data.train, data.max_length)
    return prepared.longest.tokens if made_for == asked else data.max_length


def _plain(choices: Choices) -> dict[str, Any]:
    words = asdict(choices)
    words.pop("stack")
    return words
