"""Generated tokens → what an answer says: the inverse of writing it into a row.

Some templates leave it to the model to write more than its answer: an empty thinking block, the
name of a channel. A scorer or a reader gets what a row of the data has as content.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from ftcli.data.example import Message, RowError
from ftcli.data.templates.writing import END_THINK, THINK
from ftcli.data.tokenizing.rendering import Renderer

# Words that no template has.
MARK, THOUGHT = "ftcli-answer", "ftcli-thought"


@dataclass(frozen=True)
class AnswerReader:
    """Reads the answers of a model that is prompted with this renderer."""

    renderer: Renderer

    def text(self, ids: Sequence[int]) -> str:
        """The content of a turn; thoughts as `<think>…</think>` before it. `ids` without the stop
        token."""
        decode = self.renderer.tokenizer.decode
        end = self.end_of_lead(ids)
        if end is None:  # cut off before it says anything
            return ""
        if end:
            return str(decode(ids[end:], skip_special_tokens=True)).lstrip()
        if self._thoughts is not None:
            found = self._thoughts.match(str(decode(ids)))
            if found is not None:
                special = self.renderer.escaping.special_text
                answer = special.sub("", found[2])
                return f"{THINK}\n{found[1].strip()}\n{END_THINK}\n\n{answer}"
        return str(decode(ids, skip_special_tokens=True))

    def end_of_lead(self, ids: Sequence[int]) -> int | None:
        """How many ids are what the template writes before an answer without thoughts.

        None: more tokens may complete it. 0: the answer begins otherwise, or the
        template writes nothing.
        """
        for count in range(1, len(ids) + 1):
            begun = _without_space(str(self.renderer.tokenizer.decode(ids[:count])))
            if begun == self.lead:
                return count if begun else 0
            if not self.lead.startswith(begun):
                return 0
        return None if self.lead else 0

    @cached_property
    def lead(self) -> str:
        """What the template writes between prompt and answer, without white space."""
        before, found, _ = self._written(MARK).partition(MARK)
        return _without_space(before) if found else ""

    @cached_property
    def _thoughts(self) -> re.Pattern[str] | None:
        """(thoughts, answer) in an answer with thoughts; None if the template has no form of its
        own for them."""
        written = self._written(f"{THINK}\n{THOUGHT}\n{END_THINK}\n\n{MARK}")
        before, found, after = written.partition(THOUGHT)
        between, marked, _ = after.partition(MARK)
        if not found or not marked or before.strip() == THINK:
            return None
        first, second = (re.escape(part.strip()) for part in (before, between))
        return re.compile(rf"\s*{first}(.*?){second}\s*(.*)", re.DOTALL)

    def _written(self, answer: str) -> str:
        """A row from the end of its prompt on; empty if the template cannot write it."""
        turns = (Message("user", "a"), Message("assistant", answer))
        for messages in (turns, (Message("system", "c"), *turns)):  # some need a system turn
            with suppress(RowError):
                rendered = self.renderer.render(messages)
                return rendered.text[rendered.answers[-1].start :]
        return ""


def _without_space(text: str) -> str:
    return "".join(text.split())
