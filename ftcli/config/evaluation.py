"""`generation:` and `eval:` of a recipe: how answers are sampled and scored."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from ftcli.config.answer_format import AnswerFormat
from ftcli.config.section import (
    NO_BOOLEAN,
    CountFromZero,
    NotNegative,
    PathKind,
    Positive,
    PositiveCount,
    Section,
    require_regex,
)

# Snowball's stemmers (snowballstemmer.algorithms()).
Language = Literal[
    "arabic",
    "armenian",
    "basque",
    "catalan",
    "danish",
    "dutch",
    "english",
    "finnish",
    "french",
    "german",
    "greek",
    "hindi",
    "hungarian",
    "indonesian",
    "irish",
    "italian",
    "lithuanian",
    "nepali",
    "norwegian",
    "portuguese",
    "romanian",
    "russian",
    "serbian",
    "spanish",
    "swedish",
    "tamil",
    "turkish",
    "yiddish",
]


class Grounding(Section):
    """Numbers, names and terms of answers that their prompts lack; facts mentioned; banned phrases;
    and, with a model, spans that the prompt does not support."""

    facts: str | None = None
    """Regular expression for the facts in the user turns (joined by blank lines): its group
    `facts`, or the whole match; none: the turns are the facts."""
    language: Language = "english"
    """Language of the answers: words are compared by their stems (Snowball)."""
    optional: list[str] = []
    """Keys of facts that need not be mentioned, such as Category."""
    allowed: list[str] = []
    """Words and phrases that are never marked, such as the shop's own name."""
    banned: Annotated[list[str] | str, PathKind("file", code="banned_phrases")] = []
    """Phrases that no answer may have, or a .txt file with one a line."""
    model: Annotated[str | None, PathKind("model")] = None
    """Hub id or folder of a token classifier that marks unsupported spans, such as
    KRLabsOrg/lettucedect-base-modernbert-en-v1; none: words alone are compared."""
    labels: Annotated[str | None, PathKind("file", code="labels")] = None
    """Your labels of answers, to measure the detector's agreement: JSON lines of `prompt`,
    `answer`, `supported`."""

    @field_validator("facts")
    @classmethod
    def facts_compile(cls, value: str | None) -> str | None:
        if value is not None:
            require_regex(value)
        return value

    @field_validator("banned")
    @classmethod
    def banned_file_is_text(cls, value: list[str] | str) -> list[str] | str:
        if isinstance(value, str) and not value.endswith(".txt"):
            raise ValueError(
                f"{value!r} is not a .txt file; give the phrases as a list, or a file with one a "
                "line"
            )
        return value

    @field_validator("banned", "allowed", "optional")
    @classmethod
    def words_are_words(cls, value: list[str] | str) -> list[str] | str:
        if isinstance(value, list) and any(not word.strip() for word in value):
            raise ValueError("contains an empty word")
        return value


class Judge(Section):
    """A language model at an OpenAI-compatible URL, asked whether each answer is supported."""

    url: str
    """Base URL, such as http://localhost:8000/v1 (vLLM) or http://localhost:11434/v1 (Ollama)."""
    model: str
    """Name of the model on that server."""
    rubric: str = "An answer is supported if the facts state or directly imply all that it claims."
    """What the judge is to check, in plain words."""
    labels: Annotated[str | None, PathKind("file", code="labels")] = None
    """Your labels of answers, to measure the judge's agreement: JSON lines of `prompt`, `answer`,
    `supported`."""
    pairwise: bool = False
    """Also ask which of base and tuned answer is better, in random order."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable with the key, if the server needs one."""
    parallel: PositiveCount = 4
    """Concurrent requests."""
    timeout_seconds: Positive = 120
    """Time limit of one request."""

    @field_validator("url")
    @classmethod
    def url_is_http(cls, value: str) -> str:
        if not re.match(r"https?://[^\s/]+", value):
            raise ValueError(f"{value!r} is not an http or https URL")
        return value


class Generation(Section):
    """Sampling of answers in eval and generate; flags of `ftcli generate` override it."""

    max_new_tokens: PositiveCount = 256
    """Longest answer in tokens."""
    temperature: NotNegative = 0.0
    """0: greedy, the most likely token at each position."""
    top_p: Annotated[float, Field(gt=0, le=1), NO_BOOLEAN] = 1.0
    """Sample from the smallest set of tokens with this probability (only with a temperature)."""
    top_k: CountFromZero = 0
    """Sample from this many most likely tokens; 0: all."""
    repetition_penalty: Positive = 1.0
    """Above 1: tokens already used become less likely (CTRL, Keskar et al. 2019)."""


class Evaluation(Section):
    """What `ftcli eval` scores besides loss, EOS rate and text overlap."""

    format: AnswerFormat | None = None
    """Form every answer must have; its share is reported as `format_rate`."""
    grounding: Grounding | None = None
    """Compare answers with their prompts: unsupported numbers, names and terms, missing facts,
    banned phrases. This compares words and cannot decide whether an answer is true."""
    judge: Judge | None = None
    """Ask a language model whether each answer is supported by its facts."""
    decides_by: str | None = None
    """The score that decides, tested alone; tests of the others are corrected (Holm)."""
