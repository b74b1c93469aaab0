"""YAML and `--set` → Recipe, with every fault at its line."""

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

from ftcli.config.answer_format import with_paths
from ftcli.config.chat_template import names_file
from ftcli.config.data import BUILTIN
from ftcli.config.evaluation import file_names
from ftcli.config.grounding import with_files, with_labels
from ftcli.config.nodes import Found, compose, in_order, override_value
from ftcli.config.other_tools import known_file
from ftcli.config.recipe import Recipe
from ftcli.config.secrecy import secrets_of
from ftcli.config.wording import as_yaml, problems_of
from ftcli.errors import DataError, FtcliError, Problem, RecipeError, UsageError, did_you_mean
from ftcli.runs.folder import find_run, run_above
from ftcli.shell import shown_path

# A recipe has about 2 kB; one with a chat template in it may have 50.
MOST_BYTES = 256_000

# Code of an error that is found later → the key to look at.
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
    "attention": "model.attention",
    "no_cuda": "model.device",
    "tracker": "training.report_to",
    "output_base": "output",
    "replay": "data.replay",
    "hold": "training.hold.strength",
}

PATH_KEYS = {
    "model.id",
    "data.train",
    "data.validation",
    "data.test",
    "data.replay.source",
    "data.template",
    "eval.format.schema",
    "eval.format.table",
    "eval.grounding.banned",
    "eval.grounding.labels",
    "eval.grounding.model",
    "eval.judge.labels",
    "output",
}


@dataclass(frozen=True)
class Loaded:
    """A recipe and the file it came from; its relative paths start at `base`."""

    recipe: Recipe
    path: Path
    base: Path
    overrides: tuple[str, ...] = ()
    lines: Mapping[str, int] = field(default_factory=dict)
    """Line of each key that the file holds, as `model.id`."""

    def place(self, key: str) -> tuple[str, int | None]:
        """The `--set` that wrote the key, or its line, or that of the section it would stand in."""
        for override in reversed(self.overrides):
            written = override.partition("=")[0].strip()
            if key == written or key.startswith(f"{written}."):
                return f"--set {override}", None
        section = key.partition(".")[0]
        return self.shown_path(), self.lines.get(key, self.lines.get(section))

    @contextmanager
    def blame(self) -> Iterator[None]:
        """Give an error that a key of the recipe has caused the place of that key."""
        try:
            yield
        except FtcliError as error:
            of_data = isinstance(error, DataError) and error.code.startswith("hub_")
            key = "data.train" if of_data else KEY_AT_FAULT.get(error.code)
            if key is not None and error.file is None:
                error.file, error.line = self.place(key)
                error.message = f"{key}: {error.message.removeprefix(f'{key}: ')}"
            raise

    @property
    def output(self) -> Path:
        """Folder of the run."""
        path = self.base / (self.recipe.output or f"runs/{self.recipe.name}")
        # `recipes/../runs/x` is read by people as `runs/x`.
        return Path(os.path.normpath(path))

    def shown_path(self) -> str:
        """The recipe's path as the user would type it."""
        return shown_path(self.path)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Loaded:
    """Read, override and judge a recipe; raises RecipeError with all its faults.

    `path` may be the folder of a run: its recipe is meant then. Raises UsageError for a missing
    recipe, and DataError for a missing file of `eval` that `--set` names: it is looked for in the
    working directory, then in the recipe's folder.
    """
    if (run := find_run(path)) is not None:
        path = path / run.recipe.name
    found = Found(shown_path(path))
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
    recipe = _files_of_flags(recipe, path.absolute().parent, found)
    lines = {".".join(key): line for key, line in found.lines.items()}
    return Loaded(recipe, path, path.absolute().parent, tuple(overrides), lines)


def _files_of_flags(recipe: Recipe, base: Path, found: Found) -> Recipe:
    """The recipe with the files that `--set` names in `eval`, as seen from where the user stands,
    and so with the folder of a detector.

    `ftcli eval RUN` reads the recipe of the run folder, beside which no user's file lies.
    """
    here, of_flags = Path.cwd(), set()
    for named in file_names(recipe.eval):
        flag = found.flag_of(tuple(named.key.split(".")))
        if flag is None:
            continue
        if (here / named.name).is_file():
            of_flags.add(named.name)
        elif not (base / named.name).is_file():
            places = dict.fromkeys(str(folder) for folder in (here, base))
            message = f"{named.key}: no such file; looked for in {' and in '.join(places)}"
            raise DataError(named.code, message, file=flag)
    detector = recipe.eval.grounding.model if recipe.eval.grounding is not None else None
    of_flag = found.flag_of(("eval", "grounding", "model")) is not None
    # A hub id is no folder here, and stays.
    if detector is not None and of_flag and (here / detector).is_dir():
        of_flags.add(detector)
    if not of_flags:
        return recipe

    def seen_from_here(name: str) -> str:
        return str(here / name) if name in of_flags else name

    changed = {
        "format": with_paths(recipe.eval.format, seen_from_here),
        "grounding": with_files(recipe.eval.grounding, seen_from_here),
        "judge": with_labels(recipe.eval.judge, seen_from_here),
    }
    return recipe.model_copy(update={"eval": recipe.eval.model_copy(update=changed)})


def resolved(loaded: Loaded) -> Recipe:
    """The same recipe with paths that hold wherever it is put: for the run folder."""

    def fixed(path: str) -> str:
        local = loaded.base / path
        return str(local) if local.exists() else path

    recipe = loaded.recipe
    fixed_paths: dict[str, object] = {
        key: fixed(value)
        for key, value in (("validation", recipe.data.validation), ("test", recipe.data.test))
        if isinstance(value, str)
    }
    if (replay := recipe.data.replay) is not None and replay.source != BUILTIN:
        fixed_paths["replay"] = replay.model_copy(update={"source": fixed(replay.source)})
    template = recipe.data.template
    if template is not None and names_file(template, loaded.base):
        fixed_paths["template"] = fixed(template)
    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update={"id": fixed(recipe.model.id)}),
            "data": recipe.data.model_copy(
                update={"train": fixed(recipe.data.train), **fixed_paths}
            ),
            "eval": recipe.eval.model_copy(
                update={
                    "format": with_paths(recipe.eval.format, fixed),
                    "grounding": with_files(recipe.eval.grounding, fixed),
                    "judge": with_labels(recipe.eval.judge, fixed),
                }
            ),
            "output": str(loaded.output),
        }
    )


def differences(old: Recipe, new: Recipe, ignored: Set[str], base: Path = Path()) -> list[str]:
    """`training.epochs: 3 → 5`, for every key that differs and is not ignored.

    A path is the same however it is spelt; those of `new` start at `base`.
    """
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    keys = [
        key
        for key in {**before, **after}
        if before.get(key) != after.get(key)
        and not (key in PATH_KEYS and _same_place(before.get(key), after.get(key), base))
    ]
    return [
        f"{key}: {as_yaml(before.get(key))} → {as_yaml(after.get(key))}"
        for key in keys
        if not any(key == name or key.startswith(f"{name}.") for name in ignored)
    ]


def _same_place(old: object, new: object, base: Path) -> bool:
    """Whether two paths lead to one place; `old` was recorded whole, or is no path."""
    if not (isinstance(old, str) and isinstance(new, str)):
        return False
    recorded, asked = os.path.expanduser(old), os.path.expanduser(new)
    return os.path.isabs(recorded) and os.path.realpath(recorded) == os.path.realpath(base / asked)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


class _Dumper(yaml.SafeDumper):
    """PyYAML writes these signs as they are and reads them as line ends."""

    line_ends = re.compile("[\x85\u2028\u2029]")

    def text(self, value: str) -> ScalarNode:
        style = '"' if self.line_ends.search(value) else None
        return self.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _Dumper.text)


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe, every default written out, as YAML that `load_recipe` reads back."""
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
        message = f"is larger than {MOST_BYTES // 1000} kB, which no recipe is; is it the data?"
        raise RecipeError((Problem(shown_path(path), None, "", message),))
    return content


def _missing(path: Path) -> UsageError:
    what = "is a folder, not a recipe" if path.is_dir() else "no such recipe"
    if path.is_dir() and (above := run_above(path)) is not None:
        return _unreadable(path, f"{what}; it is a part of the run {shown_path(above.path)}")
    near = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    return _unreadable(path, f"{what}{did_you_mean(path.name, near)}")


def _unreadable(path: Path, message: str) -> UsageError:
    return UsageError("recipe_missing", message, file=shown_path(path))
