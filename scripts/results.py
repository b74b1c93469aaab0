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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftcli.evaluation.wording import difference_of, interval_of, summary_of, value_of, word_of
from ftcli.runs.results import EvalResult, Result, ScoreRow
from ftcli.runs.training_records import RunRecord

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "results"
NOTE = "<!-- written by scripts/results.py -->"
HELD_OUT, VALIDATION, BATCH = 60, 32, 8
# Of all sets, so that the base answers the general instructions once.
ANSWER_TOKENS = 128
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
    """One set of rows: how it is trained on, prompted, and scored."""

    name: str
    folder: str
    title: str
    steps: int
    max_length: int
    instruction: str
    shots: int
    headline: tuple[str, ...]
    """The scores that stand in the index."""
    scores: dict[str, Any] = field(default_factory=dict)
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
        scores={"grounding": {"optional": ["Category", "Type", "Price"]}},
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
        scores={"format": {"type": "json", "schema": RECORD}},
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
        scores={"format": {"type": "sql", "table": "prompt"}},
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
                "replay": "builtin",
            },
            "training": {
                "max_steps": self.rows.steps,
                "learning_rate": chosen["learning_rate"],
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


class Figures(Result):
    """What is kept of one method on one set of rows."""

    model: str
    learning_rate: float
    run: RunRecord
    evaluation: EvalResult


def measured(cell: Cell, model: str) -> Figures:
    """Train and evaluate; the second method finds what the base did in the first one's folder."""
    instruction = cell.work / f"{cell.rows.name}.txt"
    instruction.write_text(f"{cell.rows.instruction}\n", encoding="utf-8")
    run = Path(ftcli("train", cell.recipe)["run_dir"])
    found = ftcli(
        *("eval", run, "--prompted", instruction, "--shots", cell.rows.shots),
        *("--set", f"eval={json.dumps(cell.rows.scores)}"),
    )
    evaluation = EvalResult.read(run / "eval" / f"{found['key']}.json")
    record = RunRecord.read(run / "run.json")
    # Of the rows nothing, of the machine no path.
    nowhere = {"recipe": None, "weights": None, "weight_files": None, "memory": None}
    return Figures(
        model=model,
        learning_rate=METHODS[cell.method]["learning_rate"],
        run=record.model_copy(update=nowhere),
        evaluation=evaluation.model_copy(
            update={"samples": (), "instruction": instruction.name, "flags": ()}
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "results")
    parser.add_argument("--only", nargs="+", default=[rows.name for rows in SETS])
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    for cell in cells(asked.work, asked.only):
        cell.write(asked.model.absolute(), asked.data.absolute())
        sys.stderr.write(f"{cell.rows.name}, {cell.method}\n")
        measured(cell, asked.model.name).write(PAGES / f"{cell.rows.name}-{cell.method}.json")
    for name, text in pages().items():
        (PAGES / name).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """Name → text of a page for each set whose figures are kept, and of the index."""
    found = {}
    heads = ["rows", "score", "your answers", "base", "prompted base"]
    index = [NOTE, "# Results on real rows", "", row([*heads, *(f"tuned, {m}" for m in METHODS)])]
    index.append(row(["---"] * (len(heads) + len(METHODS))))
    for rows in SETS:
        files = {method: PAGES / f"{rows.name}-{method}.json" for method in METHODS}
        if not all(file.is_file() for file in files.values()):
            continue
        methods = {method: Figures.read(file) for method, file in files.items()}
        found[f"{rows.name}.md"] = page(rows, methods)
        where = f"[{rows.title}]({rows.name}.md)"
        for name in rows.headline:
            each = [figures.evaluation.row(name) for figures in methods.values()]
            first = each[0]
            assert first is not None
            cells = [value_of(first, first.your_answers), value_of(first, first.base)]
            cells.append(value_of(first, first.prompted))
            cells += [value_of(score, score.tuned) for score in each if score is not None]
            index.append(row([where, first.label, *cells]))
            where = ""
    index += ["", "`make results DATA=...` makes them from the folder of the data."]
    return found | {"README.md": "\n".join([*index, ""])}


def page(rows: Rows, methods: dict[str, Figures]) -> str:
    first = next(iter(methods.values()))
    hardware = first.run.hardware
    lines = [
        NOTE,
        f"# {rows.title}",
        "",
        f"{first.model} on {hardware.name if hardware else 'an unknown machine'}: "
        f"{first.evaluation.rows} held-out rows, {rows.steps} steps of {BATCH} rows of the task "
        "and general instructions (`replay: builtin`). The prompted base has an instruction and "
        f"{first.evaluation.examples} training rows before each row. Intervals are of 95%; "
        "verdicts hold together for all scores of a method (Holm).",
    ]
    for method, figures in methods.items():
        found, trained = figures.evaluation, figures.run.result
        assert trained is not None
        lines += ["", f"## {method}, learning rate {figures.learning_rate:g}", ""]
        heads = ["score", "your answers", "base", "prompted base", "tuned", "against base", ""]
        heads += ["against prompted", ""]
        lines += [row(heads), row(["---"] * len(heads))]
        lines += [score_row(each) for each in found.shown_rows + found.forgetting]
        lines += ["", *summary_of(found), ""]
        lines.append(
            f"{trained.steps} steps; validation loss {trained.first_eval_loss:.3f} → "
            f"{trained.eval_loss:.3f}; file {(trained.saved_bytes or 0) / 1e6:,.0f} MB."
        )
    return "\n".join([*lines, ""])


def score_row(found: ScoreRow) -> str:
    tuned = value_of(found, found.tuned)
    if found.tuned is not None:
        tuned += f" ({interval_of(found, found.tuned)})"
    cells = [found.label, value_of(found, found.your_answers), value_of(found, found.base)]
    cells += [value_of(found, found.prompted), tuned]
    for against in (found.tuned_vs_base, found.tuned_vs_prompted):
        cells += [difference_of(found, against), word_of(found, against)]
    return row(cells)


def row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
