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

from performance_page import FOUND, table_of
from performance_page import main as write_page

from ftcli.engine.device import find_hardware

SCRIPTS = Path(__file__).resolve().parent
SHIPPED = SCRIPTS.parent / "recipes" / "data" / "shop" / "train.jsonl"
# Words, which are about as many tokens, before each prompt: the case of a long system prompt.
INSTRUCTION = 1000


def main() -> None:
    arguments = _arguments()
    FOUND.mkdir(exist_ok=True)
    for part in arguments.only:
        PARTS[part](arguments)
        write_page()
        print(f"{part}\n\n{table_of(part)}\n", flush=True)


def _keep(name: str, found: dict[str, Any]) -> None:
    text = json.dumps({"machine": find_hardware().name, **found}, indent=2)
    (FOUND / f"{name}.json").write_text(text + "\n", "utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=SHIPPED)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--steps", type=int, default=3, help="steps of each lever")
    parser.add_argument("--rows", type=int, default=32, help="rows that the peers train on")
    parser.add_argument("--held-out", type=int, default=32, help="rows that all are scored on")
    parser.add_argument("--limit", type=int, default=900, help="seconds of one run of a peer")
    parser.add_argument("--modes", nargs="+", default=["lora"])
    parser.add_argument("--against", nargs="+", default=["trl-defaults"])
    parser.add_argument("--once", nargs="+", default=[], help="of those: in the first turn alone")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--most", type=int, default=50_000, help="rows that are prepared")
    return parser.parse_args()


def _levers(arguments: argparse.Namespace) -> None:
    """Each kind of training by itself: what another has measured before stays beside it."""
    file = FOUND / "levers.json"
    kept = json.loads(file.read_text("utf-8"))["measured"] if file.is_file() else []
    common = ["--data", str(arguments.data)]
    for mode in arguments.modes:
        ways = [["--mode", mode, "--steps", str(arguments.steps)]]
        if mode == "lora":
            few = ["--ways", "plain", "norms", "--steps", "1"]
            ways.append(["--mode", mode, "--instruction", str(INSTRUCTION), *few])
        for way in ways:
            found = _run("bench_levers.py", arguments, *common, *way)
            kept = [each for each in kept if _kind(each) != _kind(found)] + [found]
            _keep("levers", {"measured": kept})


def _kind(found: dict[str, Any]) -> tuple[str, int]:
    return found["mode"], found["instruction_tokens"]


def _profile(arguments: argparse.Namespace) -> None:
    common = ["--data", str(arguments.data)]
    ways = [["--mode", mode] for mode in arguments.modes]
    measured = [_run("bench_profile.py", arguments, *common, *way) for way in ways]
    _keep("profile", {"measured": measured})


def _answers(arguments: argparse.Namespace) -> None:
    script, turns = "bench_answers.py", ["--turns", str(arguments.turns)]
    places = [str(arguments.model), str(arguments.data)]
    measured = []
    for instruction, way in ((0, []), (INSTRUCTION, ["--unchecked"])):
        asked = ["--instruction", str(instruction), *way]
        found = _printed([str(SCRIPTS / script), *places, *turns, *asked])
        measured.append(found | {"instruction_tokens": instruction})
        _keep("answers", {"measured": measured})


def _scale(arguments: argparse.Namespace) -> None:
    """Without turns what was trained before stays beside what is prepared."""
    file = FOUND / "scale.json"
    before = json.loads(file.read_text("utf-8")) if file.is_file() and not arguments.turns else {}
    kept = {name: part for name, part in before.items() if name == "train"}
    most = ["--most", str(arguments.most), "--turns", str(arguments.turns)]
    _keep("scale", kept | _run("bench_scale.py", arguments, *most))


def _start(arguments: argparse.Namespace) -> None:
    _keep("start", _run("bench_start.py", arguments, "--turns", str(arguments.turns)))


def _peers(arguments: argparse.Namespace) -> None:
    """Each kind of training by itself, as the levers: it takes up to an hour."""
    file = FOUND / "peers.json"
    measured = json.loads(file.read_text("utf-8"))["measured"] if file.is_file() else []
    kept = {each["settings"]["modes"][0]: each for each in measured}
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
            kept[mode] = json.loads(result.read_text("utf-8"))
        text = json.dumps({"measured": list(kept.values())}, indent=2)
        file.write_text(text + "\n", "utf-8")


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "levers": _levers,
    "profile": _profile,
    "answers": _answers,
    "scale": _scale,
    "start": _start,
    "peers": _peers,
}


def _run(script: str, arguments: argparse.Namespace, *words: str) -> dict[str, Any]:
    return _printed([str(SCRIPTS / script), "--model", str(arguments.model), *words])


def _printed(words: list[str]) -> dict[str, Any]:
    """What a script prints as JSON; what it says of its progress passes through."""
    done = subprocess.run([sys.executable, *words], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    return found


if __name__ == "__main__":
    main()
