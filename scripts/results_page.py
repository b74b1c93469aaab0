"""The page of one set of rows: a table of figures, what was forgotten, and how it was made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

NOTE = "<!-- written by scripts/results.py -->"
NO_MORE = ("no difference shown", "no change shown")


def page(title: str, methods: Mapping[str, Any]) -> str:
    """Markdown from the figures of each method.

    Raises ValueError where the methods' bases are not the same: a page has one column for them.
    """
    first = next(iter(methods.values()))
    for name, found in methods.items():
        for side in ("base", "prompted"):
            if not math.isclose(found[side]["loss"], first[side]["loss"], rel_tol=1e-4):
                raise ValueError(f"{title}: the {side} beside {name} is another")
    steps, hardware = first["training"]["steps"], first["hardware"]["name"]
    lines = [
        NOTE,
        f"# {title}",
        "",
        f"{first['model']}, {first['rows']} held-out rows, {steps} steps of "
        f"{first['batch_size']} rows (cosine behind 3% warm-up) on {hardware}. "
        f"The prompted base has an instruction and {first['shots']} training rows before each row. "
        "Each figure stands with its 95% interval; a verdict is that of the paired difference.",
        "",
        *table(methods),
        "",
        *references(first),
        "## What it forgot",
        "",
        *forgotten(methods),
        "",
        "## The trainings",
        "",
        *trainings(methods),
        "",
    ]
    return "\n".join(lines)


def references(found: Mapping[str, Any]) -> list[str]:
    """What the data's own answers score, where a score needs that beside it."""
    words = [each["words"] for each in found.get("references", {}).values()]
    return [line for each in words for line in (f"{each}.", "")]


def index(sets: Sequence[tuple[str, str, Sequence[str], Mapping[str, Any]]]) -> str:
    """The page of all sets: title, file, scores that tell most, figures of each method."""
    methods = list(sets[0][3])
    models = {found["model"] for _, _, _, each in sets for found in each.values()}
    heads = ["rows", "score", "base", "prompted base", *(f"tuned, {name}" for name in methods)]
    lines = [
        NOTE,
        "# Results on real rows",
        "",
        f"{', '.join(sorted(models))} on held-out rows. Each figure stands with its 95% "
        "interval; every score, the paired differences and what was forgotten are on the pages.",
        "",
        row(heads),
        row(["---"] * len(heads)),
    ]
    for title, file, names, found in sets:
        first = next(iter(found.values()))
        where = f"[{title}]({file}.md)"
        for name in names:
            kind = first["scores"][name]
            sides = [first["base"], first["prompted"], *(each["tuned"] for each in found.values())]
            lines.append(row([where, kind["label"], *(score(side, name, kind) for side in sides)]))
            where = ""
    lines += [
        "",
        "`make results DATA=...` makes them from the folder of the data, whose parts "
        "scripts/results.py names.",
        "",
    ]
    return "\n".join(lines)


def table(methods: Mapping[str, Any]) -> list[str]:
    """Scores of the base, the prompted base and each tuned model."""
    first = next(iter(methods.values()))
    heads = ["score", "base", "prompted base"]
    for name in methods:
        heads += [f"tuned, {name}", "against base", "against prompted"]
    lines = [row(heads), row(["---"] * len(heads))]
    for name, kind in first["scores"].items():
        cells = [
            kind["label"],
            score(first["base"], name, kind),
            score(first["prompted"], name, kind),
        ]
        for found in methods.values():
            cells.append(score(found["tuned"], name, kind))
            cells += [
                verdict(found["differences"][f"tuned_vs_{side}"].get(name))
                for side in ("base", "prompted")
            ]
        lines.append(row(cells))
    cells = ["tokens a prompt", *(prompt_tokens(first[side]) for side in ("base", "prompted"))]
    for found in methods.values():
        cells += [prompt_tokens(found["tuned"]), "", ""]
    return [*lines, row(cells)]


def forgotten(methods: Mapping[str, Any]) -> list[str]:
    """General ability before and after, a row for each ability and method."""
    lines = [row(["method", "ability", "before", "after", ""]), row(["---"] * 5)]
    labels = {
        "text": "general text, perplexity",
        "instructions": "general instructions, perplexity",
        "follows": "follows general instructions",
        "stops": "stops behind them",
    }
    for method, found in methods.items():
        for name, label in labels.items():
            each = found["forgetting"][name]
            shown = [
                f"{each[when]:.2f}" if "change" in each else f"{each[when]:.0%}"
                for when in ("before", "after")
            ]
            lines.append(row([method, label, *shown, each["words"]]))
    return lines


def trainings(methods: Mapping[str, Any]) -> list[str]:
    heads = ["method", "rate", "steps", "validation loss", "file"]
    lines = [row(heads), row(["---"] * len(heads))]
    for method, found in methods.items():
        made = found["training"]
        losses = f"{made['first_eval_loss']:.3f} → {made['eval_loss']:.3f}"
        size = f"{made['saved_bytes'] / 1e6:,.0f} MB"
        rate, steps = f"{found['learning_rate']:g}", str(made["steps"])
        lines.append(row([method, rate, steps, losses, size]))
    return lines


def score(scores: Mapping[str, Any], name: str, kind: Mapping[str, Any]) -> str:
    """A figure with its interval."""
    if name not in scores:
        return "–"
    low, high = scores[f"{name}_interval"]
    if kind["unit"] == "share":
        return f"{scores[name]:.0%} ({100 * low:.0f}–{100 * high:.0f})"
    return f"{scores[name]:.2f} ({low:.2f}–{high:.2f})"


def prompt_tokens(scores: Mapping[str, Any]) -> str:
    return f"{scores['prompt_tokens']:,.0f}"


def verdict(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return ""
    if difference["same"]:
        return "the same"
    word: str = difference["verdict"]
    return "not shown" if word in NO_MORE else word


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
