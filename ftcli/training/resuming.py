"""Resume a run: what may not change, which checkpoint to load, what to say at an early end."""

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
from ftcli.memory.shapes import model_source
from ftcli.models.base_files import base_fingerprint
from ftcli.runs.atomic import (
    delete_temporary,
    folder_bytes,
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

# Keys that say how long a run is.
LENGTH_KEYS = ("training.epochs:", "training.max_steps:")

# Codes of errors that end a run between two steps; a checkpoint is kept.
EARLY_ENDS = {"loss_not_finite", "memory", "disk_full"}


@dataclass(frozen=True)
class TrainCommands:
    """What to type after an early end."""

    resume: str
    begin: str
    """Before anything of the run was written."""


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
    """A stopped run resumes only with what it began with.

    Returns the allowed changes, as `key: old → new`. Raises FtcliError (`recipe_changed`) with all
    other changes, and the command `again` that trains the recipe in a new folder.
    """
    from ftcli.data.tokenizing.fingerprint import fingerprint

    manifest = run.read_manifest()
    if not manifest:
        return []
    began, now = load_recipe(run.recipe).recipe, loaded.recipe
    changed = differences(began, now, FREE_KEYS)
    mark = fingerprint(loaded.recipe, renderer)
    if manifest["data"] != mark and not changed:
        changed = _other_parts(run, loaded.recipe, renderer) or [
            f"data: {manifest['data']} → {mark}"
        ]
    if changed:
        what = "was begun with another recipe"
        ways = f"change it back to go on, or start over beside it:\n  {again}"
        raise _changed(run, what, changed, ways + _for_more(run, loaded, changed))
    return differences(began, now, frozenset())


def require_as_finished(run: RunFolder, recipe: Recipe, again: str) -> None:
    """A finished run answers only for what it was trained with.

    Looks at nothing that needs a tokenizer, and passes over data and a base that are gone. Raises
    FtcliError (`recipe_changed`) as `require_unchanged`.
    """
    began, free = load_recipe(run.recipe).recipe, FREE_KEYS
    parent: str | None = run.read_manifest().get("parent")
    if parent is not None and began.model.id == str(RunFolder(Path(parent)).model):
        free = free | {"model.id", "model.revision"}  # its parent's model took the base's place
    keys = differences(began, recipe, free)
    changed = keys or [*_changed_sources(run, began), *_changed_base(run, began)]
    if changed:
        shown = command("train", run.path)
        back = f"to see its result:\n  {shown}" if keys else "change it back to see its result"
        ways = f"{back}\nto train this recipe beside it:\n  {again}"
        raise _changed(run, "is finished, and was trained with another recipe", changed, ways)


def _changed_sources(run: RunFolder, began: Recipe) -> Iterator[str]:
    """Files of rows, and of a template, that are there with other contents."""
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
    """The weights of the base, where they are on this machine."""
    before, model = run.base_fingerprint(), began.model
    try:
        now = base_fingerprint(model_source(model.id), model.revision)
    except FtcliError:
        return  # what is gone or damaged cannot be compared
    if before is not None and now is not None and now != before:
        yield f"weights of the base: {before[:8]} → {now[:8]}"


def warn_of_other_machine(run: RunFolder, now: Hardware, reporter: Reporter) -> None:
    """Say that a run resumes on another machine than it began on."""
    began = run.read_manifest().get("hardware")
    if began is not None and began["name"] != now.name:
        reporter.warn(
            f"the run began on {began['name']} and goes on on {now.title}: at another speed, and "
            "not to the same last digits; Ctrl-C stops it"
        )


def _other_parts(run: RunFolder, recipe: Recipe, renderer: Renderer) -> list[str]:
    """Which of the things that shape the tokens are others, as `template: digest → digest`."""
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
    free = f"these may change: {', '.join(sorted(FREE_KEYS))}"
    return FtcliError("recipe_changed", f"{shown_path(run.path)} {what}:{lines}\n{ways}\n{free}")


def _for_more(run: RunFolder, loaded: RecipeFile, changed: list[str]) -> str:
    """What to do where a run is to become longer or shorter."""
    if not any(line.startswith(LENGTH_KEYS) for line in changed):
        return ""
    more = command("train", loaded.path, *set_flags(loaded.overrides), "--from", run.path)
    return (
        "\nThe length of a run shapes its learning rates from the first step: let it end as it "
        f"began, then, for more:\n  {more}"
    )


# Where a run resumes, and how it ends early


def delete_leftovers(run: RunFolder) -> None:
    """Delete what a killed process of this run left half written."""
    for folder in (run.path, run.checkpoints):
        delete_temporary(folder)


def resume_point(run: RunFolder, reporter: Reporter) -> Checkpoint | None:
    """The checkpoint to resume from; none where the run begins, or was killed before one.

    Says which checkpoints are skipped, and why. Raises FtcliError where all are gone or damaged.
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
            reporter.warn(f"step {saved} was saved, and its checkpoint is gone")
        run.update_manifest(saved_step=step)
        reporter.note(f"resume from step {step} ({shown_path(checkpoint.folder)})")
    elif saved is not None:
        raise FtcliError(
            "checkpoint_broken",
            f"{run.path}: step {saved} was saved, and no checkpoint is there any more; put "
            f"{run.checkpoints.name}/ back, or start over beside it: "
            f"{command('train', run.path, '--fresh')}",
        )
    else:
        reporter.note("the run was stopped before its first checkpoint: it begins again")
    return checkpoint


def _require_none_before(run: RunFolder) -> None:
    """Raise FtcliError where a training that begins would write among another's checkpoints."""
    if steps := run.steps_saved():
        raise FtcliError(
            "run_broken",
            f"{run.path} holds checkpoints (step {steps[-1]} the last) and no {run.manifest.name}, "
            "by which a run is known; put it back, or train into another folder (--set output=…)",
        )


def require_room(run: RunFolder, plan: Plan, more_bytes: int) -> None:
    """Raise MachineError (`disk_full`) where the disk has no room for what the run will save.

    `more_bytes` is saved with the trained weights: the tokenizer.
    """
    there = folder_bytes(run.checkpoints) if run.checkpoints.is_dir() else 0
    whole = plan.run_bytes(more_bytes)
    needed = max(whole - there, plan.checkpoint_bytes + more_bytes)
    require_space(run.path, needed, "this run with its checkpoints")


@contextmanager
def early_end_in_words(
    run: RunFolder, stops: StopSignals, commands: TrainCommands
) -> Iterator[None]:
    """Say where the run stands, and how to resume it, when a signal or the machine ends it early.

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
            f"the disk of {run.path} is full ({shown_size(free_bytes(run.path))} free): make "
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
    return f"stopped at step {step} of {total} (checkpoint {folder}). Go on: {commands.resume}"


def _kept(run: RunFolder, commands: TrainCommands) -> str:
    step = run.read_manifest().get("saved_step")
    if step is None:
        return ""
    return f"\nkept: {shown_path(run.checkpoint(step))}. Go on: {commands.resume}"
