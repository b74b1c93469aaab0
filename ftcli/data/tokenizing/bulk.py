"""Many rows at once: what `Renderer.encode` makes of each, with one call of the tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from tokenizers import Encoding

from ftcli.data.example import Example
from ftcli.data.row import Reject
from ftcli.data.split import Side
from ftcli.data.tokenizing.layout import Layout
from ftcli.data.tokenizing.rendering import IGNORED, Encoded, Renderer, RowFault
from ftcli.data.tokenizing.special_tokens import tokens_of

# As many rows as keep the cores busy, and no more text than fits into little memory.
ROWS_AT_ONCE = 512
CHARACTERS_AT_ONCE = 2_000_000
# About as many as a context of a million tokens has.
MOST_CHARACTERS = 5_000_000

Item = tuple[Example, Side] | Reject
EncodedItem = tuple[Example, Side, Encoded] | Reject


def encode_items(items: Iterable[Item], renderer: Renderer) -> Iterator[EncodedItem]:
    """Examples with their rows, in the same order; what cannot be rendered is a Reject."""
    for batch in _batches(map(_not_too_long, items)):
        examples = [item[0] for item in batch if not isinstance(item, Reject)]
        rows = iter(encode_many(renderer, examples))
        for item in batch:
            if isinstance(item, Reject):
                yield item
                continue
            row = next(rows)
            if isinstance(row, RowFault):
                yield Reject(item[0].origin, row.message)
            else:
                yield *item, row


def _not_too_long(item: Item) -> Item:
    if isinstance(item, Reject) or item[0].characters <= MOST_CHARACTERS:
        return item
    reason = f"{item[0].characters:,} characters; a row has at most {MOST_CHARACTERS:,}"
    return Reject(item[0].origin, reason)


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    batch: list[Item] = []
    characters = 0
    for item in items:
        batch.append(item)
        characters += 0 if isinstance(item, Reject) else item[0].characters
        if len(batch) == ROWS_AT_ONCE or characters >= CHARACTERS_AT_ONCE:
            yield batch
            batch, characters = [], 0
    yield batch


def encode_many(renderer: Renderer, examples: Sequence[Example]) -> list[Encoded | RowFault]:
    """Rows of the examples; a RowFault stands in the place of a row that cannot be rendered.

    The tokenizer works on all cores. Rows that hold the text of a control token, and plain texts,
    are encoded one by one.
    """
    laid = [_laid(renderer, example) for example in examples]
    plain = _plain_rows(renderer, [row for row in laid if isinstance(row, Layout)])
    rows: list[Encoded | RowFault] = []
    for example, row in zip(examples, laid, strict=True):
        if isinstance(row, Layout):
            rows.append(next(plain))
        else:
            rows.append(row or _or_fault(partial(renderer.encode, example)))
    return rows


def _laid(renderer: Renderer, example: Example) -> Layout | RowFault | None:
    """Nothing for a row that has to be encoded alone."""
    if example.text is not None:
        return None
    try:
        laid = renderer.lay_out(example.messages)
    except RowFault as fault:
        return fault
    return None if laid.forged else laid


def _or_fault(encode: Callable[[], Encoded]) -> Encoded | RowFault:
    try:
        return encode()
    except RowFault as fault:
        return fault


def _plain_rows(renderer: Renderer, laid: Sequence[Layout]) -> Iterator[Encoded | RowFault]:
    """Rows without forged control tokens."""
    found = _by_ids(renderer, laid)
    rest = _by_offsets(renderer, [row for row, known in zip(laid, found, strict=True) if not known])
    return (known or next(rest) for known in found)


def _by_ids(renderer: Renderer, laid: Sequence[Layout]) -> list[Encoded | None]:
    """Rows with one answer, where ids tell how long its prompt is."""
    speller = renderer.speller
    found: list[Encoded | None] = [None] * len(laid)
    if not speller.by_bytes:
        return found
    places = [place for place, row in enumerate(laid) if len(row.answers) == 1]
    for place, ids in zip(places, speller.ids([laid[n].text for n in places]), strict=True):
        row = laid[place]
        first = speller.ids_before(row.answers[0].start, row.text, ids)
        if first is not None:
            found[place] = _closed(renderer, row, ids, first)
    return found


def _by_offsets(renderer: Renderer, laid: Sequence[Layout]) -> Iterator[Encoded | RowFault]:
    """All others."""
    wholes = renderer.speller.encodings([row.text for row in laid])
    found = [
        renderer.speller.tokens_before(row.answers[-1].start, row.text, whole)
        for row, whole in zip(laid, wholes, strict=True)
    ]
    unknown = [row.prompt for row, first in zip(laid, found, strict=True) if first is None]
    prompts = iter(renderer.speller.encodings(unknown))
    for row, whole, first in zip(laid, wholes, found, strict=True):
        prompt = whole if first is not None else next(prompts)
        length = len(prompt) if first is None else first
        yield _or_fault(partial(_joined, renderer, row, prompt, length, whole))


def _joined(
    renderer: Renderer, laid: Layout, prompt: Encoding, first: int, whole: Encoding
) -> Encoded:
    """A row of `whole`; its prompt's are the `first` tokens of `prompt`."""
    ids = whole.ids
    agree = prompt is whole or (ids[:first] == prompt.ids and _ends_alike(prompt, whole, first))
    if len(laid.answers) > 1 or not agree:
        return renderer.labelled(laid, tokens_of(prompt)[:first], tokens_of(whole))
    return _closed(renderer, laid, ids, first)


def _closed(renderer: Renderer, laid: Layout, ids: list[int], first: int) -> Encoded:
    """With labels behind the first ids."""
    return renderer.closed(laid, ids, [IGNORED] * first + ids[first:], first)


def _ends_alike(prompt: Encoding, whole: Encoding, first: int) -> bool:
    """A token that stands for any unknown text may reach further in the whole."""
    return not first or whole.token_to_chars(first - 1) == prompt.token_to_chars(first - 1)
