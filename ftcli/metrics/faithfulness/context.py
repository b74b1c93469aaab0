"""What stands around a word: is it denied, compared, or said of something else than the product?"""

from __future__ import annotations

from functools import lru_cache

from ftcli.metrics.faithfulness.lexicon import word_list, word_set
from ftcli.metrics.faithfulness.stems import same_thing
from ftcli.metrics.faithfulness.text import Text, named

NEGATORS = named("no not never without nor neither unlike zero cannot non minus lacks avoid avoids")
# What follows a negator and takes its force: "not just", "no longer", "not to mention".
NO_NEGATION = named("only just merely simply longer mention doubt wonder limited")
TWO_WORD_NEGATORS = {
    ("instead", "of"),
    ("rather", "than"),
    ("free", "of"),
    ("free", "from"),
    ("nothing", "of"),
    ("lack", "of"),
    ("absence", "of"),
    ("zero", "of"),
}
# `without sacrificing style in red`: what follows is said of something else.
ENDS_NEGATION = named("but in with on for at while as because")
# How many words a negator reaches over.
REACH = 4


def negated(text: Text, first: int, after: int) -> bool:
    """Whether the tokens [first, after) are denied: `no plastic`, `plastic-free`, `never brown`."""
    if text.at(after) == "free" and (
        text.tokens[after].joined or text.at(after + 1) in {"", ".", ","}
    ):
        return True
    steps = 0
    for place in range(first - 1, max(-1, first - 12), -1):
        if not _same_stretch(text, place, first):
            return False
        word = text.at(place)
        if word in ENDS_NEGATION or text.tokens[place].sort == "sign":
            return False
        if (word, text.at(place + 1)) in TWO_WORD_NEGATORS:
            return True
        if _negates(text, place, first):
            return True
        # `no plastic or metal`: what stands in one list counts once.
        steps += word not in named("or and nor a an the any")
        if steps > REACH:
            return False
    return False


def _same_stretch(text: Text, place: int, first: int) -> bool:
    """In one clause, or parted by commas of a list that a negator opened."""
    return text.same_clause(place, first)


def _negates(text: Text, place: int, first: int) -> bool:
    word = text.at(place)
    is_negator = word in NEGATORS or word.endswith("n't")
    if text.tokens[place + 1].joined:
        # `non-slip rubber` is rubber.
        return is_negator and place + 1 == first
    return is_negator and text.at(place + 1) not in NO_NEGATION


@lru_cache
def _triggers() -> dict[str, list[tuple[str, ...]]]:
    """Phrases behind which something else than the product is named, by their last word."""
    found: dict[str, list[tuple[str, ...]]] = {}
    for line in word_list("elsewhere"):
        words = tuple(line.split())
        found.setdefault(words[-1], []).append(words)
    return found


# Words that bring the sentence back to the product.
BACK = named(
    "it its it's is are was were has have features featuring comes come made crafted "
    "available this these while boasts offers thanks keeps adds gives includes included "
    "choose"
)
# `colours like red`: examples, no comparison.
EXAMPLES_OF = named(
    "colour colours color colors shade shades material materials fabric fabrics hue "
    "hues tone tones option options wood woods metal metals"
)
FAR = 14


def elsewhere(text: Text, first: int, after: int, product: frozenset[str]) -> bool:
    """Whether a colour or material is said of something else than the product.

    `product`: the words of the product's name and kind, each as `same_thing` names it.
    """
    return (
        _compared(text, after)
        or _of_the_scene(text, after, product)
        or _yours(text, first, after, product)
        or _triggered(text, first)
        or _list_of_what_it_works_on(text, first)
        or _surfaces(text, first, after)
    )


# Keys of a line whose value names colours or materials.
SPEC_KEYS = named(
    "colour colours color colors material materials fabric finish shade shades upper "
    "sole lining frame made construction composition outer"
)
# Words of one entry of a line of specifications.
LONGEST_ENTRY = 5


def in_specification(text: Text, first: int, after: int) -> bool:
    """Whether a word is an entry of its own: `Specs: teak | honey | 45 cm`, `Colour: sand`."""
    start, end = first, after
    while (
        text.is_word(start - 1)
        and text.same_sentence(start - 1, first)
        and first - start < LONGEST_ENTRY
    ):
        start -= 1
    while text.is_word(end) and text.same_sentence(end, first) and end - after < LONGEST_ENTRY:
        end += 1
    if end - start > LONGEST_ENTRY:
        return False
    before = text.at(start - 1)
    if before == "|" or (text.at(end) == "|" and start > 0):
        return text.raw.count("\n", text.tokens[start - 1].end, text.tokens[start].start) == 0
    places = range(max(0, start - 4), start - 1)
    return before in {":", "*"} and any(
        text.at(place) in SPEC_KEYS and text.same_sentence(place, first) for place in places
    )


def looks_so(text: Text, after: int) -> bool:
    """`leather-look`, `wood effect`, `silk-like`."""
    return text.at(after) in word_set("looks") and text.same_clause(after, after - 1)


def _compared(text: Text, after: int) -> bool:
    """`as white as snow`."""
    return text.at(after) == "as" and text.at(after + 1) not in {"well", "it", "they", "you"}


def head(text: Text, after: int) -> str:
    """The last word of the run of words behind a colour or material: what it is said of."""
    word = ""
    for place in range(after, min(after + 3, len(text.tokens))):
        if not text.is_word(place) or not text.same_clause(place, after - 1):
            break
        if text.at(place) in word_set("stop"):
            break
        word = text.at(place)
    return word


def _of_the_scene(text: Text, after: int, product: frozenset[str]) -> bool:
    word = head(text, after)
    return word in word_set("scene") and same_thing(word) not in product


def _yours(text: Text, first: int, after: int, product: frozenset[str]) -> bool:
    """`your white kitchen`, unless the noun is the product."""
    for place in range(first - 1, max(-1, first - 3), -1):
        if not text.same_clause(place, first) or not text.is_word(place):
            return False
        if text.at(place) in {"your", "their"}:
            word = head(text, after)
            return bool(word) and same_thing(word) not in product
    return False


def _triggered(text: Text, first: int) -> bool:
    for place in range(first - 1, max(-1, first - FAR), -1):
        if not text.same_sentence(place, first):
            return False
        if _ends_trigger(text, place):
            return True
        if text.at(place) in BACK | {";", "—", "|"} or _new_clause(text, place):
            return False
    return False


def _ends_trigger(text: Text, place: int) -> bool:
    """Whether a phrase ends here behind which something else is named."""
    if text.at(place) == "like" and text.at(place - 1) in EXAMPLES_OF:
        return False
    for phrase in _triggers().get(text.at(place), ()):
        start = place - len(phrase) + 1
        words = tuple(text.at(each) for each in range(start, place + 1))
        if words == phrase and text.same_sentence(start, place):
            return start < place or not _describes(text, place)
    return False


# Verbs that are adjectives too: `clean lines`, `a perfect match`.
VERBS_TOO = named("clean split match")
BEFORE_A_VERB = named("to can will you they and or easily quickly that which safely it")


def _describes(text: Text, place: int) -> bool:
    """`soft, clean porcelain`: no verb."""
    begins = not text.same_sentence(place - 1, place)
    return text.at(place) in VERBS_TOO and not begins and text.at(place - 1) not in BEFORE_A_VERB


def _new_clause(text: Text, place: int) -> bool:
    """`…, and the base plate`: said of the product again."""
    return (
        text.at(place) == "and"
        and text.at(place - 1) == ","
        and text.at(place + 1) in {"the", "its", "a", "an"}
    )


def _surfaces(text: Text, first: int, after: int) -> bool:
    """`on tiles, wood or laminate`: places to use it, of which any will do."""
    if head(text, after):
        return False
    sentence = text.tokens[first].sentence
    has_or = text.at(after) == "or"
    for place in range(first - 1, max(-1, first - 8), -1):
        if text.tokens[place].sentence != sentence:
            return False
        word = text.at(place)
        has_or = has_or or word == "or"
        if word in {"on", "onto", "for"}:
            return has_or
        if word in BACK | {"in", "of", "with", "from", "by"}:
            return False
    return False


def _list_of_what_it_works_on(text: Text, first: int) -> bool:
    """`Wood, leather or rope: the knife cuts it all.`"""
    sentence = text.tokens[first].sentence
    for place in range(first + 1, min(first + 24, len(text.tokens))):
        if text.tokens[place].sentence != sentence:
            return False
        if text.at(place) in named("cuts handles tackles cleans masters drills copes"):
            return text.at(place + 1) in {"it", "them", "everything", "through", "with"} and (
                text.at(place + 2) in {"all", "it", "them", ""}
                or text.at(place + 1) == "everything"
            )
    return False
