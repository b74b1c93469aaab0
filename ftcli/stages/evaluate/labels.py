"""Answers that the user has labelled, and how often a detector or a judge agrees with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ftcli.console import shown_path
from ftcli.errors import DataError
from ftcli.metrics.intervals import share_interval
from ftcli.metrics.scorer import Question

FEWEST_LABELS = 20


@dataclass(frozen=True)
class Label:
    """An answer to a prompt, and whether the prompt supports it."""

    question: Question
    answer: str
    supported: bool


def labels_files(name: str | None, base: Path) -> list[Path]:
    """Changed labels are another calibration: an evaluation is known again by them."""
    return [base / name] if name is not None else []


def read_labels(name: str, base: Path, facts: Callable[[str], str]) -> list[Label]:
    """JSON lines of `prompt`, `answer`, `supported` (true or false); `facts`: of a prompt.

    Raises DataError (`labels`).
    """
    file = base / name
    found = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise DataError("labels", f"labels: {why}", file=shown_path(file)) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            prompt, answer, supported = row["prompt"], row["answer"], row["supported"]
            right = isinstance(supported, bool) and isinstance(prompt, str)
        except (ValueError, LookupError, TypeError):
            right = False
        if not right or not isinstance(answer, str):
            message = 'expected {"prompt": "…", "answer": "…", "supported": true or false}'
            raise DataError("labels", message, file=shown_path(file), line=number)
        found.append(Label(Question(prompt, "", facts(prompt)), answer, supported))
    if not found:
        raise DataError("labels", "holds no label", file=shown_path(file))
    return found


def agreement(labels: Sequence[Label], said: Sequence[bool | None], who: str) -> str:
    """`the judge agrees with 18 of 20 of your labels (70 to 97%)`, and what it overlooked."""
    pairs = [(label.supported, each) for label, each in zip(labels, said, strict=True)]
    known = [(label, each) for label, each in pairs if each is not None]
    if not known:
        return f"{who} gave no verdict on your {len(labels)} labelled answers"
    agreed = sum(label == each for label, each in known)
    low, high = share_interval(agreed, len(known))
    wrong = [each for label, each in known if not label]
    words = f"{who} agrees with {agreed} of {len(known)} of your labels ({low:.0%} to {high:.0%})"
    if wrong:
        words += f"; it finds {wrong.count(False)} of {len(wrong)} that you call unsupported"
    if len(known) < FEWEST_LABELS:
        words += f"; label at least {FEWEST_LABELS}"
    return words
