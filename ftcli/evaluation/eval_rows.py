"""The rows of an evaluation: how they are read, and which of them the run has seen."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcli.console import Reporter, counted
from ftcli.data.dataset import RowsOf, Split, damaged_files, read_turns, row_batches
from ftcli.data.example import Example, Origin
from ftcli.data.prompts import Turns
from ftcli.errors import DataError
from ftcli.shell import command
from ftcli.training.opening import OpenRun

if TYPE_CHECKING:
    pass

# Enough to show a format, and few enough for a context of 2,048 tokens.
SHOTS = 5


@dataclass(frozen=True)
class EvalOptions:
    """Which rows, which models, and what else is measured: the flags of `ftcli eval`."""

    data: Path | None = None
    """Rows instead of the held-out ones."""
    limit: int | None = None
    """The first so many rows only."""
    with_base: bool = True
    baseline_prompt: Path | None = None
    """An instruction: the base also answers with it and `shots` training rows before each row."""
    shots: int = SHOTS
    scores: Path | None = None
    """A Python file of the user's, whose functions are scores."""
    forgetting: bool = True
    general_text: Path | None = None
    """Text instead of the built-in one."""
    general_instructions: Path | None = None
    """Instructions instead of the built-in ones."""
    batch_size: int | None = None
    """Rows answered in one batch; None: as many as fill the machine."""

    @property
    def files(self) -> dict[str, Path]:
        """By the flag that names each."""
        files = {
            "data": self.data,
            "baseline_prompt": self.baseline_prompt,
            "scores": self.scores,
            "general-text": self.general_text,
            "general-instructions": self.general_instructions,
        }
        return {flag: file for flag, file in files.items() if file is not None}

    def flags(self, opened: OpenRun) -> Iterator[str]:
        """What is asked beyond a plain `ftcli eval RUN`; files without their folders."""
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
    """One row to be scored and, where it is a conversation, answered."""

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
        """What the model scores."""
        return {"input_ids": self.input_ids, "labels": self.labels}


def row_of(values: Mapping[str, Any]) -> Row:
    """A prepared row as it stands on disk."""
    return Row(**{**values, "messages": read_turns(values["messages"])})


def held_out(opened: OpenRun, data: Path | None) -> Split:
    """The test rows, or else the validation rows (which have chosen the checkpoint)."""
    if data is not None or opened.prepared.test.rows:
        return "test"
    if opened.prepared.validation.rows:
        return "validation"
    raise DataError(
        "data_empty",
        "the run held no rows out (data.test: 0, data.validation: 0); name some with --data FILE",
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
        raise DataError("data_empty", "holds no row to evaluate on", file=str(data or split))
    return rows[:limit]


def with_prompt(row: Row, prompt: Sequence[int]) -> Row:
    """The row's last answer after this prompt, of which nothing is scored."""
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
    """Contaminated rows, on which the tuned model looks better than it is; None: not known."""

    rows_trained_on: int | None
    """Their question is also that of a training row or a replayed one."""
    rows_in_validation: int | None
    """They chose the checkpoint."""

    def warn(self, data: str, rows: int, reporter: Reporter) -> None:
        """`data`: where the rows are from; validation rows are expected to have chosen it."""
        parts, of_rows = [], f"of {counted(rows, 'row')}"
        if self.rows_trained_on:
            parts.append(f"{self.rows_trained_on} {of_rows} ask what the run was trained on")
        if data != "validation" and self.rows_in_validation:
            parts.append(f"{self.rows_in_validation} {of_rows} chose its checkpoint")
        if parts:
            reporter.warn(
                f"{data}: {', '.join(parts)}: the tuned model looks better on them than it is; "
                "take rows that it never saw"
            )


def find_contaminated(
    opened: OpenRun, rows: Sequence[Row], split: Split | None, reporter: Reporter
) -> ContaminatedRows:
    """`split`: where the rows are from; None: a file.

    Both counts are None, with a warning, where a file of the run's rows is missing or damaged.
    """
    trained_on: int | None = 0
    in_validation: int | None = 0
    # Held-out rows ask nothing that any other row of the run asks, unless the recipe allowed it.
    if split is None or opened.prepared.overlap:
        digests = [question_digest(row.messages, row.input_ids) for row in rows]
        try:
            trained = _asked_in(opened, ("train", "replay"), set(digests))
            validated = _asked_in(opened, ("validation",), set(digests))
            trained_on = sum(digest in trained for digest in digests)
            in_validation = sum(digest in validated for digest in digests)
        except DataError as error:
            reporter.warn(f"whether these rows were trained on is not known: {error}")
            trained_on = in_validation = None
    return ContaminatedRows(trained_on, len(rows) if split == "validation" else in_validation)


def question_digest(turns: Turns, input_ids: Iterable[int]) -> bytes:
    """Equal for equal questions, whatever their system turns; of plain texts, for equal tokens."""
    if turns:
        return Example(turns, Origin("", 0)).question_digest()
    return hashlib.sha256(array("i", input_ids).tobytes()).digest()


def _asked_in(opened: OpenRun, splits: Iterable[RowsOf], wanted: set[bytes]) -> set[bytes]:
    """Which of the questions also stand in the run's rows, read row by row."""
    return {
        digest
        for split in splits
        if split in opened.prepared.row_files
        for turns, ids in stream_rows(opened, split)
        if (digest := question_digest(turns, () if turns else ids.as_py())) in wanted
    }


def require_undamaged(opened: OpenRun, split: RowsOf) -> None:
    """Raise DataError (`data_damaged`) where a file of rows differs from what was written."""
    for file, what in damaged_files(opened.prepared, opened.run.data, [split]).items():
        raise DataError(
            "data_damaged",
            f"{what}, so that it proves nothing; put it back, or write it again, while data and "
            f"model are as they were: {command('prepare', opened.run.path)}",
            file=str(file),
        )


def stream_turns(opened: OpenRun, split: RowsOf) -> Iterator[Turns]:
    """The turns of each row; raises DataError (`data_damaged`)."""
    return (turns for turns, _ in stream_rows(opened, split))


def stream_rows(opened: OpenRun, split: RowsOf) -> Iterator[tuple[Turns, Any]]:
    """The turns of each row and its token ids, an Arrow list, batch by batch.

    Raises DataError (`data_damaged`).
    """
    require_undamaged(opened, split)
    for batch in row_batches(opened.run.data, split):
        ids = batch.column("input_ids")
        for index, turns in enumerate(batch.column("messages").to_pylist()):
            yield read_turns(turns), ids[index]
