"""Resume a run: what may not change, the checkpoint to load, the message at an early end."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ftcli.config.data import find_template, names_file
from ftcli.config.loader import RecipeFile, differences, load_recipe
from ftcli.config.recipe import Recipe
from ftcli.console import Reporter
from ftcli.data.dataset import PART_NAMES, load_dataset
from ftcli.data.splits import files_of, rows_parts, source_digests
from ftcli.errors import FtcliError, MachineError, Stopped
from ftcli.memory.hardware import Hardware
from ftcli.memory.known_models import model_source
from ftcli.models.files.base_files import base_fingerprint
from ftcli.runs.atomic import (
    delete_temporary,
    free_bytes,
    is_full,
    require_space,
    short_digest,
)
from ftcli.runs.checkpoints import Checkpoint, latest_valid
from ftcli.runs.folder import RunFolder
from ftcli.runs.signals import StopSignals
from ftcli.shell import command, set_flags, shown_path, shown_size
from ftcli.training.opening import FREE_KEYS
from ftcli.training.plan.plan import Plan

if TYPE_CHECKING:
    from ftcli.data.tokenizing.rendering import Renderer

# Keys of the length of a run.
LENGTH_KEYS = ("training.epochs:", "training.max_steps:")

# Codes of errors that end a run between two steps; a checkpoint is kept.
EARLY_ENDS = {"loss_not_finite", "memory", "disk_full"}


@dataclass(frozen=True)
class TrainCommands:
    """Commands shown after an early end."""

    resume: str
    begin: str
    """If nothing of the run was written yet."""


def train_command(
    path: Path, overrides: Sequence[str], init_from: Path | None = None, *, fresh: bool = False
) -> str:
    """`ftcli train PATH` with these flags."""
    flags: list[str | Path] = ["--from", init_from] if init_from is not None else []
    flags += ["--fresh"] if fresh else []
    return command("train", path, *set_flags(overrides), *flags)


# What may not change


def require_unchanged(
    run: RunFolder, loaded: RecipeFile, renderer: Renderer, again: str
) -> list[str]:
    """A stopped run resumes only with the recipe and data that it began with.

    Returns the allowed changes, as `key: old → new`. Raises FtcliError (`recipe_changed`) with all
    other changes, and the command `again` that trains the recipe in a new folder.
    """
    from ftcli.data.tokenizing.fingerprint import fingerprint

    manifest = run.read_manifest()
    if not manifest:
        return []
    began, now = load_recipe(run.recipe).recipe, loaded.recipe
    changed = differences(began, now, FREE_KEYS)
    digest = fingerprint(now, renderer)
    if manifest["data"] != digest and not changed:
        changed = _changed_inputs(run, now, renderer) or [f"data: {manifest['data']} → {digest}"]
    if changed:
        what = "was started with another recipe"
        ways = f"change it back to resume, or train in a new folder:\n  {again}"
        raise _changed(run, what, changed, ways + _how_to_train_longer(run, loaded, changed))
    return differences(began, now, frozenset())


def require_as_finished(run: RunFolder, recipe: Recipe, again: str) -> None:
    """Raise FtcliError (`recipe_changed`) if a finished run was trained with another recipe.

    Needs no tokenizer; data and a base that no longer exist are not compared.
    """
    began, free = load_recipe(run.recipe).recipe, FREE_KEYS
    parent: str | None = run.read_manifest().get("parent")
    if parent is not None and began.model.id == str(RunFolder(Path(parent)).model):
        free = free | {"model.id", "model.revision"}  # the parent's model was its base
    keys = differences(began, recipe, free)
    changed = keys or [*_changed_sources(run, began), *_changed_base(run, began)]
    if changed:
        shown = command("train", run.path)
        back = f"to see its result:\n  {shown}" if keys else "change it back to see its result"
        ways = f"{back}\nto train this recipe in a new folder:\n  {again}"
        raise _changed(run, "is finished, and was trained with another recipe", changed, ways)


def _changed_sources(run: RunFolder, began: Recipe) -> Iterator[str]:
    """Existing files of rows or of a template whose contents have changed."""
    data = began.data
    prepared = load_dataset(run.data)
    before = prepared.parts if prepared is not None else {}
    sources = files_of(data)
    digests = source_digests(data)
    now = rows_parts({role: mark for role, mark in digests.items() if mark != sources[role]})
    if data.template is not None and names_file(data.template):
        text = find_template(data.template).text
        now[PART_NAMES["template"]] = short_digest(text, 8)
    for name, mark in now.items():
        if before.get(name, mark) != mark:
            yield f"{name}: {before[name]} → {mark}"


def _changed_base(run: RunFolder, began: Recipe) -> Iterator[str]:
    """The weights of the base, if they are on this machine."""
    before, model = run.base_fingerprint(), began.model
    try:
        now = base_fingerprint(model_source(model.id), model.revision)
    except FtcliError:
        return  # a base that is gone or damaged cannot be compared
    if before is not None and now is not None and now != before:
        yield f"weights of the base: {before[:8]} → {now[:8]}"


def warn_of_other_machine(run: RunFolder, now: Hardware, reporter: Reporter) -> None:
    """Warn if a run resumes on another machine than it began on."""
    began = run.read_manifest().get("hardware")
    if began is not None and began["name"] != now.name:
        reporter.warn(
            f"the run began on {began['name']} and resumes on {now.title}: the speed and the last "
            "digits of results will differ; Ctrl-C stops it"
        )


def _changed_inputs(run: RunFolder, recipe: Recipe, renderer: Renderer) -> list[str]:
    """Changed inputs of the tokenising, as `template: digest → digest`."""
    from ftcli.data.tokenizing.fingerprint import fingerprint_parts

    prepared = load_dataset(run.data)
    before = prepared.parts if prepared is not None else {}
    now = fingerprint_parts(recipe, renderer)
    return [
        f"{name}: {before[name]} → {now.get(name, 'none')}"
        for name in before
        if before[name] != now.get(name)
    ]


def _changed(run: RunFolder, what: str, changed: list[str], ways: str) -> FtcliError:
    lines = "".join(f"\n  {line}" for line in changed)
    free = f"keys that may change: {', '.join(sorted(FREE_KEYS))}"
    return FtcliError("recipe_changed", f"{shown_path(run.path)} {what}:{lines}\n{ways}\n{free}")


def _how_to_train_longer(run: RunFolder, loaded: RecipeFile, changed: list[str]) -> str:
    if not any(line.startswith(LENGTH_KEYS) for line in changed):
        return ""
    more = command("train", loaded.path, *set_flags(loaded.overrides), "--from", run.path)
    return (
        "\nThe learning rates depend on the length of a run from its first step: finish it as it "
        f"began, then train further:\n  {more}"
    )


# Resuming, and ending early


def delete_leftovers(run: RunFolder) -> None:
    """Delete files that a killed process left half written."""
    for folder in (run.path, run.checkpoints):
        delete_temporary(folder)


def resume_point(run: RunFolder, reporter: Reporter) -> Checkpoint | None:
    """The checkpoint to resume from; None if the run begins, or was killed before its first.

    Warns of skipped checkpoints with the reason. Raises FtcliError if all are gone or damaged.
    """
    manifest = run.read_manifest()
    if not manifest:
        _require_none_before(run)
        return None
    found = latest_valid(run, manifest["run_id"])
    for folder, reason in found.skipped:
        reporter.warn(f"{shown_path(folder)} is skipped: {reason}")
    saved, checkpoint = manifest.get("saved_step"), found.checkpoint
    if checkpoint is not None:
        step = checkpoint.position.step
        if saved is not None and saved > step and not found.skipped:
            reporter.warn(f"the checkpoint of step {saved} is gone")
        run.update_manifest(saved_step=step)
        reporter.note(f"resumes at step {step} ({shown_path(checkpoint.folder)})")
    elif saved is not None:
        raise FtcliError(
            "checkpoint_broken",
            f"{run.path}: the checkpoint of step {saved} is gone, and there is no other; restore "
            f"{run.checkpoints.name}/, or train in a new folder: "
            f"{command('train', run.path, '--fresh')}",
        )
    else:
        reporter.note("the run was stopped before its first checkpoint: it begins again")
    return checkpoint


def _require_none_before(run: RunFolder) -> None:
    """Raise FtcliError if a new training would write among another run's checkpoints."""
    if steps := run.steps_saved():
        raise FtcliError(
            "run_broken",
            f"{run.path} has checkpoints (up to step {steps[-1]}) and no {run.manifest.name}, "
            "which identifies a run; restore it, or train in another folder (--set output=…)",
        )


def require_room(run: RunFolder, plan: Plan, more_bytes: int) -> None:
    """Raise MachineError (`disk_full`) if the disk has no space for what the run will save.

    `more_bytes`: of the tokenizer, which is saved with the trained weights.
    """
    saved = run.checkpoint_bytes()
    needed = max(plan.run_bytes(more_bytes) - saved, plan.checkpoint_bytes + more_bytes)
    require_space(run.path, needed, "this run with its checkpoints")


@contextmanager
def explain_early_end(
    run: RunFolder, stops: StopSignals, commands: TrainCommands
) -> Iterator[None]:
    """Add the saved step and the command that resumes, if a signal or the machine ends a run.

    Raises Stopped for a signal.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        number = stops.number or signal.SIGINT
        if run.read_manifest():
            run.update_manifest(state="stopped")
        raise Stopped(_stopped(run, commands), number) from interrupt
    except FtcliError as error:
        if error.code in EARLY_ENDS:
            error.message += _kept(run, commands)
        raise
    except Exception as error:
        if not is_full(error):
            raise
        raise MachineError(
            "disk_full",
            f"the disk of {run.path} is full ({shown_size(free_bytes(run.path))} free); make "
            f"room{_kept(run, commands)}",
        ) from error


def _stopped(run: RunFolder, commands: TrainCommands) -> str:
    manifest = run.read_manifest()
    step = manifest.get("saved_step")
    if not manifest:
        return f"stopped before the training began. Begin again: {commands.begin}"
    if step is None:
        return f"stopped before the first checkpoint. Begin again: {commands.resume}"
    total = Plan.read(run.plan).steps
    folder = shown_path(run.checkpoint(step))
    return f"stopped at step {step} of {total} (checkpoint {folder}). Resume: {commands.resume}"


def _kept(run: RunFolder, commands: TrainCommands) -> str:
    step = run.read_manifest().get("saved_step")
    if step is None:
        return ""
    return f"\nsaved: {shown_path(run.checkpoint(step))}. Resume: {commands.resume}"
