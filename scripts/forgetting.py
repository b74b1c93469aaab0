"""What a training forgets and what keeps it: the demo's recipe and public retail rows, by seed.

Each training is `ftcli train` and `ftcli eval` of a whole recipe; finished ones are kept in the
output file, so that the study can be interrupted. With --write docs/forgetting.md gets its table
and its figure from the file.

    python scripts/forgetting.py --model models/SmolLM2-135M-Instruct --data ../shared/data
    python scripts/forgetting.py --write
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from kept_rows import append, read

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "ecommerce-lora.yaml"
PAGE, KEPT = ROOT / "docs" / "forgetting.md", ROOT / "docs" / "data" / "forgetting.csv"
FIGURE = ROOT / "docs" / "figures" / "forgetting.svg"
BEGIN, END = "<!-- begin: scripts/forgetting.py -->", "<!-- end -->"
SEEDS = (42, 43, 44)
# Task → rows of the data set for training, and behind them held-out ones; none: the demo's own.
TASKS: dict[str, tuple[int, int] | None] = {"demo": None, "retail": (512, 60)}
# Variant → what of the recipe is changed.
VARIANTS: dict[str, dict[str, Any]] = {
    "no replay": {"data": {"replay": None}},
    "builtin": {"data": {"replay": "builtin"}},
}


@dataclass(frozen=True)
class Training:
    """One training and what it came to; the base's own figures have the variant `base`."""

    task: str
    variant: str
    seed: str
    loss: str = ""
    """Held-out, of the task."""
    format_valid: str = ""
    finished: str = ""
    followed: str = ""
    """Of 40 unrelated instructions."""
    instructions_perplexity: str = ""
    instructions_finished: str = ""
    text_perplexity: str = ""
    worse: str = ""
    """General abilities that are significantly worse than the base's (Holm)."""


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    asked.add_argument("--model", type=Path)
    asked.add_argument("--data", type=Path, help="folder of the data sets")
    asked.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    asked.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    asked.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    asked.add_argument("--output", type=Path, default=KEPT)
    asked.add_argument("--write", action="store_true")
    options = asked.parse_args()
    if options.model is not None:
        done = {(row.task, row.variant, row.seed) for row in read(options.output, Training)}
        wanted = itertools.product(options.tasks, options.seeds, options.variants)
        for task, seed, variant in wanted:
            if (task, variant, str(seed)) not in done:
                for found in measured(task, variant, seed, options):
                    if (found.task, found.variant, found.seed) not in done:
                        append(options.output, found)
                        sys.stdout.write(f"{' '.join(asdict(found).values())}\n")
                        done.add((found.task, found.variant, found.seed))
    if options.write:
        rows = read(options.output, Training)
        PAGE.write_text(page(rows), encoding="utf-8")
        draw(rows, FIGURE)


def measured(task: str, variant: str, seed: int, options: argparse.Namespace) -> Iterator[Training]:
    """The training, and the base that it is compared with."""
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe["model"]["id"] = str(options.model.absolute())
        recipe["output"] = str(folder / "run")
        recipe["training"]["seed"] = seed
        for key in ("train", "test"):
            recipe["data"][key] = str((RECIPE.parent / recipe["data"][key]).resolve())
        if (rows := TASKS[task]) is not None:
            source = options.data / "ecommerce_retail_demo" / "train.jsonl"
            lines = source.read_text(encoding="utf-8").splitlines(keepends=True)[: sum(rows)]
            (folder / "train.jsonl").write_text("".join(lines[: rows[0]]), encoding="utf-8")
            (folder / "test.jsonl").write_text("".join(lines[rows[0] :]), encoding="utf-8")
            recipe["data"] = {"train": "train.jsonl", "test": "test.jsonl", "validation": 16}
            recipe["training"]["max_steps"] = (rows[0] - 16) // recipe["training"]["batch_size"]
            del recipe["eval"]
        for section, changes in VARIANTS[variant].items():
            recipe[section] |= changes
        file = folder / "recipe.yaml"
        file.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
        _ftcli("train", str(file))
        found = _ftcli("eval", recipe["output"])
    yield _row(task, "base", "", found, "base")
    yield _row(task, variant, str(seed), found, "tuned")


def _ftcli(*words: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "ftcli", *words, "--json"],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _row(task: str, variant: str, seed: str, found: dict[str, Any], side: str) -> Training:
    general = {row["name"]: row for row in found["forgetting"]}
    scores = found[side]

    def of(name: str) -> str:
        value = general[name][side]["value"]
        is_loss = general[name]["unit"] == "perplexity"
        return f"{math.exp(value) if is_loss else value:.4f}"

    worse = [
        name
        for name, row in general.items()
        if side == "tuned" and row["tuned_vs_base"]["verdict"] == "worse"
    ]
    return Training(
        task,
        variant,
        seed,
        loss=f"{scores['loss']:.4f}",
        format_valid=f"{scores['format_rate']:.4f}" if "format_rate" in scores else "",
        finished=f"{scores['stop_rate']:.4f}",
        followed=of("instructions_followed"),
        instructions_perplexity=of("instructions"),
        instructions_finished=of("instructions_finished"),
        text_perplexity=of("general_text"),
        worse=" ".join(worse),
    )


COLUMNS = {
    "loss": "task loss",
    "format_valid": "format valid",
    "followed": "instructions followed",
    "instructions_perplexity": "instructions perplexity",
    "instructions_finished": "instructions finished",
    "text_perplexity": "general text perplexity",
}
SHARES = {"format_valid", "followed", "instructions_finished"}


def page(rows: Sequence[Training]) -> str:
    """docs/forgetting.md with its table replaced."""
    lines = [f"| training | {' | '.join(COLUMNS.values())} | significantly worse |"]
    lines.append("| --- |" + " ---: |" * len(COLUMNS) + " --- |")
    for task, variant in itertools.product(TASKS, ("base", *VARIANTS)):
        of_variant = [row for row in rows if (row.task, row.variant) == (task, variant)]
        for row in of_variant:
            name = f"{task}, {variant}" + (f", seed {row.seed}" if row.seed else "")
            cells = [_cell(column, getattr(row, column)) for column in COLUMNS]
            worse = row.worse.replace("_", " ").replace(" instructions", ", instructions")
            lines.append(f"| {name} | {' | '.join(cells)} | {worse} |")
        if len(of_variant) > 1:
            cells = [_cell(column, _mean(of_variant, column)) for column in COLUMNS]
            lines.append(f"| **{task}, {variant}, mean** | {' | '.join(cells)} | |")
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    picture = "![General ability after a training](figures/forgetting.svg)"
    table = "\n".join(lines)
    return f"{before}{BEGIN}\n\n{picture}\n\n{table}\n\n{END}{after}"


def _mean(rows: Sequence[Training], column: str) -> str:
    values = [getattr(row, column) for row in rows]
    return str(mean(map(float, values))) if all(values) else ""


def _cell(column: str, value: str) -> str:
    if not value:
        return ""
    return f"{float(value):.0%}" if column in SHARES else f"{float(value):.3g}"


def draw(rows: Sequence[Training], file: Path) -> None:
    """A panel for each ability: a dot a seed, and the base as a line."""
    import matplotlib
    from matplotlib.figure import Figure

    abilities = ("followed", "instructions_perplexity", "text_perplexity")
    with matplotlib.rc_context({"svg.hashsalt": "ftcli", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(8, 2.8), layout="constrained")
        for axes, ability in zip(figure.subplots(1, len(abilities)), abilities, strict=True):
            places = list(itertools.product(TASKS, VARIANTS))
            base = [float(getattr(row, ability)) for row in rows if row.variant == "base"]
            axes.axhline(base[0], color="#777777", linewidth=1, linestyle="--", label="base")
            for place, (task, variant) in enumerate(places):
                found = [r for r in rows if (r.task, r.variant) == (task, variant)]
                values = [float(getattr(row, ability)) for row in found]
                colour = "#b4432f" if variant == "no replay" else "#2f6db4"
                axes.plot([place] * len(values), values, "o", color=colour, markersize=5)
            labels = [f"{task}\n{variant}" for task, variant in places]
            axes.set_xticks(range(len(places)), labels, fontsize=7)
            axes.set_title(COLUMNS[ability], fontsize=9)
            axes.set_ylim(bottom=0)
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    main()
