"""How often a detector or a judge agrees with answers that the user has labelled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ftcli.config.grounding import Grounding
from ftcli.console import shown_path
from ftcli.errors import DataError
from ftcli.evaluation.intervals import share_interval
from ftcli.evaluation.scorers.grounding import facts_text
from ftcli.evaluation.scorers.scorer import Question

FEWEST_LABELS = 20
CheckerName = Literal["detector", "judge"]
LABELS_KEYS = {"detector": "eval.grounding.labels", "judge": "eval.judge.labels"}


class Label(BaseModel):
    """An answer to a prompt, and whether the prompt supports it."""

    model_config = ConfigDict(frozen=True, strict=True)

    prompt: str
    answer: str
    supported: bool

    def question(self, grounding: Grounding | None) -> Question:
        return Question(self.prompt, "", facts_text(grounding, self.prompt))


def read_labels(file: Path | None) -> list[Label]:
    """JSON lines; none of no file. Raises DataError (`labels`)."""
    if file is None:
        return []
    try:
        # Not `splitlines`: an answer may hold U+2028.
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise DataError("labels", f"labels: {why}", file=shown_path(file)) from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(Label.model_validate_json(line))
        except ValidationError as error:
            message = 'expected {"prompt": "…", "answer": "…", "supported": true or false}'
            raise DataError("labels", message, file=shown_path(file), line=number) from error
    if not found:
        raise DataError("labels", "holds no label", file=shown_path(file))
    return found


def agreement(who: CheckerName, labels: Sequence[Label], verdicts: Sequence[bool | None]) -> str:
    """`the judge agrees with 18 of 20 of your labels (70 to 97%)`, and what it overlooked."""
    if not labels:
        return (
            f"how often the {who} is right on your task is not known: label {FEWEST_LABELS} "
            f"answers ({LABELS_KEYS[who]})"
        )
    pairs = [(label.supported, each) for label, each in zip(labels, verdicts, strict=True)]
    known = [(label, each) for label, each in pairs if each is not None]
    if not known:
        return f"the {who} gave no verdict on your {len(labels)} labelled answers"
    agreed = sum(label == each for label, each in known)
    low, high = share_interval(agreed, len(known))
    wrong = [each for label, each in known if not label]
    words = (
        f"the {who} agrees with {agreed} of {len(known)} of your labels ({low:.0%} to {high:.0%})"
    )
    if wrong:
        words += f"; it finds {wrong.count(False)} of {len(wrong)} that you call unsupported"
    if len(known) < FEWEST_LABELS:
        words += f"; label at least {FEWEST_LABELS}"
    return words
