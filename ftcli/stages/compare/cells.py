"""From one recipe to the cells of a comparison: each a whole recipe, one method and one rate."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ftcli.artifacts import RunFolder
from ftcli.errors import RecipeError, UsageError, did_you_mean
from ftcli.loading import Loaded, resolved
from ftcli.loading.nodes import Found, in_order, override_value
from ftcli.loading.wording import problems_of
from ftcli.recipe import METHOD_CLASSES, Recipe, holds_4_bits

METHODS = tuple(METHOD_CLASSES)
# One update, over a 16-bit or a 4-bit base: keys and rate of one are those of the other.
LOW_RANK = ("lora", "qlora")


@dataclass(frozen=True)
class Asked:
    """What the flags of `ftcli compare` say; without steps and seconds the recipe's own epochs."""

    methods: tuple[str, ...] = METHODS
    learning_rates: tuple[float, ...] = ()
    steps: int | None = None
    seconds: float | None = None
    general_text: Path | None = None
    limit: int | None = None
    fresh: bool = False
    one_process: bool = False


@dataclass(frozen=True)
class Cell:
    """One training of the comparison; its paths are absolute, and its output is its run folder."""

    name: str
    method: str
    recipe: Recipe

    @property
    def run(self) -> RunFolder:
        return RunFolder(Path(str(self.recipe.output)))

    @property
    def file(self) -> Path:
        """Where its recipe is written, beside its run folder."""
        return self.run.path.with_name(f"{self.name}.yaml")

    @property
    def four_bit(self) -> bool:
        return holds_4_bits(self.recipe.method)

    def lasting(self, steps: int) -> Cell:
        """The same training over this many optimizer steps."""
        training = self.recipe.training.model_copy(update={"max_steps": steps})
        return replace(self, recipe=self.recipe.model_copy(update={"training": training}))


def require_methods(methods: Sequence[str]) -> tuple[str, ...]:
    """The methods named, each once; raises UsageError where one is not known."""
    for name in methods:
        if name not in METHODS:
            raise UsageError(
                "method_unknown",
                f"--methods: no method {name!r}{did_you_mean(name, METHODS)} "
                f"(there is {', '.join(METHODS)})",
            )
    if not methods:
        raise UsageError("flag", f"--methods names none; there is {', '.join(METHODS)}")
    return tuple(dict.fromkeys(methods))


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides of the method's keys, and those of all else; raises UsageError."""
    of_methods = [o for o in overrides if _path(o)[0] == "method"]
    for override in of_methods:
        if len(_path(override)) < 2 or _path(override)[1] == "mode":
            raise UsageError(
                "flag",
                f"--set {override}: --methods names the methods to compare; of a method's keys, "
                "one at a time can be set (method.rank=8), for every method that has it",
            )
    return of_methods, [o for o in overrides if o not in of_methods]


def cells_of(
    loaded: Loaded, asked: Asked, of_methods: Sequence[str], folder: Path
) -> tuple[Cell, ...]:
    """A cell for each method and rate; raises RecipeError and UsageError before any work."""
    _require_known_keys(of_methods, asked.methods)
    recipe = resolved(loaded)
    found = [
        _cell(recipe, loaded, method, rate, of_methods)
        for method in asked.methods
        for rate in asked.learning_rates or (None,)
    ]
    return tuple(_placed(cell, asked.steps, folder) for cell in found)


def _require_known_keys(of_methods: Sequence[str], methods: Sequence[str]) -> None:
    known = {key: None for method in methods for key in METHOD_CLASSES[method].model_fields}
    for override in of_methods:
        key = _path(override)[1]
        if key not in known:
            raise UsageError(
                "flag",
                f"--set {override}: none of the methods compared ({', '.join(methods)}) has the "
                f"key {key}{did_you_mean(key, known)}",
            )


def _cell(
    recipe: Recipe, loaded: Loaded, method: str, rate: float | None, of_methods: Sequence[str]
) -> Cell:
    values = copy.deepcopy(recipe.model_dump(mode="json"))
    found = Found(loaded.shown_path())
    values["method"] = _method_values(recipe, method)
    for override in of_methods:
        if _path(override)[1] in METHOD_CLASSES[method].model_fields:
            override_value(values, override, found)
    if rate is not None:
        values["training"]["learning_rate"] = rate
        found.overridden["training", "learning_rate"] = f"--learning-rates {rate:g}"
    elif not _related(recipe, method):
        values["training"]["learning_rate"] = "auto"
    name = method if rate is None else f"{method}-{short_rate(rate)}"
    return Cell(name, method, _judged(values, found))


def _method_values(recipe: Recipe, method: str) -> dict[str, Any]:
    """The recipe's own keys for its own method and that method's sibling; else defaults alone."""
    own = recipe.method.model_dump(mode="json") if _related(recipe, method) else {}
    known = METHOD_CLASSES[method].model_fields
    return {key: value for key, value in own.items() if key in known} | {"mode": method}


def _related(recipe: Recipe, method: str) -> bool:
    mode = recipe.method.mode
    return method == mode or {method, mode} <= set(LOW_RANK)


def _judged(values: dict[str, Any], found: Found) -> Recipe:
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        problems = [*found.problems, *problems_of(error, values, found)]
        raise RecipeError(in_order(problems)) from error
    if found.problems:
        raise RecipeError(in_order(found.problems))
    return recipe


def _placed(cell: Cell, steps: int | None, folder: Path) -> Cell:
    changes = {"name": f"{cell.recipe.name}-{cell.name}", "output": str(folder / cell.name)}
    placed = replace(cell, recipe=cell.recipe.model_copy(update=changes))
    return placed if steps is None else placed.lasting(steps)


def short_rate(rate: float) -> str:
    """`2e-4`: short, and one word a rate, for names of folders and for tables."""
    mantissa, _, exponent = f"{rate:e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def _path(override: str) -> list[str]:
    """`method.rank=8` → [method, rank]."""
    return override.partition("=")[0].strip().split(".")


def by_method(cells: Sequence[Cell]) -> Iterator[tuple[str, list[Cell]]]:
    """Each method with its cells, in their order."""
    for method in dict.fromkeys(cell.method for cell in cells):
        yield method, [cell for cell in cells if cell.method == method]
