"""A prepared row as the statistics see it."""

from __future__ import annotations

from dataclasses import dataclass

from ftcli.data.example import Message, Origin


@dataclass(frozen=True)
class DataRow:
    """Turns that end with an answer, and their length in tokens as they are trained on."""

    origin: Origin
    messages: tuple[Message, ...]
    prompt_tokens: int
    answer_tokens: int
    held_out: bool = False

    @property
    def system(self) -> str:
        first = self.messages[0]
        return first.content if first.role == "system" else ""

    @property
    def question(self) -> str:
        """The first user turn."""
        return next(turn.content for turn in self.messages if turn.role == "user")

    @property
    def prompt(self) -> str:
        """All turns before the answer, one below the other."""
        return "\n".join(turn.content for turn in self.messages[:-1])

    @property
    def answer(self) -> str:
        return self.messages[-1].content
