"""The sets of rows that an evaluation runs its models through, as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ftcli.config.recipe import Generation
from ftcli.console import Reporter
from ftcli.data.few_shot import choose_examples, few_shot
from ftcli.errors import DataError, UsageError
from ftcli.evaluation.asked import Asked
from ftcli.evaluation.general_instructions import Instruction, general_instructions
from ftcli.evaluation.general_text import general_text, read_text
from ftcli.evaluation.rows import Row, row_of, stream_turns
from ftcli.evaluation.work import RowSet
from ftcli.training.opening import OpenRun

if TYPE_CHECKING:
    from ftcli.models.prompt_manifest import PromptFormat

# Enough for what the built-in instructions ask for; who rambles on has not stopped.
INSTRUCTION_TOKENS = 96
GREEDY = Generation(max_new_tokens=INSTRUCTION_TOKENS)


@dataclass(frozen=True)
class Sets:
    """Everything that is to be scored and answered."""

    rows: RowSet
    prompted: RowSet | None = None
    """The same rows behind an instruction and examples."""
    text: RowSet | None = None
    text_name: str | None = None
    instructions: RowSet | None = None
    checks: tuple[Instruction, ...] = ()
    """One for each row of `instructions`."""


def build_sets(
    opened: OpenRun,
    asked: Asked,
    rows: tuple[Row, ...],
    contract: PromptFormat,
    reporter: Reporter,
) -> Sets:
    """Tokenise every prompt; raises DataError where one does not fit into the model's context."""
    from ftcli.memory.phases import ANSWERED_ROWS

    at_once = asked.rows_at_once or ANSWERED_ROWS
    plain = opened.prepared.plain_text
    prompt_ids = contract.renderer.prompt_ids
    prompts = [] if plain else [prompt_ids(list(row.prompt)) for row in rows]
    held_out = RowSet("rows", rows, prompts, opened.loaded.recipe.generation, at_once)
    sets = Sets(held_out)
    if not asked.with_base:
        return sets
    if asked.prompted is not None:
        instruction = _read_instruction(asked.prompted)
        prompted = _prompted(opened, instruction, asked.shots, held_out, contract)
        sets = replace(sets, prompted=prompted)
    if asked.forgetting:
        general = general_text(asked.general_text)
        text = _text_set(contract, general.passages, general.name)
        sets = replace(sets, text=text, text_name=general.name)
    if asked.forgetting and not plain:
        wanted = general_instructions(asked.general_instructions, opened.loaded.base)
        instructions, checks = _instruction_set(contract, wanted, reporter)
        sets = replace(sets, instructions=instructions, checks=checks)
    return sets


def _prompted(
    opened: OpenRun, instruction: str, shots: int, plain: RowSet, contract: PromptFormat
) -> RowSet:
    """The rows as somebody would ask them who does not tune: with an instruction and examples."""
    from ftcli.data.tokenizing.rendering import RowFault
    from ftcli.inference.untrained import ids_of

    if not plain.prompts:
        raise UsageError(
            "flag", "--prompted: the run was trained on plain texts, which nobody prompts"
        )
    seed = opened.loaded.recipe.training.seed
    examples = choose_examples(stream_turns(opened, "train"), shots, seed)
    asked_of_base = [few_shot(row.prompt, instruction, examples) for row in plain.rows]
    try:
        prompts = [ids_of(contract.renderer, turns) for turns in asked_of_base]
    except RowFault as fault:
        raise DataError(
            "prompted",
            f"--prompted: instruction and {shots} examples cannot be rendered: {fault}; try "
            "--shots 0",
        ) from fault
    rows = tuple(_behind(*pair) for pair in zip(plain.rows, prompts, strict=True))
    advice = "take fewer --shots or a shorter instruction"
    return replace(plain, label="rows, prompted", rows=rows, prompts=prompts, advice=advice)


def _read_instruction(file: Path) -> str:
    text = read_text(file).strip()
    if not text:
        raise DataError("data_empty", "holds no instruction", file=str(file))
    return text


def _behind(row: Row, prompt: Sequence[int]) -> Row:
    """The row's answer behind another prompt."""
    from ftcli.data.tokenizing.rendering import IGNORED

    answer, labels = row.input_ids[row.prompt_tokens :], row.labels[row.prompt_tokens :]
    ids = [*prompt, *answer]
    # Nothing of a prompt is scored, whatever the recipe trains on.
    return replace(
        row, input_ids=ids, labels=[IGNORED] * len(prompt) + list(labels), prompt_tokens=len(prompt)
    )


def _text_set(contract: PromptFormat, passages: Sequence[str], name: str) -> RowSet:
    """Passages, long ones in pieces; `line` is the number of the passage."""
    from ftcli.data.tokenizing.plain_text import passage_rows

    rows = tuple(
        Row(row["input_ids"], row["labels"], 0, (), name, number)
        for number, passage in enumerate(passages, start=1)
        for row in passage_rows(contract.renderer, [passage])
    )
    return RowSet("general text", rows, (), GREEDY, 1)


def _instruction_set(
    contract: PromptFormat, wanted: Sequence[Instruction], reporter: Reporter
) -> tuple[RowSet | None, tuple[Instruction, ...]]:
    """Instructions that the template can render: one that demands a system turn takes none."""
    from ftcli.data.tokenizing.rendering import RowFault
    from ftcli.data.tokenizing.rows import record
    from ftcli.memory.phases import ANSWERED_ROWS

    rows, kept, reason = [], [], ""
    for each in wanted:
        try:
            rows.append(row_of(record(contract.renderer.encode(each.example), each.example)))
            kept.append(each)
        except RowFault as fault:
            reason = str(fault)
    if len(kept) < len(wanted):
        reporter.warn(f"{len(wanted) - len(kept)} general instructions are left out: {reason}")
    if not rows:
        return None, ()
    prompts = [row.input_ids[: row.prompt_tokens] for row in rows]
    return RowSet("instructions", tuple(rows), prompts, GREEDY, ANSWERED_ROWS), tuple(kept)
