"""Which facts an answer mentions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from ftcli.metrics.faithfulness.amount import Amount, Direction, Scan
from ftcli.metrics.faithfulness.amounts import amounts_in
from ftcli.metrics.faithfulness.around import SETS
from ftcli.metrics.faithfulness.colours import Colours
from ftcli.metrics.faithfulness.context import negated
from ftcli.metrics.faithfulness.given import Item, squashed
from ftcli.metrics.faithfulness.lexicon import Lexicon
from ftcli.metrics.faithfulness.materials import Materials
from ftcli.metrics.faithfulness.number_words import GROUPS
from ftcli.metrics.faithfulness.numbers import GivenNumbers, GivenValue, key_nouns
from ftcli.metrics.faithfulness.sizes import LETTERS, sizes_in
from ftcli.metrics.faithfulness.stems import root, same_thing
from ftcli.metrics.faithfulness.text import Text, named

# Words of a value that need not be said.
FUNCTION = named(
    "a an the of and or with for in on at to by from per max maximum min minimum up "
    "about approx each is are as its it that this no not"
)
# Said by the unit already.
MEASURES = named(
    "wide tall long high thick deep weighs weigh holds hold measures measuring lasts "
    "weighing diameter width height length depth weight"
)


# Every number of the facts is compared with every one of the answer: lists without end are cut.
MOST_ITEMS, MOST_AMOUNTS = 500, 1000


def missing_from(
    text: Text, items: Sequence[Item], colours: Colours, materials: Materials
) -> list[Item]:
    """Those of the facts that an answer does not mention."""
    said = _Said(text, (colours.words, materials.words))
    return [item for item in items[:MOST_ITEMS] if not said.mentions(item)]


class _Said:
    """What an answer says, sentence by sentence."""

    def __init__(self, text: Text, lexicons: Sequence[Lexicon]) -> None:
        self._text = text
        self._lexicons = lexicons
        # Amounts that claim nothing mention a fact all the same: `two-way`, `a week`.
        self._amounts = _different(text)
        self._sizes = sizes_in(text)
        self._squashed = squashed(text.raw)
        self._named: set[str] = set()
        self._sentences: dict[str, set[int]] = {}
        for number, sentence in enumerate(text.sentences):
            for word in _words_of(text, sentence):
                self._sentences.setdefault(word, set()).add(number)
        self._imply()

    def _imply(self) -> None:
        """navy says blue; oak says wood."""
        number_of = {
            self._text.tokens[sentence.start].sentence: number
            for number, sentence in enumerate(self._text.sentences)
        }
        for each in (found for words in self._lexicons for found in words.all(self._text)):
            if _denied(self._text, each.first, each.after):
                continue
            names = {each.term.name, *each.term.wider}
            self._named |= names
            number = number_of[self._text.tokens[each.first].sentence]
            for name in names:
                self._sentences.setdefault(same_thing(name), set()).add(number)

    def mentions(self, item: Item) -> bool:
        if item.says_yes:
            return self._says(item.key, every=True)
        if item.says_no:
            return self._denies(item.key)
        if item.is_name:
            return self._says_name(item.value)
        denied = _denied_by(item.value)
        if denied and self._denies(denied):
            return True
        if self._names_the_same(item.value):
            return True
        sized = self._says_size(item)
        if sized is not None:
            return sized
        return self._says_numbers(item) and self._says(item.value, every=False, item=item)

    def _says(self, value: str, *, every: bool, item: Item | None = None) -> bool:
        words = _content(value, drop_measures=item is not None)
        if not words or self._says_in_one(value):
            return True
        needed = len(words) if every or len(words) < 3 else math.ceil(2 * len(words) / 3)
        return self._most_in_one_sentence(words) >= needed

    def _says_in_one(self, value: str) -> bool:
        """Whether it stands there with other dashes and spaces: GORE-TEX, Goretex; tool-free."""
        short = squashed(value)
        is_joined = any(token.joined for token in Text(value).tokens)
        return is_joined and len(short) >= 4 and short in self._squashed

    def _says_name(self, value: str) -> bool:
        words = _content(value, drop_measures=False)
        return not words or self._most_in_one_sentence(words) >= math.ceil(len(words) / 2)

    def _most_in_one_sentence(self, words: Sequence[str]) -> int:
        counts: dict[int, int] = {}
        for word in words:
            for number in {n for form in self._forms(word) for n in self._sentences.get(form, ())}:
                counts[number] = counts.get(number, 0) + 1
        return max(counts.values(), default=0)

    def _names_the_same(self, value: str) -> bool:
        """A colour or material under another name: vegan leather for faux leather."""
        text = Text(value)
        if not text.tokens:
            return False
        wholes = [words.find(text, 0) for words in self._lexicons]
        return any(
            each is not None and each.after == len(text.tokens) and each.term.name in self._named
            for each in wholes
        )

    def _forms(self, word: str) -> set[str]:
        """The names under which the words of an answer are kept."""
        names = {same_thing(name) for words in self._lexicons for name in words.names(word)}
        return {same_thing(word), root(word), *names}

    def _denies(self, key: str) -> bool:
        wanted = {same_thing(word) for word in _content(key, drop_measures=False)}
        text = self._text
        for index, token in enumerate(text.tokens):
            if same_thing(token.low) in wanted and negated(text, index, index + 1):
                return True
        return False

    def _says_size(self, item: Item) -> bool | None:
        """None: the fact is no size."""
        text = Text(item.value)
        claims = [claim for claim in sizes_in(text, given=True) if claim.sizes]
        if "size" in item.key.lower() and not claims:
            claims = sizes_in(Text(f"size {item.value}"), given=True)
        if not claims:
            return None
        wanted = [size for claim in claims for size in claim.sizes]
        said = {size for claim in self._sizes for size in claim.sizes}
        ranges = [claim.sizes for claim in self._sizes if claim.is_range]
        said |= {size for low, high in ranges for size in _between(low, high)}
        if all(size in said for size in wanted):
            return True
        covers_all = sum(claim.after - claim.first for claim in claims) >= len(text.tokens)
        if covers_all and not any(size.replace(".", "").isdigit() for size in wanted):
            return False
        return None

    def _says_numbers(self, item: Item) -> bool:
        text = Text(item.value)
        key = key_nouns(item.key)
        for amount in amounts_in(Scan(text, given=True)):
            if any(text.at(place) in GROUPS for place in range(amount.first, amount.after)):
                continue
            if not self._says_amount(amount, key):
                return False
        return True

    def _says_amount(self, amount: Amount, key: frozenset[str]) -> bool:
        """Whether every number of the fact agrees with one of the answer."""
        found: list[bool] = []
        used: set[tuple[int, int]] = set()
        for part in range(len(amount.values)):
            place = self._agreeing(_only(amount, part, key), used)
            found.append(place is not None)
            # 30 x 30 x 30 cm takes three numbers, unless one is all there is.
            if place is not None and amount.shape == "set":
                used.add(place)
        # One end of a range with its direction mentions the range.
        return any(found) if amount.shape == "range" else all(found)

    def _agreeing(
        self, numbers: GivenNumbers, used: AbstractSet[tuple[int, int]]
    ) -> tuple[int, int] | None:
        """Which number of which amount of the answer agrees with one of these."""
        for number, said in enumerate(self._amounts):
            for part in range(len(said.values)):
                if (number, part) not in used and numbers.gives(said, part):
                    return number, part
        return None


def _only(amount: Amount, part: int, key: frozenset[str]) -> GivenNumbers:
    """One number of a fact, with what its key says of it."""
    value = amount.values[part]
    end: Direction = ""
    if amount.shape == "range":
        end = "low" if part == 0 else "high"
    nouns = amount.nouns | key
    given = [
        GivenValue(unit.worth(each) if unit else each, each, unit, nouns, end)
        for each in value.readings
        for unit in value.units or (None,)
    ]
    return GivenNumbers(given, is_talk=False)


def _different(text: Text) -> list[Amount]:
    """Amounts of a text, each wording once."""
    found: dict[str, Amount] = {}
    for amount in amounts_in(Scan(text, given=True)):
        start, end = text.span(amount.first, amount.after)
        found.setdefault(text.low[start:end], amount)
    return list(found.values())[:MOST_AMOUNTS]


def _between(low: str, high: str) -> Sequence[str]:
    if low in LETTERS and high in LETTERS:
        return LETTERS[LETTERS.index(low) : LETTERS.index(high) + 1]
    return (low, high)


def _words_of(text: Text, sentence: range) -> set[str]:
    """Words of a sentence that are not denied, each as one thing and by its root."""
    found: set[str] = set()
    for index in sentence:
        token = text.tokens[index]
        if token.sort == "sign" or _denied(text, index, index + 1):
            continue
        found |= {same_thing(token.low), root(token.low)}
        if token.low == "little" and text.at(index + 1) in {"ones", "one"}:
            found.add(same_thing("kids"))
    return found


def _denied_by(value: str) -> str:
    """What a fact says is not there: `tool-free`, `no side seams`."""
    words = value.lower().replace("-", " ").split()
    if len(words) > 1 and words[-1] == "free":
        return " ".join(words[:-1])
    return " ".join(words[1:]) if words and words[0] in {"no", "without"} else ""


DENIALS = named("no not without never nor isn't aren't")


def _denied(text: Text, first: int, after: int) -> bool:
    """Denied at close range; what a denial further off means is open."""
    if text.at(first - 1) in DENIALS or text.at(first - 2) in DENIALS or text.at(after) == "free":
        return negated(text, first, after) and text.at(first) not in DENIALS
    return False


def _content(value: str, *, drop_measures: bool) -> list[str]:
    """Words of a value that count, without the numbers and units of its amounts."""
    text = Text(value)
    amounts = amounts_in(Scan(text, given=True))
    said = {place for amount in amounts for place in _said_by_number(text, amount)}
    has_unit = drop_measures and any(amount.has_unit for amount in amounts)
    dropped = FUNCTION | MEASURES if has_unit else FUNCTION
    return [
        token.low
        for index, token in enumerate(text.tokens)
        if token.sort != "sign" and index not in said and token.low not in dropped
    ]


def _said_by_number(text: Text, amount: Amount) -> range:
    """Tokens that an equal number says: digits and unit, not what is counted; `set of` four."""
    first = amount.first
    if text.at(first - 1) == "of" and text.at(first - 2) in SETS:
        first -= 2
    if amount.has_unit:
        return range(first, amount.after)
    end = amount.first + 1
    while end < amount.after and text.tokens[end].sort != "word":
        end += 1
    return range(first, end)
