"""What an answer claims of each kind, and whether the facts support it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ftcli.metrics.faithfulness.amount import Scan
from ftcli.metrics.faithfulness.amounts import amounts_in
from ftcli.metrics.faithfulness.brands import Brands
from ftcli.metrics.faithfulness.colours import Colours
from ftcli.metrics.faithfulness.context import negated
from ftcli.metrics.faithfulness.given import Given
from ftcli.metrics.faithfulness.lexicon import Lexicon, phrases
from ftcli.metrics.faithfulness.materials import Materials
from ftcli.metrics.faithfulness.origins import bodies
from ftcli.metrics.faithfulness.sizes import SizeClaim, sizes_in
from ftcli.metrics.faithfulness.support import Support
from ftcli.metrics.faithfulness.text import Text
from ftcli.recipe.faithfulness import Faithfulness, Kind


@dataclass(frozen=True)
class Claim:
    """Words of an answer, characters [start, end), that state something of one kind."""

    kind: Kind
    start: int
    end: int
    supported: bool


class ClaimReader:
    """Reads claims with the words that the recipe adds."""

    def __init__(self, wanted: Faithfulness) -> None:
        self.colours = Colours(wanted.colours)
        self.materials = Materials(wanted.materials)
        self._brands = Brands(wanted.brands)
        self._allowed = Lexicon({}).with_words(wanted.allowed)
        self._kinds = frozenset(wanted.kinds)

    def support(self, facts: Given) -> Support:
        """What facts support, read with the same words."""
        return Support(facts, self.colours, self.materials)

    def claims(self, text: Text, support: Support) -> list[Claim]:
        """Every claim of the kinds that are looked at, from left to right; each wording once."""
        found: dict[tuple[str, str], Claim] = {}
        for claim in sorted(self._claims(text, support), key=lambda each: each.start):
            wording = text.low[claim.start : claim.end]
            if claim.kind in self._kinds and not _is_cut_off(text, claim, support, found):
                found.setdefault((claim.kind, wording), claim)
        return list(found.values())

    def _claims(self, text: Text, support: Support) -> Iterator[Claim]:
        allowed = self._allowed.places(text)
        fixed = phrases("idioms").places(text) | bodies(text)
        brands = self._brands.claims(text, allowed | fixed, support.facts)
        for claim in brands:
            if not negated(text, claim.first, claim.after):
                yield Claim("brand", *text.span(claim.first, claim.after), claim.is_given)
        branded = frozenset(p for claim in brands for p in range(claim.first, claim.after))
        hidden = allowed | branded | support.names.places(text) | fixed
        sizes = sizes_in(text, hidden)
        yield from _sizes(text, sizes, support)
        sized = frozenset(p for claim in sizes for p in range(claim.first, claim.after))
        yield from _numbers(text, hidden | sized, support)
        yield from self._materials_and_colours(text, hidden, support)

    def _materials_and_colours(
        self, text: Text, hidden: frozenset[int], support: Support
    ) -> Iterator[Claim]:
        """Words that are both are taken as the material, once."""
        taken: set[int] = set()
        for claim in self.materials.claims(text, hidden, support.facts.product):
            supported = support.material(claim)
            if not supported:
                taken |= set(range(claim.first, claim.after))
            yield Claim("material", *text.span(claim.first, claim.after), supported)
        for shade in self.colours.claims(text, hidden, support.facts.product):
            supported = support.colour(shade)
            if supported or taken.isdisjoint(range(shade.first, shade.after)):
                yield Claim("colour", *text.span(shade.first, shade.after), supported)


def _is_cut_off(
    text: Text, claim: Claim, support: Support, found: Iterable[tuple[str, str]]
) -> bool:
    """Whether the answer ends inside a number that the facts or the answer give in full."""
    if claim.kind != "number" or claim.supported or claim.end < len(text.raw.rstrip()):
        return False
    # The same figures with more behind them: `$49` of `$499.99`, `12-meg` of `12-megapixel`.
    longer = re.compile(rf"(?<![\w.,-]){re.escape(text.low[claim.start : claim.end])}(\w|[.,]\d)")
    return any(longer.search(whole) for whole in (support.facts.text.low, *(w for _, w in found)))


def _sizes(text: Text, sizes: list[SizeClaim], support: Support) -> Iterator[Claim]:
    for claim in sizes:
        if not negated(text, claim.first, claim.after):
            yield Claim("size", *text.span(claim.first, claim.after), support.size(claim))


def _numbers(text: Text, hidden: frozenset[int], support: Support) -> Iterator[Claim]:
    seen: set[str] = set()
    for amount in amounts_in(Scan(text, hidden)):
        start, end = text.span(amount.first, amount.after)
        wording = text.low[start:end]
        if wording not in seen:
            seen.add(wording)
            yield Claim("number", start, end, support.numbers.support(amount))
