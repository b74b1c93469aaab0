"""Write a conversation as text with a chat template, in transformers' sandbox.

Templates differ in how they want a turn: contents as text or as parts, thoughts in the content or
apart from it. What a template takes is found by rendering a marked turn.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import cast

from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from ftcli.data.example import Message

# Private-use characters: no template tests for them, and no real text contains this string.
PLACEHOLDER = "\ue000ftcli\ue001"
# Characters of one text; a context of a million tokens has 5 million.
LARGEST = 50_000_000
# Characters of the template itself; templates of models have up to 50,000.
LONGEST_TEMPLATE = 1_000_000

# The date of every prompt: today's would change the ids of a run's prompts from day to day.
TODAY = date(2026, 1, 1)
# How gpt-oss, Llama 3.2, Mistral Small 3 and SmolLM3 write today's date.
DATE_FORMAT = re.compile(r"""strftime_now\(\s*(["'])(.+?)\1\s*\)""")
WITH_DATES = "{%- set strftime_now = fixed_dates.get -%}"

THINK, END_THINK = "<think>", "</think>"
# Thoughts at the beginning of an answer, and the answer after them.
THOUGHTS = re.compile(rf"\s*{THINK}(.*?){END_THINK}\n*(.*)", re.DOTALL)
# Names of the thoughts in templates that take them apart from the content; transformers gives them
# under both (5.24, chat_template_utils.py, _alias_reasoning_fields).
THOUGHTS_APART = re.compile(r"\b(?:reasoning_content|thinking)\b")

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

Turn = dict[str, object]


class RefusedError(Exception):
    """The template cannot write this conversation; the message says why."""


class TooLargeError(Exception):
    """The template or its output is longer than any conversation needs."""


@dataclass(frozen=True)
class TemplateWriter:
    """A chat template with its variables; writes what transformers writes."""

    text: str
    variables: Mapping[str, object]
    """Variables besides the turns."""
    seconds: float
    """CPU time limit of one rendering."""

    def write(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        """The conversation as text, with the beginning of the next answer if asked.

        Raises RefusedError, TooLargeError and MemoryError; SIGPROF ends the process if it takes too
        long.
        """
        if not messages:
            raise RefusedError("begins with an answer")
        if len(self.text) > LONGEST_TEMPLATE:
            raise TooLargeError(
                f"is {len(self.text):,} characters long; the limit is {LONGEST_TEMPLATE:,}"
            )
        return self._render([self._turn(message) for message in messages], generation_prompt)

    def _render(self, turns: list[Turn], generation_prompt: bool = False) -> str:
        template, variables = self._with_dates
        signal.setitimer(signal.ITIMER_PROF, self.seconds)
        try:
            (text,), _ = render_jinja_template(
                [turns],
                chat_template=template,
                add_generation_prompt=generation_prompt,
                **variables,
            )
        except TEMPLATE_FAULTS as error:
            raise RefusedError(f"the chat template refuses it: {error}") from error
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if len(text) > LARGEST:
            raise TooLargeError(f"writes more than {LARGEST:,} characters")
        return cast(str, text)

    def _turn(self, message: Message) -> Turn:
        turn: Turn = {"role": message.role, "content": message.content}
        thoughts = self.thoughts_apart(message)
        if thoughts is not None:
            turn |= {"reasoning_content": thoughts[1].strip("\n"), "content": thoughts[2]}
        return _in_parts(turn) if self._takes_parts else turn

    def thoughts_apart(self, message: Message) -> re.Match[str] | None:
        """(thoughts, answer) of an answer, if the template has to be given them apart."""
        if message.role != "assistant" or THINK not in message.content or not self._takes_thoughts:
            return None
        return THOUGHTS.fullmatch(message.content)

    @cached_property
    def _with_dates(self) -> tuple[str, Mapping[str, object]]:
        """The template and its variables, with a fixed date in place of today's."""
        formats = {found[2] for found in DATE_FORMAT.finditer(self.text)}
        if not formats:
            return self.text, self.variables
        dates = {written: TODAY.strftime(written) for written in formats}
        return WITH_DATES + self.text, {**self.variables, "fixed_dates": dates}

    @cached_property
    def _takes_parts(self) -> bool:
        """Whether a content has to be a list of parts, as in the templates of vision models, which
        may write a string as nothing. Raises RefusedError if neither is written."""
        turn: Turn = {"role": "user", "content": PLACEHOLDER}
        for given in (turn, _in_parts(turn)):
            with suppress(RefusedError):
                if PLACEHOLDER in self._render([given], True):
                    return given is not turn
        other: Turn = {"role": "user", "content": "a"}
        same = False
        with suppress(RefusedError):
            same = self._render([turn], True) == self._render([other], True)
        if same and "content" in self.text:
            raise RefusedError("the chat template does not write what a turn says")
        return False

    @cached_property
    def _takes_thoughts(self) -> bool:
        """Whether thoughts have to be given apart from the content: gpt-oss writes them to a
        channel of their own, and Qwen 3.8 does not find them in the content."""
        if not THOUGHTS_APART.search(self.text):
            return False
        content = f"{THINK}\n{PLACEHOLDER}\n{END_THINK}\n\nb"
        with suppress(RefusedError):
            if END_THINK in self.text and self._answered(content=content).count(THINK) == 1:
                return False
            return PLACEHOLDER in self._answered(content="b", reasoning_content=PLACEHOLDER)
        return False

    def _answered(self, **answer: object) -> str:
        turns: list[Turn] = [{"role": "user", "content": "a"}, {"role": "assistant", **answer}]
        return self._render([_in_parts(turn) for turn in turns] if self._takes_parts else turns)


def _in_parts(turn: Turn) -> Turn:
    return {**turn, "content": [{"type": "text", "text": turn["content"]}]}
