"""Render a chat template, and find the answers and injected control tokens in its text.

A conversation is rendered as a whole, because encoding it piece by piece changes ids at the seams.
The position of a content in the text is found by rendering again with a placeholder in its place.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import cast

from jinja2.exceptions import TemplateError, TemplateSyntaxError
from transformers.utils.chat_template_utils import render_jinja_template

from ftcli.data.example import Message

# Private-use characters: no template tests for them, and no real text contains this string.
PLACEHOLDER = "\ue000ftcli\ue001"
# Characters of one text; a context of a million tokens has 5 million.
LARGEST = 50_000_000
# Characters of the template itself; templates of models have up to 50,000.
LONGEST_TEMPLATE = 1_000_000

# Exceptions that a template may raise: Jinja's, and those of the Python below.
TEMPLATE_FAULTS = (
    TemplateError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
    SyntaxError,
)

Span = tuple[int, int]


class RefusedError(Exception):
    """The template cannot write this conversation; the message says why."""


class TooLargeError(Exception):
    """The template or its output is longer than any conversation needs."""


@dataclass(frozen=True)
class Answer:
    """Characters [start, end) to train on; if `stopped`, they include the token that ends it."""

    start: int
    end: int
    stopped: bool


@dataclass(frozen=True)
class Rendered:
    """A training row up to the end of its last answer, or a prompt without answers."""

    text: str
    answers: tuple[Answer, ...]
    injected: tuple[Span, ...]
    """Where contents contain the text of a control token."""

    @property
    def prompt(self) -> str:
        """The text before the last answer."""
        return self.text[: self.answers[-1].start]


@dataclass(frozen=True)
class Refused:
    """Why a conversation cannot be rendered."""

    reason: str
    syntax: tuple[int, str] | None = None
    """Line of the template and the error there, if it does not compile."""


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template, with what rendering needs from the tokenizer and the recipe."""

    text: str
    variables: Mapping[str, object]
    """Variables besides the turns."""
    last_only: bool
    """Only the last answer is trained on."""
    special: str
    """Regular expression of the special tokens."""
    added: str
    """Regular expression of all added tokens, such as `<think>`."""
    seconds: float
    """CPU time limit of one rendering."""

    def render(self, messages: Sequence[Message], *, prompt: bool = False) -> Rendered | Refused:
        """A training row that ends with an answer, or the prompt of the next answer.

        Raises TooLargeError and MemoryError; SIGPROF ends the process if a rendering takes too
        long.
        """
        try:
            text = self._render(messages, generation_prompt=prompt)
            injected = tuple(self._injected(text, messages, generation_prompt=prompt))
            if prompt:
                return Rendered(text, (), injected)
            answers = self._answers(text, messages)
        except RefusedError as error:
            match error.__cause__:
                case TemplateSyntaxError(lineno=line, message=what):
                    return Refused(str(error), (line, str(what)))
                case _:
                    return Refused(str(error))
        return Rendered(text[: answers[-1].end], answers, injected)

    def _render(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        if not messages:
            raise RefusedError("begins with an answer")
        if len(self.text) > LONGEST_TEMPLATE:
            raise TooLargeError(
                f"is {len(self.text):,} characters long; the limit is {LONGEST_TEMPLATE:,}"
            )
        turns = [{"role": m.role, "content": m.content} for m in messages]
        signal.setitimer(signal.ITIMER_PROF, self.seconds)
        try:
            (text,), _ = render_jinja_template(
                [turns],
                chat_template=self.text,
                add_generation_prompt=generation_prompt,
                **self.variables,
            )
        except TEMPLATE_FAULTS as error:
            raise RefusedError(f"the chat template refuses it: {error}") from error
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if len(text) > LARGEST:
            raise TooLargeError(f"writes more than {LARGEST:,} characters")
        return cast(str, text)

    # Answers

    def _answers(self, text: str, messages: Sequence[Message]) -> tuple[Answer, ...]:
        answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
        if self.last_only:
            answers = answers[-1:]
        return tuple(self._answer(text, messages, index) for index in answers)

    def _answer(self, text: str, messages: Sequence[Message], index: int) -> Answer:
        """From the end of the answer's prompt to the end of the token that ends it.

        Text that the template puts between prompt and content (an empty thinking block, a space)
        belongs to the answer, because the model has to write it in use.
        """
        prompt = self._render(messages[:index], generation_prompt=True)
        start = len(prompt) if text.startswith(prompt) else None
        if index == len(messages) - 1:
            end = self._last_end(start, text, messages)
        else:
            content, end = self._span(text, messages, index)
            if start is None:
                header = prompt.removeprefix(self._render(messages[:index]))
                start = _after_header(text, header, content)
        if start is None:
            raise RefusedError(
                "the chat template renders the prompt of this answer differently in training and "
                "in use"
            )
        if end is None or end < start:
            raise RefusedError("the chat template rewrites this answer")
        # An added token ends the answer, with or without white space before it.
        stop = self._stop.match(text, end)
        return Answer(start, stop.end() if stop else end, stop is not None)

    def _last_end(self, start: int | None, text: str, messages: Sequence[Message]) -> int | None:
        """The end of the last content.

        Needs no rendering if the content follows its prompt unchanged, and is followed by the same
        text as the last content of an earlier conversation with these roles.
        """
        roles, content = tuple(message.role for message in messages), messages[-1].content
        if start is not None and text.startswith(content, start):
            end = start + len(content)
            if text[end:] == self._tails.get(roles):
                return end
        _, found = self._span(text, messages, len(messages) - 1)
        if found is not None:
            self._tails[roles] = text[found:]
        return found

    def _span(
        self, text: str, messages: Sequence[Message], index: int, *, generation_prompt: bool = False
    ) -> tuple[int | None, int | None]:
        """Where a content begins and ends; templates may strip white space around it.

        None for a border if the text around it depends on the content.
        """
        replaced = list(messages)
        replaced[index] = Message(messages[index].role, PLACEHOLDER)
        rendered = self._render(replaced, generation_prompt=generation_prompt)
        before, found, after = rendered.partition(PLACEHOLDER)
        start, end = len(before), len(text) - len(after)
        if not found or start > end:
            return None, None
        return start if text.startswith(before) else None, end if text.endswith(after) else None

    # Control tokens in contents

    def _injected(
        self, text: str, messages: Sequence[Message], *, generation_prompt: bool
    ) -> list[Span]:
        """Where contents contain the text of a control token, which must be encoded as text.

        In an answer, added tokens that are not special (`<think>`) stay tokens.
        """
        injected: list[Span] = []
        made = self._makes_controls(text, messages, generation_prompt)
        for index, message in enumerate(messages):
            control = self._special if message.role == "assistant" else self._added
            if not made and not control.search(message.content):
                continue
            start, end = self._span(text, messages, index, generation_prompt=generation_prompt)
            if start is None or end is None:
                raise RefusedError(
                    "contains the text of a control token in a content that the chat template "
                    "rewrites"
                )
            injected += [found.span() for found in control.finditer(text, start, end)]
        return injected

    def _makes_controls(
        self, text: str, messages: Sequence[Message], generation_prompt: bool
    ) -> bool:
        """Whether there are more control tokens than the template's own and those in contents.

        A template that changes contents, such as their case, can create some.
        """
        key = (tuple(message.role for message in messages), generation_prompt)
        if key not in self._own_controls:
            replaced = [Message(message.role, PLACEHOLDER) for message in messages]
            rendered = text  # if the template refuses the placeholder, nothing is known
            with suppress(RefusedError):
                rendered = self._render(replaced, generation_prompt=generation_prompt)
            self._own_controls[key] = self._count_special(rendered)
        others = self._count_special(text) - self._own_controls[key]
        return others > 0 and others > sum(self._count_special(m.content) for m in messages)

    def _count_special(self, text: str) -> int:
        return len(self._special.findall(text))

    @cached_property
    def _special(self) -> re.Pattern[str]:
        return re.compile(self.special)

    @cached_property
    def _added(self) -> re.Pattern[str]:
        return re.compile(self.added)

    @cached_property
    def _stop(self) -> re.Pattern[str]:
        return re.compile(rf"\s*(?:{self.added})")

    @cached_property
    def _tails(self) -> dict[tuple[str, ...], str]:
        """Text of the template after the last content, by the roles of the turns."""
        return {}

    @cached_property
    def _own_controls(self) -> dict[tuple[tuple[str, ...], bool], int]:
        """Number of the template's own control tokens, by roles and generation prompt."""
        return {}


def _after_header(text: str, header: str, content: int | None) -> int | None:
    """Start of an earlier answer whose thinking block the template leaves out of the history."""
    found = content is not None and any(
        text.endswith(header[:length], 0, content) for length in range(1, len(header) + 1)
    )
    return content if found else None
