"""Where a run stands: what it goes on from, what it needs, and what is said when it ends early."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ftcli.console import Reporter
from ftcli.errors import FtcliError, MachineError, Stopped
from ftcli.runs.atomic import drop_temporary, folder_bytes, free_bytes, is_full, require_space
from ftcli.runs.checkpoints import Checkpoint, newest_whole
from ftcli.runs.folder import RunFolder, find_run
from ftcli.runs.signals import StopSignals
from ftcli.shell import command, set_flags, shown_path
from ftcli.training.plan.disk_room import checkpoint_bytes, run_bytes
from ftcli.training.plan.plan import Plan

# Errors that end a run in its middle: what they say goes on with where it stands.
ON_THE_WAY = {"loss_not_finite", "memory", "disk_full"}


@dataclass(frozen=True)
class Command:
    """The command that was given: by it a stopped run is gone on with, or begun again."""

    path: Path
    """A recipe, or the folder of a run."""
    overrides: Sequence[str] = ()
    fresh: bool = False
    parent: Path | None = None

    def go_on(self, run: RunFolder) -> str:
        """A run that has begun knows its parent, and is the newest one of its recipe."""
        path = self.path if find_run(self.path) is None else run.path
        return command("train", path, *set_flags(self.overrides))

    def begin_again(self) -> str:
        return self._from(self.parent, fresh=self.fresh)

    def beside(self, run: RunFolder) -> str:
        """Trains the same in a new folder, from where the run began."""
        begun_from: str | None = run.read_manifest().get("parent")
        return self._from(self.parent or (Path(begun_from) if begun_from else None), fresh=True)

    def _from(self, parent: Path | None, *, fresh: bool) -> str:
        flags: list[str | Path] = ["--from", parent] if parent is not None else []
        flags += ["--fresh"] if fresh else []
        return command("train", self.path, *set_flags(self.overrides), *flags)


def drop_leftovers(run: RunFolder) -> None:
    """Take away what a killed process of this run left half written."""
    for folder in (run.path, run.checkpoints):
        drop_temporary(folder)


def resume_point(run: RunFolder, reporter: Reporter) -> Checkpoint | None:
    """The checkpoint that a run goes on from; none where it begins, or was killed before one.

    Says which checkpoints are skipped, and why. Raises FtcliError where all are gone or damaged.
    """
    manifest = run.read_manifest()
    if not manifest:
        _require_none_before(run)
        return None
    found = newest_whole(run, manifest["run_id"])
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


def require_room(run: RunFolder, plan: Plan, keep_checkpoints: int, beside_bytes: int) -> None:
    """Raise MachineError (`disk_full`) where the disk has no room for what the run will save.

    `beside_bytes` are those of the tokenizer, which is saved with the trained weights.
    """
    there = folder_bytes(run.checkpoints) if run.checkpoints.is_dir() else 0
    whole = run_bytes(plan, keep_checkpoints, beside_bytes)
    needed = max(whole - there, checkpoint_bytes(plan) + beside_bytes)
    require_space(run.path, needed, "this run with its checkpoints")


@contextmanager
def in_words(given: Command, run: RunFolder, stops: StopSignals) -> Iterator[None]:
    """Say where the run stands when a signal, the disk or the machine ends it early."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        number = stops.number or signal.SIGINT
        if run.read_manifest():
            run.update_manifest(state="stopped")
        raise Stopped(_stopped(given, run), number) from interrupt
    except FtcliError as error:
        if error.code in ON_THE_WAY:
            error.message += _standing(given, run)
        raise
    except Exception as error:
        if not is_full(error):
            raise
        free = free_bytes(run.path) / 1e6
        raise MachineError(
            "disk_full",
            f"the disk of {run.path} is full ({free:.1f} MB free): make room"
            f"{_standing(given, run)}",
        ) from error


def _stopped(given: Command, run: RunFolder) -> str:
    manifest = run.read_manifest()
    step = manifest.get("saved_step")
    if not manifest:
        return f"stopped before the training began. Begin again: {given.begin_again()}"
    if step is None:
        return f"stopped before the first checkpoint. Begin again: {given.go_on(run)}"
    total = run.planned("steps")
    folder = shown_path(run.checkpoint(step))
    return f"stopped at step {step} of {total} (checkpoint {folder}). Go on: {given.go_on(run)}"


def _standing(given: Command, run: RunFolder) -> str:
    step = run.read_manifest().get("saved_step")
    if step is None:
        return ""
    return f"\nkept: {shown_path(run.checkpoint(step))}. Go on: {given.go_on(run)}"
