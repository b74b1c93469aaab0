"""Runs several commands of ftcli in one process: python -m tests.faults.commands FILE [--sealed]

FILE is a JSON list of command lines, and gets a list of their exit codes in its place. Sealed, the
kernel kills the process where it asks for a socket that is not a local one (seccomp, Linux). A
file next to it, first.py, is run before them.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# linux/prctl.h, linux/seccomp.h, linux/filter.h
NO_NEW_PRIVILEGES, SET_SECCOMP, FILTER = 38, 22, 2
KILL_PROCESS, ALLOW = 0x80000000, 0x7FFF0000
LOAD_WORD, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06
CALL, ARGUMENT = 0, 16  # offsets in struct seccomp_data
SOCKET_CALL = {"x86_64": 41, "aarch64": 198}


def can_be_sealed() -> bool:
    return sys.platform == "linux" and platform.machine() in SOCKET_CALL


def seal() -> None:
    """From here on, socket() with any family but AF_UNIX ends the process by SIGSYS."""
    steps = [
        (LOAD_WORD, 0, 0, CALL),
        (JUMP_EQUAL, 0, 3, SOCKET_CALL[platform.machine()]),
        (LOAD_WORD, 0, 0, ARGUMENT),
        (JUMP_EQUAL, 1, 0, int(socket.AF_UNIX)),
        (RETURN, 0, 0, KILL_PROCESS),
        (RETURN, 0, 0, ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    held = ctypes.create_string_buffer(program)
    failed = libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    if failed or libc.prctl(SET_SECCOMP, FILTER, held, 0, 0):
        raise OSError(ctypes.get_errno(), "the process cannot be sealed")


def run_all(
    commands: Sequence[Sequence[str]],
    folder: Path,
    environment: Mapping[str, str],
    *,
    sealed: bool = False,
    packages: Path | None = None,
) -> tuple[list[int], str]:
    """Exit codes, and all that was written to stdout and stderr; stdin is closed.

    `packages` is a folder of packages that stand before the installed ones.
    """
    file = folder / "commands.json"
    file.write_text(json.dumps([list(map(str, command)) for command in commands]))
    places = [ROOT] if packages is None else [packages, ROOT]
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.commands", str(file), *["--sealed"][: int(sealed)]],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places)), **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"ended with {done.returncode}:\n{done.stdout}"
    return json.loads(file.read_text()), done.stdout


def main() -> None:
    file = Path(sys.argv[1])
    if "--sealed" in sys.argv:
        seal()

    first = file.with_name("first.py")
    if first.is_file():
        exec(compile(first.read_text(), str(first), "exec"), {})

    from ftcli.cli import run

    codes = [run(command) for command in json.loads(file.read_text())]
    file.write_text(json.dumps(codes))


if __name__ == "__main__":
    main()
