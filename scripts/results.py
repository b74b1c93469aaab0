"""Base, prompted base, tuned LoRA and tuned full on three sets of real rows: docs/results/.

    python scripts/results.py --model models/SmolLM2-135M-Instruct --data DATA --work runs/results

DATA holds `ecommerce_retail_demo`, `json_catalog_record` and `sql_wikisql_large`, each with a
`train.jsonl` of prompt and completion. What is finished is not done again. Each set becomes a page
and a file of figures; of the rows themselves nothing is kept.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import results_page

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "results"
HELD_OUT, VALIDATION, BATCH = 60, 32, 8
# Of all sets, so that what the base does behind general instructions is asked once.
ANSWER_TOKENS = 128
# Not how long it took: that is another question than how good it is, and other work ran beside.
TRAINING = ("steps", "saved_bytes", "eval_loss", "first_eval_loss")
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": {"mode": "lora", "rank": 16, "alpha": 32}, "learning_rate": 1e-3},
    "full": {"method": {"mode": "full"}, "learning_rate": 2e-4},
}
WORDS = {"type": "array", "items": {"type": "string"}}
RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "category": {"type": "string"},
        "type": {"type": "string"},
        "audience": {"enum": ["women", "men", None]},
        "colours": WORDS,
        "materials": WORDS,
    },
    "required": ["name", "category", "type", "audience", "colours", "materials"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Rows:
    """One set of rows: how it is trained on, asked for in a long prompt, and looked at."""

    name: str
    folder: str
    title: str
    steps: int
    max_length: int
    instruction: str
    shots: int
    headline: tuple[str, ...]
    """The scores that stand in the index."""
    look: dict[str, Any] = field(default_factory=dict)
    """`eval:` of the recipe."""


SETS = (
    Rows(
        "retail",
        "ecommerce_retail_demo",
        "Product facts to shop descriptions",
        steps=48,
        max_length=384,
        instruction=(
            "You write product descriptions for an online shop: two to four lively sentences in "
            "one paragraph, using only the facts given, without a list and without the price."
        ),
        shots=5,
        headline=("stop_rate", "coverage"),
        look={"faithfulness": {"ignore": ["Category", "Type", "Price"]}},
    ),
    Rows(
        "catalog",
        "json_catalog_record",
        "Listings to JSON records",
        steps=24,
        max_length=512,
        instruction=(
            "You extract catalogue records. Answer with one JSON object on one line and nothing "
            "else: no explanation, no code fence, exactly the six keys, null where the listing "
            "names no audience, empty lists where it names no colour or material."
        ),
        shots=5,
        headline=("stop_rate", "json_conforming", "field_f1"),
        look={"format": {"type": "json", "schema": RECORD}},
    ),
    Rows(
        "sql",
        "sql_wikisql_large",
        "Questions to SQL",
        steps=24,
        max_length=256,
        instruction=(
            "You write SQLite. Answer with one SELECT statement on one line and nothing else: no "
            "explanation, no code fence. Use the column names of the table as they stand, and the "
            "values as the question writes them, in single quotes."
        ),
        shots=5,
        headline=("stop_rate", "sql_valid", "execution_match"),
        look={"format": {"type": "sql", "table": "prompt"}},
    ),
)


@dataclass(frozen=True)
class Cell:
    """One method on one set of rows."""

    rows: Rows
    method: str
    work: Path

    @property
    def recipe(self) -> Path:
        return self.work / f"{self.rows.name}-{self.method}.yaml"

    def write(self, model: Path, data: Path) -> None:
        """The recipe, as a user would write it (JSON is YAML)."""
        chosen = METHODS[self.method]
        recipe = {
            "name": f"{self.rows.name}-{self.method}",
            "model": {"id": str(model)},
            "method": chosen["method"],
            "data": {
                "train": str(data / self.rows.folder / "train.jsonl"),
                "validation": VALIDATION,
                "test": HELD_OUT,
                "max_length": self.rows.max_length,
            },
            "training": {
                "max_steps": self.rows.steps,
                "learning_rate": chosen["learning_rate"],
                "scheduler": "cosine",
                "warmup_ratio": 0.03,
                "batch_size": BATCH,
                "eval_steps": max(1, self.rows.steps // 2),
                "keep_checkpoints": 1,
            },
            "generation": {"max_new_tokens": ANSWER_TOKENS},
        }
        self.recipe.write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")


def ftcli(*arguments: object) -> dict[str, Any]:
    """One command, as a script runs it."""
    words = [sys.executable, "-m", "ftcli", *map(str, arguments), "--json"]
    done = subprocess.run(words, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def cells(work: Path, names: Sequence[str]) -> Iterator[Cell]:
    for rows in SETS:
        if rows.name in names:
            for method in METHODS:
                yield Cell(rows, method, work)


def evaluate(cell: Cell, run: Path) -> dict[str, Any]:
    """Base, prompted base and tuned; the second method finds what the base did beside the first."""
    told = cell.work / f"{cell.rows.name}.txt"
    told.write_text(cell.rows.instruction + "\n", encoding="utf-8")
    return ftcli(
        *("eval", run, "--prompted", told, "--shots", cell.rows.shots),
        *("--set", f"eval={json.dumps(cell.rows.look)}"),
    )


def figures(
    cell: Cell, model: str, trained: Mapping[str, Any], found: Mapping[str, Any]
) -> dict[str, Any]:
    """What goes into the repository: figures alone, nothing of the rows."""
    run = json.loads((Path(trained["run_dir"]) / "run.json").read_text(encoding="utf-8"))
    kept = ("rows", "shots", "base", "prompted", "tuned", "scores", "differences", "forgetting")
    return {
        "method": cell.method,
        "model": model,
        "learning_rate": METHODS[cell.method]["learning_rate"],
        "batch_size": BATCH,
        "hardware": run["hardware"],
        "versions": run["versions"],
        "training": {name: trained[name] for name in TRAINING},
        **{name: found[name] for name in kept},
        **({"references": found["references"]} if "references" in found else {}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--name", help="what the pages call the model; none: as its folder")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "results")
    parser.add_argument("--only", nargs="+", default=[rows.name for rows in SETS])
    parser.add_argument("--train", action="store_true", help="train, and evaluate later")
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Any]] = {}
    for cell in cells(asked.work, asked.only):
        cell.write(asked.model.absolute(), asked.data.absolute())
        print(f"{cell.rows.name}, {cell.method}", flush=True)
        trained = ftcli("train", cell.recipe)
        if not asked.train:
            report = evaluate(cell, Path(trained["run_dir"]))
            methods = found.setdefault(cell.rows.name, {})
            name = asked.name or asked.model.name
            methods[cell.method] = figures(cell, name, trained, report)
            if len(methods) == len(METHODS):
                save(cell.rows.name, methods)


def save(name: str, methods: Mapping[str, Any]) -> None:
    """The figures of one set, and the pages of all that are kept."""
    PAGES.mkdir(parents=True, exist_ok=True)
    file = PAGES / f"{name}.json"
    file.write_text(json.dumps(methods, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for page, text in pages().items():
        (PAGES / page).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """Name → text of a page for each set whose figures are kept, and of the index."""
    found, sets = {}, []
    for rows in SETS:
        if (file := PAGES / f"{rows.name}.json").is_file():
            methods = json.loads(file.read_text(encoding="utf-8"))
            found[f"{rows.name}.md"] = results_page.page(rows.title, methods)
            sets.append((rows.title, rows.name, rows.headline, methods))
    return found | {"README.md": results_page.index(sets)}


if __name__ == "__main__":
    main()
