"""Exclusive locks of files and folders; an error names the holder's process and host."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ftcli.errors import MachineError
from ftcli.runs.atomic import write_json


@contextmanager
def exclusive_lock(lock_file: Path, place: Path, code: str, advice: str) -> Iterator[None]:
    """Hold `lock_file`, a lock that ends with its process.

    The file itself stays; a file next to it names the holder. Raises MachineError (`code`) naming
    the holder and the `advice`, without waiting.
    """
    from filelock import FileLock, Timeout

    lock_file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_file, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise MachineError(
            code, f"{place}: {_holder(lock_file)} is writing here; wait for it, or {advice}"
        ) from error
    try:
        write_json(_named(lock_file), holder_now())
        yield
    finally:
        _named(lock_file).unlink(missing_ok=True)
        lock.release()


@contextmanager
def exclusive_file_lock(file: Path, code: str, advice: str) -> Iterator[None]:
    """Hold the lock of an output file, and leave no lock file at the end.

    A pipe or a device needs no lock: nobody resumes it.
    """
    if file.exists() and not file.is_file():
        yield
        return
    real = file.resolve()  # a file may have two names
    lock_file, new_folder = real.with_name(f".{real.name}.lock"), not real.parent.exists()
    with exclusive_lock(lock_file, file, code, advice):
        try:
            yield
        finally:
            # Before it is released: filelock takes no lock on a file that has lost its name.
            lock_file.unlink(missing_ok=True)
            if new_folder and not real.exists():
                _named(lock_file).unlink(missing_ok=True)
                with suppress(OSError):  # another file was put there
                    real.parent.rmdir()


def holder_now() -> dict[str, object]:
    """This process, as the file of a lock names its holder."""
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": since}


def _named(lock_file: Path) -> Path:
    """File that names the holder; not the lock itself, which acquiring may empty."""
    return lock_file.with_name(f"{lock_file.name}.json")


def _holder(lock_file: Path) -> str:
    """The holder in words; one that has just begun is not named yet."""
    try:
        holder = json.loads(_named(lock_file).read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']},"
    except (OSError, ValueError, KeyError, TypeError):
        return "another ftcli"
