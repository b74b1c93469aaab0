"""What the facts of one question support: colours, materials, sizes and numbers."""

from __future__ import annotations

from functools import cached_property

from ftcli.metrics.faithfulness.colours import ColourClaim, Colours
from ftcli.metrics.faithfulness.given import Given
from ftcli.metrics.faithfulness.lexicon import Lexicon, phrase_of
from ftcli.metrics.faithfulness.materials import MaterialClaim, Materials
from ftcli.metrics.faithfulness.numbers import GivenNumbers, given_numbers
from ftcli.metrics.faithfulness.sizes import GivenSizes, SizeClaim
from ftcli.metrics.faithfulness.text import named

# Names of a colour and of a material: given as the one, they support the other.
BOTH = named(
    "gold silver bronze copper brass chrome ivory pearl amber charcoal slate walnut oak "
    "mahogany beech ebony ash cherry maple pine teak terracotta graphite stone jade "
    "onyx ruby emerald sapphire"
)


class Support:
    """The facts, read once for all answers to one question."""

    def __init__(self, facts: Given, colours: Colours, materials: Materials) -> None:
        self.facts = facts
        denied = _denied_keys(facts)
        self._colours = colours.given(facts.text, left_out=denied)
        self._materials = materials.given(facts.text, left_out=denied)

    @cached_property
    def numbers(self) -> GivenNumbers:
        return given_numbers(self.facts)

    @cached_property
    def names(self) -> Lexicon:
        """The product's names."""
        return Lexicon({}).with_words(name for name in self.facts.names if phrase_of(name))

    @cached_property
    def _sizes(self) -> GivenSizes:
        return GivenSizes(self.facts.text)

    def material(self, claim: MaterialClaim) -> bool:
        """Whether the material is given, or a narrower one."""
        if claim.name in self._materials or (claim.name in BOTH and claim.name in self._colours):
            return True
        # A name of several words, spread over one line: `Wax: soy`.
        words = claim.name.split()
        lines = self.facts.words_by_line if len(words) > 1 else ()
        return any(all(word in line for word in words) for line in lines)

    def colour(self, claim: ColourClaim) -> bool:
        """Whether the colour is given, or a narrower one, and no other strength of it."""
        given = self._colours
        # `honey brown` for honey.
        if claim.picture in given or claim.names & self._materials & BOTH:
            return True
        if not all(name in given for name in claim.needs):
            return False
        said = {strength for name in claim.needs for strength in given[name]}
        return not claim.strength or "" in said or claim.strength in said

    def size(self, claim: SizeClaim) -> bool:
        """Whether the size is given; one in digits may stand anywhere."""
        if self._sizes.support(claim):
            return True
        if claim.sizes == ("one size",):
            return "one size" in self.facts.text.low
        return all(size.isdecimal() and size in self.facts.words for size in claim.sizes)


def _denied_keys(facts: Given) -> frozenset[int]:
    """Tokens of the keys whose value is no: `Leather: no` supports nothing."""
    spans = [
        (line.key_start, line.value_start)
        for line in facts.lines
        if len(line.items) == 1 and line.items[0].says_no
    ]
    return frozenset(
        index
        for index, token in enumerate(facts.text.tokens if spans else ())
        if any(start <= token.start < end for start, end in spans)
    )
