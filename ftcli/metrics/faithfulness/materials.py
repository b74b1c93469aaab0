"""Materials that an answer claims, and whether the facts give them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ftcli.metrics.faithfulness.context import elsewhere, in_specification, looks_so, negated
from ftcli.metrics.faithfulness.lexicon import Found, Lexicon, lexicon, word_set
from ftcli.metrics.faithfulness.stems import same_thing
from ftcli.metrics.faithfulness.text import Text, named

MADE = named(
    "made crafted woven adorned decorated embellished encrusted studded detailed "
    "accented inlaid built cut sewn knitted knit carved cast constructed formed forged "
    "fashioned spun moulded molded blown hewn hammered milled turned lined filled "
    "covered padded plated coated finished trimmed stuffed wrapped upholstered composed "
    "consists manufactured designed"
)
# Behind a dash: a part of something is of the material.
OF_IT = named(
    "lined filled tipped coated plated topped trimmed clad backed soled handled framed "
    "edged covered wrapped bound stuffed upholstered finished inlaid encrusted studded "
    "faced bodied rimmed"
)
# `a wood finish`: claims are species only; of cloths a finish is a look.
FINISHES = frozenset(["finish", "finishes", "sheen", "lustre", "luster"])
LOOKS_BY_FINISH = named("satin silk velvet pearl stone leather marble metal glass crystal enamel")
# Work that is done on a material.
WORK = named(
    "care cleaner cleaners polish polishes saw saws drill drills glue glues paint "
    "paints stain stains conditioner preserver cutter cutters working"
)
# Behind a word that also names something else: it is a material.
SUBSTANCES = named("alloy material materials metal wood fabric cloth leather stone plastic foam")
HARD = named("wood metal glass leather stone ceramic concrete plastic rubber")
JOINS = named(", and or & / + with over on")


@dataclass(frozen=True)
class MaterialClaim:
    """A material of which something is said to be made, at the tokens [first, after)."""

    first: int
    after: int
    name: str
    names: frozenset[str]
    """What it says: oak is oak and wood."""


class Materials:
    """Reads materials with the shop's own words added."""

    def __init__(self, more: Iterable[str] = ()) -> None:
        self.words: Lexicon = lexicon("materials").with_words(more)

    def given(self, text: Text, *, left_out: frozenset[int] = frozenset()) -> set[str]:
        """Every material that the facts name, and all that it implies."""
        found: set[str] = set()
        for each in self.words.all(text):
            if each.first in left_out or negated(text, each.first, each.after):
                continue
            found |= {each.term.name, *each.term.wider}
            found |= _inner(self.words, text, each)
        return found

    def claims(
        self, text: Text, hidden: frozenset[int], product: frozenset[str]
    ) -> list[MaterialClaim]:
        """Materials said of the product."""
        every = [
            each
            for each in self.words.all(text)
            if hidden.isdisjoint(range(each.first, each.after))
        ]
        every = [each for each in every if _is_name_of_material(text, each)]
        certain = {each.first for each in every if not each.term.weak}
        ends = {each.after for each in every if not each.term.weak}
        claims: list[MaterialClaim] = []
        weak = [each for each in every if each.term.weak]
        for each in [*weak, *reversed(weak)]:
            if _is_material(text, each, certain, ends, product):
                # What stands in a list with it is one too.
                certain.add(each.first)
                ends.add(each.after)
        for each in every:
            if negated(text, each.first, each.after):
                continue
            if looks_so(text, each.after):
                continue
            if elsewhere(text, each.first, each.after, product) or _is_worked_on(text, each):
                continue
            if each.first not in certain or _says_no_more(text, each, ends, product):
                continue
            names = frozenset({each.term.name, *each.term.wider})
            claims.append(MaterialClaim(each.first, each.after, each.term.name, names))
        return claims


# Abbreviations that are words in small letters.
CAPITALS_ONLY = frozenset({"abs", "eva", "pu", "pet"})
# `a glass`, `this canvas`: a thing to drink from, or to paint on.
THINGS = frozenset({"glass", "canvas"})
BEFORE_A_THING = named(
    "a an another your my per each every one two three his her tall full empty pint "
    "shot wine beer raise this that"
)
# Of what is a substance: `a tempered glass`.
TREATED = named("tempered frosted stained thick hardened toughened blown waxed heavy coated")


def _is_name_of_material(text: Text, found: Found) -> bool:
    token = text.tokens[found.first]
    if found.after - found.first == 1 and token.low in CAPITALS_ONLY:
        is_capital = text.raw[token.start : token.end].isupper()
        return is_capital or in_specification(text, found.first, found.after)
    return not (token.low in THINGS and _is_thing(text, found))


def _is_thing(text: Text, found: Found) -> bool:
    """`a glass`, `a dynamic canvas for`, but not `a glass lid`."""
    if text.same_clause(found.after, found.first):
        following = text.at(found.after)
        if following in word_set("parts"):
            return False
        if text.at(found.first - 1) not in BEFORE_A_THING and not _ends_noun(following):
            return False
    place = found.first - 1
    while _is_plain_adjective(text, place, found.first):
        place -= 1
    return text.at(place) in BEFORE_A_THING and not _is_made_of(text, found)


def _ends_noun(word: str) -> bool:
    return not word.isalpha() or word in word_set("stop")


def _is_plain_adjective(text: Text, place: int, first: int) -> bool:
    """A word before a noun, of which two at most are looked at."""
    word = text.at(place)
    is_near = first - place <= 3 and text.same_clause(place, first) and text.is_word(place)
    return is_near and word not in word_set("stop") | TREATED | BEFORE_A_THING


def _inner(words: Lexicon, text: Text, found: Found) -> set[str]:
    """Materials named by single words of a longer name: birch plywood is birch and plywood."""
    if found.after - found.first == 1 or found.term.name.startswith("faux"):
        return set()
    names: set[str] = set()
    for place in range(found.first, found.after):
        for term in words.names(text.at(place)):
            if term in found.term.wider:
                names.add(term)
    return names


def _says_no_more(text: Text, found: Found, ends: set[int], product: frozenset[str]) -> bool:
    """`gold alloy` is gold; `the glass` of reading glasses is the thing itself."""
    if found.term.name == "alloy":
        return found.first in ends
    is_kind = text.at(found.first) == "glass" and same_thing("glasses") in product
    return is_kind and _ends_noun(text.at(found.after))


def _is_worked_on(text: Text, found: Found) -> bool:
    following = text.at(found.after)
    if following in FINISHES and found.term.name in LOOKS_BY_FINISH:
        return True
    if HARD.isdisjoint({found.term.name, *found.term.wider}):
        return False
    return following in WORK and text.same_clause(found.after, found.first)


def _is_material(
    text: Text, found: Found, certain: set[int], ends: set[int], product: frozenset[str]
) -> bool:
    """Whether a word that also names something else is what something is made of here."""
    in_clause = text.same_clause(found.after, found.first)
    following = text.at(found.after) if in_clause else ""
    if _is_made_of(text, found) or following in SUBSTANCES or _is_fine_metal(text, found):
        return True
    if following in OF_IT and text.tokens[found.after].joined:
        return True
    if _in_wood(text, found, following):
        return True
    if following in word_set("parts") or (following and same_thing(following) in product):
        return _stands_as_adjective(text, found)
    if in_specification(text, found.first, found.after):
        return True
    return _listed(text, found, certain, ends)


def _is_fine_metal(text: Text, found: Found) -> bool:
    """`18-karat gold`, `925 silver`."""
    return "metal" in found.term.wider and text.at(found.first - 1) in FINENESS


FINENESS = named("karat carat kt k 925 999 fine sterling")


def _in_wood(text: Text, found: Found, following: str) -> bool:
    """`a tray in walnut`."""
    return (
        "wood" in found.term.wider
        and not (following.isalpha() and following not in {"and", "or", "with"})
        and (text.at(found.first - 1) == "in" or text.at(found.first - 2) == "in")
        and text.is_word(found.first - 1)
    )


def _stands_as_adjective(text: Text, found: Found) -> bool:
    """Not the verbs and adverbs that are spelt like materials: `felt heels`, `down sides`."""
    before = text.at(found.first - 1)
    return not (
        found.term.name in named("felt down lead card shell stone tile")
        and before in named("i you we they it have has never ever up and the settles sit")
    )


def _is_made_of(text: Text, found: Found) -> bool:
    """`made of`, `crafted from the finest`, `filled with`, `in cork`."""
    for place in range(found.first - 1, max(-1, found.first - 8), -1):
        if not text.same_sentence(place, found.first) or text.at(place) in {".", ";", ":", "!"}:
            return False
        if text.at(place) in {"of", "from", "with", "in", "out"} and text.at(place - 1) in MADE | {
            "out"
        }:
            return True
    return False


def _listed(text: Text, found: Found, certain: set[int], ends: set[int]) -> bool:
    before = found.first - 1
    while text.at(before) in JOINS and text.same_sentence(before, found.first):
        before -= 1
    after = found.after
    while text.at(after) in JOINS and text.same_sentence(after, found.first):
        after += 1
    return (before + 1 in ends and before < found.first - 1) or (
        after in certain and after > found.after
    )
