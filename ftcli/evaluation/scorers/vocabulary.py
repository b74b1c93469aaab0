"""Numbers, names and terms of an answer that are not in its prompt.

Terms are learnt from the user's training rows, without a word list: a word is a term of the task if
training answers nearly always copied it from their prompts. A word of the prompt does not make an
answer true, and an answer may rightly say more than its prompt: compare the rate with that of the
user's own answers.
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
# `1. `, `2) ` at the start of a line or a sentence.
LIST_MARKER = re.compile(r"(?:^|[.;:])\s*\d+[.)](?=\s)", re.MULTILINE)
SENTENCE_START = re.compile(r"(?:^|[.!?:;|\n\"“”(\[{#*•])\s*[-–]?\s*$")
# Between words of one name.
WITHIN_A_NAME = re.compile(r"[ \-–&/]{1,3}|['’]s ")
# Snowball's languages whose number words text2num reads.
NUMBER_WORDS = {
    "english": "en", "french": "fr", "spanish": "es", "portuguese": "pt",
    "german": "de", "dutch": "nl", "italian": "it", "catalan": "ca",
}  # fmt: skip
# Proportion of the training answers with a word that copied it from their prompts: from TERM on it
# is a term; a capitalised word that at most RARE answers have is a name from NAME on.
TERM, NAME, RARE = 0.8, 0.5, 2
MIN_UNIT_ANSWERS = 3


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
    """Every reading of a number: `1,200` is 1200 or 1.2, `1.200,50` is 1200.5."""
    found = set()
    for thousands, decimal in (",.", ".,"):
        plain = number.replace(thousands, "").replace(decimal, ".")
        if plain.count(".") <= 1:
            found.add(float(plain))
    return found or {float(part) for part in re.split("[.,]", number)}


def letters_and_digits(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))


class Language:
    """Stems of words, and values of numbers and number words."""

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
        """Of a word or a text; spoken years too (`nineteen ninety one`)."""
        numbers = DIGITS.findall(text)
        if self._code is not None:
            from text_to_num import alpha2digit

            spoken = alpha2digit(text, self._code)
            numbers += DIGITS.findall(spoken)
            numbers += [a + b for a, b in re.findall(r"\b(?=(\d{1,2}) (\d\d)\b)", spoken)]
        return frozenset(value for number in numbers for value in possible_values(number))


@dataclass(frozen=True)
class Facts:
    """The words and numbers of a prompt."""

    stems: frozenset[str]
    values: frozenset[float]
    letters: str
    """Without anything else, so that Goretex is found in GORE-TEX."""
    with_units: frozenset[tuple[float, str]]
    """Each number with the words and signs next to it."""


@dataclass
class Vocabulary:
    """How training answers use each word."""

    language: Language
    rows: int = 0
    prompts: Counter[str] = field(default_factory=Counter)
    """Training prompts with the word."""
    answers: Counter[str] = field(default_factory=Counter)
    """Training answers with the word."""
    copied: Counter[str] = field(default_factory=Counter)
    """Training answers with the word whose prompts have it too."""
    next_to_numbers: Counter[str] = field(default_factory=Counter)
    """Training answers with the word next to a number."""
    rare: tuple[float, float] = (0.0, 0.0)
    """Expected proportion for a word that no training answer has: of the words that a single answer
    has, how many it copied from its prompt; lower-case words, capitalised words."""

    @classmethod
    def learn(cls, rows: Iterable[tuple[str, str]], language: str) -> Vocabulary:
        """`rows`: pairs of prompt and answer."""
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
            found.copied.update(said & given)
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
            sum(found.copied[each] for each in kind) / (len(kind) or 1) for kind in kinds
        )
        found.rare = (small, large)
        return found

    def copied_share(self, stem: str, *, capitalised: bool) -> float:
        """Proportion of the answers with the word that copied it from their prompts.

        Smoothed by two answers with the expected proportion; 0 for a word that most prompts have.
        """
        if self.prompts[stem] > self.rows / 2:
            return 0.0
        expected = self.copied[stem] + 2 * self.rare[capitalised]
        return expected / (self.answers[stem] + 2)

    def is_common(self, stem: str) -> bool:
        """Whether most answers have the word."""
        return self.answers[stem] > self.rows / 2

    def is_unit(self, stem: str) -> bool:
        """Whether most answers with the word have it next to a number."""
        return self.next_to_numbers[stem] >= max(MIN_UNIT_ANSWERS, self.answers[stem] / 2)

    def is_term(self, stem: str) -> bool:
        return self.copied_share(stem, capitalised=False) >= TERM

    def is_name(self, stem: str) -> bool:
        """Of a capitalised word."""
        least = NAME if self.answers[stem] <= RARE else TERM
        return self.copied_share(stem, capitalised=True) >= least

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
            letters_and_digits(text),
            frozenset(pairs),
        )

    def units(self, tokens: Sequence[Token], index: int) -> Iterator[str]:
        """Stems of the letters in a number's token, and of the words and signs that touch it."""
        token = tokens[index]
        if letters := DIGITS.sub("", token.text):
            yield self.language.stem(letters)
        for other in tokens[max(0, index - 1) : index + 2]:
            apart = max(other.start - token.end, token.start - other.end)
            if other is not token and apart <= 1 and not other.has_digits:
                yield self.language.stem(other.text)

    def not_in(self, facts: Facts, answer: str) -> Iterator[Finding]:
        """Every number, name and term of an answer that is not in the facts."""
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
        return stem in facts.stems or (len(stem) > 3 and stem in facts.letters)

    def _changed_names(self, facts: Facts, answer: str, tokens: Sequence[Token]) -> set[int]:
        """Indexes of capitalised words next to a capitalised word of the prompt: a changed name."""
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
        """Whether the facts have the number only with other units."""
        values = self.language.values(tokens[index].text)
        units = {unit for unit in self.units(tokens, index) if self.is_unit(unit)}
        given = {u for value, u in facts.with_units if value in values and self.is_unit(u)}
        return bool(units and given) and given.isdisjoint(units)


def _finding(kind: str, token: Token) -> Finding:
    message = f"“{token.text}” is not in the prompt"
    return Finding(f"{kind} not in the prompt", message, token.start, token.end)
