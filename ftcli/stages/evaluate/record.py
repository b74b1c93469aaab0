"""What an evaluation leaves beside its scores: every row with its answers and what is in them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ftcli.artifacts import RunFolder
from ftcli.disk import write_text
from ftcli.metrics.likelihood import Scored
from ftcli.metrics.scorer import Question
from ftcli.stages.evaluate.rows import Row
from ftcli.stages.evaluate.sides import Side

SAMPLES = 3


def answers_file(run: RunFolder, key: str) -> Path:
    """JSON lines, one a row."""
    return run.evaluations / "answers" / f"{key}.jsonl"


def save_rows(
    run: RunFolder,
    key: str,
    rows: Sequence[Row],
    questions: Sequence[Question],
    sides: Mapping[str, Side],
) -> str:
    """Write every row with all its answers; returns the file's name below `eval/`."""
    file = answers_file(run, key)
    lines = []
    for index, (row, question) in enumerate(zip(rows, questions, strict=True)):
        found = {name: _answer(side, index) for name, side in sides.items()}
        place = {"file": row.file, "line": row.line}
        asked = {"prompt": question.prompt, "reference": question.reference}
        lines.append({**place, **asked, "facts": question.facts, "sides": found})
    write_text(file, "".join(f"{json.dumps(line, ensure_ascii=True)}\n" for line in lines))
    return str(file.relative_to(run.evaluations))


def _answer(side: Side, index: int) -> dict[str, Any]:
    done = side.done
    found: dict[str, Any] = {
        "loss": done.scored.losses[index],
        "loss_tokens": done.scored.tokens[index],
    }
    if not done.answers:
        return found
    counts = {
        name: [counts.tops[index], counts.bottoms[index]] for name, counts in side.counts.items()
    }
    return {
        **asdict(done.answers[index]),
        **found,
        "prompt_tokens": done.prompt_tokens[index],
        "counts": counts,
        "findings": [asdict(finding) for finding in side.findings[index]],
    }


def read_scored(run: RunFolder, key: str) -> dict[str, Scored] | None:
    """Losses of each side of an earlier evaluation; none where its rows are gone."""
    file = answers_file(run, key)
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        return {
            name: Scored(
                tuple(line["sides"][name]["loss"] for line in lines),
                tuple(line["sides"][name]["loss_tokens"] for line in lines),
            )
            for name in lines[0]["sides"]
        }
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def samples(rows: Sequence[Row], sides: Mapping[str, Side]) -> list[dict[str, Any]]:
    """The first rows side by side."""
    found = []
    for index, row in enumerate(rows[:SAMPLES]):
        if not row.messages:
            continue
        answers = {
            name: asdict(side.done.answers[index])
            for name, side in sides.items()
            if side.done.answers
        }
        place = {"file": row.file, "line": row.line}
        found.append(
            {"prompt": row.messages[-2].content, "reference": row.reference, **answers, **place}
        )
    return found
