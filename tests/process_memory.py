"""The memory that a command takes in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal, NamedTuple

ROOT = Path(__file__).parents[1]
# What the imports take is there before the command begins, and is not counted.
MEASURED = """
import statistics, sys, threading, time
import ftcli.environment
import bitsandbytes, peft, torch, transformers
import ftcli.export.merged_model, ftcli.inference.several_adapters
from ftcli.cli import run

def held():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) * 1024

def watch():
    while not done:
        seen.append(held())
        time.sleep(0.01)

field, *command = sys.argv[1:]
done, seen = [], [held()]
watcher = threading.Thread(target=watch)
watcher.start()
code = run(command)
done.append(True)
watcher.join()
print(code, int(max(seen) - seen[0]), int(statistics.median(seen) - seen[0]))
"""


class Held(NamedTuple):
    """Bytes that a command held: the most, and for most of its time."""

    peak: int
    usual: int


def held_bytes(command: list[str], field: Literal["RssAnon", "VmRSS"]) -> Held:
    """What `ftcli` has held, of a field of /proc/self/status; the command must succeed.

    RssAnon leaves out the pages of files, which the system takes back when it wants; VmRSS counts
    them.
    """
    arguments = [sys.executable, "-c", MEASURED, field, *command]
    found = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)
    code, peak, usual = map(int, found.stdout.split()[-3:])
    assert code == 0, found.stderr
    return Held(peak, usual)
