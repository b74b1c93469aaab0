"""Render a chat template, and find the answers and injected control tokens in its text.

A conversation is rendered as a whole, because encoding it piece by piece changes ids at the seams.
The position of a content in the text is found by rendering again with a placeholder in its place.
The last answer follows its prompt in use: some templates begin that prompt's answer with a thinking
block that they leave out of a whole conversation (DeepSeek R1, MiniMax M2, Gemma 4).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile

from jinja2.exceptions import TemplateSyntaxError

from ftcli.data.example import Message
from ftcli.data.templates.writing import (
    END_THINK,
    PLACEHOLDER,
    THINK,
    THOUGHTS,
    RefusedError,
    TemplateWriter,
)

# What a template writes of a thinking block in an earlier answer.
EMPTY_BLOCK = re.compile(rf"\s*(?:(?:{THINK}\s*)?{END_THINK}\s*)?")

Span = tuple[int, int]


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
            return self._row(text, messages, injected)
        except RefusedError as error:
            match error.__cause__:
                case TemplateSyntaxError(lineno=line, message=what):
                    return Refused(str(error), (line, str(what)))
                case _:
                    return Refused(str(error))

    def _render(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        return self._writer.write(messages, generation_prompt=generation_prompt)

    @cached_property
    def _writer(self) -> TemplateWriter:
        return TemplateWriter(self.text, self.variables, self.seconds)

    # Answers

    def _row(self, text: str, messages: Sequence[Message], injected: tuple[Span, ...]) -> Rendered:
        """The training row, cut after its last answer."""
        answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
        prompt = self._render(messages[:-1], generation_prompt=True)
        row, start, end, injected = self._last_answer(text, prompt, messages, injected)
        thoughts = THOUGHTS.fullmatch(messages[-1].content)
        if thoughts is not None and thoughts[1].strip() not in row[start:end]:
            raise RefusedError("the chat template leaves out the thoughts of this answer")
        # An added token ends the answer, with or without white space before it.
        stop = self._stop.match(row, end)
        last = Answer(start, stop.end() if stop else end, stop is not None)
        ends = stop.group().strip() if stop else self.variables.get("eos_token")
        earlier = () if self.last_only else answers[:-1]
        found = [self._earlier_answer(text, messages, index, ends) for index in earlier]
        return Rendered(row[: last.end], (*found, last), injected)

    def _last_answer(
        self, text: str, prompt: str, messages: Sequence[Message], injected: tuple[Span, ...]
    ) -> tuple[str, int, int, tuple[Span, ...]]:
        """The row's text, the borders of its last answer in it, and its injected control tokens.

        The answer begins where its prompt ends: what the template puts before the content (an empty
        thinking block, a space, a channel) belongs to it, because the model has to write it in use.
        """
        start = len(prompt) if text.startswith(prompt) else None
        end = self._last_end(start, text, messages)
        if end is None or (start is not None and end < start):
            raise RefusedError("the chat template rewrites this answer")
        opened = prompt.rstrip().endswith(THINK)
        if start is not None and not (opened and _thinks_wrongly(text[start:end])):
            return text, start, end, injected
        content, _ = self._span(text, messages, len(messages) - 1)
        before, thoughts = text[:content], self._writer.thoughts_apart(messages[-1])
        follows = before.startswith(prompt) or (prompt.startswith(before) and thoughts is None)
        if content is None or not follows:
            raise RefusedError(self._other_prompt(messages[-1].content))
        answer = text[content:end]
        if opened:
            answer = _within_thoughts(prompt, messages[-1].content, answer)
        row = prompt + answer + text[end:]
        end = len(prompt) + len(answer)
        kept = takewhile(lambda span: span[1] <= content, injected)
        own = (found.span() for found in self._special.finditer(row, len(prompt), end))
        return row, len(prompt), end, (*kept, *own)

    def _other_prompt(self, content: str) -> str:
        what = (
            "the chat template renders the prompt of this answer differently in training and in use"
        )
        if "enable_thinking" not in self.text or "enable_thinking" in self.variables:
            return what
        found, wanted = ("thoughts", "true") if END_THINK in content else ("no thoughts", "false")
        return f"{what}: it has {found}; set data.template_kwargs: {{enable_thinking: {wanted}}}"

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

    def _earlier_answer(
        self, text: str, messages: Sequence[Message], index: int, ends: object
    ) -> Answer:
        """An answer before the last one, as the template writes it in a history.

        Its end token is part of it only if the last answer has the same: the model would learn to
        go on there (gpt-oss ends answers with `<|return|>`, and with `<|end|>` in a history).
        """
        prompt = self._render(messages[:index], generation_prompt=True)
        start = len(prompt) if text.startswith(prompt) else None
        content, end = self._span(text, messages, index)
        if start is None and content is not None:
            turns = self._render(messages[:index])
            if _follows(text[:content], turns, prompt.removeprefix(turns)):
                start = content
        if start is None:
            raise RefusedError(self._other_prompt(messages[index].content))
        if end is None or end < start:
            raise RefusedError("the chat template rewrites this answer")
        stop = self._stop.match(text, end)
        stopped = stop is not None and stop.group().strip() == ends
        return Answer(start, stop.end() if stop is not None and stopped else end, stopped)

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
        replaced = [self._placeholder(message) for message in messages]
        key = (tuple(replaced), generation_prompt)
        if key not in self._own_controls:
            rendered = text  # if the template refuses the placeholder, nothing is known
            with suppress(RefusedError):
                rendered = self._render(replaced, generation_prompt=generation_prompt)
            self._own_controls[key] = self._count_special(rendered)
        others = self._count_special(text) - self._own_controls[key]
        return others > 0 and others > sum(self._count_special(m.content) for m in messages)

    def _placeholder(self, message: Message) -> Message:
        """The turn without what it says; thoughts may have control tokens of the template."""
        thinks = self._writer.thoughts_apart(message) is not None
        content = f"{THINK}{PLACEHOLDER}{END_THINK}{PLACEHOLDER}" if thinks else PLACEHOLDER
        return Message(message.role, content)

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
    def _own_controls(self) -> dict[tuple[tuple[Message, ...], bool], int]:
        """Number of the template's own control tokens, by turns and generation prompt."""
        return {}


def _follows(text: str, turns: str, header: str) -> bool:
    """Whether a content after `text` is an answer whose thinking block the history leaves out, or
    leaves empty: `text` ends with the header of its prompt, or with a beginning of it."""
    if any(text.endswith(header[:length]) for length in range(1, len(header) + 1)):
        return True
    written = text.removeprefix(turns)
    pairs = zip(written, header, strict=False)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return same > 0 and written != text and bool(EMPTY_BLOCK.fullmatch(written, same))


def _thinks_wrongly(answer: str) -> bool:
    """Whether an answer in an open thinking block does not close it once, or opens it again."""
    return THINK in answer or answer.count(END_THINK) != 1


def _within_thoughts(prompt: str, content: str, answer: str) -> str:
    """An answer to a prompt that opens a thinking block: its thoughts, or the end of the block."""
    if END_THINK in content:
        thoughts = content.removeprefix(THINK)
        return thoughts.lstrip("\n") if prompt.endswith("\n") else thoughts
    lines = len(prompt) - len(prompt.rstrip("\n"))
    return "\n" * (2 - lines) + END_THINK + "\n\n" + answer
