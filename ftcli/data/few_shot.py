"""Conversations with examples in the prompt: what a base model is given instead of a training."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterable, Sequence

from ftcli.data.example import Message

Turns = tuple[Message, ...]


def few_shot(
    messages: Sequence[Message], instruction: str | None, examples: Sequence[Turns]
) -> list[Message]:
    """The turns that wait for an answer, behind whole example conversations.

    The instruction is the system turn, before the row's own system prompt where it has another.
    An example whose question is the asked one is left out; its system prompt stands in its first
    user turn where it is not the row's.
    """
    system, asked = _parted(messages)
    texts = [text.strip() for text in (instruction, system) if text is not None]
    # A row that is asked with an empty system turn keeps the template's default away.
    given = "\n\n".join(dict.fromkeys(text for text in texts if text)) if texts else None
    opening = [] if given is None else [Message("system", given)]
    shown = [turn for example in examples for turn in _shown(example, system, asked)]
    return [*opening, *shown, *asked]


def without_system(messages: Sequence[Message]) -> list[Message]:
    """The same words for templates that take no system turn: in the first user turn."""
    system, turns = _parted(messages)
    return _below(system, turns)


def choose_examples(rows: Iterable[Sequence[Message]], k: int, seed: int) -> list[Turns]:
    """`k` of the rows, or all where there are fewer, by a hash of their content with the seed.

    The same rows in another order give the same examples; only `k` of them are held in memory.
    """
    chosen: dict[bytes, Turns] = {}  # by rank: rows that are equal count once
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


def _parted(messages: Sequence[Message]) -> tuple[str | None, list[Message]]:
    """The system prompt, and the turns behind it."""
    turns = list(messages)
    if turns and turns[0].role == "system":
        return turns[0].content, turns[1:]
    return None, turns


def _shown(example: Turns, system: str | None, asked: list[Message]) -> list[Message]:
    own, turns = _parted(example)
    if turns[:-1] == asked and own in (None, system):
        return []
    return turns if own == system else _below(own, turns)


def _below(system: str | None, turns: list[Message]) -> list[Message]:
    """The turns, with a system prompt at the beginning of the first one."""
    if not system or not turns:
        return turns
    first = Message(turns[0].role, f"{system}\n\n{turns[0].content}")
    return [first, *turns[1:]]
