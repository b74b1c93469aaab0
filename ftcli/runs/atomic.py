"""Files and folders that are written whole or not at all, and free disk space.

Bytes are synced first, then the name is changed, then the parent folder is synced. So neither a
kill nor a power cut leaves half a file under a name that is read.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ftcli.errors import MachineError
from ftcli.shell import shown_size

TEMPORARY = ".tmp-"
BEFORE = f"{TEMPORARY}before-"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_text(path: Path, text: str) -> None:
    """Write atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    temporary.replace(path)
    sync(path.parent)


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write one JSON object atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def append_json(path: Path, value: Mapping[str, object]) -> None:
    """Append one line to a JSON-lines file; a line cut by a kill is ended first."""
    with path.open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The object of each line; lines cut by a kill are skipped, and a missing file has none."""
    try:
        # A kill may have cut a character.
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    # Not `splitlines`, which also splits at U+2028 within a text.
    for line in text.split("\n"):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends without an error.

    Files get the user's usual permissions: safetensors writes them with 0600.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _set_permissions_and_sync(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _put_in_place(temporary, path)


def _put_in_place(temporary: Path, path: Path) -> None:
    """Rename a finished folder; the earlier one is kept under another name until then."""
    before = path.with_name(f"{BEFORE}{path.name}")
    try:
        if path.exists():
            shutil.rmtree(before, ignore_errors=True)
            path.replace(before)
        temporary.replace(path)
    except OSError:
        _bring_back(before, path)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(path.parent)
    shutil.rmtree(before, ignore_errors=True)


def _bring_back(before: Path, path: Path) -> None:
    """Undo the first of two renames if the second one failed."""
    if before.exists() and not path.exists():
        before.replace(path)


def _set_permissions_and_sync(folder: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o666 & ~umask)
        sync(file)
    sync(folder)


def sync(path: Path) -> None:
    """fsync(2) of a file, or of the names in a folder."""
    if not hasattr(os, "O_DIRECTORY") and path.is_dir():
        return  # Windows opens no folder
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a folder.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def delete_folder(path: Path) -> None:
    """Delete a folder under another name, so that a kill never leaves half of it."""
    if path.exists():
        dying = path.with_name(f"{TEMPORARY}old-{path.name}")
        shutil.rmtree(dying, ignore_errors=True)
        path.replace(dying)
        shutil.rmtree(dying)


def delete_temporary(folder: Path) -> None:
    """Delete what a killed process left half written in a folder."""
    for before in folder.glob(f"{BEFORE}*"):
        _bring_back(before, before.with_name(before.name.removeprefix(BEFORE)))
    for leftover in folder.glob(f"{TEMPORARY}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def short_digest(value: object, digits: int) -> str:
    """The first hex digits of the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:digits]


def sha256_file(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_bytes(path: Path) -> int:
    """Size of all files below a folder; 0 if there is no folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def free_bytes(folder: Path) -> int:
    """Free disk space for a folder, which may not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def require_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Raise MachineError (`disk_full`) if the disk of `folder` has no space for `what`."""
    free = free_bytes(folder)
    if free < needed_bytes:
        raise MachineError(
            "disk_full",
            f"{what} needs {shown_size(needed_bytes)} on the disk of {folder}, and "
            f"{shown_size(free)} are free; make room, or set output to another folder",
        )


def is_full(error: BaseException) -> bool:
    """Whether an error, or one that led to it, means a full disk or quota."""
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return True
    # safetensors (Rust) names the system's error in its own message.
    if any(f"(os error {number})" in str(error) for number in DISK_FULL):
        return True
    # torch raises its own error after the one of the file.
    return error.__context__ is not None and is_full(error.__context__)
