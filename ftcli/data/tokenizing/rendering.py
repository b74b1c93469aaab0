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

from jinja2.exceptions import TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from ftcli.data.example import Example, Message, Origin
from ftcli.data.templates.limits import LimitError
from ftcli.data.templates.sandbox import TEMPLATE_FAULTS, render
from ftcli.data.templates.skeleton import Skeletons
from ftcli.data.tokenizing.layout import Answer, Layout, behind_header, places_of
from ftcli.data.tokenizing.special_tokens import CannotSpellError, Span, Speller, Token
from ftcli.errors import DataError, FtcliError, ModelError

IGNORED = -100  # torch.nn.CrossEntropyLoss's default ignore_index

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
        return len(self.labels) - self.labels.count(IGNORED)


@dataclass(frozen=True)
class Renderer:
    """A tokenizer with its chat template, and what of a conversation is trained on."""

    tokenizer: PreTrainedTokenizerBase
    loss_on: str = "answer"
    template_kwargs: tuple[tuple[str, str | bool | int | float], ...] = ()
    note: str | None = None
    """What is unusual about its template, in words."""
    template_name: str = "the chat template"

    def encode(self, example: Example) -> Encoded:
        """Ids and labels of a training row, up to the token that ends the last answer.

        Trained on are the answers (all, or the last one) and the token that ends each; raises
        RowFault.
        """
        if example.text is not None:
            return self._encode_text(example.text)
        laid = self.lay_out(example.messages)
        prompt, tokens = (self._tokens(part, laid.forged) for part in (laid.prompt, laid.text))
        return self.labelled(laid, prompt, tokens)

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

    def labelled(self, laid: Layout, prompt: list[Token], tokens: list[Token]) -> Encoded:
        *earlier, last = laid.answers
        if tokens[: len(prompt)] != prompt:
            # A token reaches from the prompt into the answer; in use, the prompt's own come first.
            tokens = prompt + self._tokens(laid.text, laid.forged, last.start)
        trained = set(range(len(prompt), len(tokens)))
        for answer in earlier:
            trained |= places_of(tokens, answer)
        ids = [token.id for token in tokens]
        labels = [id_ if place in trained else IGNORED for place, id_ in enumerate(ids)]
        return self.closed(laid, ids, labels, len(prompt))

    def closed(self, laid: Layout, ids: list[int], labels: list[int], prompt: int) -> Encoded:
        """The row with an end of text, where its template writes no token that ends an answer."""
        if not laid.answers[-1].stopped:
            ids, labels = [*ids, self.end_of_text], [*labels, self.end_of_text]
        return Encoded(ids, _all_but_first(ids) if self.loss_on == "all" else labels, prompt)

    # Rendering, and which characters are whose

    def lay_out(self, messages: Sequence[Message]) -> Layout:
        """Render a conversation that ends with an answer; raises RowFault."""
        skeleton = self._skeletons.of(messages)
        contents = [message.content for message in messages]
        text = self._render(messages) if skeleton is None else skeleton.text(contents)
        forged = self._forged(text, messages)
        if skeleton is None:
            answers = self._answers(text, messages)
        else:
            answers = [self._stopped(text, *place) for place in skeleton.places(contents)]
        return Layout(text[: answers[-1].end], answers, forged)

    def _render(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        if not self.tokenizer.chat_template:
            raise RowFault("is a conversation, and the model has no chat template to write it in")
        if not messages:
            raise RowFault("begins with an answer")
        turns = [{"role": m.role, "content": m.content} for m in messages]
        given = {"messages": turns, "add_generation_prompt": generation_prompt}
        try:
            return render(self.tokenizer.get_chat_template(), self._variables | given)
        except LimitError as error:
            raise DataError(
                "template_limit",
                f"{self.template_name} {error}; no conversation needs that: name another template "
                "(data.template)",
            ) from error
        except TEMPLATE_FAULTS as error:
            raise RowFault(f"the chat template refuses it: {error}") from error

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

    def _last_place(
        self, start: int | None, text: str, messages: Sequence[Message]
    ) -> tuple[int | None, int | None]:
        """As `_place`, without a rendering where the last content stands as it is behind its prompt
        and before what the template has written behind another in such a conversation.
        """
        roles, content = tuple(message.role for message in messages), messages[-1].content
        if start is not None and text.startswith(content, start):
            end = start + len(content)
            if text[end:] == self._tails.get(roles):
                return start, end
        begin, behind = self._place(text, messages, len(messages) - 1)
        if behind is not None:
            self._tails[roles] = text[behind:]
        return begin, behind

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
        start = len(prompt) if text.startswith(prompt) else None
        last = index == len(messages) - 1
        content, end = (
            self._last_place(start, text, messages) if last else self._place(text, messages, index)
        )
        if start is None and not last:
            header = prompt.removeprefix(self._render(messages[:index]))
            start = behind_header(text, header, content)
        if start is None:
            raise RowFault(
                "the chat template renders the prompt of this answer otherwise in training than in "
                "use"
            )
        if end is None or end < start:
            raise RowFault("the chat template rewrites this answer")
        return self._stopped(text, start, end)

    def _stopped(self, text: str, start: int, end: int) -> Answer:
        """With the token that stops it, if one follows its content's end."""
        stop = self._stop.match(text, end)
        return Answer(start, stop.end() if stop else end, stop is not None)

    def _forged(
        self, text: str, messages: Sequence[Message], *, generation_prompt: bool = False
    ) -> list[Span]:
        """Where contents hold the text of a control token, which must be encoded as text.

        In an answer, added tokens that are not special (`<think>`) mean themselves.
        """
        forged: list[Span] = []
        made = self._makes_controls(text, messages, generation_prompt)
        for index, message in enumerate(messages):
            is_answer = message.role == "assistant"
            control = self.speller.special_text if is_answer else self.speller.added_text
            if not made and not control.search(message.content):
                continue
            start, end = self._place(text, messages, index, generation_prompt=generation_prompt)
            if start is None or end is None:
                raise RowFault(
                    "holds the text of a control token in a content the chat template rewrites"
                )
            forged += [mark.span() for mark in control.finditer(text, start, end)]
        return forged

    def _makes_controls(
        self, text: str, messages: Sequence[Message], generation_prompt: bool
    ) -> bool:
        """Whether there are more control tokens than the template's own and those in contents.

        A template that changes contents, such as their case, can make some of them.
        """
        count = self.speller.count_specials
        key = (tuple(message.role for message in messages), generation_prompt)
        if key not in self._own_controls:
            marked = [Message(message.role, SENTINEL) for message in messages]
            rendered = text  # where the template takes no such contents, nothing is known
            with suppress(RowFault):
                rendered = self._render(marked, generation_prompt=generation_prompt)
            self._own_controls[key] = count(rendered)
        others = count(text) - self._own_controls[key]
        return others > 0 and others > sum(count(message.content) for message in messages)

    # Encoding

    def _tokens(self, text: str, forged: Sequence[Span], start: int = 0) -> list[Token]:
        try:
            return self.speller.tokens(text, forged, start)
        except CannotSpellError as error:
            raise RowFault(
                "holds the text of a control token, and the tokenizer cannot spell it"
            ) from error

    @cached_property
    def speller(self) -> Speller:
        return Speller(self.tokenizer)

    @cached_property
    def _variables(self) -> dict[str, object]:
        """What a template is given besides the turns, as transformers gives it."""
        nothing: dict[str, object] = {"tools": None, "documents": None}
        return {**nothing, **self.tokenizer.special_tokens_map, **dict(self.template_kwargs)}

    @cached_property
    def _skeletons(self) -> Skeletons:
        template = self.tokenizer.get_chat_template() if self.tokenizer.chat_template else ""
        return Skeletons(template, self._variables, self.loss_on == "last")

    @cached_property
    def _tails(self) -> dict[tuple[str, ...], str]:
        """What the template writes behind the last content, by the roles of the turns."""
        return {}

    @cached_property
    def _own_controls(self) -> dict[tuple[tuple[str, ...], bool], int]:
        """Control tokens that the template writes itself, by roles and generation prompt."""
        return {}

    @cached_property
    def _stop(self) -> re.Pattern[str]:
        """What ends an answer: an added token, behind white space or not."""
        return re.compile(rf"\s*(?:{self.speller.added_text.pattern})")


def _all_but_first(ids: list[int]) -> list[int]:
    """Labels of a row that is trained on whole: nothing predicts its first token."""
    return [IGNORED, *ids[1:]]
