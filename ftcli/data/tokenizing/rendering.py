"""Messages → token ids and labels, the same for prepare, train, eval and generate.

A conversation is rendered as a whole by the chat template (ftcli.data.templates), then encoded as a
whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial

from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from ftcli.data.dataset import Assigned
from ftcli.data.example import Example, Message, Origin, RejectedRow, RowError
from ftcli.data.templates import worker
from ftcli.data.templates.render import Answer, ChatTemplate, Refused, Rendered, Span
from ftcli.data.tokenizing.special_tokens import (
    CannotEscapeError,
    EscapingTokenizer,
    Token,
    tokens_of,
)
from ftcli.errors import DataError, ModelError

NO_TEMPLATE = "is a conversation, and the model has no chat template for it"
IGNORED = -100  # torch.nn.CrossEntropyLoss's default ignore_index
# A batch: enough rows to keep the cores busy, and little text in memory.
ROWS_PER_BATCH = 512
CHARACTERS_PER_BATCH = 2_000_000
# About a context of a million tokens.
MOST_CHARACTERS = 5_000_000

Turns = tuple[Message, ...]
Item = tuple[Example, Assigned] | RejectedRow


@dataclass(frozen=True)
class Encoded:
    """One row: ids, labels (IGNORED for tokens without loss), and the length of its last prompt."""

    input_ids: list[int]
    labels: list[int]
    prompt_tokens: int

    @property
    def label_tokens(self) -> int:
        return len(self.labels) - self.labels.count(IGNORED)

    def first(self, tokens: int) -> Encoded:
        """The row truncated to its first `tokens`."""
        if len(self.input_ids) <= tokens:
            return self
        return Encoded(self.input_ids[:tokens], self.labels[:tokens], self.prompt_tokens)


@dataclass(frozen=True)
class Renderer:
    """A tokenizer with its chat template, and which tokens have a loss."""

    tokenizer: PreTrainedTokenizerBase
    loss_on: str = "completions"
    template_kwargs: tuple[tuple[str, str | bool | int | float], ...] = ()
    note: str | None = None
    """Note on an unusual choice of template."""
    template_name: str = "the chat template"

    def encode(self, example: Example) -> Encoded:
        """Ids and labels of a training row, up to the token that ends the last answer.

        Labels are the answers (all, or the last one), each with the token that ends it. Raises
        RowError.
        """
        if example.text is not None:
            return self._encode_text(example.text)
        return self.tokens_and_labels(self.render(example.messages))

    def tokens_and_labels(self, rendered: Rendered) -> Encoded:
        """A rendered training row as token ids; raises RowError."""
        prompt, tokens = (
            self._tokens(part, rendered.injected) for part in (rendered.prompt, rendered.text)
        )
        return self.with_labels(rendered, prompt, tokens)

    def text_prompt_ids(self, text: str) -> list[int]:
        """Ids of a text to be continued, by a model of plain texts."""
        return self._encode_text(text).input_ids[:-1]

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the prompt: the prefix of the training row."""
        rendered = self.render(messages, prompt=True)
        return [token.id for token in self._tokens(rendered.text, rendered.injected)]

    @cached_property
    def end_of_text(self) -> int:
        """Id of the token that ends a text; raises ModelError if the tokenizer has none."""
        eos = self.tokenizer.eos_token_id
        if eos is None:
            raise ModelError("tokenizer", "the tokenizer has no end-of-text token (eos_token)")
        return int(eos)

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: the template's own, the tokenizer's end of text, and what
        follows an earlier answer if that is another token (Olmo 3, GLM 4.5)."""
        turns = (Message("user", "a"), Message("assistant", "b"))
        for messages in (turns, (Message("system", "c"), *turns)):  # some need a system turn
            with suppress(RowError):
                own = self.encode(Example(messages, Origin("", 0))).input_ids[-1]
                earlier = self._earlier_end((*messages, *turns))
                return tuple(dict.fromkeys([own, self.end_of_text, *earlier]))
        return (self.end_of_text,)

    def _earlier_end(self, messages: Turns) -> list[int]:
        """The token after the first answer, if the last one ends with another; none if an answer
        may have it after its thoughts (gpt-oss). Raises RowError."""
        renderer = replace(self, loss_on="completions")
        rendered = renderer.render(messages)
        first = rendered.answers[0]
        found = self.escaping.special_text.match(rendered.text[first.end :].lstrip())
        if first.stopped or found is None:
            return []
        with suppress(RowError):
            thinks = Message("assistant", "<think>\nd\n</think>\n\nb")
            thinking = renderer.render((*messages[:-1], thinks))
            last = thinking.answers[-1]
            if found.group() in thinking.text[last.start : last.end]:
                return []
        return [int(self.tokenizer.convert_tokens_to_ids(found.group()))]

    @cached_property
    def pad_id(self) -> int:
        """Id of the padding; the end of text if the tokenizer names none."""
        pad = self.tokenizer.pad_token_id
        return self.end_of_text if pad is None else int(pad)

    def syntax_error(self) -> tuple[int, str] | None:
        """Line of the template and the error there, if it does not compile."""
        if self._template is None:
            return None
        with self._within_limits():
            (found,) = worker.render(self._template, [[Message("user", "a")]], prompt=True)
        return found.syntax if isinstance(found, Refused) else None

    def _encode_text(self, text: str) -> Encoded:
        """A plain text: one BOS if the tokenizer adds it, and one EOS."""
        stripped, end = text.rstrip(), self.tokenizer.eos_token
        ends = end is not None and stripped.endswith(end)
        ids = list(self.tokenizer(stripped if ends else text)["input_ids"])
        bos = self.tokenizer.bos_token_id
        while bos is not None and ids[:2] == [bos, bos]:
            del ids[0]
        while ids and ids[-1] == self.end_of_text:
            ids.pop()
        ids.append(self.end_of_text)
        return Encoded(ids, _all_but_first(ids), 0)

    def with_labels(self, rendered: Rendered, prompt: list[Token], tokens: list[Token]) -> Encoded:
        """The row of `tokens`, with labels on its answers; `prompt` encodes the last prompt."""
        *earlier, last = rendered.answers
        if tokens[: len(prompt)] != prompt:
            # A token spans prompt and answer; in use the prompt is encoded alone.
            tokens = prompt + self._tokens(rendered.text, rendered.injected, last.start)
        trained = set(range(len(prompt), len(tokens)))
        for answer in earlier:
            trained |= _places_of(tokens, answer)
        ids = [token.id for token in tokens]
        labels = [id_ if place in trained else IGNORED for place, id_ in enumerate(ids)]
        return self.with_end(rendered, ids, labels, len(prompt))

    def with_end(
        self, rendered: Rendered, ids: list[int], labels: list[int], prompt: int
    ) -> Encoded:
        """The row, with an end of text if the template writes no token that ends an answer."""
        if not rendered.answers[-1].stopped:
            ids, labels = [*ids, self.end_of_text], [*labels, self.end_of_text]
        return Encoded(ids, _all_but_first(ids) if self.loss_on == "all" else labels, prompt)

    # Rendering

    def render(self, messages: Sequence[Message], *, prompt: bool = False) -> Rendered:
        """A conversation that ends with an answer, or a prompt, as text; raises RowError."""
        ((found,),) = self.render_batches([[messages]], prompt=prompt)
        if isinstance(found, RowError):
            raise found
        return found

    def render_batches(
        self, batches: Iterable[Sequence[Sequence[Message]]], *, prompt: bool = False
    ) -> Iterator[list[Rendered | RowError]]:
        """Each conversation as text, or why it cannot be rendered, batch by batch.

        The next batch is rendered while this one is used.
        """
        template = self._template
        if template is None:
            for batch in batches:
                yield [RowError(NO_TEMPLATE) for _ in batch]
            return
        with self._within_limits():
            for outcomes in worker.render_batches(template, batches, prompt=prompt):
                yield [RowError(o.reason) if isinstance(o, Refused) else o for o in outcomes]

    @contextmanager
    def _within_limits(self) -> Iterator[None]:
        """Raise DataError with the template's name if it exceeds a limit."""
        try:
            yield
        except worker.LimitError as error:
            raise DataError(
                "template_limit",
                f"{self.template_name} {error}; no conversation needs that: name another template "
                "(data.template)",
            ) from error

    # Encoding

    def _tokens(self, text: str, injected: Sequence[Span], start: int = 0) -> list[Token]:
        try:
            return self.escaping.tokens(text, injected, start)
        except CannotEscapeError as error:
            raise RowError(
                "contains the text of a control token, which the tokenizer cannot encode as text"
            ) from error

    @cached_property
    def escaping(self) -> EscapingTokenizer:
        return EscapingTokenizer(self.tokenizer)

    @cached_property
    def _template(self) -> ChatTemplate | None:
        if not self.tokenizer.chat_template:
            return None
        return ChatTemplate(
            text=self.tokenizer.get_chat_template(),
            variables={**self.tokenizer.special_tokens_map, **dict(self.template_kwargs)},
            last_only=self.loss_on == "last",
            special=self.escaping.special_text.pattern,
            added=self.escaping.added_text.pattern,
            seconds=worker.SECONDS,
        )


def _all_but_first(ids: list[int]) -> list[int]:
    """Labels of all tokens but the first, which nothing predicts."""
    return [IGNORED, *ids[1:]]


def _places_of(tokens: Sequence[Token], answer: Answer) -> set[int]:
    """Places of an earlier answer's tokens, without one that spans its prompt too.

    In use, such tokens of the history are the same.
    """
    first = sum(token.end <= answer.start for token in tokens)
    # Offsets may leave out a token's first space; a gap before the answer shows it too.
    first += tokens[first - 1].end < answer.start
    return set(range(first, sum(token.start < answer.end for token in tokens)))


def encode_items(
    items: Iterable[Item], renderer: Renderer
) -> Iterator[tuple[Example, Assigned, Encoded] | RejectedRow]:
    """Examples with their rows, in order; one that cannot be rendered is a RejectedRow."""
    waiting: deque[list[Item]] = deque()

    def conversations() -> Iterator[list[Turns]]:
        for batch in _batches(map(_reject_too_long, items)):
            waiting.append(batch)
            yield _conversations([item[0] for item in batch if not isinstance(item, RejectedRow)])

    for rendered in renderer.render_batches(conversations()):
        batch = waiting.popleft()
        examples = [item[0] for item in batch if not isinstance(item, RejectedRow)]
        rows = iter(_encoded(renderer, examples, rendered))
        for item in batch:
            if isinstance(item, RejectedRow):
                yield item
                continue
            row = next(rows)
            if isinstance(row, RowError):
                yield RejectedRow(item[0].origin, row.message)
            else:
                yield *item, row


def _reject_too_long(item: Item) -> Item:
    if isinstance(item, RejectedRow) or item[0].characters <= MOST_CHARACTERS:
        return item
    reason = f"{item[0].characters:,} characters; a row has at most {MOST_CHARACTERS:,}"
    return RejectedRow(item[0].origin, reason)


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    batch: list[Item] = []
    characters = 0
    for item in items:
        batch.append(item)
        characters += 0 if isinstance(item, RejectedRow) else item[0].characters
        if len(batch) == ROWS_PER_BATCH or characters >= CHARACTERS_PER_BATCH:
            yield batch
            batch, characters = [], 0
    yield batch


def _conversations(examples: Iterable[Example]) -> list[Turns]:
    return [example.messages for example in examples if example.text is None]


def _encoded(
    renderer: Renderer, examples: Sequence[Example], rendered: Sequence[Rendered | RowError]
) -> list[Encoded | RowError]:
    """Rows of the examples, of which `rendered` are the conversations; RowError for a failed one.

    The tokenizer works on all cores. Rows that contain the text of a control token, and plain
    texts, are encoded one by one.
    """
    plain = _plain_rows(
        renderer, [row for row in rendered if isinstance(row, Rendered) and not row.injected]
    )
    rows: list[Encoded | RowError] = []
    conversations = iter(rendered)
    for example in examples:
        row = next(conversations) if example.text is None else None
        if row is None:
            rows.append(_or_error(partial(renderer.encode, example)))
        elif isinstance(row, RowError):
            rows.append(row)
        elif row.injected:
            rows.append(_or_error(partial(renderer.tokens_and_labels, row)))
        else:
            rows.append(next(plain))
    return rows


def _or_error(encode: Callable[[], Encoded]) -> Encoded | RowError:
    try:
        return encode()
    except RowError as error:
        return error


def _plain_rows(renderer: Renderer, rendered: Sequence[Rendered]) -> Iterator[Encoded | RowError]:
    """Rows without injected control tokens, encoded in one batch.

    Prompts are encoded again only if `tokens_before` cannot find them in the row.
    """
    wholes = renderer.escaping.encodings([row.text for row in rendered])
    found = [
        renderer.escaping.tokens_before(row.answers[-1].start, row.text, whole)
        for row, whole in zip(rendered, wholes, strict=True)
    ]
    unknown = [row.prompt for row, first in zip(rendered, found, strict=True) if first is None]
    prompts = iter(renderer.escaping.encodings(unknown))
    for row, whole, first in zip(rendered, wholes, found, strict=True):
        prompt = whole if first is not None else next(prompts)
        length = len(prompt) if first is None else first
        yield _or_error(partial(_joined, renderer, row, prompt, length, whole))


def _joined(
    renderer: Renderer, rendered: Rendered, prompt: Encoding, first: int, whole: Encoding
) -> Encoded:
    """A row of the tokens of `whole`; its prompt is the `first` tokens of `prompt`."""
    ids = whole.ids
    agree = prompt is whole or (ids[:first] == prompt.ids and _ends_alike(prompt, whole, first))
    if len(rendered.answers) > 1 or not agree:
        return renderer.with_labels(rendered, tokens_of(prompt)[:first], tokens_of(whole))
    return renderer.with_end(rendered, ids, [IGNORED] * first + ids[first:], first)


def _ends_alike(prompt: Encoding, whole: Encoding, first: int) -> bool:
    """Whether the prompt's last token covers the same text: an unknown token may cover more."""
    return not first or whole.token_to_chars(first - 1) == prompt.token_to_chars(first - 1)
