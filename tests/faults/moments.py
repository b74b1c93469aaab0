"""Kill trainings at random moments and let them go on.

    python -m tests.faults.moments FOLDER KILLS RECIPE…

A process of its own, because it forks: the libraries are loaded once, and every training is a child
that is really killed. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from ftcli.cli import run
from ftcli.runs.atomic import sha256_file


def start(recipe: Path, log: Path) -> int:
    """Train in a child; returns its process id."""
    child = os.fork()
    if child:
        return child
    with log.open("a") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        os._exit(run(["train", str(recipe)]))


def end_of(child: int) -> int:
    """Its exit code, or the negative number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def weights_of(folder: Path) -> str:
    """sha256 of all that was trained, or nothing where the run has not ended."""
    files = sorted([*folder.glob("adapter/*.safetensors"), *folder.glob("model/*.safetensors")])
    return " ".join(sha256_file(file) for file in files)


def kill_and_go_on(recipe: Path, run_folder: Path, after: float, log: Path) -> dict[str, object]:
    """One training that is killed after some seconds and then trained to its end."""
    shutil.rmtree(run_folder, ignore_errors=True)
    child = start(recipe, log)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    killed = end_of(child) == -signal.SIGKILL
    checkpoints = run_folder / "checkpoints"
    saved = len(list(checkpoints.glob("step-*"))) if checkpoints.is_dir() else 0
    halves = len(list(run_folder.rglob(".tmp-*"))) if run_folder.is_dir() else 0
    code = end_of(start(recipe, log))
    return {
        "killed": killed,
        "saved": saved,
        "halves": halves,
        "code": code,
        "weights": weights_of(run_folder),
    }


def main(folder: Path, kills: int, recipes: list[Path]) -> None:
    import ftcli.data.tokenizing.tokenize
    import ftcli.inference.endings
    import ftcli.training.train  # noqa: F401

    chance = random.Random(20)
    found = {}
    for recipe in recipes:
        log, run_folder = folder / f"{recipe.stem}.log", folder / "runs" / recipe.stem
        end_of(start(recipe, log))  # the data are prepared, the files are in memory
        shutil.rmtree(run_folder)
        began = time.monotonic()
        code = end_of(start(recipe, log))
        seconds = time.monotonic() - began
        whole = weights_of(run_folder)
        # One kill alone is in the middle: near the end a faster run may have ended before.
        moments = [chance.uniform(0, seconds) for _ in range(kills)] if kills > 1 else [seconds / 2]
        found[recipe.stem] = {
            "code": code,
            "weights": whole,
            "moments": [kill_and_go_on(recipe, run_folder, after, log) for after in moments],
        }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), [Path(recipe) for recipe in sys.argv[3:]])
