"""Prepared rows, and statistics of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ftcli.console import Reporter
from ftcli.data.example import Origin
from ftcli.metrics.asking import question_of
from ftcli.metrics.dataset.answers import AnswerForm, answer_form
from ftcli.metrics.dataset.rows import (
    DataRow,
    contradictions,
    lengths,
    near_duplicates,
    shared_instruction,
)
from ftcli.metrics.format.made_databases import has_tables
from ftcli.prepared import SPLITS, Prepared, Split, read_turns, row_batches
from ftcli.recipe import AnswerFormat, Evaluation
from ftcli.stages.advice.record import Advice, Instruction

if TYPE_CHECKING:
    from ftcli.engine.rendering import Renderer

# Near duplicates are searched among so many rows: about 150 microseconds each.
COMPARED_ROWS = 20_000
# Of so many answers the share of a form is known to within a percent.
SAMPLED_ROWS = 4_000
INSTRUCTION_ROWS = 500  # of them show which words all prompts share
ROWS_BETWEEN_REPORTS = 1000


@dataclass(frozen=True)
class PreparedRows:
    """The task's rows of a data folder; replayed rows have a file of their own."""

    folder: Path
    prepared: Prepared

    def all(self, one_batch_in: int = 1) -> Iterator[DataRow]:
        """Training rows first; of large data perhaps one whole batch in so many.

        Rows of one batch stand together in the user's file, and so do most that are alike.
        """
        for split in SPLITS:
            yield from self.of(split, one_batch_in)

    def of(self, split: Split, one_batch_in: int = 1) -> Iterator[DataRow]:
        """The rows of one split."""
        if not self.prepared.counts(split).rows:
            return
        for number, batch in enumerate(row_batches(self.folder, split)):
            if number % one_batch_in == 0:
                yield from _rows(batch, held_out=split != "train")


def _rows(batch: Any, *, held_out: bool) -> Iterator[DataRow]:
    import pyarrow.compute as pc

    tokens = pc.list_value_length(batch.column("input_ids")).to_pylist()
    names = ("prompt_tokens", "messages", "file", "line")
    columns = (batch.column(name).to_pylist() for name in names)
    for length, prompt, turns, file, line in zip(tokens, *columns, strict=True):
        prompt = min(prompt, length)  # a row may be cut within its prompt
        yield DataRow(Origin(file, line), read_turns(turns), prompt, length - prompt, held_out)


def statistics_of(rows: PreparedRows, renderer: Renderer, reporter: Reporter) -> Advice:
    """Advice without a verdict; of plain texts only their number and lengths."""
    prepared, count = rows.prepared, rows.prepared.rows_accepted
    advice = Advice(fingerprint=prepared.fingerprint, rows=count, lengths=lengths(rows.all()))
    if prepared.plain_text:
        return advice
    one_batch_in = math.ceil(count / COMPARED_ROWS)
    step = math.ceil(count / one_batch_in / SAMPLED_ROWS)
    sample = list(islice(rows.all(one_batch_in), 0, None, step))
    learnt_from = sample[:: math.ceil(len(sample) / INSTRUCTION_ROWS)]
    compared = _metered("near duplicates", rows.all(one_batch_in), count // one_batch_in, reporter)
    return advice.model_copy(
        update={
            "near_duplicates": near_duplicates(compared, (row.prompt for row in learnt_from)),
            "format": _format(sample),
            "same_prompt_different_answers": contradictions(
                _metered("same prompts", rows.all(), count, reporter)
            ),
            "instruction": _instruction(sample, renderer),
        }
    )


def _metered(
    label: str, rows: Iterable[DataRow], count: int, reporter: Reporter
) -> Iterator[DataRow]:
    with reporter.meter(label, count) as meter:
        for number, row in enumerate(rows, 1):
            yield row
            if number % ROWS_BETWEEN_REPORTS == 0 and number < count:
                meter.update(number)


def _format(sample: Sequence[DataRow]) -> AnswerForm:
    """The form of the answers, with a block that the recipe accepts or none."""
    form = answer_form([row.answer for row in sample])
    if form.kind == "sql" and all(_has_tables(row) for row in sample):
        form = replace(form, eval_format={"type": "sql", "table": "prompt"})
    return form if read_format(form.eval_format) else replace(form, eval_format=None)


def _has_tables(row: DataRow) -> bool:
    return has_tables(question_of(row.messages, None).conversation)


def read_format(wanted: Mapping[str, Any] | None) -> AnswerFormat | None:
    """The value of `eval.format`; none where no recipe may ask for it."""
    try:
        return Evaluation.model_validate({"format": wanted}).format
    except ValidationError:
        return None


def _instruction(sample: Sequence[DataRow], renderer: Renderer) -> Instruction:
    """How much of the rows all of them share."""
    text = shared_instruction(sample)
    tokens = len(renderer.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else 0
    prompts = sum(row.prompt_tokens for row in sample)
    whole = prompts + sum(row.answer_tokens for row in sample)
    shared = tokens * len(sample)
    return Instruction(tokens, shared / max(prompts, 1), shared / max(whole, 1), text[:80])
