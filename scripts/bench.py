"""Measure the speed of docs/performance.md; print its tables, and write them there.

    python -m scripts.bench --model models/SmolLM2-135M-Instruct
    python -m scripts.bench --model … --data rows.jsonl --only optimizations peers --rows 512
    python -m scripts.bench --write      # the page from docs/data/performance, nothing is measured

One program after the other, since each wants the whole machine. Rows are {"prompt", "completion"}.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from scripts.bench_peers import GB, MODES

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "recipes" / "data" / "shop" / "train.jsonl"
PAGE, FOUND = ROOT / "docs" / "performance.md", ROOT / "docs" / "data" / "performance"
END = "<!-- end -->"
# Words (about as many tokens) before each prompt: a long system prompt.
INSTRUCTION = 1000
# Flags of bench_answers: 8 prompts in `generate`, as many as ours, a long system prompt.
ANSWERED: tuple[tuple[str, ...], ...] = (
    (),
    ("--their-rows", "60", "--unchecked"),
    ("--instruction", str(INSTRUCTION), "--prompts", "16", "--unchecked"),
)
Found = Mapping[str, Any]


def main() -> None:
    arguments = _arguments()
    FOUND.mkdir(exist_ok=True)
    for part in () if arguments.write else arguments.only:
        MEASURES[part](arguments)
        print(f"{part}\n\n{table_of(part)}\n", flush=True)
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "SmolLM2-135M-Instruct")
    parser.add_argument("--data", type=Path, default=SHIPPED)
    parser.add_argument("--write", action="store_true", help="only write the page")
    parser.add_argument("--only", nargs="+", choices=list(MEASURES), default=list(MEASURES))
    parser.add_argument("--steps", type=int, default=3, help="steps of each optimisation")
    parser.add_argument("--rows", type=int, default=256, help="rows that the peers train on")
    parser.add_argument("--held-out", type=int, default=128, help="rows that all are scored on")
    parser.add_argument("--limit", type=int, default=1800, help="seconds of one run of a peer")
    parser.add_argument("--modes", choices=MODES, nargs="+", default=["lora"])
    parser.add_argument("--against", nargs="+", default=["trl-best", "trl-defaults"])
    once = "of those: in the first turn alone"
    parser.add_argument("--once", nargs="+", default=["trl-defaults"], help=once)
    parser.add_argument("--turns", type=int, default=3)
    return parser.parse_args()


# Measuring


def _keep(part: str, found: Found, kind: Callable[[Found], object]) -> None:
    """Replace earlier figures of the same kind; other kinds keep theirs, with their machine."""
    file = FOUND / f"{part}.json"
    before = json.loads(file.read_text("utf-8"))["measured"] if file.is_file() else []
    kept = {kind(each): each for each in [*before, found]}
    file.write_text(json.dumps({"measured": list(kept.values())}, indent=2) + "\n", "utf-8")


def _measure_optimizations(arguments: argparse.Namespace) -> None:
    common = ["--model", str(arguments.model), "--data", str(arguments.data)]
    for mode in arguments.modes:
        ways = [["--mode", mode, "--steps", str(arguments.steps)]]
        if mode == "lora":
            few = ["--ways", "plain", "one node", "--steps", "1"]
            ways.append(["--mode", mode, "--instruction", str(INSTRUCTION), *few])
        for way in ways:
            found = _printed("bench_optimizations", *common, *way)
            _keep("optimizations", found, lambda each: (each["mode"], each["instruction_words"]))


def _measure_answers(arguments: argparse.Namespace) -> None:
    common = [str(arguments.model), str(arguments.data), "--turns", str(arguments.turns)]
    for way in ANSWERED:
        found = _printed("bench_answers", *common, *way)
        _keep("answers", found, lambda each: (each["instruction_tokens"], each["their_rows"]))


def _measure_start(arguments: argparse.Namespace) -> None:
    words = ["--model", str(arguments.model), "--turns", str(arguments.turns)]
    text = json.dumps(_printed("bench_start", *words), indent=2)
    (FOUND / "start.json").write_text(f"{text}\n", "utf-8")


def _measure_peers(arguments: argparse.Namespace) -> None:
    """Each kind of training alone: with TRL's defaults on one thread it takes up to an hour."""
    words = ["--model", str(arguments.model), "--data", str(arguments.data)]
    words += ["--rows", str(arguments.rows), "--runs", str(arguments.turns)]
    words += ["--held-out", str(arguments.held_out), "--limit", str(arguments.limit)]
    words += ["--against", *arguments.against]
    words += ["--once", *arguments.once] if arguments.once else []
    for mode in arguments.modes:
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "result.json"
            asked = [*words, "--modes", mode, "--json", str(result)]
            command = [sys.executable, "-m", "scripts.bench_peers", *asked]
            subprocess.run(command, cwd=ROOT, check=True)
            found = json.loads(result.read_text("utf-8"))
        _keep("peers", found, lambda each: each["settings"]["modes"][0])


MEASURES: dict[str, Callable[[argparse.Namespace], None]] = {
    "optimizations": _measure_optimizations,
    "answers": _measure_answers,
    "start": _measure_start,
    "peers": _measure_peers,
}


def _printed(script: str, *words: str) -> dict[str, Any]:
    """The JSON that a script prints; its progress goes to stderr."""
    program = [sys.executable, "-m", f"scripts.{script}"]
    done = subprocess.run(
        [*program, *words], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    return found


# The page


def page(text: str) -> str:
    """The page with its marked parts written again, each from its own file if it exists."""
    for name in TABLES:
        if not (FOUND / f"{name}.json").is_file():
            continue
        begin = f"<!-- begin: {name} -->"
        if begin not in text:
            raise SystemExit(f"{PAGE.name} has no place for {name}: {begin}")
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n\n{table_of(name)}\n\n{END}{rest.partition(END)[2]}"
    return text


def table_of(name: str) -> str:
    """A part of the page, from its file."""
    return TABLES[name](json.loads((FOUND / f"{name}.json").read_text("utf-8")))


def optimizations(found: Found) -> str:
    """One row for each optimisation, one column for each kind of training."""
    kinds = {_kind(each): each for each in found["measured"]}
    names = list(dict.fromkeys(name for each in kinds.values() for name in each["seconds_a_step"]))
    table = [f"| | {' | '.join(kinds)} |", f"|{' --- |' * (len(kinds) + 1)}"]
    for name in names:
        cells = " | ".join(_optimization(each, name) for each in kinds.values())
        table.append(f"| {WORDS[name]} | {cells} |")
    shares = {
        "products with the base's weights": "share_of_limit",
        "those with A and B and of the attention, too": "share_of_limit_of_all_products",
    }
    for words, name in shares.items():
        cells = " | ".join(f"{k[name]:.0%} of {k['limit_tflops']:.2f}" for k in kinds.values())
        table.append(f"| {words}, of the machine's TFLOP/s | {cells} |")
    worst = max(max(each["largest_loss_difference"].values()) for each in kinds.values())
    steps = ", ".join(f"{name}: {each['steps']}" for name, each in kinds.items())
    below = (
        f"Medians of seconds of an optimizer step in {_precision(found)}, and of how many times "
        f"faster it is than the plain path's on the same rows (steps: {steps}), on "
        f"{_machines(found['measured'])}. A step's loss differs from that of the plain path by "
        f"{worst:.1e} at most."
    )
    return "\n".join(table) + f"\n\n{below}"


WORDS = {
    "plain": "transformers and PEFT, padded rows, logits of all tokens",
    "loss on labels": "the loss only where there are labels",
    "packed": "rows without padding",
    "shared prefix": "what rows begin with computed once",
    "one node": "one node for a weight and its update",
    "norms": "one node for each norm (left out since, as it saves less than 5%)",
}


def _kind(each: Found) -> str:
    name = {"lora": "LoRA", "qlora": "QLoRA", "full": "full"}[each["mode"]]
    words = each.get("instruction_words")
    return f"{name}, {words:,} words before each prompt" if words else name


def _machines(measured: Sequence[Found]) -> str:
    """The machines of some figures, each once: `AMD EPYC, 2 cores, 0.37 to 0.39 TFLOP/s …`; others
    of unmeasured speed apart."""
    speeds: dict[str, list[float]] = {}
    for machine in (each["machine"] for each in measured):
        name = f"{machine['name']}, {machine['cores']} cores"
        if "product_tflops" in machine:
            found = speeds.setdefault(f"{name}, {{}} TFLOP/s in products of {machine['type']}", [])
            found.append(machine["product_tflops"])
        else:
            speeds.setdefault(f"{name} of unknown speed", [])
    return " and ".join(
        name.format(_range(found)) if found else name for name, found in speeds.items()
    )


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def _optimization(each: Found, name: str) -> str:
    if name not in each["seconds_a_step"]:
        return "–"
    seconds, times = each["seconds_a_step"][name], each["times_faster_than_plain"][name]
    return f"{seconds:.2f}" if name == "plain" else f"{seconds:.2f} ({times:.2f} ×)"


def _precision(found: Found) -> str:
    named = {each["precision"] for each in found["measured"]}
    return "fp32" if named == {"no"} else " and ".join(sorted(named))


def peers(found: Found) -> str:
    """The table of optimisations; each kind of training was measured alone."""
    head = (
        "| | trainer | seconds | times as long as ftcli | peak memory, GB | held-out loss |\n"
        "| --- | --- | --- | --- | --- | --- |"
    )
    measured = found["measured"]
    rows = [f"| {' | '.join(_peer(each))} |" for one in measured for each in one["outcomes"]]
    ran = "\n".join(f"- {_measured(one)}" for one in measured)
    sides: dict[str, list[str]] = {}
    for name, each in {n: v for one in measured for n, v in one["versions"].items()}.items():
        versions = ", ".join(f"{package} {version}" for package, version in each.items())
        sides.setdefault(versions, []).append(name)
    listed = "\n".join(f"- {', '.join(names)}: {versions}" for versions, names in sides.items())
    below = f"One epoch, from command to saved weights:\n\n{ran}\n\nVersions:\n\n{listed}"
    return "\n".join([head, *rows]) + f"\n\n{below}"


def _measured(one: Found) -> str:
    """What was run, how often, and on which machine."""
    settings = one["settings"]
    turns = "one turn" if settings["runs"] == 1 else f"{settings['runs']} turns"
    once = [name for name in settings.get("once", ()) if name in one["versions"]]
    if settings["runs"] > 1 and once:
        turns += f" ({', '.join(once)}: one)"
    return (
        f"{', '.join(settings['modes'])}: {settings['rows']} rows of {settings['data']}, {turns} "
        f"on {_machines([one])}"
    )


def _peer(each: Found) -> list[str]:
    loss = "–" if each["held_out_loss"] is None else f"{each['held_out_loss']:.4f}"
    if not each["seconds"]:
        return [each["mode"], each["side"], "–", "–", "–", loss]
    over = "over " if any(each["stopped"]) else ""
    ratios, seconds = sorted(each["ratios"]), sorted(each["seconds"])
    ratio = f"{over}{median(ratios):.2f}" if ratios else "–"
    if len(ratios) > 1:
        ratio += f" ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    peak = max(each["peak_bytes"]) / GB
    return [each["mode"], each["side"], f"{over}{median(seconds):.0f}", ratio, f"{peak:.1f}", loss]


def start(found: Found) -> str:
    """Seconds from the command to a point, and the ratio to the bare import."""
    seconds, ratios = found["seconds"], found["times_the_import"]
    rows = [f"| `import torch, transformers, trl, peft` | {seconds['import']:.1f} | |"]
    for name, words in MOMENTS.items():
        rows.append(f"| {words} | {seconds[name]:.1f} | {ratios[name]:.2f} × |")
    head = "| | seconds | of the import |\n| --- | --- | --- |"
    below = f"Medians of {len(found['turns']['import'])} turns on {_machines([found])}."
    return "\n".join([head, *rows]) + f"\n\n{below}"


MOMENTS = {
    "plan": "`ftcli train` to its plan",
    "first step": "`ftcli train` to its first step, the longest batch tried before",
}


def answers(found: Found) -> str:
    """Tokens per second of both sides, with and without an instruction before each prompt."""
    head = (
        "| | `generate`: prompts at once, tokens/s | ftcli: prompts at once, tokens/s | | the same "
        "tokens as one by one |\n| --- | --- | --- | --- | --- |"
    )
    measured = found["measured"]
    rows = [f"| {' | '.join(_answer(each))} |" for each in measured]
    counts = sorted({len(each["ratios"]) for each in measured})
    turns = " and ".join(map(str, counts))
    return "\n".join([head, *rows]) + f"\n\nMedians of {turns} turns on {_machines(measured)}."


def _answer(each: Found) -> list[str]:
    words = each["instruction_tokens"]
    before = f", {words:,} tokens before each" if words else ""
    speeds = {name: median(values) for name, values in each["tokens_per_second"].items()}
    same = each["prompts"] - len(each.get("ftcli_differs", ()))
    checked = f"{same} of {each['prompts']}" if "ftcli_differs" in each else "not asked"
    return [
        f"{each['prompts']} prompts{before}",
        f"{each['their_rows']}: {speeds['transformers']:,.0f}",
        f"{each['our_rows']}: {speeds['ftcli']:,.0f}",
        f"{each['median_ratio']:.2f} ×",
        checked,
    ]


TABLES: dict[str, Callable[[Found], str]] = {
    "optimizations": optimizations,
    "answers": answers,
    "start": start,
    "peers": peers,
}


if __name__ == "__main__":
    main()
