"""`ftcli estimate-vram`: what a training will need, from a recipe or from flags alone.

A recipe's schema is loaded only where there is a recipe: flags alone answer at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcli.errors import MachineError, UsageError
from ftcli.memory import Choices, textbook
from ftcli.memory.fit.fitting import fit, instead
from ftcli.memory.fit.limits import Limit, Sweep, largest, size_named, sizes_of, sweep
from ftcli.memory.fit.request import FitRequest
from ftcli.memory.fit.search import estimate_on
from ftcli.memory.hardware import Hardware, find_card
from ftcli.memory.shapes import find_shape
from ftcli.training.estimate.contradictions import (
    require_consistent,
    require_size,
    require_trainable,
)
from ftcli.training.estimate.result import EstimateResult, FitAnswer

if TYPE_CHECKING:
    from ftcli.config.loader import Loaded


@dataclass(frozen=True)
class Question:
    """What the command line asks."""

    recipe: Path | None
    overrides: tuple[str, ...]
    model: str | None
    flags: Mapping[str, Any]
    """Fields of Choices that flags set."""
    gpu: str | None = None
    fit: str | None = None
    """A card, a size, or `auto`: the card of this machine."""
    write: Path | None = None
    max: str | None = None
    sweep: str | None = None


def estimate_memory(question: Question) -> EstimateResult:
    """Estimate a recipe, a model named by a flag, or a recipe changed by flags."""
    _require_answerable(question)
    hardware = _hardware(question)
    loaded = _loaded(question)
    asked = _of_flags(question) if loaded is None else _of_recipe(question, loaded, hardware)
    shape, choices = asked.shape, asked.choices
    require_consistent(question.flags, choices)
    fitted = _fit(question, asked, hardware)
    return EstimateResult(
        shape=shape,
        choices=choices,
        estimate=estimate_on(shape, choices, hardware),
        hardware=hardware,
        textbook=tuple(textbook(shape)) if choices.mode == "full" else (),
        fit=fitted,
        open_choices=asked.open_choices if fitted is None and loaded is not None else (),
        limit=_limit(question, asked, hardware),
        sweep=_sweep(question, asked, hardware),
        # Last, so that nothing is written where anything else fails.
        written=_write(question, loaded, fitted),
    )


def _require_answerable(question: Question) -> None:
    """Raise UsageError for what the command line alone proves wrong."""
    if question.recipe is None and question.model is None:
        raise UsageError("usage", "give a RECIPE, or --model (7b, a hub id, a config.json)")
    if question.recipe is None and question.overrides:
        raise UsageError("flag", "--set changes a recipe, and none is given")
    if question.write is not None and question.fit is None:
        raise UsageError("flag", "--write writes what --fit finds: add --fit 24GB, 4090 or auto")
    if question.write is not None and question.recipe is None:
        raise UsageError(
            "flag",
            f"--write changes a recipe, and none is given: ftcli estimate-vram RECIPE --fit "
            f"{question.fit} --write {question.write} (keys of a recipe: ftcli schema --text)",
        )
    if question.max is not None and question.gpu is None and question.fit is None:
        raise UsageError("flag", f"--max {question.max} needs a card: add --gpu 4090 or 24GB")


def _hardware(question: Question) -> Hardware | None:
    """The card asked about; raises UsageError, and MachineError where `auto` finds none."""
    if question.fit == "auto":
        if question.gpu is not None:
            raise _two_cards(question)
        return _own_card()
    if question.fit is None:
        return find_card(question.gpu).hardware if question.gpu is not None else None
    card = find_card(question.fit)
    if question.gpu is not None and find_card(question.gpu) != card:
        raise _two_cards(question)
    return card.hardware


def _two_cards(question: Question) -> UsageError:
    return UsageError(
        "flag", f"--gpu {question.gpu} and --fit {question.fit} name two cards: leave --gpu out"
    )


def _own_card() -> Hardware:
    from ftcli.models.device import find_hardware

    found = find_hardware("auto")
    if found.kind != "cuda":
        raise MachineError(
            "no_card",
            f"--fit auto: this machine has no CUDA card ({found.name}); name one, as --fit 4090 or "
            "--fit 24GB",
        )
    return found


def _loaded(question: Question) -> Loaded | None:
    if question.recipe is None:
        return None
    from ftcli.config.loader import load_recipe

    return load_recipe(question.recipe, question.overrides)


def _of_flags(question: Question) -> FitRequest:
    choices = replace(Choices(mode="lora"), **question.flags)
    named = "gradient_checkpointing" in question.flags
    if choices.mode == "prefix" and not named:
        choices = replace(choices, gradient_checkpointing=False)
    return FitRequest(
        find_shape(question.model or "", Path.cwd()),
        choices,
        batch_rows=choices.micro_batch,
        open_checkpointing=not named and choices.mode != "prefix",
    )


def _of_recipe(question: Question, loaded: Loaded, hardware: Hardware | None) -> FitRequest:
    from ftcli.training.estimate.of_recipe import request_of_recipe

    return request_of_recipe(loaded, question.model, question.flags, hardware)


def _fit(question: Question, asked: FitRequest, hardware: Hardware | None) -> FitAnswer | None:
    if question.fit is None or hardware is None:
        return None
    require_trainable(asked.choices, f"--fit {question.fit}")
    found = fit(asked, hardware)
    return FitAnswer(found, instead(asked, hardware) if found is None else None)


def _limit(question: Question, asked: FitRequest, hardware: Hardware | None) -> Limit | None:
    if question.max is None or hardware is None:
        return None
    size = size_named(question.max, "--max")
    require_size(size, asked.choices, "--max")
    return largest(asked.shape, asked.choices, size, hardware)


def _sweep(question: Question, asked: FitRequest, hardware: Hardware | None) -> Sweep | None:
    if question.sweep is None:
        return None
    size, values = sizes_of(question.sweep)
    require_size(size, asked.choices, "--sweep")
    return sweep(asked.shape, asked.choices, size, values, hardware)


def _nothing_fits(question: Question, fitted: FitAnswer) -> str:
    found = fitted.instead
    ways = [found.card, f"the model {found.model}" if found.model else None] if found else []
    instead = " or ".join(way for way in ways if way)
    return f"no change makes it fit {question.fit}" + (f" ({instead} would)" if instead else "")


def _write(question: Question, loaded: Loaded | None, fitted: FitAnswer | None) -> Path | None:
    """The recipe with `--set`, flags and the changes, as a file; raises FtcliError."""
    if question.write is None or loaded is None or fitted is None:
        return None
    if fitted.found is None:
        raise MachineError("memory", f"{_nothing_fits(question, fitted)}: nothing is written")
    from ftcli.training.estimate.writing import write_recipe

    changes = {change.key: change.value for change in fitted.found.changes}
    return write_recipe(loaded, question.model, question.flags, changes, question.write)
