"""Facts of a prompt (`Key: value` lines), and which of them an answer mentions."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass

from ftcli.evaluation.scorers.vocabulary import Vocabulary, tokens_in

KEY_LINE = re.compile(r"^[ \t]*(?:[-*•][ \t]*)?([^\W\d_][^:\n]{0,40}?)[ \t]*:[ \t]+(\S.*)$", re.M)
# Items of a list; not the comma within 1,299.
SEPARATOR = re.compile(r";|,(?!\d)|(?<!\d),")
# A value of more words is a sentence.
MOST_WORDS = 12
YES, NO = {"yes", "true", "included"}, {"no", "false", "none", "n/a"}
# Of a value of three words or more so much is enough: "felt pads" mentions "felt foot pads".
ENOUGH = 2 / 3


@dataclass(frozen=True)
class Fact:
    """One value, or one item of a list."""

    key: str
    value: str


def facts_of(text: str, optional: Collection[str] = ()) -> list[Fact]:
    """Facts of a text; none where it is no list of facts, or where its keys are `optional`."""
    lines = [(key.strip(" *"), value.strip(" *")) for key, value in KEY_LINE.findall(text)]
    keys = {key.casefold() for key, _ in lines}
    sentences = sum(len(value.split()) > MOST_WORDS for _, value in lines)
    if len(keys) < len(lines) or 2 * sentences > len(lines):
        return []  # a conversation, or prose
    left_out = {key.casefold() for key in optional}
    found = []
    for key, value in lines:
        if key.casefold() in left_out or value.casefold() in NO:
            continue
        parts = value.split(";") if ";" in value else SEPARATOR.split(value)
        found += [Fact(key, part.strip()) for part in parts if part.strip()]
    return found


def mentioned(fact: Fact, answer: str, vocabulary: Vocabulary) -> bool:
    """Whether an answer has the fact's numbers and, in one sentence, most of its words."""
    value = fact.key if fact.value.casefold() in YES else fact.value
    language = vocabulary.language
    said = [(token, language.stem(token.text)) for token in tokens_in(answer)]
    numbers = language.values(answer)
    words = set()
    for token in tokens_in(value):
        values = language.values(token.text)
        if values and not values & numbers:
            return False
        if not values:
            words.add(language.stem(token.text))
    words = {word for word in words if not vocabulary.is_common(word)} or words
    needed = len(words) if len(words) < 3 else math.ceil(ENOUGH * len(words))
    sentence: set[str] = set()
    most = 0
    for token, stem in said:
        if token.starts_sentence:
            sentence = set()
        sentence.add(stem)
        most = max(most, len(words & sentence))
    squashed = "".join(filter(str.isalnum, answer.casefold()))
    return most >= needed or "".join(filter(str.isalnum, value.casefold())) in squashed
