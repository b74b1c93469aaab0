"""The output of `ftcli eval`: samples, tables, verdict, next command."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from ftcli.console import (
    counted,
    print_message,
    print_result,
    print_table,
    shown_path,
    width,
    wrapped,
)
from ftcli.evaluation.run_evaluation import EvaluatedRun
from ftcli.evaluation.statistics import MIN_ROWS
from ftcli.evaluation.verdicts import (
    NOT_MEASURED,
    REPLAY,
    RunVerdict,
    rows_in_words,
    summary_of,
    verdict_of,
)
from ftcli.report import tables
from ftcli.report.tables import ROW_COUNTS, Table
from ftcli.runs.results import Answer
from ftcli.shell import command

# All samples are in the report.
SAMPLES_SHOWN = 2
ANSWER_LINES = 8
PROMPT_LINES = 10
# Length of our own longest label.
LABEL_COLUMNS = 27
SHORT_HEADS = {
    "Tuned against the base with a prompt": "tuned against prompted",
    "General ability (forgetting)": "general ability (forgetting)",
    "base with a prompt": "prompted",
    "verdict": "",
}


class Layout(NamedTuple):
    """What a table shows of each difference, and the gap between its columns."""

    gap: int
    differences: bool = True
    """Differences with intervals, or intervals only."""
    row_counts: bool = True
    """Numbers of better and worse rows."""


LAYOUTS = (
    Layout(3),
    Layout(2),
    Layout(1),
    Layout(1, differences=False),
    Layout(1, row_counts=False),
    Layout(1, differences=False, row_counts=False),
)


def show(found: EvaluatedRun) -> None:
    """Print an evaluation."""
    evaluated, run = found.result, found.run
    if found.stored:
        print_message("evaluated before; these are the saved scores")
    if evaluated.rows_in_validation:
        print_message(
            "note: scored on validation rows, which chose the checkpoint, so probably too good; "
            "set data.test: 0.1"
        )
    for sample in evaluated.samples[:SAMPLES_SHOWN]:
        answers = {side: sample.sides[side] for side in evaluated.sides if side in sample.sides}
        texts: dict[str, tuple[str, str]]
        texts = {side: (each.text, _cut_note(each)) for side, each in answers.items()}
        print_result(side_by_side(f"{sample.file}:{sample.line}", sample.prompt, texts))
    rows_title = counted(evaluated.rows, "held-out row")
    for each in tables.scores(evaluated):
        _print_table(SHORT_HEADS.get(each.title, rows_title), each)
        print_result("")
    for sentence in summary_of(evaluated):
        print_result(wrapped(sentence, ""))
    verdict = verdict_of(evaluated)
    if evaluated.rows < MIN_ROWS:
        are = "is" if evaluated.rows == 1 else "are"
        print_result(
            f"{rows_in_words(evaluated)} {are} too few for a verdict: {MIN_ROWS} at least."
        )
    else:
        print_result(f"{verdict.headline}.")
    # The summary above has printed the others.
    reasons = [each for each in verdict.reasons if not each.startswith((NOT_MEASURED, REPLAY))]
    for reason in reasons:
        print_result(wrapped(f"  - {reason}", "    "))
    shown = run.report if run.report.is_file() else run.evaluations / evaluated.answers
    print_result(f"all rows side by side: {shown_path(shown)}")
    print_result(f"next   {_next_command(verdict, run.path)}")


def _next_command(verdict: RunVerdict, run: Path) -> str:
    """Use the tuned model, or read its rows if it is not ready."""
    if verdict.kind in ("ready", "check"):
        return command("generate", run, "a prompt like those it was trained on")
    return command("report", run, "--open")


def _print_table(title: str, found: Table) -> None:
    """Print it in the first layout that fits the terminal."""
    for layout in LAYOUTS:
        columns = [
            _column(head, [row[n] for row in found.rows], layout)
            for n, head in enumerate((title, *found.heads[1:]))
            if layout.row_counts or head != ROW_COUNTS
        ]
        wide = sum(max(map(len, column)) for column in columns)
        if layout is LAYOUTS[-1] or 2 + wide + layout.gap * (len(columns) - 1) <= width():
            heads, *rows = zip(*columns, strict=True)
            numbers = [n for n, head in enumerate(heads) if n and head and head[0] != "d"]
            print_table(heads, rows, numbers=numbers, gap=layout.gap)
            return


def _column(head: str, cells: Sequence[str], layout: Layout) -> list[str]:
    """Head and cells, shortened in a narrow layout."""
    shown = SHORT_HEADS.get(head, head)
    if layout.gap < 3 and head == "your answers":
        shown = "yours"
    if layout.gap < 2 and head == ROW_COUNTS:
        shown = "+ / −"
    if head.startswith("difference") and not layout.differences:
        cells = [cell.partition("(")[2].removesuffix(")") for cell in cells]
    return [shown, *map(_label, cells)]


def _label(words: str) -> str:
    """A long name without its middle: names of a user's scores often differ only at the end."""
    half = (LABEL_COLUMNS - 1) // 2
    if len(words) <= LABEL_COLUMNS:
        return words
    return f"{words[: LABEL_COLUMNS - 1 - half]}…{words[-half:]}"


def _cut_note(answer: Answer) -> str:
    return "" if answer.stopped else f"(cut after {counted(answer.tokens, 'token')})"


def side_by_side(origin: str, prompt: str, answers: Mapping[str, tuple[str, str]]) -> str:
    """A prompt, and the answers in columns below it: title → text, and a note on its last line."""
    lines = [f"prompt  {origin}".rstrip()]
    prompt_lines = _wrapped(prompt, width() - 2)
    lines += [f"  {line}" for line in prompt_lines[:PROMPT_LINES]]
    if len(prompt_lines) > PROMPT_LINES:
        lines.append("  …")
    wide = (width() - 2 * len(answers)) // len(answers)
    cells = [_cell(text, note, wide - 1) for text, note in answers.values()]
    lines.append("  ".join(title.ljust(wide) for title in answers).rstrip())
    for row in zip_longest(*cells, fillvalue=""):
        lines.append("  ".join(part.ljust(wide) for part in row).rstrip())
    return "\n".join((*lines, ""))


def _cell(text: str, note: str, columns: int) -> list[str]:
    """The first lines of an answer."""
    lines = _wrapped(text.strip(), columns)
    if len(lines) > ANSWER_LINES:
        lines = [*lines[: ANSWER_LINES - 1], "…"]
    return [*lines, note] if note else lines or ["(empty)"]


def _wrapped(text: str, columns: int) -> list[str]:
    return [part for line in text.splitlines() for part in textwrap.wrap(line, columns) or [""]]
