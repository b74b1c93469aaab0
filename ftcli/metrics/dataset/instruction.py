"""The words with which all prompts begin: an instruction that a tuned model need not be told."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

# So many prompts out of a hundred begin alike; the others may be mistakes.
ALIKE = 0.95
LAST_BREAK = re.compile(r"\s+\S*\Z")


@dataclass(frozen=True)
class Instruction:
    """What stands before the row's own words: the system prompt, and how the question begins."""

    system: str
    beginning: str

    @property
    def text(self) -> str:
        return "\n".join(part for part in (self.system, self.beginning) if part)


def shared_instruction(systems: Sequence[str], questions: Sequence[str]) -> Instruction:
    """What nearly all of these prompts share; empty where they share nothing."""
    system, count = Counter(systems).most_common(1)[0] if systems else ("", 0)
    shared = system if count >= ALIKE * len(systems) else ""
    return Instruction(shared, shared_beginning(questions))


def shared_beginning(texts: Sequence[str], alike: float = ALIKE) -> str:
    """The longest text of whole lines, or of whole words, with which so many of the texts begin.

    Nothing where it would be the whole of them: then it is the question and no instruction.
    """
    low, high = 0, max(map(len, texts), default=0)
    while low < high:
        middle = (low + high + 1) // 2
        if _most_common_beginning(texts, middle)[1] >= alike * len(texts):
            low = middle
        else:
            high = middle - 1
    if not low:
        return ""
    found = _most_common_beginning(texts, low)[0]
    if sum(text.strip() == found.strip() for text in texts) > len(texts) / 2:
        return ""
    lines, newline, _ = found.rpartition("\n")
    # Behind the last whole line stands what the first of the row's own fields is called.
    return lines + newline if newline else _whole_words(found)


def _most_common_beginning(texts: Sequence[str], length: int) -> tuple[str, int]:
    beginnings = Counter(text[:length] for text in texts if len(text) >= length)
    return max(beginnings.items(), key=lambda item: (item[1], item[0]), default=("", 0))


def _whole_words(text: str) -> str:
    """Without the last word, of which the texts may share the first letters only."""
    if text[-1].isspace():
        return text
    return LAST_BREAK.sub("", text) if LAST_BREAK.search(text) else ""
