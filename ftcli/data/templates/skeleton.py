"""What a chat template writes around the contents of a conversation, where it never looks at them.

Found once for each order of roles (`marked.py`); rows with these roles are then written without the
template, in about an eighth of the time, and it is known where in the text their contents stand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ftcli.data.example import Message
from ftcli.data.templates.marked import BEGIN, END, MarkedTemplate, mark

MARKS = re.compile(f"{BEGIN}([0-9]+){END}")
# Orders of roles that are kept; those of longer conversations are many.
MOST_KEPT = 256

Roles = tuple[str, ...]


@dataclass(frozen=True)
class Extent:
    """The length of a text that begins a conversation."""

    own: int
    """Characters that the template writes."""
    contents: tuple[int, ...]
    """Numbers of the contents that stand between them."""

    def of(self, contents: Sequence[str]) -> int:
        """Characters, with these contents."""
        return self.own + sum(len(contents[number]) for number in self.contents)


@dataclass(frozen=True)
class Skeleton:
    """The text of a conversation without its contents."""

    pieces: tuple[str | int, ...]
    """The template's own texts, and the numbers of the contents between them."""
    answers: tuple[tuple[Extent, Extent], ...]
    """Of each answer that is trained on: its prompt in use, and what ends with its content."""
    strips: bool
    """White space at the borders of a content would be gone."""

    def takes(self, contents: Sequence[str]) -> bool:
        """Whether the template would write these contents as any others."""
        if self.strips:
            return all(content and content == content.strip() for content in contents)
        return all(contents)

    def text(self, contents: Sequence[str]) -> str:
        """The conversation with these contents."""
        return "".join([contents[p] if isinstance(p, int) else p for p in self.pieces])

    def places(self, contents: Sequence[str]) -> Iterator[tuple[int, int]]:
        """Where each answer begins in `text` and where its content ends."""
        return ((prompt.of(contents), whole.of(contents)) for prompt, whole in self.answers)


@dataclass(frozen=True)
class Skeletons:
    """Skeletons of a template, made when they are first asked for."""

    template: str
    variables: Mapping[str, object]
    """What it is given besides the turns."""
    last_only: bool
    """Only the last answer is trained on."""
    _kept: dict[Roles, Skeleton | None] = field(init=False, default_factory=dict)

    def of(self, messages: Sequence[Message]) -> Skeleton | None:
        """That of a conversation that ends with an answer; None where its template has to write it,
        or writes a prompt otherwise in training than in use."""
        roles = tuple(message.role for message in messages)
        if roles not in self._kept:
            if len(self._kept) == MOST_KEPT:
                return None
            self._kept[roles] = self._made(roles)
        found = self._kept[roles]
        takes = found is not None and found.takes([message.content for message in messages])
        return found if takes else None

    def _made(self, roles: Roles) -> Skeleton | None:
        whole = self._written(roles, generation_prompt=False)
        places = [place for place, role in enumerate(roles) if role == "assistant"]
        if whole is None or not places:
            return None
        answers = []
        for place in places[-1:] if self.last_only else places:
            prompt = self._written(roles[:place], generation_prompt=True)
            before, found, behind = whole.partition(mark(place))
            if prompt is None or not found or found in behind or not before.startswith(prompt):
                return None
            answers.append((_extent(prompt), _extent(before + found)))
        return Skeleton(_pieces(whole), tuple(answers), self._marked.strips)

    def _written(self, roles: Roles, *, generation_prompt: bool) -> str | None:
        if not roles:
            return None
        turns = [{"role": role, "content": mark(place)} for place, role in enumerate(roles)]
        given: dict[str, Any] = {"messages": turns, "add_generation_prompt": generation_prompt}
        return self._marked.render({**self.variables, **given})

    @cached_property
    def _marked(self) -> MarkedTemplate:
        return MarkedTemplate(self.template)


def _pieces(marked: str) -> tuple[str | int, ...]:
    """Texts and numbers in turn, without empty texts."""
    parts = MARKS.split(marked)
    return tuple(int(p) if odd % 2 else p for odd, p in enumerate(parts) if odd % 2 or p)


def _extent(marked: str) -> Extent:
    pieces = _pieces(marked)
    numbers = tuple(piece for piece in pieces if isinstance(piece, int))
    return Extent(sum(len(piece) for piece in pieces if isinstance(piece, str)), numbers)
