"""What the prepared rows are like, as advice.json holds it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pydantic import ValidationError

from ftcli.console import Reporter
from ftcli.metrics.asking import question_of
from ftcli.metrics.dataset.answers import AnswerForm, answer_form
from ftcli.metrics.dataset.contradictions import Contradictions, SamePrompts
from ftcli.metrics.dataset.instruction import shared_instruction
from ftcli.metrics.dataset.lengths import Lengths
from ftcli.metrics.dataset.row import DataRow
from ftcli.metrics.dataset.twins import NearDuplicates, Pair, Twins
from ftcli.metrics.format.made_databases import has_tables
from ftcli.recipe import AnswerFormat, Evaluation
from ftcli.stages.advice.rows import PreparedRows

Statistics = Mapping[str, Any]
CountTokens = Callable[[str], int]

# Near duplicates are looked for among so many rows: about 200 microseconds each.
COMPARED_ROWS = 20_000
# Answers whose form is looked at: a share is known to within a percent.
SAMPLED_ROWS = 4_000
ROWS_BETWEEN_REPORTS = 1000


def statistics_of(rows: PreparedRows, count_tokens: CountTokens, reporter: Reporter) -> Statistics:
    """Two passes over the rows: a few to learn from, then all of them.

    `count_tokens` says how long the instruction is that all prompts share.
    """
    one_batch_in = math.ceil(rows.count / COMPARED_ROWS)
    if rows.prepared.plain_text:
        return _of_plain_texts(rows)
    sample = _sampled(rows, one_batch_in)
    lengths, prompts, twins = Lengths(), SamePrompts(), Twins(row.prompt for row in sample)
    with reporter.meter("advice", rows.count) as meter:
        for number, row in enumerate(rows.all(), 1):
            lengths.add(row)
            prompts.add(row)
            if one_batch_in == 1:
                twins.add(row)
            if number % ROWS_BETWEEN_REPORTS == 0 and number < rows.count:
                meter.update(number)
        if one_batch_in > 1:
            _add_all(twins, rows.all(one_batch_in))
    profile = lengths.found()
    return {
        "rows": rows.count,
        "near_duplicates": _near_duplicates(twins.found()),
        "format": _format(sample),
        "same_prompt_different_answers": _contradictions(prompts.found()),
        "lengths": asdict(profile) if profile else None,
        "instruction": _instruction(sample, count_tokens),
    }


def _of_plain_texts(rows: PreparedRows) -> Statistics:
    """They have neither prompts nor answers: only lengths are told of them."""
    lengths = Lengths()
    for row in rows.all():
        lengths.add(row)
    profile = lengths.found()
    return {
        "rows": rows.count,
        "near_duplicates": None,
        "format": None,
        "same_prompt_different_answers": None,
        "lengths": asdict(profile) if profile else None,
        "instruction": None,
    }


def _sampled(rows: PreparedRows, one_batch_in: int) -> list[DataRow]:
    step = math.ceil(rows.count / one_batch_in / SAMPLED_ROWS)
    return [row for place, row in enumerate(rows.all(one_batch_in)) if place % step == 0]


def _add_all(twins: Twins, rows: Iterable[DataRow]) -> None:
    for row in rows:
        twins.add(row)


def _near_duplicates(found: NearDuplicates) -> dict[str, Any]:
    return {
        "share": found.share,
        "rows": found.rows,
        "rows_looked_at": found.rows_looked_at,
        "pairs_shown": _pairs(found.shown),
        "held_out": {
            "rows": found.held_out_rows,
            "rows_looked_at": found.held_out_looked_at,
            "pairs_shown": _pairs(found.held_out_shown),
        },
        "disagreeing": found.disagreeing,
    }


def _pairs(pairs: Iterable[Pair]) -> list[list[str | float]]:
    return [[str(p.first), str(p.second), round(p.similarity, 3)] for p in pairs]


def _format(sample: Sequence[DataRow]) -> dict[str, Any]:
    form = answer_form([row.answer for row in sample])
    asked = _asked_format(form, sample)
    return {
        "kind": form.kind,
        "share": form.share,
        "detail": form.detail,
        "fixed": form.is_fixed,
        "rows_looked_at": len(sample),
        "eval_format": asked,
        "opening": asdict(form.opening) if form.opening is not None else None,
    }


def _asked_format(form: AnswerForm, sample: Sequence[DataRow]) -> dict[str, Any] | None:
    """As the recipe would write it; queries run on the tables that their prompts describe."""
    if form.wanted is None:
        return None
    wanted = dict(form.wanted)
    if form.kind == "sql" and all(_declares_tables(row) for row in sample):
        wanted["table"] = "prompt"
    return wanted if read_format(wanted) is not None else None


def _declares_tables(row: DataRow) -> bool:
    """Whether the judge of queries will find tables in this row."""
    return has_tables(question_of(row.messages, None).conversation)


def read_format(wanted: Mapping[str, Any] | None) -> AnswerFormat | None:
    """The value of `eval.format`; none where no recipe may ask for it."""
    try:
        return Evaluation.model_validate({"format": wanted}).format
    except ValidationError:
        return None


def _contradictions(found: Contradictions) -> dict[str, Any]:
    shown = [[str(origin) for origin in group] for group in found.shown]
    return {"prompts": found.prompts, "rows": found.rows, "shown": shown}


def _instruction(sample: Sequence[DataRow], count_tokens: CountTokens) -> dict[str, Any]:
    """How much of what the rows are made of is the same in all of them."""
    found = shared_instruction([row.system for row in sample], [row.question for row in sample])
    tokens = count_tokens(found.text) if found.text else 0
    prompts = sum(row.prompt_tokens for row in sample)
    whole = prompts + sum(row.answer_tokens for row in sample)
    rows = len(sample)
    return {
        "tokens": tokens,
        "share_of_prompts": tokens * rows / max(prompts, 1),
        "share_of_rows": tokens * rows / max(whole, 1),
        "begins": found.text[:80],
    }
