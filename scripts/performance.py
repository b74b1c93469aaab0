"""Measure what docs/performance.md tells; print its tables, and write them anew.

    python scripts/performance.py --model models/SmolLM2-135M-Instruct
    python scripts/performance.py --model … --data rows.jsonl --only levers peers \
        --against trl-defaults llamafactory-best --rows 512

One program after the other, since each wants the whole machine. Rows are {"prompt", "completion"}.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench_peers import is_set_up
from peers import MODES, SIDES
from performance_page import FOUND, table_of
from performance_page import main as write_page

SCRIPTS = Path(__file__).resolve().parent
SHIPPED = SCRIPTS.parent / "recipes" / "data" / "shop" / "train.jsonl"
# Words, which are about as many tokens, before each prompt: the case of a long system prompt.
INSTRUCTION = 1000
# Flags of bench_answers.py: 8 prompts in `generate`, as many as ours, a long system prompt.
ANSWERED: tuple[tuple[str, ...], ...] = (
    (),
    ("--their-rows", "60", "--unchecked"),
    ("--instruction", str(INSTRUCTION), "--prompts", "16", "--unchecked"),
)


def main() -> None:
    arguments = _arguments()
    FOUND.mkdir(exist_ok=True)
    for part in arguments.only:
        PARTS[part](arguments)
        write_page()
        print(f"{part}\n\n{table_of(part)}\n", flush=True)


def _before(name: str) -> dict[str, Any]:
    file = FOUND / f"{name}.json"
    found: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    return found


def _keep(name: str, found: dict[str, Any]) -> None:
    (FOUND / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")


def _keep_one(name: str, found: dict[str, Any], kind: Callable[[dict[str, Any]], object]) -> None:
    """In the place of what its kind had before; other kinds stay, with their machine."""
    kept = {kind(each): each for each in [*_before(name).get("measured", ()), found]}
    _keep(name, {"measured": list(kept.values())})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=SHIPPED)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--steps", type=int, default=3, help="steps of each lever")
    parser.add_argument("--rows", type=int, default=256, help="rows that the peers train on")
    parser.add_argument("--held-out", type=int, default=128, help="rows that all are scored on")
    parser.add_argument("--limit", type=int, default=1800, help="seconds of one run of a peer")
    parser.add_argument("--modes", choices=MODES, nargs="+", default=["lora"])
    parser.add_argument("--against", nargs="+", default=["llamafactory-best", "trl-defaults"])
    once = "of those: in the first turn alone"
    parser.add_argument("--once", nargs="+", default=["trl-defaults"], help=once)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--most", type=int, default=50_000, help="rows that are prepared")
    return parser.parse_args()


def _levers(arguments: argparse.Namespace) -> None:
    common = ["--data", str(arguments.data)]
    for mode in arguments.modes:
        ways = [["--mode", mode, "--steps", str(arguments.steps)]]
        if mode == "lora":
            few = ["--ways", "plain", "norms", "--steps", "1"]
            ways.append(["--mode", mode, "--instruction", str(INSTRUCTION), *few])
        for way in ways:
            found = _run("bench_levers.py", arguments, *common, *way)
            _keep_one("levers", found, lambda each: (each["mode"], each["instruction_words"]))


def _profile(arguments: argparse.Namespace) -> None:
    for mode in arguments.modes:
        words = ["--data", str(arguments.data), "--mode", mode]
        found = _run("bench_profile.py", arguments, *words)
        _keep_one("profile", found, lambda each: each["mode"])


def _answers(arguments: argparse.Namespace) -> None:
    common = [str(arguments.model), str(arguments.data), "--turns", str(arguments.turns)]
    for way in ANSWERED:
        found = _printed("bench_answers.py", *common, *way)
        _keep_one("answers", found, lambda each: (each["instruction_tokens"], each["their_rows"]))


def _scale(arguments: argparse.Namespace) -> None:
    """Without turns what was trained before stays beside what is prepared."""
    most = ["--most", str(arguments.most), "--turns", str(arguments.turns)]
    found = _run("bench_scale.py", arguments, *most)
    _keep("scale", found if arguments.turns else _before("scale") | found)


def _start(arguments: argparse.Namespace) -> None:
    _keep("start", _run("bench_start.py", arguments, "--turns", str(arguments.turns)))


def _peers(arguments: argparse.Namespace) -> None:
    """Each kind of training by itself: with TRL's defaults on one thread it takes up to an hour."""
    for name in sorted({SIDES[side].environment for side in arguments.against if side in SIDES}):
        if not is_set_up(name):
            words = [str(SCRIPTS / "bench_peers.py"), "setup", name]
            subprocess.run([sys.executable, *words], check=True)
    words = ["--model", str(arguments.model), "--data", str(arguments.data)]
    words += ["--rows", str(arguments.rows), "--runs", str(arguments.turns)]
    words += ["--held-out", str(arguments.held_out), "--limit", str(arguments.limit)]
    words += ["--against", *arguments.against]
    words += ["--once", *arguments.once] if arguments.once else []
    for mode in arguments.modes:
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "result.json"
            asked = [*words, "--modes", mode, "--json", str(result)]
            subprocess.run([sys.executable, str(SCRIPTS / "bench.py"), *asked], check=True)
            found = json.loads(result.read_text("utf-8"))
        _keep_one("peers", found, lambda each: each["settings"]["modes"][0])


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "levers": _levers,
    "profile": _profile,
    "answers": _answers,
    "scale": _scale,
    "start": _start,
    "peers": _peers,
}


def _run(script: str, arguments: argparse.Namespace, *words: str) -> dict[str, Any]:
    return _printed(script, "--model", str(arguments.model), *words)


def _printed(script: str, *words: str) -> dict[str, Any]:
    """What a script prints as JSON; what it says of its progress passes through."""
    program = [sys.executable, str(SCRIPTS / script)]
    done = subprocess.run([*program, *words], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    return found


if __name__ == "__main__":
    main()
