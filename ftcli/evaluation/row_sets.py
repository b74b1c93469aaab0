"""The sets of rows of an evaluation: held out, prompted, general text, general instructions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from ftcli.config.recipe import Generation
from ftcli.console import Reporter, counted
from ftcli.data.prompts import choose_examples, few_shot
from ftcli.errors import DataError, UsageError
from ftcli.evaluation.eval_rows import EvalOptions, Row, row_of, stream_turns, with_prompt
from ftcli.evaluation.general_ability import (
    Instruction,
    general_instructions,
    general_text,
    read_text,
)
from ftcli.training.opening import OpenRun

if TYPE_CHECKING:
    from ftcli.data.tokenizing.rendering import Renderer
    from ftcli.models.prompt_manifest import PromptFormat

# Built-in instructions need no longer answers.
GREEDY = Generation(max_new_tokens=96)
# Longer passages are cut, to bound memory.
MAX_TOKENS = 1024


@dataclass(frozen=True)
class RowSet:
    """Rows to score and, if they have prompts, to answer."""

    label: str
    """Shown by the progress bar."""
    rows: tuple[Row, ...]
    prompts: Sequence[Sequence[int]]
    """Token ids of each row's prompt; empty: rows are only scored."""
    settings: Generation
    batch_size: int
    too_long: str | None = None
    """Advice if prompt and answer exceed the model's context; None: not checked."""

    @property
    def tokens(self) -> int:
        """Scored tokens plus the most that can be generated."""
        scored = sum(len(row.input_ids) for row in self.rows)
        return scored + len(self.prompts) * self.settings.max_new_tokens

    @cached_property
    def digest(self) -> str:
        """16 hex digits of all token ids."""
        found = hashlib.sha256()
        for row in self.rows:
            found.update(json.dumps([list(row.input_ids), list(row.labels)]).encode())
        found.update(json.dumps([list(prompt) for prompt in self.prompts]).encode())
        return found.hexdigest()[:16]


@dataclass(frozen=True)
class RowSets:
    """All sets of one evaluation."""

    rows: RowSet
    prompted: RowSet | None = None
    """The same rows after an instruction and examples."""
    text: RowSet | None = None
    text_name: str | None = None
    instructions: RowSet | None = None
    checks: tuple[Instruction, ...] = ()
    """Of each row of `instructions`."""


def build_sets(
    opened: OpenRun,
    options: EvalOptions,
    rows: tuple[Row, ...],
    prompt_format: PromptFormat,
    reporter: Reporter,
) -> RowSets:
    """Tokenise every prompt; raises DataError."""
    from ftcli.memory.step import ANSWERED_ROWS

    batch_size = options.batch_size or ANSWERED_ROWS
    plain = opened.prepared.plain_text
    prompt_ids = prompt_format.renderer.prompt_ids
    prompts = [] if plain else [prompt_ids(list(row.prompt)) for row in rows]
    held_out = RowSet("rows", rows, prompts, opened.recipe.generation, batch_size)
    sets = RowSets(held_out)
    if not options.with_base:
        return sets
    if options.baseline_prompt is not None:
        sets = replace(sets, prompted=_prompted(opened, options, held_out, prompt_format))
    if options.forgetting:
        name, passages = general_text(options.general_text)
        sets = replace(sets, text=_text_set(prompt_format, passages, name), text_name=name)
    if options.forgetting and not plain:
        wanted = general_instructions(options.general_instructions)
        instructions, checks = _instruction_set(prompt_format, wanted, reporter)
        sets = replace(sets, instructions=instructions, checks=checks)
    return sets


def _prompted(
    opened: OpenRun, options: EvalOptions, plain: RowSet, prompt_format: PromptFormat
) -> RowSet:
    """The rows after an instruction and examples: the alternative to fine-tuning."""
    from ftcli.data.example import RowError
    from ftcli.inference.open_model import ids_of

    assert options.baseline_prompt is not None
    instruction = read_text(options.baseline_prompt).strip()
    if not instruction:
        raise DataError("data_empty", "has no instruction", file=str(options.baseline_prompt))
    if not plain.prompts:
        raise UsageError(
            "flag", "--baseline-prompt: the run was trained on plain texts, which have no prompts"
        )
    seed = opened.recipe.training.seed
    examples = choose_examples(stream_turns(opened, "train"), options.shots, seed)
    conversations = [few_shot(row.prompt, instruction, examples) for row in plain.rows]
    try:
        prompts = [ids_of(prompt_format.renderer, turns) for turns in conversations]
    except RowError as fault:
        raise DataError(
            "prompted",
            f"--baseline-prompt: instruction and {counted(options.shots, 'example')} cannot be "
            f"rendered: {fault}; try --shots 0",
        ) from fault
    rows = tuple(with_prompt(*pair) for pair in zip(plain.rows, prompts, strict=True))
    return replace(
        plain,
        label="rows, prompted",
        rows=rows,
        prompts=prompts,
        too_long="take fewer --shots or a shorter instruction",
    )


def _text_set(prompt_format: PromptFormat, passages: Sequence[str], name: str) -> RowSet:
    """Long passages in pieces; a row's `line` is the number of its passage."""
    rows = tuple(
        Row(row["input_ids"], row["labels"], 0, (), name, number)
        for number, passage in enumerate(passages, start=1)
        for row in passage_rows(prompt_format.renderer, passage)
    )
    return RowSet("general text", rows, (), GREEDY, 1)


def _instruction_set(
    prompt_format: PromptFormat, wanted: Sequence[Instruction], reporter: Reporter
) -> tuple[RowSet | None, tuple[Instruction, ...]]:
    """The instructions that the template accepts: it may require a system turn."""
    from ftcli.data.example import RowError
    from ftcli.data.tokenizing.arrow_rows import record
    from ftcli.memory.step import ANSWERED_ROWS

    rows, kept, reason = [], [], ""
    for each in wanted:
        try:
            rows.append(row_of(record(prompt_format.renderer.encode(each.example), each.example)))
            kept.append(each)
        except RowError as fault:
            reason = str(fault)
    if len(kept) < len(wanted):
        left_out = counted(
            len(wanted) - len(kept), "general instruction is", "general instructions are"
        )
        reporter.warn(f"{left_out} left out: {reason}")
    if not rows:
        return None, ()
    prompts = [row.input_ids[: row.prompt_tokens] for row in rows]
    return RowSet("instructions", tuple(rows), prompts, GREEDY, ANSWERED_ROWS), tuple(kept)


def passage_rows(renderer: Renderer, passage: str) -> Iterator[dict[str, list[int]]]:
    """input_ids and labels of a passage, in pieces of at most MAX_TOKENS.

    Without an end token: a training changes where texts end, which is no loss of general ability.
    """
    from ftcli.data.tokenizing.rendering import IGNORED

    ids = renderer.text_prompt_ids(passage)
    for start in range(0, len(ids), MAX_TOKENS):
        piece = list(ids[start : start + MAX_TOKENS])
        if len(piece) > 1:
            yield {"input_ids": piece, "labels": [IGNORED, *piece[1:]]}
