"""An evaluation as a person reads it: samples, then tables, verdict and what is next."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ftcli.console import counted, result, say, shown_path, table, width, wrapped
from ftcli.evaluation.evaluation import Evaluated
from ftcli.evaluation.statistics import MIN_ROWS
from ftcli.evaluation.verdicts import (
    NOT_MEASURED,
    REPLAY,
    RunVerdict,
    data_of,
    difference_of,
    rows_of,
    summary_of,
    value_of,
    verdict_of,
    word_of,
)
from ftcli.runs.results import Answer, AnsweredRow, EvalResult, ScoreRow, Side
from ftcli.shell import command

# Of the answers to read; all of them are in the report.
SAMPLES_SHOWN = 2
ANSWER_LINES = 8
PROMPT_LINES = 10
# The longest of our own labels.
LABEL_COLUMNS = 27


def show(found: Evaluated) -> None:
    """Print it."""
    evaluated, run = found.result, found.run
    if found.stored:
        say("evaluated before; the same scores again")
    if evaluated.rows_in_validation:
        say(
            "note: these rows chose the checkpoint; hold others out with data.test for a fair score"
        )
    for sample in evaluated.samples[:SAMPLES_SHOWN]:
        result("\n".join((*side_by_side(sample, evaluated.sides, width()), "")))
    _tables(evaluated)
    result("")
    for sentence in summary_of(evaluated):
        result(wrapped(sentence, ""))
    verdict = verdict_of(evaluated)
    if evaluated.rows < MIN_ROWS:
        are = "is" if evaluated.rows == 1 else "are"
        result(f"{data_of(evaluated)} {are} too few for a verdict: {MIN_ROWS} at least.")
    else:
        result(f"{verdict.headline}.")
    # The summary has the others.
    reasons = [each for each in verdict.reasons if not each.startswith((NOT_MEASURED, REPLAY))]
    for reason in reasons:
        result(wrapped(f"  - {reason}", "    "))
    shown = run.report if run.report.is_file() else run.evaluations / evaluated.answers
    result(f"all rows side by side: {shown_path(shown)}")
    result(f"next   {_next_command(verdict, run.path)}")


def _next_command(verdict: RunVerdict, run: Path) -> str:
    """A tuned model that may be used is asked; of another the rows are read."""
    if verdict.kind in ("ready", "check"):
        return command("generate", run, "a prompt like those it was trained on")
    return command("report", run, "--open")


def _tables(evaluated: EvalResult) -> None:
    rows, sides = evaluated.shown_rows, evaluated.sides
    with_yours = any(row.your_answers for row in rows)
    base: Side | None = "base" if "base" in sides else None
    _table(counted(evaluated.rows, "held-out row"), rows, sides, base, your_answers=with_yours)
    if compared := [row for row in rows if row.tuned_vs_prompted]:
        result("")
        _table("tuned against prompted", compared, (), "prompted")
    if evaluated.forgetting:
        result("")
        _table("general ability (forgetting)", evaluated.forgetting, ("base", "tuned"), "base")


@dataclass(frozen=True)
class Layout:
    """How much of each difference a table shows, and how far apart its columns are."""

    gap: int
    whole: bool = True
    """The difference and its interval; else the interval alone."""
    rows: bool = True
    """How many rows are better and worse."""

    def heads(self) -> list[str]:
        counted = "rows better / worse" if self.gap > 1 else "+ / −"
        return ["", "difference (95%)", *([counted] if self.rows else [])]

    def cells(self, row: ScoreRow, other: Side) -> list[str]:
        """Verdict, difference, rows."""
        found = row.against(other)
        shown = difference_of(row, found)
        if not self.whole:
            shown = shown.partition("(")[2].removesuffix(")")
        return [word_of(row, found), shown, *([rows_of(found)] if self.rows else [])]


LAYOUTS = (
    Layout(3),
    Layout(2),
    Layout(1),
    Layout(1, whole=False),
    Layout(1, rows=False),
    Layout(1, whole=False, rows=False),
)


def _table(
    title: str,
    rows: Sequence[ScoreRow],
    sides: Sequence[Side],
    against: Side | None,
    *,
    your_answers: bool = False,
) -> None:
    """Scores of these sides, and the tuned model less another, in the first layout that fits."""
    for layout in LAYOUTS:
        yours = ["your answers" if layout.gap > 2 else "yours"] if your_answers else []
        heads = [title, *yours, *sides, *(layout.heads() if against else ())]
        lines = []
        for row in rows:
            scores = [*([row.your_answers] if your_answers else []), *map(row.side, sides)]
            compared = layout.cells(row, against) if against else []
            lines.append([_label(row), *(value_of(row, each) for each in scores), *compared])
        wide = sum(max(map(len, column)) for column in zip(heads, *lines, strict=True))
        if layout is LAYOUTS[-1] or 2 + wide + layout.gap * (len(heads) - 1) <= width():
            numbers = [n for n, head in enumerate(heads) if n and head and head[0] != "d"]
            table(heads, lines, numbers=numbers, gap=layout.gap)
            return


def _label(row: ScoreRow) -> str:
    """Cut in its middle where a user's score has a long name: such names often end alike."""
    label, half = row.label, (LABEL_COLUMNS - 1) // 2
    if len(label) <= LABEL_COLUMNS:
        return label
    return f"{label[: LABEL_COLUMNS - 1 - half]}…{label[-half:]}"


def side_by_side(sample: AnsweredRow, sides: Sequence[Side], columns: int) -> Iterator[str]:
    """A prompt, and below it the answers in columns."""
    yield f"prompt  {sample.file}:{sample.line}"
    prompt = _wrapped(sample.prompt, columns - 2)
    yield from (f"  {line}" for line in prompt[:PROMPT_LINES])
    if len(prompt) > PROMPT_LINES:
        yield "  …"
    answers = {side: sample.sides[side] for side in sides if side in sample.sides}
    wide = (columns - 2 * len(answers)) // max(len(answers), 1)
    cells = [_cell(answer, wide - 1) for answer in answers.values()]
    yield "  ".join(side.ljust(wide) for side in answers).rstrip()
    for row in range(max(len(cell) for cell in cells)):
        parts = [cell[row] if row < len(cell) else "" for cell in cells]
        yield "  ".join(part.ljust(wide) for part in parts).rstrip()


def _cell(answer: Answer, columns: int) -> list[str]:
    """An answer's first lines, and whether it was cut."""
    lines = _wrapped(answer.text.strip(), columns)
    if len(lines) > ANSWER_LINES:
        lines = [*lines[: ANSWER_LINES - 1], "…"]
    return lines if answer.stopped else [*lines, f"(cut after {counted(answer.tokens, 'token')})"]


def _wrapped(text: str, columns: int) -> list[str]:
    return [part for line in text.splitlines() for part in textwrap.wrap(line, columns) or [""]]
