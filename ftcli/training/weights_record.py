"""The trained weights in run.json: written down when a training ends, proven at each opening.

A flipped bit or a cut copy changes what a model says without an error anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ftcli.errors import FtcliError
from ftcli.models.fingerprint import weight_files
from ftcli.runs.atomic import sha256_file
from ftcli.runs.folder import RunFolder
from ftcli.shell import command


def recorded(folder: Path) -> dict[str, dict[str, Any]]:
    """Entries of run.json for the trained files in a folder.

    `weights` holds their sha256; `weight_files` size and date, by which a large file is known
    without reading it.
    """
    # The configuration of an adapter scales its weights (`lora_alpha`).
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("adapter_config.json")])
    looks = {file.name: _look(file) for file in files}  # a change from here on is seen
    return {"weights": {file.name: sha256_file(file) for file in files}, "weight_files": looks}


def require_unchanged_weights(run: RunFolder) -> None:
    """Raise FtcliError (`weights_changed`) where the trained weights are not those of run.json.

    Adapters are read whole; the files of a whole model, of up to 15 GB, where their size or date is
    another. Runs of versions that wrote no digests are taken as they are.
    """
    manifest = run.read_manifest()
    digests, looks = manifest.get("weights") or {}, manifest.get("weight_files") or {}
    if not isinstance(digests, dict) or not isinstance(looks, dict):
        raise FtcliError(
            "run_broken", "its weights are not an object; put it back", file=str(run.manifest)
        )
    whole = bool(digests) and not any(name.startswith("adapter") for name in digests)
    folder = run.model if whole else run.adapter
    for name, digest in digests.items():
        _require(folder / name, digest, looks.get(name) if whole else None)
    if whole:
        _require_no_others(folder, digests)


def _require(file: Path, digest: str, look: Mapping[str, int] | None) -> None:
    if not file.is_file():
        raise _changed(file, "is gone")
    now = _look(file)
    if look != now and (found := _digest_of(file, *now.values())) != digest:
        raise _changed(
            file, f"is not as the training wrote it (sha256 {digest[:12]} → {found[:12]})"
        )


def _require_no_others(folder: Path, digests: Mapping[str, str]) -> None:
    """A further file may go before those that were trained: a whole one before its shards."""
    for file in weight_files(str(folder)):
        if file.name not in digests:
            raise _changed(file, "is loaded, and the training did not write it")


def _changed(file: Path, reason: str) -> FtcliError:
    return FtcliError(
        "weights_changed",
        f"{reason}; put the trained weights back as they were, from a copy, or train anew: "
        f"{command('train', file.parent.parent, '--fresh')}",
        file=str(file),
    )


def _look(file: Path) -> dict[str, int]:
    """What a file is known by without reading it."""
    found = file.stat()
    return {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns}


@lru_cache(maxsize=64)
def _digest_of(file: Path, size_bytes: int, mtime_ns: int) -> str:
    """sha256 of a file, read once by each command however often it opens the run."""
    del size_bytes, mtime_ns  # part of what the digest is kept under
    return sha256_file(file)
