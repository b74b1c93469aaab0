"""The one place where messages become token ids, for prepare, train, eval and generate alike.

A conversation is rendered whole by the chat template and encoded whole, because encoding it piece
by piece changes ids at the seams. A second rendering with sentinels in place of the contents tells
which part of the text is whose: the template's or the user's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2.exceptions import TemplateError
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from ftcli.data.example import Example, Message, Origin
from ftcli.errors import FtcliError, ModelError

IGNORED = -100  # torch.nn.CrossEntropyLoss's default ignore_index

# Private-use characters: no template tests for them, and real text does not hold them.
OPEN, CLOSE = "\ue000", "\ue001"
SENTINEL = re.compile(f"{OPEN}[0-9]+{CLOSE}")

Span = tuple[int, int]


class RowFault(FtcliError):
    """This one row cannot be rendered; the reason goes into the list of rejects."""

    def __init__(self, reason: str) -> None:
        super().__init__("row", reason)


@dataclass(frozen=True)
class Token:
    """A token id and the characters [start, end) of the rendered text that it stands for."""

    id: int
    start: int
    end: int


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
class Renderer:
    """A tokenizer with its chat template, and what of a conversation is trained on."""

    tokenizer: PreTrainedTokenizerBase
    loss_on: str = "answer"
    template_kwargs: tuple[tuple[str, str | bool | int | float], ...] = ()

    def encode(self, example: Example) -> Encoded:
        """Ids and labels of a training row; raises RowFault.

        Trained on are the answers (all, or the last one) and the token that ends each.
        """
        if example.text is not None:
            return self._encode_text(example.text)
        text, contents = self._render_with_contents(example.messages)
        turns = self._answers(example.messages, text, contents)
        plain = self._control_spans(example.messages, contents)
        tokens, begins = self._encode_at(text, plain, [start for start, _ in turns])
        labels = [IGNORED] * len(tokens)
        for begin, (_, end) in zip(begins, turns, strict=True):
            stop = self._after_stop(tokens, begin, end, last_turn=begin == begins[-1])
            if stop > len(tokens):
                tokens = [*tokens, Token(self.end_of_text, len(text), len(text))]
                labels.append(IGNORED)
            labels[begin:stop] = [token.id for token in tokens[begin:stop]]
        # Nothing is learned from what stands behind the last end token.
        ids = [token.id for token in tokens[:stop]]
        return Encoded(ids, ids if self.loss_on == "all" else labels[:stop], begins[-1])

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids that the model is given before it answers: the prefix of the training row."""
        text = self._render(messages, generation_prompt=True)
        try:
            contents = self._contents(text, messages, self._render_skeleton(messages, True))
        except RowFault:
            contents = []
        plain = self._control_spans(messages, contents)
        return [token.id for token in self._encode_pieces(text, plain)]

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
        ids = [self.end_of_text]
        if self.tokenizer.chat_template:
            probe = Example(
                (Message("user", "a"), Message("assistant", "b")), Origin("chat template", 0)
            )
            encoded = self.encode(probe)
            trained = [label for label in encoded.labels if label != IGNORED]
            ids.insert(0, trained[-1])
        return tuple(dict.fromkeys(ids))

    def require_template(self) -> None:
        """Raise ModelError where conversations are to be rendered and no template is there."""
        if not self.tokenizer.chat_template:
            raise ModelError(
                "template_missing",
                "the model has no chat template (is it a base model?); take its instruct version, "
                "or name a Jinja file in data.template",
            )

    # Rendering

    def _render(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        turns = [{"role": m.role, "content": m.content} for m in messages]
        try:
            text = self.tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **dict(self.template_kwargs),
            )
        except (TemplateError, TypeError) as error:
            raise RowFault(f"the chat template refuses it: {error}") from error
        return str(text)

    def _render_skeleton(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        marked = [Message(m.role, f"{OPEN}{i}{CLOSE}") for i, m in enumerate(messages)]
        return self._render(marked, generation_prompt=generation_prompt)

    def _render_with_contents(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """The rendered text and each message's place in it; no places where it was rewritten."""
        text = self._render(messages)
        try:
            return text, self._contents(text, messages, self._render_skeleton(messages, False))
        except RowFault:
            return text, []

    def _contents(self, text: str, messages: Sequence[Message], skeleton: str) -> list[Span]:
        """Where each content stands in the text; templates may strip white space around it."""
        pieces = SENTINEL.split(skeleton)
        found = [int(mark.group()[1:-1]) for mark in SENTINEL.finditer(skeleton)]
        if found != list(range(len(messages))) or not text.startswith(pieces[0]):
            raise RowFault("the chat template rearranges the conversation")
        spans, position = [], len(pieces[0])
        for message, piece in zip(messages, pieces[1:], strict=True):
            end = _end_of_content(text, position, message.content, piece)
            spans.append((position, end))
            position = end + len(piece)
        if position != len(text):
            raise RowFault("the chat template rewrites a content")
        return spans

    # Where answers begin and end

    def _answers(
        self, messages: Sequence[Message], text: str, contents: list[Span]
    ) -> list[Span]:
        """Characters of each answer to train on, from the end of its prompt to the content's end.

        What the template puts between prompt and content (an empty thinking block, a space) is
        part of the answer, because the model has to write it at inference.
        """
        spans = []
        for index, message in enumerate(messages):
            last = index == len(messages) - 1
            if message.role != "assistant" or (self.loss_on == "last" and not last):
                continue
            prompt = self._render(messages[:index], generation_prompt=True)
            start = len(prompt) if text.startswith(prompt) else None
            if start is None and not last and contents:
                start = self._after_header(messages[:index], text, contents[index][0])
            if start is None:
                raise RowFault(
                    "the chat template renders the prompt of this answer otherwise in training "
                    "than in use"
                )
            if not contents and not last:
                raise RowFault("the chat template rewrites earlier answers; try loss_on: last")
            spans.append((start, contents[index][1] if contents else self._before_stop(text)))
        return spans

    def _before_stop(self, text: str) -> int:
        """End of the last content where its own text cannot tell: before the final control token."""
        marks = [] if self._added_text is None else list(self._added_text.finditer(text))
        at_end = marks and marks[-1].end() == len(text.rstrip())
        return marks[-1].start() if at_end else len(text)

    def _after_header(self, before: Sequence[Message], text: str, content: int) -> int | None:
        """End of the answer's header where history is rendered otherwise than the last turn."""
        whole = self._render(before, generation_prompt=True)
        header = whole.removeprefix(self._render(before))
        for length in range(len(header), 0, -1):
            place = text.rfind(header[:length], 0, content)
            if place >= 0:
                return place + length
        return None

    def _after_stop(self, tokens: list[Token], begin: int, end: int, *, last_turn: bool) -> int:
        """Index after the token that ends the answer; len(tokens) + 1 when it must be added."""
        index = begin
        while index < len(tokens) and tokens[index].start < end:
            index += 1
        for stop in range(index, len(tokens)):
            if tokens[stop].id in self._added:
                return stop + 1
        return len(tokens) + 1 if last_turn else index

    # Encoding

    def _encode_text(self, text: str) -> Encoded:
        """A plain text: exactly one beginning token where the model has one, one end token."""
        ids = list(self.tokenizer(text)["input_ids"])
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            ids = ids[1:]
        while ids and ids[-1] == self.end_of_text:
            ids.pop()
        ids.append(self.end_of_text)
        return Encoded(ids, list(ids), 0)

    def _encode_at(
        self, text: str, plain: list[Span], starts: list[int]
    ) -> tuple[list[Token], list[int]]:
        """Tokens of the text, and the index at which each answer begins.

        Where a token would reach over the border between prompt and answer, the text is cut there:
        in use, the answer begins after the prompt's own tokens.
        """
        cuts: list[int] = []
        begins: list[int] = []
        tokens = self._encode_pieces(text, plain)
        for start in starts:
            prompt = self._encode_pieces(text[:start], plain, cuts)
            if tokens[: len(prompt)] != prompt:
                cuts.append(start)
                tokens = self._encode_pieces(text, plain, cuts)
            begins.append(len(prompt))
        return tokens, begins

    def _encode_pieces(
        self, text: str, plain: list[Span], cuts: Sequence[int] = ()
    ) -> list[Token]:
        borders = [0, *(cut for cut in cuts if cut < len(text)), len(text)]
        tokens: list[Token] = []
        for start, end in zip(borders, borders[1:], strict=False):
            inside = [(a - start, b - start) for a, b in plain if start <= a and b <= end]
            piece = text[start:end]
            part = self._encode_as_text(piece, inside) if inside else self._encode_whole(piece)
            tokens += [Token(t.id, t.start + start, t.end + start) for t in part]
        return tokens

    def _encode_whole(self, text: str) -> list[Token]:
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        pairs = zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
        return [Token(id_, start, end) for id_, (start, end) in pairs]

    # Control tokens that stand in a content are text

    def _control_spans(self, messages: Sequence[Message], contents: list[Span]) -> list[Span]:
        """Contents that hold the text of a control token, so that it can be encoded as text.

        In an answer, added tokens that are not special (`<think>`) mean themselves.
        """
        forged = [
            pattern is not None and pattern.search(m.content) is not None
            for m in messages
            for pattern in [self._special_text if m.role == "assistant" else self._added_text]
        ]
        if any(forged) and not contents:
            raise RowFault("holds the text of a control token in a content the template rewrites")
        return [span for span, is_forged in zip(contents, forged, strict=False) if is_forged]

    def _encode_as_text(self, text: str, plain: list[Span]) -> list[Token]:
        """Encode with the contents at `plain` as text, and prove that nothing else changed.

        Tokenizers split at added tokens before all else, so encoding between the template's own
        tokens gives the same ids; the proof is made on the row with the forged tokens masked.
        """
        tokens = self._encode_between(text, plain)
        masked = list(text)
        for start, end in plain:
            content = text[start:end]
            masked[start:end] = self._added_text_of(content)
        neutral = "".join(masked)
        same = [t.id for t in self._encode_between(neutral, plain)]
        if same != [t.id for t in self._encode_whole(neutral)]:
            raise RowFault("holds the text of a control token, and the tokenizer cannot spell it")
        return tokens

    def _added_text_of(self, content: str) -> str:
        pattern = self._added_text
        return content if pattern is None else pattern.sub(lambda m: "x" * len(m.group()), content)

    def _encode_between(self, text: str, plain: list[Span]) -> list[Token]:
        tokens: list[Token] = []
        position = 0
        owned = [] if self._added_text is None else list(self._added_text.finditer(text))
        for mark in owned:
            if any(start < mark.end() and mark.start() < end for start, end in plain):
                continue
            tokens += self._spell(text[position : mark.start()], position)
            tokens.append(Token(self._id_of[mark.group()], mark.start(), mark.end()))
            position = mark.end()
        return tokens + self._spell(text[position:], position)

    def _spell(self, text: str, position: int) -> list[Token]:
        encoding = self._speller.encode(text, add_special_tokens=False)
        if any(id_ in self._added for id_ in encoding.ids):
            raise RowFault("holds the text of a control token, and the tokenizer cannot spell it")
        pairs = zip(encoding.ids, encoding.offsets, strict=True)
        return [Token(id_, start + position, end + position) for id_, (start, end) in pairs]

    @cached_property
    def _speller(self) -> Tokenizer:
        """The same tokenizer without its added tokens: it spells them out."""
        import json

        state = json.loads(self.tokenizer.backend_tokenizer.to_str())
        state["added_tokens"] = []
        return Tokenizer.from_str(json.dumps(state))

    @cached_property
    def _id_of(self) -> dict[str, int]:
        return {t.content: id_ for id_, t in self.tokenizer.added_tokens_decoder.items()}

    @cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(self.tokenizer.added_tokens_decoder)

    @cached_property
    def _added_text(self) -> re.Pattern[str] | None:
        return _any_of(self._id_of)

    @cached_property
    def _special_text(self) -> re.Pattern[str] | None:
        added: dict[int, Any] = self.tokenizer.added_tokens_decoder
        return _any_of([t.content for t in added.values() if t.special])


def _any_of(words: Any) -> re.Pattern[str] | None:
    """Pattern of any of the words, the longest first."""
    escaped = [re.escape(word) for word in sorted(words, key=len, reverse=True) if word.strip()]
    return re.compile("|".join(escaped)) if escaped else None


def _end_of_content(text: str, start: int, content: str, following: str) -> int:
    for variant in (content, content.strip(), content.lstrip(), content.rstrip()):
        end = start + len(variant)
        if text.startswith(variant, start) and text.startswith(following, end):
            return end
    raise RowFault("the chat template rewrites a content")
