"""Checkpoints to resume from: a manifest proves every byte of one.

The manifest is written last. It has the run's id, the position in the run, and each file's size and
sha256. It has a digest of itself, which distinguishes a damaged manifest from another run's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ftcli.errors import FtcliError
from ftcli.runs.atomic import delete_folder, sha256_file, sync, write_json
from ftcli.runs.folder import RunFolder
from ftcli.shell import command

MANIFEST = "manifest.json"
VERSION = 1


@dataclass(frozen=True)
class Position:
    """Position of a checkpoint in a run."""

    run_id: str
    step: int
    """Optimizer steps done."""
    rows_done: int
    """Rows of the run's order that these steps trained on."""
    order: str
    """Digest of the run's order of rows."""
    micro_batch: int
    """Rows of a micro-batch; fewer than planned if memory ran out."""
    validation_rows: int
    """Rows of a validation batch."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on disk."""

    folder: Path
    position: Position


@dataclass(frozen=True)
class Found:
    """The newest valid checkpoint, and what is wrong with newer ones."""

    checkpoint: Checkpoint | None
    skipped: tuple[tuple[Path, str], ...]


class _InvalidError(Exception):
    """What is wrong with a checkpoint."""


def write_manifest(folder: Path, position: Position) -> None:
    """Sync all files of a folder, and write their manifest."""
    files = {}
    for file in sorted(path for path in folder.iterdir() if path.name != MANIFEST):
        sync(file)
        files[file.name] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
    body = {"version": VERSION, "position": asdict(position), "files": files}
    write_json(folder / MANIFEST, body | {"seal": _digest(body)})


def latest_valid(run: RunFolder, run_id: str) -> Found:
    """The checkpoint to resume from.

    Raises FtcliError: `checkpoint_foreign` for one of another run, `checkpoint_broken` if there are
    checkpoints and none is valid.
    """
    skipped: list[tuple[Path, str]] = []
    for step in reversed(run.steps_saved()):
        folder = run.checkpoint(step)
        try:
            return Found(Checkpoint(folder, _verified(folder, step, run_id)), tuple(skipped))
        except _InvalidError as error:
            skipped.append((folder, str(error)))
    if skipped:
        reasons = "".join(f"\n  {folder.name}: {reason}" for folder, reason in skipped)
        raise FtcliError(
            "checkpoint_broken",
            f"{run.path}: no checkpoint is valid:{reasons}\nrestore the files as they were saved, "
            f"or train in a new folder: {command('train', run.path, '--fresh')}",
        )
    return Found(None, ())


def verify(run: RunFolder, step: int, run_id: str) -> Path:
    """Folder of a step's checkpoint; raises FtcliError (`checkpoint_broken`) if it is not valid."""
    folder = run.checkpoint(step)
    try:
        _verified(folder, step, run_id)
    except _InvalidError as error:
        raise FtcliError("checkpoint_broken", f"{folder} is not valid: {error}") from error
    return folder


def rotate(run: RunFolder, save_total_limit: int, best_step: int | None, now: int) -> None:
    """Delete checkpoints up to step `now`, except the newest ones and the best one.

    Later ones are damaged, and were skipped.
    """
    for step in [step for step in run.steps_saved() if step <= now][:-save_total_limit]:
        if step != best_step:
            delete_folder(run.checkpoint(step))


def _verified(folder: Path, step: int, run_id: str) -> Position:
    manifest = _manifest(folder)
    try:
        position = Position(**manifest["position"])
        files: Mapping[str, Mapping[str, Any]] = manifest["files"]
    except (KeyError, TypeError) as error:
        raise _InvalidError(f"{MANIFEST} lacks fields that this version reads ({error})") from error
    if position.run_id != run_id:
        raise FtcliError(
            "checkpoint_foreign",
            f"{folder} belongs to run {position.run_id[:8]}, and this is run {run_id[:8]}; move it "
            "away",
        )
    if position.step != step:
        raise _InvalidError(f"it was saved as step {position.step}")
    _compare_files(folder, files)
    return position


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        body = dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
        digest = body.pop("seal")
    except FileNotFoundError as error:
        raise _InvalidError(f"it has no {MANIFEST}") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _InvalidError(f"{MANIFEST} cannot be read ({error!r})") from error
    if digest != _digest(body):
        raise _InvalidError(f"{MANIFEST} was changed after it was written")
    return body


def _compare_files(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    found = {path.name for path in folder.iterdir()} - {MANIFEST}
    if missing := sorted(set(files) - found):
        raise _InvalidError(f"{missing[0]} is missing")
    if added := sorted(found - set(files)):
        raise _InvalidError(f"{added[0]} was added to it")
    for name, saved in files.items():
        size = (folder / name).stat().st_size
        if size != saved["bytes"]:
            raise _InvalidError(f"{name} has {size} bytes and was saved with {saved['bytes']}")
    for name, saved in files.items():
        if sha256_file(folder / name) != saved["sha256"]:
            raise _InvalidError(f"{name} is not what was saved (sha256)")


def _digest(body: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
