"""`data:` of a recipe: where the rows are, and the chat templates that come with ftcli."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, model_validator

from ftcli.config.section import PathKind, PositiveCount, Rate, Section, is_jinja
from ftcli.errors import DataError, UsageError, did_you_mean
from ftcli.shell import shown_path

# YAML 1.1 reads 1e-1 as a text.
EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?e[-+]?\d+", re.IGNORECASE)


ENDS: dict[str, str | None] = {
    "chatml": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "mistral": None,
    "plain": None,
}
"""Name → the control token that ends its answers; None: the tokenizer's end of text."""

DEFAULT = "plain"
"""For models without a template, unless the recipe names one."""


def _without_last_newline(value: object) -> object:
    """YAML's block texts (`prompt: |`) end with a newline, which no prompt in use has."""
    return value.rstrip("\n") if isinstance(value, str) else value


TemplateText = Annotated[str | None, BeforeValidator(_without_last_newline)]


def _share_count_or_file(value: object) -> object:
    if isinstance(value, str):
        if not EXPONENT.fullmatch(value):
            return value
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        found = json.dumps(value, default=str)
        raise ValueError(f"expected a share, a number of rows or a file, found {found}")
    if not math.isfinite(value) or value < 0 or (value >= 1 and value != int(value)):
        raise ValueError(f"{value} is neither a share below 1 nor a whole number of rows")
    return value


HoldOut = Annotated[int | float | str, BeforeValidator(_share_count_or_file)]
# data.test: auto takes this ratio from this many rows on; scores of fewer would be too noisy.
AUTO, AUTO_TEST, ROWS_FOR_A_TEST = "auto", 0.1, 200


# The general instructions that come with ftcli (ftcli/data/builtin_replay.jsonl), and their ratio:
# it preserves all measured abilities for less than a fifth more time (docs/forgetting.md).
BUILTIN, BUILTIN_RATIO = "builtin", 0.1


class Replay(Section):
    """General rows mixed into the task's, so that the model keeps what it could do before."""

    source: Annotated[str, PathKind("data", words=(BUILTIN,))]
    """Rows to draw from: `builtin`, a file in any format recognised by its columns (plain text
    too), or a hub dataset id."""
    ratio: Rate = 0.15
    """Share of an epoch's rows that are replayed: with 0.15, 1,000 task rows get 176 more."""


def _source_alone(value: object) -> object:
    """`replay: builtin` and `replay: general.jsonl` name only the source."""
    if value == BUILTIN:
        return {"source": BUILTIN, "ratio": BUILTIN_RATIO}
    return {"source": value} if isinstance(value, str) else value


ReplayOrSource = Annotated[
    Replay | None,
    BeforeValidator(_source_alone, json_schema_input_type=Replay | str | None),
]


class Data(Section):
    """Where the rows are and how they are used."""

    train: Annotated[str, PathKind("data")]
    """Training rows: a jsonl, json, csv or parquet file (also .gz), or a hub dataset id."""
    format: Literal["auto", "pairs", "messages", "sharegpt", "alpaca", "text", "columns"] = "auto"
    """Shape of a row; auto recognises it by its columns. pairs: prompt/completion, input/output,
    question/answer, instruction/response, source/target, prompt/response; messages and sharegpt:
    messages, conversations, conversation; alpaca: instruction, input, output; text: text,
    content; columns: those of `prompt` and `completion`."""
    validation: Annotated[HoldOut, PathKind("data")] = 0.1
    """Held out to choose the best checkpoint: a share, a number of rows, or a file; 0: none."""
    test: Annotated[HoldOut, PathKind("data", words=(AUTO,))] = AUTO
    """Held out for `ftcli eval` and never used to choose a checkpoint: as `validation`; auto: 0.1
    from 200 rows on, 0 below or where `validation` is 0."""
    max_length: PositiveCount = 1024
    """Longest row in tokens."""
    prompt: TemplateText = None
    """For `columns`: a column, or a template such as `Product: {name}`; with `completion`. Newlines
    at its end are left out, as those of `completion` and `system`."""
    completion: TemplateText = None
    """For `columns`: the answer's column, or a template."""
    system: TemplateText = None
    """System prompt of every row: a text, or a template with `{column}`."""
    replay: ReplayOrSource = None
    """General rows that are trained on with the task's, and never held out: `builtin` (320 general
    instructions that come with ftcli, at a ratio of 0.1), or a source of your own; none: only the
    task's rows."""
    loss_on: Literal["completions", "last", "all"] = "completions"
    """Tokens with a loss: all answers, the last answer only, or all tokens."""
    deduplicate: bool = True
    """Keep the first of rows that are equal in prompt and answer."""
    shuffle: bool = True
    """Draw the rows of an epoch in random order (by `training.seed`)."""
    too_long: Literal["error", "truncate", "drop"] = "error"
    """Rows whose answer `max_length` truncates: stop if more than 1% of all answer tokens are lost,
    truncate any number, or drop these rows. A row without any answer left is always rejected."""
    allow_overlap: bool = False
    """Allow prompts of a validation or test file that another split has too."""
    template: Annotated[str | None, PathKind("template", words=tuple(ENDS))] = None
    """Chat template instead of the model's own: chatml, llama3, gemma, mistral or plain, a Jinja
    file, or the Jinja text itself; none: the model's, or plain if it has none."""
    template_kwargs: dict[str, str | bool | int | float] = {}
    """Arguments for the chat template, such as `enable_thinking: false`."""

    @model_validator(mode="after")
    def columns_keys_go_together(self) -> Data:
        given = (self.prompt is not None, self.completion is not None)
        if self.format == "columns" and not all(given):
            raise ValueError("format columns needs data.prompt and data.completion")
        if self.format == "auto" and any(given) and not all(given):
            there, absent = ("prompt", "completion") if given[0] else ("completion", "prompt")
            raise ValueError(
                f"data.{there} names a column or template, and data.{absent} is missing; give both"
            )
        if self.format not in ("auto", "columns") and any(given):
            raise ValueError(
                "data.prompt and data.completion need format columns or auto, found format "
                f"{self.format}"
            )
        return self


@dataclass(frozen=True)
class Template:
    """A chat template, with its built-in name or its file, if it has one."""

    text: str
    name: str | None = None
    file: Path | None = None


def builtin_template(name: str) -> Template:
    """A template that comes with ftcli."""
    file = Path(__file__).with_name("chat_templates") / f"{name}.jinja"
    return Template(file.read_text(encoding="utf-8"), name=name)


def names_file(value: str) -> bool:
    """Whether data.template of a loaded recipe is a file, not a name or Jinja text."""
    return value not in ENDS and not is_jinja(value) and os.path.isfile(value)


def find_template(value: str) -> Template:
    """The chat template of a loaded recipe, given as a name, Jinja text or a file.

    Raises UsageError (`template_missing`) for anything else, DataError (`template`) for an empty or
    unreadable file.
    """
    if value in ENDS:
        return builtin_template(value)
    template = Template(value) if is_jinja(value) else _from_file(Path(value))
    if not template.text.strip():
        raise DataError("template", "is empty", file=str(template.file))
    return template


def _from_file(file: Path) -> Template:
    if not os.path.isfile(file):
        near = [path.name for path in file.parent.glob("*.jinja")]
        raise UsageError(
            "template_missing",
            f"{shown_path(file)!r} is neither a template's name ({', '.join(ENDS)}) nor a file nor "
            f"Jinja text{did_you_mean(file.name, [*ENDS, *near])}",
        )
    try:
        return Template(file.read_text(encoding="utf-8"), file=file)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("template", f"cannot be read: {error}", file=str(file)) from error
