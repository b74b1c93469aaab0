"""The one place where messages become token ids, for prepare, train, eval and generate alike.

A conversation is rendered whole by the chat template and encoded whole, because encoding it piece
by piece changes ids at the seams. Where a content stands in the text is found by rendering once
more with a sentinel in its place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from jinja2.exceptions import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from ftcli.data.example import Example, Message, Origin
from ftcli.engine.spelling import CannotSpellError, Span, Speller, Token
from ftcli.errors import FtcliError, ModelError

IGNORED = -100  # torch.nn.CrossEntropyLoss's default ignore_index

# What a template may raise when it is rendered: its own faults, and those of the Python beneath.
TEMPLATE_FAULTS = (
    TemplateError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
)

# Private-use characters: no template tests for them, and real text does not hold the whole word.
SENTINEL = "\ue000ftcli\ue001"


class RowFault(FtcliError):
    """This one row cannot be rendered; the reason goes into the list of rejects."""

    def __init__(self, reason: str) -> None:
        super().__init__("row", reason)


@dataclass(frozen=True)
class Encoded:
    """One row: ids, labels (IGNORED where nothing is trained), and where the last answer begins."""

    input_ids: list[int]
    labels: list[int]
    prompt_tokens: int

    @property
    def trained_tokens(self) -> int:
        return sum(label != IGNORED for label in self.labels)


@dataclass(frozen=True)
class Answer:
    """Characters [start, end) to train on; they hold the token that ends it if `stopped`."""

    start: int
    end: int
    stopped: bool


@dataclass(frozen=True)
class Renderer:
    """A tokenizer with its chat template, and what of a conversation is trained on."""

    tokenizer: PreTrainedTokenizerBase
    loss_on: str = "answer"
    template_kwargs: tuple[tuple[str, str | bool | int | float], ...] = ()
    note: str | None = None
    """What is unusual about its template, in words."""

    def encode(self, example: Example) -> Encoded:
        """Ids and labels of a training row, up to the token that ends the last answer.

        Trained on are the answers (all, or the last one) and the token that ends each; raises
        RowFault.
        """
        if example.text is not None:
            return self._encode_text(example.text)
        text = self._render(example.messages)
        forged = self._forged(text, example.messages)
        *earlier, last = self._answers(text, example.messages)
        text = text[: last.end]
        prompt, tokens = (self._tokens(part, forged) for part in (text[: last.start], text))
        if tokens[: len(prompt)] != prompt:
            # A token reaches from the prompt into the answer; in use, the prompt's own come first.
            tokens = prompt + self._tokens(text, forged, last.start)
        trained = set(range(len(prompt), len(tokens)))
        for answer in earlier:
            trained |= _places(tokens, answer)
        ids = [token.id for token in tokens]
        labels = [id_ if place in trained else IGNORED for place, id_ in enumerate(ids)]
        if not last.stopped:
            ids, labels = [*ids, self.end_of_text], [*labels, self.end_of_text]
        return Encoded(ids, _all_but_first(ids) if self.loss_on == "all" else labels, len(prompt))

    def text_prompt_ids(self, text: str) -> list[int]:
        """Ids that a model of plain texts is given to go on from."""
        return self._encode_text(text).input_ids[:-1]

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids that the model is given before it answers: the prefix of the training row."""
        text = self._render(messages, generation_prompt=True)
        forged = self._forged(text, messages, generation_prompt=True)
        return [token.id for token in self._tokens(text, forged)]

    @cached_property
    def end_of_text(self) -> int:
        """Id of the token that ends a text; raises ModelError where the tokenizer has none."""
        eos = self.tokenizer.eos_token_id
        if eos is None:
            raise ModelError("tokenizer", "the tokenizer has no end-of-text token (eos_token)")
        return int(eos)

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: the template's own and the tokenizer's end of text."""
        turns = (Message("user", "a"), Message("assistant", "b"))
        for messages in (turns, (Message("system", "c"), *turns)):  # some ask for a system turn
            with suppress(RowFault):
                own = self.encode(Example(messages, Origin("", 0))).input_ids[-1]
                return tuple(dict.fromkeys([own, self.end_of_text]))
        return (self.end_of_text,)

    @cached_property
    def pad_id(self) -> int:
        """Id that fills up rows; the end of text where the tokenizer names none."""
        pad = self.tokenizer.pad_token_id
        return self.end_of_text if pad is None else int(pad)

    def syntax_fault(self) -> TemplateSyntaxError | None:
        """What keeps the template from being compiled, with its line."""
        try:
            self._render([Message("user", "a")])
        except RowFault as fault:
            cause = fault.__cause__
            return cause if isinstance(cause, TemplateSyntaxError) else None
        return None

    def _encode_text(self, text: str) -> Encoded:
        """A plain text: one beginning token where the tokenizer adds one, and one end token."""
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

    # Rendering, and which characters are whose

    def _render(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        if not self.tokenizer.chat_template:
            raise RowFault("is a conversation, and the model has no chat template to write it in")
        turns = [{"role": m.role, "content": m.content} for m in messages]
        try:
            text = self.tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **dict(self.template_kwargs),
            )
        except TEMPLATE_FAULTS as error:
            raise RowFault(f"the chat template refuses it: {error}") from error
        return str(text)

    def _place(
        self, text: str, messages: Sequence[Message], index: int, *, generation_prompt: bool = False
    ) -> tuple[int | None, int | None]:
        """Where a content begins and ends; templates may strip white space around it.

        A border is None where the template writes something else beside another content.
        """
        marked = list(messages)
        marked[index] = Message(messages[index].role, SENTINEL)
        rendered = self._render(marked, generation_prompt=generation_prompt)
        before, found, after = rendered.partition(SENTINEL)
        start, end = len(before), len(text) - len(after)
        if not found or start > end:
            return None, None
        return start if text.startswith(before) else None, end if text.endswith(after) else None

    def _answers(self, text: str, messages: Sequence[Message]) -> list[Answer]:
        answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
        if self.loss_on == "last":
            answers = answers[-1:]
        return [self._answer(text, messages, index) for index in answers]

    def _answer(self, text: str, messages: Sequence[Message], index: int) -> Answer:
        """From the end of the answer's prompt to the end of the token that stops it.

        What the template puts between prompt and content (an empty thinking block, a space) is
        part of the answer, because the model has to write it in use.
        """
        prompt = self._render(messages[:index], generation_prompt=True)
        content, end = self._place(text, messages, index)
        start = len(prompt) if text.startswith(prompt) else None
        if start is None and index < len(messages) - 1:
            header = prompt.removeprefix(self._render(messages[:index]))
            start = _behind_header(text, header, content)
        if start is None:
            raise RowFault(
                "the chat template renders the prompt of this answer otherwise in training than in "
                "use"
            )
        if end is None or end < start:
            raise RowFault("the chat template rewrites this answer")
        stop = self._stop.match(text, end)
        return Answer(start, stop.end() if stop else end, stop is not None)

    def _forged(
        self, text: str, messages: Sequence[Message], *, generation_prompt: bool = False
    ) -> list[Span]:
        """Where contents hold the text of a control token, which must be encoded as text.

        In an answer, added tokens that are not special (`<think>`) mean themselves.
        """
        forged: list[Span] = []
        for index, message in enumerate(messages):
            is_answer = message.role == "assistant"
            control = self._speller.special_text if is_answer else self._speller.added_text
            if not control.search(message.content):
                continue
            start, end = self._place(text, messages, index, generation_prompt=generation_prompt)
            if start is None or end is None:
                raise RowFault(
                    "holds the text of a control token in a content the chat template rewrites"
                )
            forged += [mark.span() for mark in control.finditer(text, start, end)]
        return forged

    # Encoding

    def _tokens(self, text: str, forged: Sequence[Span], start: int = 0) -> list[Token]:
        try:
            return self._speller.tokens(text, forged, start)
        except CannotSpellError as error:
            raise RowFault(
                "holds the text of a control token, and the tokenizer cannot spell it"
            ) from error

    @cached_property
    def _speller(self) -> Speller:
        return Speller(self.tokenizer)

    @cached_property
    def _stop(self) -> re.Pattern[str]:
        """What ends an answer: an added token, behind white space or not."""
        return re.compile(rf"\s*(?:{self._speller.added_text.pattern})")


def _behind_header(text: str, header: str, content: int | None) -> int | None:
    """Where an earlier answer begins whose thinking block is left out of the history."""
    found = content is not None and any(
        text.endswith(header[:length], 0, content) for length in range(1, len(header) + 1)
    )
    return content if found else None


def _places(tokens: Sequence[Token], answer: Answer) -> set[int]:
    """Where the tokens of an earlier answer stand, without one that it shares with its prompt.

    In use the history is encoded without regard to such borders.
    """
    first = sum(token.end <= answer.start for token in tokens)
    # Offsets may leave out a token's first space; a gap before the answer tells as well.
    first += tokens[first - 1].end < answer.start
    return set(range(first, sum(token.start < answer.end for token in tokens)))


def _all_but_first(ids: list[int]) -> list[int]:
    """Labels of a row that is trained on whole: nothing predicts its first token."""
    return [IGNORED, *ids[1:]]
