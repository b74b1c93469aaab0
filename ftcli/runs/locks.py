"""One writer at a time in one place of the disk, known to the others by process and host."""

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
    """Hold `lock_file`, which frees itself when its holder ends, however it ends.

    The file itself stays; beside it stands who holds it, as long as that lasts. Raises MachineError
    (`code`) naming the holder and the `advice`, without waiting for it.
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
    """The same for one file that is written, with nothing left beside it at the end.

    A pipe or a device has no lock: nothing can be laid beside it, and nobody goes on with it.
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
                with suppress(OSError):  # something else was laid there
                    real.parent.rmdir()


def holder_now() -> dict[str, object]:
    """This process, as the holder of a lock says who it is."""
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": since}


def _named(lock_file: Path) -> Path:
    """Who holds the lock; not in its own file, which taking the lock may empty."""
    return lock_file.with_name(f"{lock_file.name}.json")


def _holder(lock_file: Path) -> str:
    """Who holds the lock, in words; a holder that has only just begun has left no name yet."""
    try:
        holder = json.loads(_named(lock_file).read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']},"
    except (OSError, ValueError, KeyError, TypeError):
        return "another ftcli"
