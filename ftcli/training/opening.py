"""Open a finished run by its folder or its recipe, and verify its weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ftcli.config.loader import RecipeFile, differences, load_recipe
from ftcli.config.recipe import Recipe
from ftcli.data.dataset import Dataset, load_dataset
from ftcli.errors import FtcliError, did_you_mean
from ftcli.memory.known_models import model_source
from ftcli.models.files.base_files import weight_files
from ftcli.runs.atomic import sha256_file
from ftcli.runs.folder import RunFolder, find_run, newest_finished, run_above
from ftcli.shell import command, set_flags, shown_path

# Keys that may change when a run resumes: they affect no token and no weight.
FREE_KEYS = {
    "name",
    "output",
    "generation",
    "eval",
    "training.report_to",
    "training.micro_batch_size",
    "training.save_total_limit",
    "training.eval_steps",
    "training.save_steps",
    "training.early_stopping_patience",
}
# Sections that a recipe may change for its finished run.
OVERRIDABLE = ("generation", "eval")


@dataclass(frozen=True)
class OpenRun:
    """A finished run with its recipe and its prepared data."""

    run: RunFolder
    file: RecipeFile
    prepared: Dataset
    overrides: tuple[str, ...] = ()
    """Sections that the recipe at `path` has changed since the training, and that count."""
    ignored_changes: tuple[str, ...] = ()
    """Keys that it has changed and that do not count, as `training.epochs: 1 → 2`."""

    @property
    def recipe(self) -> Recipe:
        return self.file.recipe

    def on_cpu(self) -> OpenRun:
        """The same, with its models on the CPU."""
        model = self.recipe.model.model_copy(update={"device": "cpu"})
        recipe = self.recipe.model_copy(update={"model": model})
        return replace(self, file=replace(self.file, recipe=recipe))


def run_at(path: Path, overrides: Sequence[str] = ()) -> RunFolder:
    """The run at `path`, in any state, or the newest finished run of the recipe at `path`.

    Raises FtcliError (`run_missing`).
    """
    if (run := find_run(path)) is not None:
        return run
    if os.path.isdir(path):
        raise FtcliError("run_missing", _no_run(path))
    if not os.path.lexists(path):
        message = f"no run and no recipe of this name{_near(path)}"
        raise FtcliError("run_missing", message, file=shown_path(path))
    begin = command("train", path, *set_flags(overrides))
    return newest_finished(load_recipe(path, overrides).output, begin)


def _near(path: Path) -> str:
    """A run or a recipe with a similar name in the same folder."""
    try:
        siblings = list(path.parent.iterdir())
    except OSError:
        return ""
    known = [p.name for p in siblings if p.suffix in (".yaml", ".yml") or find_run(p) is not None]
    return did_you_mean(path.name, known)


def _no_run(folder: Path) -> str:
    shown = shown_path(folder)
    if (above := run_above(folder)) is not None:
        part, run = _part(os.path.basename(os.path.abspath(folder))), shown_path(above.path)
        return f"{shown} is {part} of the run {run}; name the run itself: {run}"
    known = (("config.json", "a model"), ("adapter_config.json", "an adapter"))
    found = [(file, kind) for file, kind in known if (folder / file).is_file()]
    what = "not a run: it has no run.json"
    if found:
        file, kind = found[0]
        what = f"{kind}, not a run: it has {file} and no run.json"
    return f"{shown} is {what}; name the run folder of ftcli train, or its recipe"


def _part(name: str) -> str:
    """A folder inside a run, in words."""
    if name.startswith("step-"):
        return "a checkpoint"
    named = {"adapter": "adapter", "model": "trained model", "merged": "merged model"}
    return f"the {named[name]}" if name in named else "a part"


def open_run(path: Path, overrides: Sequence[str] = ()) -> OpenRun:
    """The finished run at `path`, or the newest finished run of the recipe at `path`.

    Overrides change the run's own recipe; of a recipe at `path` only OVERRIDABLE count.
    Raises FtcliError, also if the trained weights were changed.
    """
    run = run_at(path, overrides)
    if run.state != "finished":
        raise FtcliError(
            "run_unfinished",
            f"{path} is not finished ({run.state}); resume: {command('train', run.path)}",
        )
    run.require_prompt_manifest()
    prepared = load_dataset(run.data)
    if prepared is None:
        raise FtcliError(
            "run_broken",
            f"{run.data} has no prepared data; prepare them again: {command('prepare', run.path)}",
        )
    require_unchanged_weights(run)
    trained, by_recipe = load_recipe(run.recipe), find_run(path) is None
    now = load_recipe(path if by_recipe else run.recipe, overrides)
    asked, began = now.recipe, trained.recipe
    changed = [name for name in OVERRIDABLE if getattr(asked, name) != getattr(began, name)]
    # Another seed only draws other answers. Base and data are verified separately.
    ignored = differences(began, asked, FREE_KEYS | {"training.seed", "model", "data"})
    loaded = _as_trained(now, asked, trained) if by_recipe else now
    overriding = tuple(changed) if by_recipe else ()
    return OpenRun(run, loaded, prepared, overriding, tuple(ignored))


def _as_trained(now: RecipeFile, asked: Recipe, trained: RecipeFile) -> RecipeFile:
    """The recipe of a training, with the OVERRIDABLE sections of `asked`."""
    keys = {override: override.partition("=")[0].strip() for override in now.overrides}
    of_training = [each for each, key in keys.items() if key.partition(".")[0] not in OVERRIDABLE]
    recipe = load_recipe(trained.path, of_training).recipe
    recipe = recipe.model_copy(update={name: getattr(asked, name) for name in OVERRIDABLE})
    return replace(now, recipe=recipe)


def require_as_trained(opened: OpenRun, *, with_base: bool) -> None:
    """Verify template, tokenizer and base before cached results are shown.

    `with_base`: also the base of a full training. Raises FtcliError (`prompt_manifest`).
    """
    from ftcli.models.prompt_manifest import verified_base, verify_run

    verify_run(opened.recipe, opened.run, opened.prepared)
    if with_base:
        model = opened.recipe.model
        source = model_source(model.id)
        with verified_base([opened.run], source, model.revision):
            pass


# The sha256 of the trained weights is written when a training ends, and verified at each opening:
# a flipped bit or a truncated copy changes answers without an error.


def weight_digests(folder: Path) -> dict[str, dict[str, Any]]:
    """Entries of run.json for the trained files in a folder.

    `weights`: their sha256; `weight_files`: size and date, to recognise a large file without
    reading it.
    """
    # The configuration of an adapter scales its weights (`lora_alpha`).
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("adapter_config.json")])
    marks = {file.name: _mark(file)._asdict() for file in files}  # later changes are seen
    return {"weights": {file.name: sha256_file(file) for file in files}, "weight_files": marks}


def require_unchanged_weights(run: RunFolder) -> None:
    """Raise FtcliError (`weights_changed`) if the trained weights are not those of run.json.

    Adapters are read each time; the files of a full model, up to 15 GB, only if their size or date
    has changed.
    """
    record = run.record()
    digests, marks = record.weights or {}, record.weight_files or {}
    whole = bool(digests) and not any(name.startswith("adapter") for name in digests)
    folder = run.model if whole else run.adapter
    for name, digest in digests.items():
        file = folder / name
        if not file.is_file():
            raise _changed(file, "is gone")
        now, then = _mark(file), marks.get(name)
        if whole and then is not None and now == (then.bytes, then.mtime_ns):
            continue
        if (found := _digest_of(file, now)) != digest:
            change = f"{digest[:12]} → {found[:12]}"
            raise _changed(file, f"is not as the training wrote it (sha256 {change})")
    # transformers loads a whole file before its shards.
    for file in weight_files(str(folder)) if whole else ():
        if file.name not in digests:
            raise _changed(file, "is loaded, and the training did not write it")


def _changed(file: Path, reason: str) -> FtcliError:
    return FtcliError(
        "weights_changed",
        f"{reason}; restore the trained weights from a copy, or train again: "
        f"{command('train', file.parent.parent, '--fresh')}",
        file=str(file),
    )


class _Mark(NamedTuple):
    """Size and date of a file, to recognise it without reading it."""

    bytes: int
    mtime_ns: int


def _mark(file: Path) -> _Mark:
    found = file.stat()
    return _Mark(found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=64)
def _digest_of(file: Path, mark: _Mark) -> str:
    """sha256 of a file; cached until size or date change."""
    return sha256_file(file)
