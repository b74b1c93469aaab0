"""From one recipe to the cells of a comparison: each a whole recipe, one method and one rate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from ftcli.config.loader import load_recipe, resolved
from ftcli.config.recipe import METHOD_CLASSES, Recipe
from ftcli.errors import UsageError, did_you_mean
from ftcli.runs.folder import RunFolder
from ftcli.runs.results import ComparedCell
from ftcli.shell import command, set_flags

METHODS = tuple(METHOD_CLASSES)
# One update, over a 16-bit or a 4-bit base: keys and rate of one are those of the other.
LOW_RANK = {"lora", "qlora"}


@dataclass(frozen=True)
class Asked:
    """What the command line of `ftcli compare` says; without steps the recipe's own length."""

    recipe: Path
    overrides: tuple[str, ...] = ()
    methods: tuple[str, ...] = METHODS
    learning_rates: tuple[float, ...] = ()
    steps: int | None = None
    general_text: Path | None = None
    limit: int | None = None
    fresh: bool = False

    @property
    def again(self) -> str:
        """The command that goes on; --fresh would not."""
        given = {
            "--methods": ",".join(self.methods) if self.methods != METHODS else None,
            "--learning-rates": ",".join(map(short_rate, self.learning_rates)),
            "--steps": self.steps,
            "--general-text": self.general_text,
            "--limit": self.limit,
        }
        flags = [word for name, value in given.items() if value for word in (name, str(value))]
        return command("compare", self.recipe, *flags, *set_flags(self.overrides))


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
        """Where its recipe is written, next to its run folder."""
        return self.run.path.with_name(f"{self.name}.yaml")


def require_methods(methods: Sequence[str]) -> tuple[str, ...]:
    """The methods named, each once; raises UsageError where one is not known."""
    known = f"there is {', '.join(METHODS)}"
    for name in methods:
        if name not in METHODS:
            hint = did_you_mean(name, METHODS)
            raise UsageError("method_unknown", f"--methods: no method {name!r}{hint} ({known})")
    if not methods:
        raise UsageError("flag", f"--methods names none; {known}")
    return tuple(dict.fromkeys(methods))


def split_overrides(overrides: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Overrides of the methods' keys, each under its key, and those of all else; raises
    UsageError."""
    of_methods, others = [], []
    for override in overrides:
        section, *keys = override.partition("=")[0].strip().split(".")
        if section != "method":
            others.append(override)
        elif keys in ([], ["mode"]):
            raise UsageError(
                "flag",
                f"--set {override}: --methods names the methods to compare; of a method's keys, "
                "one at a time can be set (method.rank=8), for every method that has it",
            )
        else:
            of_methods.append((keys[0], override))
    return of_methods, others


def cells_of(asked: Asked, folder: Path) -> tuple[Cell, ...]:
    """A cell for each method and rate, its run in `folder`; raises RecipeError and UsageError."""
    of_methods, others = split_overrides(asked.overrides)
    own = load_recipe(asked.recipe, others).recipe.method
    known = {method: METHOD_CLASSES[method].model_fields for method in asked.methods}
    every = {key for fields in known.values() for key in fields}
    for key, override in of_methods:
        if key not in every:
            hint = f"(of {', '.join(known)}) has method.{key}{did_you_mean(key, every)}"
            raise UsageError("flag", f"--set {override}: no method compared {hint}")
    cells = []
    for method, rate in product(asked.methods, asked.learning_rates or (None,)):
        section: dict[str, object] = {"mode": method}
        flags = [] if rate is None else [f"training.learning_rate={rate!r}"]
        if method == own.mode or {method, own.mode} <= LOW_RANK:
            kept = own.model_dump(mode="json").items()
            section = {key: value for key, value in kept if key in known[method]} | section
        else:  # the recipe's rate is that of its own method
            flags = flags or ["training.learning_rate=auto"]
        flags.append(f"method={json.dumps(section, ensure_ascii=False)}")
        flags += [override for key, override in of_methods if key in known[method]]
        cell = resolved(load_recipe(asked.recipe, [*others, *flags]))
        name = method if rate is None else f"{method}-{short_rate(rate)}"
        changes: dict[str, object] = {"name": f"{cell.name}-{name}", "output": str(folder / name)}
        if asked.steps is not None:
            changes["training"] = cell.training.model_copy(update={"max_steps": asked.steps})
        cells.append(Cell(name, method, cell.model_copy(update=changes)))
    return tuple(cells)


def named(cell: ComparedCell) -> str:
    """`lora at 2e-4`."""
    return f"{cell.method} at {short_rate(cell.learning_rate)}"


def short_rate(rate: float) -> str:
    """`2e-4`: short, and one word a rate, for names of folders and for tables."""
    mantissa, _, exponent = f"{rate:e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
