"""YAML and `--set` → Recipe, with every error at its line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from yaml.nodes import ScalarNode

from ftcli.config.nodes import ParseState, compose, in_order, override_value
from ftcli.config.recipe import Recipe
from ftcli.config.section import NamedPath, absolute, paths_of, with_paths
from ftcli.config.wording import as_yaml, known_file, problems_of, secrets_of
from ftcli.errors import DataError, FtcliError, Problem, RecipeError, UsageError, did_you_mean
from ftcli.runs.folder import find_run, run_above
from ftcli.shell import shown_path

# A recipe has about 2 kB; one with a chat template in it may have 50.
MOST_BYTES = 256_000

# Code of a later error → the key that caused it.
KEY_AT_FAULT = {
    "hub_not_found": "model.id",
    "hub_gated": "model.id",
    "hub_unreachable": "model.id",
    "model": "model.id",
    "model_missing": "model.id",
    "model_unknown": "model.id",
    "model_type_unknown": "model.id",
    "tokenizer": "model.id",
    "template": "data.template",
    "template_missing": "data.template",
    "target_modules": "method.target_modules",
    "layers": "method.layers",
    "rank_pattern": "method.rank_pattern",
    "modules_to_save": "method.modules_to_save",
    "method_refused": "method.mode",
    "precision": "training.precision",
    "optimizer": "training.optimizer",
    "gradient_checkpointing": "training.gradient_checkpointing",
    "activation_offload": "training.activation_offload",
    "embedding_offload": "training.embedding_offload",
    "tiled_mlp": "training.tiled_mlp",
    "attention": "model.attention",
    "no_cuda": "model.device",
    "tracker": "training.report_to",
    "output_base": "output",
    "replay": "data.replay",
    "l2_sp": "training.l2_sp",
}
# Errors found with the model, but to be fixed in the recipe (exit code 2).
RECIPE_AT_FAULT = {"target_modules", "layers", "rank_pattern", "modules_to_save", "method_refused"}


@dataclass(frozen=True)
class RecipeFile:
    """A recipe with the file and the flags it came from."""

    recipe: Recipe
    path: Path
    overrides: tuple[str, ...] = ()
    lines: Mapping[str, int] = field(default_factory=dict)
    """Line of each key in the file, by its name, such as `model.id`."""

    def place(self, key: str) -> tuple[str, int | None]:
        """The `--set` that wrote the key, or its line, or the line of its section."""
        for override in reversed(self.overrides):
            written = override.partition("=")[0].strip()
            if key == written or key.startswith(f"{written}."):
                return f"--set {override}", None
        section = key.partition(".")[0]
        return self.shown_path(), self.lines.get(key, self.lines.get(section))

    @contextmanager
    def locate(self) -> Iterator[None]:
        """Add the place of a recipe key to an error that the key caused."""
        try:
            yield
        except FtcliError as error:
            of_data = isinstance(error, DataError) and error.code.startswith("hub_")
            key = "data.train" if of_data else KEY_AT_FAULT.get(error.code)
            if key is not None and error.file is None:
                error.file, error.line = self.place(key)
                if error.code in RECIPE_AT_FAULT:
                    error.exit_code = UsageError.exit_code
                error.message = f"{key}: {error.message.removeprefix(f'{key}: ')}"
            raise

    @property
    def output(self) -> Path:
        """Folder of the run."""
        return self.recipe.run_dir

    def shown_path(self) -> str:
        """The recipe's path as the user would type it."""
        return shown_path(self.path)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> RecipeFile:
    """Read, override and validate a recipe; raises RecipeError with all its errors.

    If `path` is a run folder, its recipe is read. Paths in the file are relative to its folder,
    paths in `--set` to the working directory; in the Recipe all are absolute.
    """
    if (run := find_run(path)) is not None:
        path = path / run.recipe.name
    found = ParseState(shown_path(path))
    values = compose(_read(path), found)
    if (foreign := known_file(values)) is not None:
        key, message = foreign
        raise RecipeError((Problem(found.file, found.lines[(key,)], "", message),))
    for override in overrides:
        override_value(values, override, found)
    found.problems += secrets_of(values, (), found)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        named = {problem.key for problem in found.problems}
        found.problems += [p for p in problems_of(error, values, found) if p.key not in named]
        raise RecipeError(in_order(found.problems)) from error
    if found.problems:
        raise RecipeError(in_order(found.problems))
    lines = {".".join(key): line for key, line in found.lines.items()}
    recipe = with_absolute_paths(recipe, path.absolute().parent, found)
    return RecipeFile(recipe, path, tuple(overrides), lines)


def with_absolute_paths(recipe: Recipe, base: Path, found: ParseState | None = None) -> Recipe:
    """The recipe with absolute paths and its `output` set."""

    def resolve(named: NamedPath) -> str:
        key = tuple(named.key.split("."))
        of_flag = found is not None and found.flag_of(key) is not None
        return absolute(named, Path.cwd() if of_flag else base)

    output = recipe.output or os.path.join(base, "runs", recipe.name)
    return with_paths(recipe.model_copy(update={"output": output}), resolve)


def differences(old: Recipe, new: Recipe, ignored: Set[str]) -> list[str]:
    """`training.epochs: 3 → 5`, for every key that differs and is not ignored.

    Two paths to the same file are equal.
    """
    before, after = (flat(with_paths(each, _real).model_dump(mode="json")) for each in (old, new))
    paths = {named.key for named in paths_of(old)}
    return [
        f"{key}: {as_yaml(before.get(key))} → {as_yaml(after.get(key))}"
        for key in {**before, **after}
        if before.get(key) != after.get(key)
        and not (key in paths and _is_gone(before[key], after.get(key)))
        and not any(key == name or key.startswith(f"{name}.") for name in ignored)
    ]


def _real(named: NamedPath) -> str:
    return os.path.realpath(named.value) if os.path.isabs(named.value) else named.value


def _is_gone(path: str, asked: object) -> bool:
    """Whether a path no longer exists, so that the recipe's value may be a hub id."""
    if not isinstance(asked, str) or os.path.isabs(asked) or os.path.exists(path):
        return False
    return path.endswith(os.sep + os.path.normpath(asked))


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key → value."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, dict)
        found |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return found


class _Dumper(yaml.SafeDumper):
    """Quotes texts with characters that PyYAML writes as they are but reads as line ends."""

    line_ends = re.compile("[\x85\u2028\u2029]")

    def text(self, value: str) -> ScalarNode:
        style = '"' if self.line_ends.search(value) else None
        return self.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _Dumper.text)


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe with all defaults, as YAML that `load_recipe` reads back."""
    values = recipe.model_dump(mode="json")
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise _missing(path)
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise _unreadable(path, f"cannot be read: {error.strerror}") from error
    if len(content) > MOST_BYTES:
        message = f"is larger than {MOST_BYTES // 1000} kB, too large for a recipe; is it the data?"
        raise RecipeError((Problem(shown_path(path), None, "", message),))
    return content


def _missing(path: Path) -> UsageError:
    what = "is a folder, not a recipe" if path.is_dir() else "no such recipe"
    if path.is_dir() and (above := run_above(path)) is not None:
        return _unreadable(path, f"{what}; it belongs to the run {shown_path(above.path)}")
    near = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    return _unreadable(path, f"{what}{did_you_mean(path.name, near)}")


def _unreadable(path: Path, message: str) -> UsageError:
    return UsageError("recipe_missing", message, file=shown_path(path))
