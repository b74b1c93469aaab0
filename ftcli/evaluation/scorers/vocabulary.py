"""Numbers, names and terms of an answer that its prompt does not have.

No list of words: what is a term is learnt from the user's own training rows. A word is a term of
the task where the training answers nearly always took it from their prompts. That a word stands in
the prompt does not make an answer true, and an answer may rightly say what its prompt does not:
the rate means something only next to that of the user's own answers.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from ftcli.evaluation.scorers.scorer import Finding

NUMBER = r"\d+(?:[.,]\d+)*"
# A number with or without letters (14, 14cm, PS5), a word, or a sign that is a unit.
TOKEN = re.compile(rf"[^\W\d_]*{NUMBER}[^\W_]*|[^\W\d_]+(?:['’][^\W\d_]+)*|[%°$€£¥]")
DIGITS = re.compile(NUMBER)
# `1. `, `2) ` where a line or a sentence begins count nothing.
LIST_MARKER = re.compile(r"(?:^|[.;:])\s*\d+[.)](?=\s)", re.MULTILINE)
SENTENCE_START = re.compile(r"(?:^|[.!?:;|\n\"“”(\[{#*•])\s*[-–]?\s*$")
# Between the words of one name.
WITHIN_A_NAME = re.compile(r"[ \-–&/]{1,3}|['’]s ")
# Snowball's languages whose number words text2num reads.
NUMBER_WORDS = {
    "english": "en", "french": "fr", "spanish": "es", "portuguese": "pt",
    "german": "de", "dutch": "nl", "italian": "it", "catalan": "ca",
}  # fmt: skip
# Share of the training answers with a word that took it from their prompts: from here on it is a
# term, and a word with a capital that at most RARE of them have is a name.
TERM, NAME, RARE = 0.8, 0.5, 2
FEWEST_OF_A_UNIT = 3


@dataclass(frozen=True)
class Token:
    """Characters [start, end) of a text."""

    text: str
    start: int
    end: int
    starts_sentence: bool

    @property
    def is_capitalised(self) -> bool:
        return self.text[0].isupper()

    @property
    def has_digits(self) -> bool:
        return DIGITS.search(self.text) is not None


def tokens_in(text: str) -> list[Token]:
    markers = {place for each in LIST_MARKER.finditer(text) for place in range(*each.span())}
    found = []
    for each in TOKEN.finditer(text):
        if each.start() not in markers:
            before = text[max(0, each.start() - 8) : each.start()]
            starts = SENTENCE_START.search(before) is not None
            found.append(Token(each[0], each.start(), each.end(), starts))
    return found


def possible_values(number: str) -> set[float]:
    """Every value that a number may mean: `1,200` 1200 and 1.2, `1.200,50` 1200.5."""
    found = set()
    for thousands, decimal in (",.", ".,"):
        plain = number.replace(thousands, "").replace(decimal, ".")
        if plain.count(".") <= 1:
            found.add(float(plain))
    return found or {float(part) for part in re.split("[.,]", number)}


class Language:
    """Words in the form under which they are compared, and what number words are worth."""

    def __init__(self, name: str) -> None:
        import snowballstemmer

        self._stemmer: Any = snowballstemmer.stemmer(name)
        self._code = NUMBER_WORDS.get(name)
        self.stem = cache(self._stem)
        self.values = cache(self._values)

    def _stem(self, word: str) -> str:
        plain = re.sub(r"['’]s?$", "", word.casefold())
        return str(self._stemmer.stemWord(plain))

    def _values(self, text: str) -> frozenset[float]:
        """Of a word or a text; spoken years and pressures too (`nineteen ninety one`)."""
        numbers = DIGITS.findall(text)
        if self._code is not None:
            from text_to_num import alpha2digit

            spoken = alpha2digit(text, self._code)
            numbers += DIGITS.findall(spoken)
            numbers += [a + b for a, b in re.findall(r"\b(?=(\d{1,2}) (\d\d)\b)", spoken)]
        return frozenset(value for number in numbers for value in possible_values(number))


@dataclass(frozen=True)
class Facts:
    """What a prompt has."""

    stems: frozenset[str]
    values: frozenset[float]
    squashed: str
    """Its letters and digits alone: GORE-TEX has Goretex."""
    with_units: frozenset[tuple[float, str]]
    """Each number with every word or sign at its side."""


@dataclass
class Vocabulary:
    """How the training answers use each word."""

    language: Language
    rows: int = 0
    prompts: Counter[str] = field(default_factory=Counter)
    """Training prompts that have the word."""
    answers: Counter[str] = field(default_factory=Counter)
    """Training answers that have it."""
    taken: Counter[str] = field(default_factory=Counter)
    """Of these, those whose prompts have it too."""
    next_to_numbers: Counter[str] = field(default_factory=Counter)
    """Training answers that have it next to a number."""
    rare: tuple[float, float] = (0.0, 0.0)
    """Share of the words of one answer alone that it took from its prompt, of words in small
    letters and of capitalised ones: what is to be expected of a word that no answer has."""

    @classmethod
    def learn(cls, rows: Iterable[tuple[str, str]], language: str) -> Vocabulary:
        """From pairs of prompt and answer."""
        found = cls(Language(language))
        stem = found.language.stem
        capitalised: set[str] = set()
        for facts, answer in rows:
            given = {stem(token.text) for token in tokens_in(facts)}
            tokens = tokens_in(answer)
            said = {stem(token.text) for token in tokens}
            found.rows += 1
            found.prompts.update(given)
            found.answers.update(said)
            found.taken.update(said & given)
            found.next_to_numbers.update(
                {
                    unit
                    for index, token in enumerate(tokens)
                    if token.has_digits
                    for unit in found.units(tokens, index)
                }
            )
            capitalised |= {stem(t.text) for t in tokens if t.is_capitalised}
        once = {each for each, count in found.answers.items() if count == 1}
        kinds = (once - capitalised, once & capitalised)
        small, large = (
            sum(found.taken[each] for each in kind) / (len(kind) or 1) for kind in kinds
        )
        found.rare = (small, large)
        return found

    def taken_share(self, stem: str, *, capitalised: bool) -> float:
        """Share of the answers with the word that took it from their prompts, where what is
        expected of a rare word weighs two answers; 0 of a word that most prompts have anyway."""
        if self.prompts[stem] > self.rows / 2:
            return 0.0
        expected = self.taken[stem] + 2 * self.rare[capitalised]
        return expected / (self.answers[stem] + 2)

    def is_common(self, stem: str) -> bool:
        """Whether most answers have the word, whatever they are asked."""
        return self.answers[stem] > self.rows / 2

    def is_unit(self, stem: str) -> bool:
        """Whether answers mostly have it next to a number."""
        return self.next_to_numbers[stem] >= max(FEWEST_OF_A_UNIT, self.answers[stem] / 2)

    def is_term(self, stem: str) -> bool:
        return self.taken_share(stem, capitalised=False) >= TERM

    def is_name(self, stem: str) -> bool:
        """Of a word with a capital."""
        least = NAME if self.answers[stem] <= RARE else TERM
        return self.taken_share(stem, capitalised=True) >= least

    def facts(self, text: str) -> Facts:
        tokens = tokens_in(text)
        pairs = {
            (value, unit)
            for index, token in enumerate(tokens)
            for value in self.language.values(token.text)
            for unit in self.units(tokens, index)
        }
        return Facts(
            frozenset(self.language.stem(token.text) for token in tokens),
            self.language.values(text),
            "".join(filter(str.isalnum, text.casefold())),
            frozenset(pairs),
        )

    def units(self, tokens: Sequence[Token], index: int) -> Iterator[str]:
        """The letters of a number's own token, and the words and signs that touch it."""
        token = tokens[index]
        if letters := DIGITS.sub("", token.text):
            yield self.language.stem(letters)
        for other in tokens[max(0, index - 1) : index + 2]:
            apart = max(other.start - token.end, token.start - other.end)
            if other is not token and apart <= 1 and not other.has_digits:
                yield self.language.stem(other.text)

    def not_in(self, facts: Facts, answer: str) -> Iterator[Finding]:
        """Every number, name and term of an answer that the facts do not have."""
        tokens = tokens_in(answer)
        in_names = self._changed_names(facts, answer, tokens)
        for index, token in enumerate(tokens):
            stem, values = self.language.stem(token.text), self.language.values(token.text)
            has = self._has(facts, stem)
            if values or token.has_digits:
                given = has or values & facts.values
                if not given or self._has_other_units(facts, tokens, index):
                    yield _finding("number", token)
            elif not has and len(token.text) > 1:
                inner = token.is_capitalised and not token.starts_sentence
                if index in in_names or (inner and self.is_name(stem)):
                    yield _finding("name", token)
                elif self.is_term(stem):
                    yield _finding("term", token)

    def _has(self, facts: Facts, stem: str) -> bool:
        return stem in facts.stems or (len(stem) > 3 and stem in facts.squashed)

    def _changed_names(self, facts: Facts, answer: str, tokens: Sequence[Token]) -> set[int]:
        """Places of capitalised words next to a capitalised word of the prompt: a name in part."""
        found = set()
        stems = [self.language.stem(token.text) for token in tokens]
        has = [self._has(facts, stem) for stem in stems]
        named = [
            token.is_capitalised and (not token.starts_sentence or self.is_name(stem))
            for token, stem in zip(tokens, stems, strict=True)
        ]
        for one, other in itertools.pairwise(range(len(tokens))):
            between = answer[tokens[one].end : tokens[other].start]
            if named[one] and named[other] and WITHIN_A_NAME.fullmatch(between):
                found |= {one} if has[other] else set()
                found |= {other} if has[one] else set()
        return found

    def _has_other_units(self, facts: Facts, tokens: Sequence[Token], index: int) -> bool:
        """Whether the facts have the number with other units alone."""
        values = self.language.values(tokens[index].text)
        units = {unit for unit in self.units(tokens, index) if self.is_unit(unit)}
        given = {u for value, u in facts.with_units if value in values and self.is_unit(u)}
        return bool(units and given) and given.isdisjoint(units)


def _finding(kind: str, token: Token) -> Finding:
    message = f"“{token.text}” is not in the prompt"
    return Finding(f"{kind} not in the prompt", message, token.start, token.end)
