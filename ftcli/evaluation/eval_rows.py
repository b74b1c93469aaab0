"""The rows of an evaluation: reading them, and counting those that the run has seen."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ftcli.console import Reporter, counted
from ftcli.data.dataset import RowsOf, Split, damaged_files, read_turns, row_batches
from ftcli.data.example import Example, Origin
from ftcli.data.prompts import Turns
from ftcli.errors import DataError
from ftcli.shell import command
from ftcli.training.opening import OpenRun

# Enough to show a format, and few enough for a context of 2,048 tokens. Also of --try-prompting.
SHOTS = 5


@dataclass(frozen=True)
class EvalOptions:
    """Flags of `ftcli eval`."""

    data: Path | None = None
    """A file of rows; None: the held-out rows."""
    limit: int | None = None
    """Only the first rows, this many."""
    with_base: bool = True
    baseline_prompt: Path | None = None
    """A file with an instruction: the base also answers after it and `shots` training rows."""
    shots: int = SHOTS
    scores: Path | None = None
    """A Python file with the user's own scores."""
    forgetting: bool = True
    general_text: Path | None = None
    """None: the built-in text."""
    general_instructions: Path | None = None
    """None: the built-in instructions."""
    batch_size: int | None = None
    """None: as many as memory allows."""

    @property
    def files(self) -> dict[str, Path]:
        """Flag → file."""
        files = {
            "data": self.data,
            "baseline_prompt": self.baseline_prompt,
            "scores": self.scores,
            "general-text": self.general_text,
            "general-instructions": self.general_instructions,
        }
        return {flag: file for flag, file in files.items() if file is not None}

    def flags(self, opened: OpenRun) -> Iterator[str]:
        """How this differs from a plain `ftcli eval RUN`; files without their folders."""
        yield from (f"--{flag} {file.name}" for flag, file in self.files.items())
        if self.baseline_prompt is not None:
            yield f"--shots {self.shots}"
        if self.limit is not None:
            yield f"--limit {self.limit}"
        if not self.with_base:
            yield "--no-base"
        if not self.forgetting:
            yield "--no-forgetting"
        yield from (f"--set {override}" for override in opened.file.overrides)
        yield from (f"{section}: of the recipe" for section in opened.overrides)


@dataclass(frozen=True)
class Row:
    """A row to be scored and, if it is a conversation, answered."""

    input_ids: Sequence[int]
    labels: Sequence[int]
    prompt_tokens: int
    messages: Turns
    file: str
    line: int

    @property
    def prompt(self) -> Turns:
        """The turns before the last answer; empty for a plain text."""
        return self.messages[:-1]

    @property
    def scored(self) -> Mapping[str, Sequence[int]]:
        """The columns that the model scores."""
        return {"input_ids": self.input_ids, "labels": self.labels}


def row_of(values: Mapping[str, Any]) -> Row:
    """From the columns of a prepared row."""
    return Row(**{**values, "messages": read_turns(values["messages"])})


def held_out(opened: OpenRun, data: Path | None) -> Split:
    """The test rows, else the validation rows (which chose the checkpoint)."""
    if data is not None or opened.prepared.test.rows:
        return "test"
    if opened.prepared.validation.rows:
        return "validation"
    raise DataError(
        "data_empty",
        "the run has no held-out rows (data.test: 0, data.validation: 0); name a file with --data",
    )


def read_rows(
    opened: OpenRun, data: Path | None, split: Split, limit: int | None, reporter: Reporter
) -> tuple[Row, ...]:
    """The rows of a split, or of a file in the run's own format; raises DataError."""
    from ftcli.data.tokenizing.arrow_rows import read_split
    from ftcli.data.tokenizing.tokenize import encode_file
    from ftcli.models.prompt_manifest import verify_run

    if data is None:
        require_undamaged(opened, split)
        found: Iterable[Mapping[str, Any]] = read_split(opened.run.data, split).to_pylist()
    else:
        source = str(data.absolute())
        renderer = verify_run(opened.recipe, opened.run, opened.prepared).renderer
        system = opened.prepared.system
        found = encode_file(source, opened.recipe, renderer, system, reporter)
    rows = tuple(map(row_of, found))
    if opened.recipe.data.loss_on == "all":
        # Only the last answer is scored; a plain text has no prompt.
        rows = tuple(with_prompt(row, row.input_ids[: row.prompt_tokens]) for row in rows)
    if not rows:
        raise DataError("data_empty", "has no row to evaluate on", file=str(data or split))
    return rows[:limit]


def with_prompt(row: Row, prompt: Sequence[int]) -> Row:
    """The row's last answer after another prompt, whose tokens are not scored."""
    from ftcli.data.tokenizing.rendering import IGNORED

    start = row.prompt_tokens
    return replace(
        row,
        input_ids=[*prompt, *row.input_ids[start:]],
        labels=[IGNORED] * len(prompt) + list(row.labels[start:]),
        prompt_tokens=len(prompt),
    )


@dataclass(frozen=True)
class ContaminatedRows:
    """Rows that the run has seen, on which the tuned model looks too good; None: not known."""

    rows_trained_on: int | None
    """A training row or a replayed row asks the same question."""
    rows_in_validation: int | None
    """They chose the checkpoint."""

    def warn(self, data: str, rows: int, reporter: Reporter) -> None:
        """`data`: where the rows are from."""
        parts, of_rows = [], f"of {counted(rows, 'row')}"
        if self.rows_trained_on:
            parts.append(f"{self.rows_trained_on} {of_rows} ask what the run was trained on")
        if data != "validation" and self.rows_in_validation:
            parts.append(f"{self.rows_in_validation} {of_rows} chose its checkpoint")
        if parts:
            reporter.warn(
                f"{data}: {', '.join(parts)}: the tuned model looks better on them than it is; "
                "take rows that it has not seen"
            )


def find_contaminated(
    opened: OpenRun, rows: Sequence[Row], split: Split | None, reporter: Reporter
) -> ContaminatedRows:
    """`split`: where the rows are from; None: a file.

    If the run's rows are missing or damaged, both counts are None, with a warning.
    """
    trained_on: int | None = 0
    in_validation: int | None = 0
    # A run's splits share no question unless the recipe allowed overlap.
    if split is None or opened.prepared.overlap:
        digests = [question_digest(row.messages, row.input_ids) for row in rows]
        try:
            trained = _questions_in(opened, ("train", "replay"), set(digests))
            validated = _questions_in(opened, ("validation",), set(digests))
            trained_on = sum(digest in trained for digest in digests)
            in_validation = sum(digest in validated for digest in digests)
        except DataError as error:
            reporter.warn(f"whether these rows were trained on is not known: {error}")
            trained_on = in_validation = None
    return ContaminatedRows(trained_on, len(rows) if split == "validation" else in_validation)


def question_digest(turns: Turns, input_ids: Iterable[int]) -> bytes:
    """Equal for equal questions without their system turns; for plain texts, for equal tokens."""
    if turns:
        return Example(turns, Origin("", 0)).question_digest()
    return hashlib.sha256(array("i", input_ids).tobytes()).digest()


def _questions_in(opened: OpenRun, splits: Iterable[RowsOf], wanted: set[bytes]) -> set[bytes]:
    """The wanted question digests that rows of these splits have."""
    return {
        digest
        for split in splits
        if split in opened.prepared.row_files
        for turns, ids in stream_rows(opened, split)
        if (digest := question_digest(turns, () if turns else ids.as_py())) in wanted
    }


def require_undamaged(opened: OpenRun, split: RowsOf) -> None:
    """Raise DataError (`data_damaged`) if a file of rows differs from what was written."""
    for file, what in damaged_files(opened.prepared, opened.run.data, [split]).items():
        raise DataError(
            "data_damaged",
            f"{what}; restore it, or write it again with the same data and model: "
            f"{command('prepare', opened.run.path)}",
            file=str(file),
        )


def stream_turns(opened: OpenRun, split: RowsOf) -> Iterator[Turns]:
    """Turns of each row; raises DataError (`data_damaged`)."""
    return (turns for turns, _ in stream_rows(opened, split))


def stream_rows(opened: OpenRun, split: RowsOf) -> Iterator[tuple[Turns, Any]]:
    """Turns and token ids (an Arrow list) of each row, batch by batch.

    Raises DataError (`data_damaged`).
    """
    require_undamaged(opened, split)
    for batch in row_batches(opened.run.data, split):
        ids = batch.column("input_ids")
        for index, turns in enumerate(batch.column("messages").to_pylist()):
            yield read_turns(turns), ids[index]
