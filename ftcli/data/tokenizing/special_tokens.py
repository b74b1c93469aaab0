"""Text → tokens, with chosen control-token strings escaped: encoded as plain text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from tokenizers import AddedToken, Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from ftcli.data.templates.render import Span

# The last two planes of Unicode are for private use: one character per added token.
FIRST_SUBSTITUTE = 0xF0000
BORDER = "\U0010fffd"
SUBSTITUTES = re.compile("[\U000f0000-\U0010ffff]")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")

# Tokens between a control token and the answer, such as `assistant` and a line feed.
MOST_BETWEEN = 12
MOST_TAILS = 100


class CannotEscapeError(ValueError):
    """The tokenizer can encode the text of a control token only as that token."""


@dataclass(frozen=True)
class Token:
    """A token id and the characters [start, end) of the text that it stands for."""

    id: int
    start: int
    end: int


@dataclass(frozen=True)
class EscapingTokenizer:
    """Tokenizer that encodes chosen control-token strings as plain text."""

    tokenizer: PreTrainedTokenizerBase

    def tokens(self, text: str, injected: Sequence[Span] = (), start: int = 0) -> list[Token]:
        """Tokens of text[start:], as they follow text[:start]; control tokens at `injected` as
        plain text. Raises CannotEscapeError.

        Checked on the text with the injected ones replaced by x: all other tokens stay the same.
        """
        injected = [span for span in injected if start <= span[0] and span[1] <= len(text)]
        if not injected and not start:
            return self._whole(text)
        tokens = self._escaped(text, injected, start)
        if not start:
            characters = list(text)
            for begin, end in injected:
                characters[begin:end] = "x" * (end - begin)
            neutral = "".join(characters)
            if self._escaped(neutral, (), 0) != self._whole(neutral):
                raise CannotEscapeError
        return tokens

    def encodings(self, texts: Sequence[str]) -> list[Encoding]:
        """Each text as `tokens` encodes it, in one batch on all cores."""
        return list(self._backend().encode_batch(list(texts), add_special_tokens=False))

    def tokens_before(self, border: int, text: str, whole: Encoding) -> int | None:
        """How many tokens of a text's encoding are the encoding of text[:border] alone.

        Known if a control token is shortly before the border: tokenizers splits texts at these
        first, so the text before one does not change the tokens after it (`added_vocabulary.rs`).
        None: not known, or the two differ.
        """
        last = whole.char_to_token(border - 1) if border else None
        if last is None or _end(whole, last) != border:
            return None
        ids = whole.ids
        for place in range(last, max(last - MOST_BETWEEN, -1), -1):
            if ids[place] in self._cutting:
                tail = text[_end(whole, place) : border]
                alone = self._ids_after(ids[place], tail)
                return last + 1 if ids[place + 1 : last + 1] == alone else None
        return None

    def _ids_after(self, control: int, tail: str) -> list[int] | None:
        """Ids of a text that follows a control token and ends there; cached: templates have few."""
        if (control, tail) not in self._tails:
            if len(self._tails) == MOST_TAILS:
                return None
            first, *rest = self.encodings([self._exact[control] + tail])[0].ids
            self._tails[control, tail] = rest if first == control else None
        return self._tails[control, tail]

    def _backend(self) -> Tokenizer:
        """The tokenizers object, set as transformers does before each call."""
        backend: Tokenizer = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = self.tokenizer.split_special_tokens
        return backend

    @cached_property
    def added_text(self) -> re.Pattern[str]:
        """Matches any added token except white space (Gemma has tokens of line feeds)."""
        return re.compile(any_of(self._substitutes))

    @cached_property
    def special(self) -> frozenset[int]:
        """Ids of the added tokens that are marked as special."""
        added = self.tokenizer.added_tokens_decoder.items()
        return frozenset(id_ for id_, token in added if token.special)

    @cached_property
    def special_text(self) -> re.Pattern[str]:
        """Matches any added token marked as special, which `<think>` is not."""
        added = self.tokenizer.added_tokens_decoder.values()
        return re.compile(any_of(t.content for t in added if t.special and t.content.strip()))

    def _whole(self, text: str) -> list[Token]:
        (encoding,) = self.encodings([text])
        return tokens_of(encoding)

    def _escaped(self, text: str, injected: Sequence[Span], start: int) -> list[Token]:
        """Encode with the real control tokens renamed, so that injected ones are plain text."""
        if SUBSTITUTES.search(text):
            raise CannotEscapeError

        def rename(mark: re.Match[str]) -> str:
            begin, end = mark.span()
            is_injected = any(begin < last and first < end for first, last in injected)
            return mark.group() if is_injected else self._substitutes[mark.group()]

        # The border is a token of its own, so the text after it is not encoded as a beginning.
        border = BORDER if start else ""
        tokenizer, real = self._renamed
        encoding = tokenizer.encode(
            border + self.added_text.sub(rename, text)[start:], add_special_tokens=False
        )
        shift = start - len(border)
        tokens = []
        for id_, (begin, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if id_ not in real and id_ in self._added:
                raise CannotEscapeError
            tokens.append(Token(real.get(id_, id_), begin + shift, end + shift))
        return tokens[len(border) :]

    @cached_property
    def _renamed(self) -> tuple[Tokenizer, dict[int, int]]:
        """The tokenizer with renamed added tokens, and their ids in the original."""
        state = json.loads(self.tokenizer.backend_tokenizer.to_str())
        state |= {"added_tokens": [], "truncation": None, "padding": None}
        renamed = Tokenizer.from_str(json.dumps(state))
        added = self.tokenizer.added_tokens_decoder
        names = {id_: self._substitutes.get(t.content, t.content) for id_, t in added.items()}
        renamed.add_tokens(
            [
                AddedToken(names[id_], **{flag: getattr(token, flag) for flag in FLAGS})
                for id_, token in added.items()
            ]
        )
        renamed.add_tokens([AddedToken(BORDER, normalized=False)])
        ids = renamed.get_added_tokens_decoder()
        by_name = {token.content: id_ for id_, token in ids.items()}
        return renamed, {by_name[name]: id_ for id_, name in names.items()}

    @cached_property
    def _substitutes(self) -> dict[str, str]:
        """For the text of each added token a substitute of the same length."""
        words = (token.content for token in self.tokenizer.added_tokens_decoder.values())
        return {
            word: chr(FIRST_SUBSTITUTE + number) * len(word)
            for number, word in enumerate(words)
            if word.strip()
        }

    @cached_property
    def _exact(self) -> dict[int, str]:
        """Added tokens that match exactly their text, and no white space around it."""
        added = self.tokenizer.added_tokens_decoder.items()
        return {
            id_: token.content
            for id_, token in added
            if not (token.lstrip or token.rstrip or token.single_word or token.normalized)
        }

    @cached_property
    def _cutting(self) -> frozenset[int]:
        """The control tokens among these."""
        return self.special & self._exact.keys()

    @cached_property
    def _tails(self) -> dict[tuple[int, str], list[int] | None]:
        return {}

    @cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(self.tokenizer.added_tokens_decoder)


def _end(encoding: Encoding, place: int) -> int:
    """The character after a token."""
    span = encoding.token_to_chars(place)
    assert span is not None
    return span[1]


def tokens_of(encoding: Encoding) -> list[Token]:
    """Tokens of one text."""
    spans = zip(encoding.ids, encoding.offsets, strict=True)
    return [Token(id_, *span) for id_, span in spans]


def any_of(words: Iterable[str]) -> str:
    """Regular expression of any of the words, longest first; without words, it matches nothing."""
    longest_first = sorted(words, key=len, reverse=True)
    return "|".join(map(re.escape, longest_first)) or "(?!)"
