"""Rows to be answered: the training's formats without their answers."""

from __future__ import annotations

import hashlib
import heapq
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from ftcli.config.recipe import Data
from ftcli.data.example import Message, Origin, RejectedRow, Row
from ftcli.data.formats import CONVERSATION_COLUMNS, PAIRS
from ftcli.data.json_rows import lines_of
from ftcli.data.sources import read_file, read_rows, read_rows_as_examples
from ftcli.data.table_rows import bad_byte
from ftcli.errors import DataError
from ftcli.shell import shown_source

# Put in the place of the answer, so that the training's readers accept the row.
PLACEHOLDER = "…"

Turns = tuple[Message, ...]


def read_prompt_rows(source: str) -> Iterator[Row | RejectedRow]:
    """Records of a data file, or the lines of a text file as column `prompt`."""
    if not _is_text(source):
        return read_rows(source)
    if not Path(source).is_file():
        raise DataError("data_missing", "no such file", file=source)
    return read_file(Path(source), _read_text, shown_source(source))


def to_prompts(
    rows: Iterable[Row], data: Data, source: str
) -> Iterator[tuple[Message, ...] | RejectedRow]:
    """The turns before the answer of each row, in the training's format."""
    if _is_text(source):
        data = data.model_copy(update={"format": "pairs", "prompt": None, "completion": None})
    elif data.prompt is not None and data.completion is not None:
        data = data.model_copy(update={"completion": PLACEHOLDER})
    for item in read_rows_as_examples((_with_placeholder(row, data) for row in rows), data):
        yield item if isinstance(item, RejectedRow) else item.prompt


def _is_text(source: str) -> bool:
    return source.removesuffix(".gz").endswith(".txt")


def _read_text(stream: BinaryIO, file: str) -> Iterator[Row | RejectedRow]:
    """One prompt per line; blank lines are skipped."""
    with io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines_of(lines, file), 1):
            origin, prompt = Origin(file, number), line.rstrip("\n")
            bad = bad_byte([prompt])
            if bad:
                yield RejectedRow(origin, bad)
            elif prompt.strip():
                yield Row(origin, {"prompt": prompt})


def _with_placeholder(row: Row, data: Data) -> Row:
    """The row with a placeholder as its answer, whether it has one or not."""
    fields = dict(row.fields)
    if data.prompt is not None and data.completion is not None:
        return Row(row.origin, fields | {PLACEHOLDER: PLACEHOLDER})
    for column in CONVERSATION_COLUMNS:
        turns = fields.get(column)
        if isinstance(turns, list) and turns:
            fields[column] = _open_turns(turns)
            return Row(row.origin, fields)
    if "instruction" in fields and data.format in ("auto", "alpaca"):
        return Row(row.origin, fields | {"output": PLACEHOLDER})
    for question, answer in PAIRS:
        if question in fields:
            return Row(row.origin, fields | {answer: PLACEHOLDER})
    return Row(row.origin, fields)


def _open_turns(turns: list[object]) -> list[object]:
    """The turns up to the last question, and a placeholder as its answer."""
    last = turns[-1]
    if not isinstance(last, dict):
        return turns
    role, content = ("from", "value") if "from" in last else ("role", "content")
    kept = turns[:-1] if last.get(role) in ("assistant", "gpt") else turns
    return [*kept, {role: "gpt" if role == "from" else "assistant", content: PLACEHOLDER}]


# Few-shot prompts, to compare the base with the tuned model


def few_shot(
    messages: Sequence[Message], instruction: str | None, examples: Sequence[Turns]
) -> list[Message]:
    """The row's prompt after whole example conversations.

    The system turn is the instruction, followed by the row's own system prompt if it differs. An
    example with the row's question is left out. If an example's system prompt is not the row's, it
    opens the example's first user turn.
    """
    system, asked = _split_system(messages)
    texts = [text.strip() for text in (instruction, system) if text is not None]
    # An empty system turn keeps the template's default away.
    given = "\n\n".join(dict.fromkeys(text for text in texts if text)) if texts else None
    opening = [] if given is None else [Message("system", given)]
    shown = [turn for example in examples for turn in _example_turns(example, system, asked)]
    return [*opening, *shown, *asked]


def without_system(messages: Sequence[Message]) -> list[Message]:
    """The system prompt in the first user turn, for templates without a system turn."""
    system, turns = _split_system(messages)
    return _in_first_turn(system, turns)


def choose_examples(rows: Iterable[Sequence[Message]], k: int, seed: int) -> list[Turns]:
    """`k` of the rows, or all if there are fewer, by a hash of their content with the seed.

    The order of the rows does not matter; few of them are kept in memory.
    """
    chosen: dict[bytes, Turns] = {}  # by rank: equal rows count once
    for row in rows:
        turns = tuple(row)
        if turns:
            chosen[_rank(turns, seed)] = turns
        if len(chosen) > 2 * k + 100:
            chosen = _smallest(chosen, k)
    return list(_smallest(chosen, k).values())


def _smallest(chosen: dict[bytes, Turns], k: int) -> dict[bytes, Turns]:
    return {rank: chosen[rank] for rank in heapq.nsmallest(k, chosen)}


def _rank(turns: Turns, seed: int) -> bytes:
    content = json.dumps([seed, *([turn.role, turn.content] for turn in turns)])
    return hashlib.sha256(content.encode()).digest()


def _split_system(messages: Sequence[Message]) -> tuple[str | None, list[Message]]:
    """The system prompt, if any, and the turns after it."""
    turns = list(messages)
    if turns and turns[0].role == "system":
        return turns[0].content, turns[1:]
    return None, turns


def _example_turns(example: Turns, system: str | None, asked: list[Message]) -> list[Message]:
    own, turns = _split_system(example)
    if turns[:-1] == asked and own in (None, system):
        return []
    return turns if own == system else _in_first_turn(own, turns)


def _in_first_turn(system: str | None, turns: list[Message]) -> list[Message]:
    """The turns, the first one opened by the system prompt."""
    if not system or not turns:
        return turns
    first = Message(turns[0].role, f"{system}\n\n{turns[0].content}")
    return [first, *turns[1:]]
