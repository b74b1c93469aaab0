"""Which checkpoint a run can go on from: a manifest in it proves every byte of it.

The manifest is written last, names the run and the place in it, and lists each file with its size
and sha256. It carries a digest of itself, so that a damaged one is told from another run's.
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
    """Where in which run a checkpoint stands."""

    run_id: str
    step: int
    """Optimizer steps done."""
    rows_done: int
    """Rows of the run's order that they trained on."""
    order: str
    """Digest of the run's order of rows."""
    micro_batch: int
    """Rows at once in a training step, smaller than planned where memory ran out."""
    validation_rows: int
    """The same for a validation."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    folder: Path
    position: Position


@dataclass(frozen=True)
class Found:
    """The newest whole checkpoint, and what is wrong with the newer ones."""

    checkpoint: Checkpoint | None
    skipped: tuple[tuple[Path, str], ...]


class _BrokenError(Exception):
    """Why a checkpoint is not whole, in words."""


def write_manifest(folder: Path, position: Position) -> None:
    """Write the manifest of all files in a folder, once they are on the disk."""
    files = {}
    for file in sorted(path for path in folder.iterdir() if path.name != MANIFEST):
        sync(file)
        files[file.name] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
    body = {"version": VERSION, "position": asdict(position), "files": files}
    write_json(folder / MANIFEST, body | {"seal": _digest(body)})


def latest_valid(run: RunFolder, run_id: str) -> Found:
    """The checkpoint to go on from.

    Raises FtcliError for one of another run (`checkpoint_foreign`), and where checkpoints are there
    and none of them is whole (`checkpoint_broken`).
    """
    skipped: list[tuple[Path, str]] = []
    for step in reversed(run.steps_saved()):
        folder = run.checkpoint(step)
        try:
            return Found(Checkpoint(folder, _verified(folder, step, run_id)), tuple(skipped))
        except _BrokenError as error:
            skipped.append((folder, str(error)))
    if skipped:
        reasons = "".join(f"\n  {folder.name}: {reason}" for folder, reason in skipped)
        raise FtcliError(
            "checkpoint_broken",
            f"{run.path}: no checkpoint is whole:{reasons}\nput the files back as they were saved, "
            f"or start over beside it: {command('train', run.path, '--fresh')}",
        )
    return Found(None, ())


def verify(run: RunFolder, step: int, run_id: str) -> Path:
    """Folder of a step's checkpoint; raises FtcliError (`checkpoint_broken`) if it is not whole."""
    folder = run.checkpoint(step)
    try:
        _verified(folder, step, run_id)
    except _BrokenError as error:
        raise FtcliError("checkpoint_broken", f"{folder} is not whole: {error}") from error
    return folder


def rotate(run: RunFolder, keep: int, best_step: int | None, now: int) -> None:
    """Delete checkpoints that are neither the best nor among the `keep` newest up to step `now`.

    Those of later steps are damaged ones that were passed over.
    """
    for step in [step for step in run.steps_saved() if step <= now][:-keep]:
        if step != best_step:
            delete_folder(run.checkpoint(step))


def _verified(folder: Path, step: int, run_id: str) -> Position:
    manifest = _manifest(folder)
    try:
        position = Position(**manifest["position"])
        files: Mapping[str, Mapping[str, Any]] = manifest["files"]
    except (KeyError, TypeError) as error:
        raise _BrokenError(f"{MANIFEST} lacks what this version reads ({error})") from error
    if position.run_id != run_id:
        raise FtcliError(
            "checkpoint_foreign",
            f"{folder} belongs to another run ({position.run_id[:8]}, and this is {run_id[:8]}); "
            "move it away",
        )
    if position.step != step:
        raise _BrokenError(f"it was saved as step {position.step}")
    _compare(folder, files)
    return position


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        body = dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
        digest = body.pop("seal")
    except FileNotFoundError as error:
        raise _BrokenError(f"it has no {MANIFEST}") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _BrokenError(f"{MANIFEST} cannot be read ({error!r})") from error
    if digest != _digest(body):
        raise _BrokenError(f"{MANIFEST} was changed after it was written")
    return body


def _compare(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    there = {path.name for path in folder.iterdir()} - {MANIFEST}
    if missing := sorted(set(files) - there):
        raise _BrokenError(f"{missing[0]} is missing")
    if foreign := sorted(there - set(files)):
        raise _BrokenError(f"{foreign[0]} was added to it")
    for name, wanted in files.items():
        size = (folder / name).stat().st_size
        if size != wanted["bytes"]:
            raise _BrokenError(f"{name} has {size} bytes and was saved with {wanted['bytes']}")
    for name, wanted in files.items():
        if sha256_file(folder / name) != wanted["sha256"]:
            raise _BrokenError(f"{name} is not what was saved (sha256)")


def _digest(body: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
