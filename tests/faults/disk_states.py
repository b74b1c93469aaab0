"""What a folder looks like at every moment of some work, as a kill or a power cut leaves it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

# Name, inode, size and time of change of every file and folder.
Listing = tuple[tuple[str, int, int, int], ...]


class Watcher:
    """Copies a folder whenever it has changed between two calls into C.

    Whatever writes, be it Python, torch or safetensors, is called from Python: no change of the
    disk is missed, but for those in the middle of one call, which `cut` makes up.
    """

    def __init__(self, folder: Path, copies: Path) -> None:
        self.folder = folder
        self.copies = copies
        self.states: list[Path] = []
        self.unsynced: list[tuple[Path, ...]] = []
        """For each state, the files whose bytes a power cut may lose."""
        self.changed: list[tuple[Path, ...]] = []
        """For each state, the files that were written since the one before."""
        self._last: Listing = ()
        self._synced: set[tuple[int, int]] = set()

    @contextmanager
    def watching(self) -> Iterator[None]:
        synced, original = self._synced, os.fsync

        def fsync(descriptor: int) -> None:
            original(descriptor)
            found = os.fstat(descriptor)
            synced.add((found.st_ino, found.st_mtime_ns))

        self._last = self._list()
        synced.update((inode, time) for _, inode, _, time in self._last)
        os.fsync = fsync
        sys.setprofile(self._look)
        try:
            yield
        finally:
            sys.setprofile(None)
            os.fsync = original
            self._keep(self._list())

    def _look(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "c_return" and not _is_harmless(argument):
            self._keep(self._list())

    def _keep(self, listing: Listing) -> None:
        if listing == self._last:
            return
        before = {entry[1:] for entry in self._last}
        self._last = listing
        copy = self.copies / f"state-{len(self.states)}"
        shutil.copytree(self.folder, copy, ignore=shutil.ignore_patterns("data"))
        files = [entry for entry in listing if (copy / entry[0]).is_file()]
        self.states.append(copy)
        self.changed.append(tuple(Path(entry[0]) for entry in files if entry[1:] not in before))
        self.unsynced.append(
            tuple(Path(e[0]) for e in files if (e[1], e[3]) not in self._synced and e[2])
        )

    def _list(self) -> Listing:
        found: list[tuple[str, int, int, int]] = []
        for folder, names, files in os.walk(self.folder):
            if "data" in names:
                names.remove("data")
            for name in (*names, *files):
                path = os.path.join(folder, name)
                try:
                    stat = os.stat(path)
                except FileNotFoundError:
                    continue
                kept = os.path.relpath(path, self.folder)
                found.append((kept, stat.st_ino, stat.st_size, stat.st_mtime_ns))
        return tuple(sorted(found))

    def all_states(self) -> Iterator[Path]:
        """Each state, then as it is with a write cut short, then as a power cut leaves it."""
        for state, changed, unsynced in zip(self.states, self.changed, self.unsynced, strict=True):
            yield state
            for file in changed:
                size = (state / file).stat().st_size
                for kept in sorted({0, size // 2, max(size - 1, 0)} - {size}):
                    with _cut(state, (file,), kept):
                        yield state
            if unsynced:
                with _cut(state, unsynced, 0):
                    yield state


def _is_harmless(function: object) -> bool:
    """Whether a function of C can change no file: `len`, or a method of a list."""
    values = (str, bytes, list, dict, set, tuple, int, float)
    if isinstance(getattr(function, "__self__", None), values):
        return True
    return getattr(function, "__module__", "") == "builtins" and function is not open


@contextmanager
def _cut(state: Path, files: tuple[Path, ...], kept_bytes: int) -> Iterator[None]:
    whole = {file: (state / file).read_bytes() for file in files}
    for file, content in whole.items():
        (state / file).write_bytes(content[:kept_bytes])
    yield
    for file, content in whole.items():
        (state / file).write_bytes(content)


class FailingCall:
    """Lets the n-th call into C of some names fail, from 0: a function for sys.setprofile."""

    def __init__(self, number: int, names: set[str], error: OSError) -> None:
        self.failed = False
        self._left = number
        self._names = names
        self._error = error

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        if event != "c_call" or getattr(argument, "__name__", "") not in self._names:
            return
        self._left -= 1
        if self._left < 0 and not self.failed:
            self.failed = True
            raise self._error
