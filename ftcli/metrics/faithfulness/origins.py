"""Names that the words around them make a maker's, a shop's or a model's."""

from __future__ import annotations

from ftcli.metrics.faithfulness.coined import is_coined, is_plain
from ftcli.metrics.faithfulness.lexicon import word_set
from ftcli.metrics.faithfulness.marks import is_title
from ftcli.metrics.faithfulness.text import Text, named
from ftcli.metrics.faithfulness.units import unit_at

MAKER_WORDS = named("designer designers label brand brands maker makers artist author manufacturer")
# `available at`, `shop now at`: a shop's name follows.
SOLD = named("shop available only exclusively here sold order buy today now store or and")
BRAND_KEYS = frozenset({"brand", "manufacturer", "maker", "designer", "label"})
# Around a name in quotation marks.
NAMING = MAKER_WORDS | named("called named dubbed by from")
NAMED_KINDS = named("collection brand series line label company shop store manufacturer")
COMPANIES = named("inc ltd llc gmbh corp corporation plc")
# Bodies that stand for nothing in the product: `the International Wool Association`.
BODIES = named("association institute council foundation federation university museum society")
IN_NAMES = named("and & of for the")
# Letters before digits that are a standard, a size, a battery, a currency …, and no model.
STANDARDS = named(
    "ip ipx spf uv upf iso en din astm usb mp hd cr lr ac dc rj ps eu us uk w l xl b c d k e h f "
    "s v aa aaa ral ph cri pd qc hdmi ddr covid omega ansi fda sae awg aisi mil usd eur gbp chf "
    "cad aud inr jpy rgb no nr cd hba t g x m cm mm kg sku isbn ref lot ce"
)
OPENING = named("( [ \" ' * : , / | -")
LONGEST_RUN = 6


def is_origin(text: Text, index: int, end: int) -> bool:
    """`designer X`, `designer, X Y`, `at X we`, `available at X`, `Brand: X`."""
    before = text.at(index - 1)
    if before in MAKER_WORDS:
        return True
    if before == "," and text.at(index - 2) in MAKER_WORDS and end - index > 1:
        return True
    if before == ":" and text.at(index - 2) in BRAND_KEYS:
        return True
    if before == "at" and "we" in {text.at(end), text.at(end + 1)}:
        return True
    is_sold = before in {"at", "visit"} and text.at(index - 2) in SOLD
    return is_sold and not is_title(text, index)


def is_by_somebody(text: Text, index: int) -> bool:
    """`created by the great X`: a coined name behind `by` and words that praise it."""
    if not is_coined(text.at(index)):
        return False
    place = index - 1
    while index - place < LONGEST_RUN and text.is_word(place) and not text.tokens[place].capital:
        if text.at(place) == "by":
            return text.same_clause(place, index)
        place -= 1
    return False


def quoted_name(text: Text, index: int, known: frozenset[str]) -> int | None:
    """`a brand called "X Y"`, `the "X" collection`; `known`: words of the facts."""
    if text.at(index - 1) != '"' or not text.tokens[index].glued:
        return None
    after = index
    while after - index < LONGEST_RUN and _is_in_name(text, after):
        after += 1
    if after == index or text.at(after) != '"':
        return None
    words = text.words(range(index, after))
    if all(word in known or is_plain(word) for word in words):
        return None
    is_named = text.at(index - 2) in NAMING or text.at(after + 1) in NAMED_KINDS
    return after if is_named else None


def _is_in_name(text: Text, place: int) -> bool:
    if place >= len(text.tokens):
        return False
    token = text.tokens[place]
    return token.capital or token.sort == "number" or token.low in IN_NAMES


def company(text: Text, index: int) -> int | None:
    """`Lynn & Co.`, `Northfield Goods Ltd`."""
    after = index
    while after - index < LONGEST_RUN and _is_capital(text, after):
        if text.at(after) in COMPANIES and after > index:
            return after + 1
        after += 1
    is_house = text.at(after) in {"&", "and"} and text.at(after + 1) == "co"
    if is_house and after > index and text.tokens[after + 1].capital:
        return after + 2
    return None


def _is_capital(text: Text, place: int) -> bool:
    return place < len(text.tokens) and text.tokens[place].capital


def model_code(text: Text, index: int) -> int | None:
    """Capitals and digits in one: AXT-110, R125; not IP67, SPF 50, EN71."""
    token, digits = text.tokens[index], index + 1
    if token.low in STANDARDS or not _stands_alone(text, index) or digits >= len(text.tokens):
        return None
    behind = text.tokens[digits]
    is_joined = behind.sort == "number" and (behind.glued or behind.joined == "-")
    if not is_joined or not behind.low.isdecimal():
        return None
    letters = token.end - token.start
    if len(behind.low) < (3 if letters == 1 else 2) or letters > LONGEST_RUN:
        return None
    after = digits + 1
    while after < len(text.tokens) and _goes_on(text, after):
        after += 1
    return after


def _stands_alone(text: Text, index: int) -> bool:
    token = text.tokens[index]
    is_upper = token.sort == "word" and text.raw[token.start : token.end].isupper()
    before = text.at(index - 1)
    return is_upper and not token.joined and not (token.glued and before[-1:] not in OPENING)


def _goes_on(text: Text, place: int) -> bool:
    token = text.tokens[place]
    return token.sort != "sign" and (token.glued or token.joined == "-") and token.low.isalnum()


def numbered_name(text: Text, index: int) -> int | None:
    """A coined word and a number, alone on a line: `**Alvarra 1108**`."""
    number = index + 1
    if not is_coined(text.at(index)) or not text.line_begins(index):
        return None
    if number >= len(text.tokens) or not text.at(number).isdecimal():
        return None
    after = number + 1
    while text.at(after) in {"*", "™", "®"}:
        after += 1
    ends = after >= len(text.tokens) or not text.same_sentence(after, index)
    is_measured = after < len(text.tokens) and unit_at(text, number + 1, value=2.0) is not None
    return number + 1 if ends and not is_measured and len(text.at(number)) in {3, 4} else None


def is_beside(text: Text, index: int, last: int) -> bool:
    """A coined name behind a name that ended at `last`: `by Edda and Marlo`."""
    return (
        index == last + 1
        and text.at(last) in {"and", "&"}
        and text.tokens[index].capital
        and is_coined(text.at(index))
    )


def bodies(text: Text) -> frozenset[int]:
    """Tokens of names of associations, museums and the like."""
    found: set[int] = set()
    for index, token in enumerate(text.tokens):
        if token.low not in BODIES or not token.capital:
            continue
        place = index
        while place > 0 and text.same_clause(place - 1, index) and _is_in_name(text, place - 1):
            place -= 1
        found |= set(range(place, index + 1))
    return frozenset(found)


def is_maker(text: Text, index: int, end: int) -> bool:
    """Behind `by`: two words or more, or one that is no ordinary word."""
    word = text.at(index)
    return word not in word_set("no_brands") and (end - index > 1 or not is_plain(word))
