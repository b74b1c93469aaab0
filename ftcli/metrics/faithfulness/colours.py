"""Colours that an answer claims, and whether the facts give them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ftcli.metrics.faithfulness.context import elsewhere, in_specification, negated
from ftcli.metrics.faithfulness.lexicon import Found, Lexicon, lexicon, word_set
from ftcli.metrics.faithfulness.materials import OF_IT
from ftcli.metrics.faithfulness.stems import same_thing
from ftcli.metrics.faithfulness.text import Text, named

COLOUR_NOUNS = named(
    "colour colours color colors coloured colored shade shades hue hues tone tones "
    "toned finish finishes options option version versions edition tint tints dyed "
    "accents accent palette colourway colorway colourways colorways hued sheen"
)
STRENGTH = {"light": "light", "pale": "light", "pastel": "light", "dark": "dark", "deep": "dark"}
# Between a word of strength or a picture and the colour it shades.
NOT_BESIDE = frozenset(["and", "or", "in"])
# Words of a list of colours.
JOINS = named(", and or & / + with to")
# `cream, and soft sage`: passed over in a list.
STEPPED_OVER = named("soft warm cool rich deep pale light dark bright vibrant crisp muted bold a")
# `shades of coral`, `a splash of gold`.
AMOUNTS_OF = named(
    "shade shades hue hues tone tones tint tints colour colours color colors accents splash "
    "splashes pop pops burst bursts palette spectrum design touches flashes streaks"
)
METALS = named("gold silver bronze copper brass")


@dataclass(frozen=True)
class ColourClaim:
    """A colour said of the product, at the tokens [first, after)."""

    first: int
    after: int
    names: frozenset[str]
    """What it says: olive green is olive and green."""
    needs: frozenset[str]
    """What has to be given: of a shade beside its own colour, the shade."""
    strength: str
    picture: str = ""
    """The colour before a colour, as honey in honey brown."""


class Colours:
    """Reads colours with the shop's own words added."""

    def __init__(self, more: Iterable[str] = ()) -> None:
        self.words: Lexicon = lexicon("colours").with_words(more)

    def given(self, text: Text, *, left_out: frozenset[int] = frozenset()) -> dict[str, set[str]]:
        """Colour → the words of strength it is given with (`""`: none)."""
        found: dict[str, set[str]] = {}
        for each in self.words.all(text):
            if each.first in left_out or negated(text, each.first, each.after):
                continue
            strength = STRENGTH.get(text.at(each.first - 1), "")
            for name in (each.term.name, *each.term.wider):
                found.setdefault(name, set()).add(strength)
        return found

    def claims(
        self, text: Text, hidden: frozenset[int], product: frozenset[str]
    ) -> list[ColourClaim]:
        """Colours said of the product."""
        every = [each for each in self.words.all(text) if hidden.isdisjoint(_places(each))]
        certain = {each.first for each in every if not each.term.weak}
        starts = frozenset(each.first for each in every)
        weak = [each for each in every if each.term.weak]
        for each in [*weak, *reversed(weak)]:
            if _is_colour(text, each, certain, starts, product):
                # What stands in a list with it is one too.
                certain.add(each.first)
        claims = []
        for group in _beside(every, text):
            first, after = group[0].first, group[-1].after
            if negated(text, first, after) or elsewhere(text, first, after, product):
                continue
            if _is_person(text, first) or text.at(after) == "'":
                continue
            if certain.isdisjoint(each.first for each in group):
                continue
            claims.append(_claim(text, group))
        return claims


def _places(found: Found) -> range:
    return range(found.first, found.after)


def _beside(every: list[Found], text: Text) -> list[list[Found]]:
    """Colours right beside each other are one where one implies the other: olive green."""
    groups: list[list[Found]] = []
    for each in every:
        last = groups[-1][-1] if groups else None
        if (
            last is not None
            and last.after == each.first
            and text.same_clause(last.first, each.first)
        ):
            implied = each.term.name in last.term.wider or last.term.name in each.term.wider
            pictures = last.term.weak and not each.term.weak
            if implied or (pictures and not text.tokens[each.first].joined):
                groups[-1].append(each)
                continue
        groups.append([each])
    return groups


def _claim(text: Text, group: list[Found]) -> ColourClaim:
    names = {name for each in group for name in (each.term.name, *each.term.wider)}
    first, after = group[0].first, group[-1].after
    needs = _needs(text, group)
    beside = first - 1
    is_beside = text.same_clause(beside, first)
    strength = STRENGTH.get(text.at(beside), "") if is_beside else ""
    if strength or _is_picture(text, beside):
        first = beside
    picture = group[0].term.name if len(group) > 1 else ""
    return ColourClaim(first, after, frozenset(names), needs, strength, picture)


def _needs(text: Text, group: list[Found]) -> frozenset[str]:
    """A shade is needed itself; a picture beside its colour (cherry red) leaves the colour."""
    own = {each.term.name for each in group}
    wider = {name for each in group for name in each.term.wider}
    said = {text.at(place) for each in group for place in range(each.first, each.after)}
    needs: set[str] = set()
    for name in own - wider:
        base = {each for each in wider if each in said or (each == "grey" and "gray" in said)}
        is_shade = not said.isdisjoint(word_set("shades")) or name in word_set("shades")
        needs |= base if base and not is_shade else {name}
    return frozenset(needs)


def _is_picture(text: Text, place: int) -> bool:
    """A noun before a colour that makes it a shade: midnight blue, sky blue."""
    return text.at(place) in word_set("pictures") and text.same_clause(place, place + 1)


def _is_person(text: Text, first: int) -> bool:
    return text.at(first - 1) in {"mr", "mrs", "ms", "dr"} or (
        text.at(first - 1) == "." and text.at(first - 2) in {"mr", "mrs", "ms", "dr"}
    )


def _is_colour(
    text: Text, found: Found, certain: set[int], starts: frozenset[int], product: frozenset[str]
) -> bool:
    """Whether a word that also names a fruit, a stone, a scent … is a colour here."""
    if _is_scent_or_taste(text, found) or _is_a_coloured_thing(text, found, certain):
        return False
    following = text.at(found.after) if text.same_clause(found.after, found.first) else ""
    if following in COLOUR_NOUNS or text.at(found.first - 1) in {"coloured", "colored"}:
        return True
    if following in word_set("parts") or (following and same_thing(following) in product):
        return True
    if following in CLOTHS:
        return True
    if _listed(text, found, certain) or in_specification(text, found.first, found.after):
        return True
    if _shaded(text, found) or _is_amount_of(text, found) or _is_metal(text, found):
        return True
    in_list = following in {"and", "or", "&"} and found.after + 1 in starts
    return _after_in(text, found) and (in_list or not following.isalpha())


def _is_amount_of(text: Text, found: Found) -> bool:
    """`shades of coral`."""
    place = found.first - 1
    while text.at(place) in STEPPED_OVER:
        place -= 1
    return (
        text.at(place) == "of"
        and text.at(place - 1) in AMOUNTS_OF
        and found.term.name not in EATEN
        and not _names_a_plant(text, found)
    )


def _names_a_plant(text: Text, found: Found) -> bool:
    return text.at(found.after) in word_set("stop") | {""} and text.at(found.first).endswith("s")


def _is_metal(text: Text, found: Found) -> bool:
    """`gold-rimmed`, `Finish: gold` alone on its line."""
    if found.term.name not in METALS:
        return False
    if text.at(found.after) in OF_IT and text.tokens[found.after].joined:
        return True
    ends = text.tokens[found.after - 1].sentence
    is_last = found.after >= len(text.tokens) or text.tokens[found.after].sentence != ends
    before = found.first - 1
    while text.at(before) == "*":
        before -= 1
    return is_last and text.at(before) == ":" and text.is_word(before - 1)


def _is_a_coloured_thing(text: Text, found: Found, certain: set[int]) -> bool:
    """`a white rose accent`: the rose is the thing that is white."""
    before = found.first - 1
    return (
        before in certain
        and text.same_clause(before, found.first)
        and not text.tokens[found.first].joined
        and text.at(found.after) not in COLOUR_NOUNS - {"accent", "accents"}
        and found.term.name in FLOWERS
    )


FLOWERS = named("rose orchid iris poppy violet lavender magnolia sunflower heather primrose salmon")


# Words of strength that name no taste or smell beside these.
SHADED = named("light dark deep pale vibrant burnt dusty muted neon pastel metallic bright")
EATEN = named(
    "chocolate coffee espresso mocha honey wine lemon lime cherry strawberry raspberry "
    "grape caramel biscuit oat wheat cream mint cocoa cinnamon"
)


def _shaded(text: Text, found: Found) -> bool:
    """`bright orange`, but not `dark chocolate`."""
    if not text.same_clause(found.first - 1, found.first):
        return False
    return text.at(found.first - 1) in SHADED and found.term.name not in EATEN


CLOTHS = named(
    "cotton linen leather suede velvet silk satin wool denim polyester nylon canvas "
    "faux mesh fleece corduroy metal steel ceramic porcelain glass plastic wood wooden "
    "resin"
)
SCENT = named(
    "scent scents scented aroma aromas fragrance fragrances flavour flavours flavor "
    "flavors notes note hint hints taste tastes smell smells infused extract oil "
    "essence perfume touch"
)


def _is_scent_or_taste(text: Text, found: Found) -> bool:
    for place in range(found.first - 1, max(-1, found.first - 7), -1):
        if not text.same_sentence(place, found.first):
            break
        if text.at(place) in SCENT:
            return True
    return text.at(found.after) in SCENT | named("oil seeds tea juice petals leaves trees")


def _listed(text: Text, found: Found, certain: set[int]) -> bool:
    """In a list with a word that is a colour and nothing else."""
    before = found.first - 1
    while text.at(before) in JOINS | STEPPED_OVER and text.same_sentence(before, found.first):
        before -= 1
    after = found.after
    while text.at(after) in JOINS and text.same_sentence(after, found.first):
        after += 1
    return (before in certain and before < found.first - 1) or (
        after in certain and after > found.after
    )


def _after_in(text: Text, found: Found) -> bool:
    """`in olive`, `in a soft sage`, `choose rose or …`."""
    for place in range(found.first - 1, max(-1, found.first - 4), -1):
        if not text.same_clause(place, found.first):
            return False
        if text.at(place) == "in":
            return True
    return False
