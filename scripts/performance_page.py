"""The tables of docs/performance.md, from what `make bench` has measured.

python scripts/performance_page.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, FOUND = DOCS / "performance.md", DOCS / "data" / "performance"
END = "<!-- end -->"
GB = 1e9

Found = Mapping[str, Any]


def main() -> None:
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")


def page(text: str) -> str:
    """The page with its marked parts made anew, each from its own file, if it is there."""
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


def levers(found: Found) -> str:
    """One row for each lever, one column for each kind of training."""
    kinds = {_kind(each): each for each in found["measured"]}
    names = list(dict.fromkeys(name for each in kinds.values() for name in each["seconds_a_step"]))
    table = _by_kind(kinds, {name: WORDS[name] for name in names}, _lever)
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


def _by_kind(
    kinds: Mapping[str, Found], words: Mapping[str, str], cell: Callable[[Found, str], str]
) -> list[str]:
    """Lines of a table: a row for each name, a column for each kind of training."""
    head = [f"| | {' | '.join(kinds)} |", f"|{' --- |' * (len(kinds) + 1)}"]
    cells = {name: " | ".join(cell(each, name) for each in kinds.values()) for name in words}
    return [*head, *(f"| {words[name]} | {cells[name]} |" for name in words)]


WORDS = {
    "plain": "transformers and PEFT, padded rows, logits of all tokens",
    "loss on labels": "the loss only where there are labels",
    "packed": "rows without padding",
    "shared prefix": "what rows begin with computed once",
    "one node": "one node for a weight and its update",
    "norms": "one node for each norm",
}


def profile(found: Found) -> str:
    """One row for each part of a step, one column for each kind of training."""
    measured = found["measured"]
    kinds = {_kind(each): each["seconds"] for each in measured}
    table = _by_kind(kinds, PARTS, _part)
    below = (
        f"Medians of seconds of a step and shares of it, in {_precision(found)} on "
        f"{_machines(measured)}."
    )
    return "\n".join(table) + f"\n\n{below}"


PARTS = {
    "step": "the whole step",
    "base": "products with the base's weights",
    "updates": "products with A and B, which add up in the base's output",
    "attention": "attention: gathering, scores, softmax and their gradients",
    "head": "head and loss at labelled positions, most of it products",
    "norms": "norms",
    "rest": "the rest: rotary positions, SwiGLU, sums, casts, the program itself",
}


def _part(seconds: Found, name: str) -> str:
    if not seconds.get(name):
        return "–"
    if name == "step":
        return f"{seconds[name]:.2f}"
    return f"{seconds[name]:.2f} ({seconds[name] / seconds['step']:.0%})"


def _kind(each: Found) -> str:
    name = {"lora": "LoRA", "qlora": "QLoRA", "full": "full"}[each["mode"]]
    words = each.get("instruction_words")
    return f"{name}, {words:,} words before each prompt" if words else name


def _machines(measured: Sequence[Found]) -> str:
    """The machines of some figures, each told once: `AMD EPYC, 2 cores, 0.37 to 0.39 TFLOP/s …`;
    apart from them those whose speed was not measured."""
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


def _lever(each: Found, name: str) -> str:
    if name not in each["seconds_a_step"]:
        return "–"
    seconds, times = each["seconds_a_step"][name], each["times_faster_than_plain"][name]
    return f"{seconds:.2f}" if name == "plain" else f"{seconds:.2f} ({times:.2f} ×)"


def _precision(found: Found) -> str:
    named = {each["precision"] for each in found["measured"]}
    return "fp32" if named == {"no"} else " and ".join(sorted(named))


def peers(found: Found) -> str:
    """As scripts/bench.py prints it; each kind of training was measured by itself."""
    head = (
        "| | trainer | seconds | times as long as ftcli | peak memory, GB | held-out loss |\n"
        "| --- | --- | --- | --- | --- | --- |"
    )
    measured = found["measured"]
    rows = [f"| {' | '.join(_peer(each))} |" for one in measured for each in one["outcomes"]]
    ran = "\n".join(f"- {_measured(one)}" for one in measured)
    sides: dict[str, list[str]] = {}
    for name, each in {n: v for one in measured for n, v in one["versions"].items()}.items():
        told = ", ".join(f"{package} {version}" for package, version in each.items())
        sides.setdefault(told, []).append(name)
    listed = "\n".join(f"- {', '.join(names)}: {told}" for told, names in sides.items())
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
    ratio = f"{over}{_median(ratios):.2f}" if ratios else "–"
    if len(ratios) > 1:
        ratio += f" ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    peak = max(each["peak_bytes"]) / GB
    return [each["mode"], each["side"], f"{over}{_median(seconds):.0f}", ratio, f"{peak:.1f}", loss]


def _median(values: list[float]) -> float:
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


def scale(found: Found) -> str:
    """Figures of preparing and of training, few rows and many."""
    prepare, train = found["prepare"], found["train"]["ways"]
    few, many = found["rows"]
    rows = [
        (
            "rows read, compared and split, a second",
            f"{prepare['rows_a_second_read_and_split']:,.0f}",
        ),
        (
            "rows rendered and tokenised, a second",
            f"{prepare['rows_a_second_rendered_and_tokenised']:,.0f}",
        ),
        (
            "rows that the tokenizer alone does, a second",
            f"{prepare['rows_a_second_of_the_tokenizer_alone']:,.0f}",
        ),
        (
            "the same as transformers calls the tokenizer",
            f"{prepare['rows_a_second_of_the_tokenizer_as_transformers_calls_it']:,.0f}",
        ),
        ("rows prepared in all, a second", f"{prepare['rows_a_second']:,.0f}"),
        (
            f"seconds for {many:,} rows that are prepared already, beyond those of {few:,} rows",
            _noticed(prepare["seconds_when_prepared_already"]),
        ),
        (
            f"peak memory of prepare, {few:,} and {many:,} rows",
            " and ".join(f"{size / GB:.2f} GB" for size in prepare["peak_bytes"]),
        ),
    ]
    rows += [
        (
            f"training, {name}",
            f"{each['tokens_a_second']:,.0f} tokens/s, fast steps "
            f"{each['tokens_a_second_of_fast_steps']:,.0f} ({each['by_few_rows']:.2f} ×), "
            f"{each['peak_bytes'] / GB:.2f} GB",
        )
        for name, each in train.items()
    ]
    table = "| | |\n| --- | --- |\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)
    on = f"Prepared on {_machines([prepare])}; trained on {_machines([found['train']])}."
    return f"{table}\n\n{on}"


def _noticed(seconds: float) -> str:
    """Of a difference between two programs, each of which takes seconds."""
    return f"{seconds:.1f}" if seconds > 0.5 else "less than differs from run to run"


def start(found: Found) -> str:
    """Seconds from command to a moment, and how often the bare import fits in."""
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
    """Tokens a second of both sides, without and with an instruction before each prompt."""
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
    told = f", {words:,} tokens before each" if words else ""
    speeds = {name: _median(sorted(values)) for name, values in each["tokens_per_second"].items()}
    same = each["prompts"] - len(each.get("ftcli_differs", ()))
    checked = f"{same} of {each['prompts']}" if "ftcli_differs" in each else "not asked"
    return [
        f"{each['prompts']} prompts{told}",
        f"{each['their_rows']}: {speeds['transformers']:,.0f}",
        f"{each['our_rows']}: {speeds['ftcli']:,.0f}",
        f"{each['median_ratio']:.2f} ×",
        checked,
    ]


TABLES: dict[str, Callable[[Found], str]] = {
    "levers": levers,
    "profile": profile,
    "peers": peers,
    "answers": answers,
    "scale": scale,
    "start": start,
}


if __name__ == "__main__":
    main()
