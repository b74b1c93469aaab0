"""Recognise the format of a data set by its columns, and turn its rows into examples.

A format is a pure function of one row. Content is kept byte for byte; only alpaca's instruction
and input, and the text parts of a turn, are joined.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from functools import lru_cache
from itertools import chain

from ftcli.config.recipe import Data
from ftcli.data.example import Example, Message, RejectedRow, Row, RowError
from ftcli.data.json_rows import Number, json_kind
from ftcli.data.turns import TURN_KEYS, check_order, checked_text, filled_text, read_turns
from ftcli.errors import DataError, did_you_mean

Fields = Mapping[str, object]
Content = tuple[Message, ...] | str

PAIRS = (
    ("prompt", "completion"),
    ("input", "output"),
    ("question", "answer"),
    ("instruction", "response"),
    ("source", "target"),
    ("prompt", "response"),
)
CONVERSATION_COLUMNS = ("messages", "conversations", "conversation")
TEXT_COLUMNS = ("text", "content")
SYSTEM_COLUMNS = ("system", "system_prompt")
MEDIA_COLUMNS = ("image", "images", "video", "videos", "audio", "audios")
TOOL_COLUMNS = ("tools", "functions", "tool_calls", "function_call")
# Prefixes of column names.
PREFERENCE_COLUMNS = ("chosen", "rejected")
# `label` as in TRL's unpaired preferences, `kto_tag` as in LLaMA-Factory's.
VERDICT_COLUMNS = ("label", "kto_tag")
# Columns that well-known data sets need besides the pair (dolly, SQuAD; labels, summaries).
CONTEXT_COLUMNS = ("context", "input", "passage", "document", "history")
ANSWER_COLUMNS = ("label", "summary", "answer", "response", "completion", "output", "target")
EMPTY: tuple[object, ...] = (None, "", "[]", [], {})
KNOWN = (
    f"{', '.join('/'.join(pair) for pair in PAIRS)}, instruction/input/output, "
    f"{', '.join(CONVERSATION_COLUMNS)}, {', '.join(TEXT_COLUMNS)}"
)
# `{{`, `}}` or `{column}`; any other brace stands for itself.
PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]+)\}")


def to_example(row: Row, data: Data, format_name: str) -> Example | RejectedRow:
    """The row as an example, with the recipe's system prompt unless it has its own.

    `data.system` is a text or a template; `pin_system` has turned a column's name into one.
    """
    try:
        content = FORMATS[format_name](row.fields, data)
        if isinstance(content, str):
            return Example((), row.origin, text=content)
        messages = _with_system(content, row.fields, data)
        check_order(messages)
    except RowError as error:
        return RejectedRow(row.origin, str(error))
    empty = _empty_columns(row.fields, data) if format_name == "columns" else ()
    return Example(messages, row.origin, empty_columns=empty)


def recognise(row: Row) -> str:
    """The format of a data set, by the columns of its first readable row.

    Raises DataError (`data_format`) if no format fits, or if it would ignore half of the task.
    """
    refuse_unsupported(row)
    columns = row.fields.keys()
    conversation = _first(CONVERSATION_COLUMNS, columns)
    if conversation:
        return _turn_words(row.fields[conversation])
    if {"instruction", "output"} <= columns:
        return "alpaca"
    pairs = [pair for pair in PAIRS if columns >= set(pair)]
    if pairs:
        _refuse_unused_context(row, pairs[0], {*CONTEXT_COLUMNS, *chain(*pairs[1:])})
        return "pairs"
    text = _first(TEXT_COLUMNS, columns)
    if text:
        _refuse_unused_answer(row, text)
        return "text"
    raise _format_error(
        row,
        f"no format is known for the columns {', '.join(columns) or '(none)'}; known are {KNOWN}; "
        "for others write `format: columns` and give data.prompt and data.completion, each a "
        "column or a template such as `Product: {name}`",
    )


def refuse_unsupported(row: Row) -> None:
    """Raise DataError (`data_format`) if the first row is of an unsupported kind of data."""
    reason = _unsupported(row.fields)
    if reason:
        raise _format_error(
            row,
            f"{reason}; keep only the text to be learned, or write `format: columns` to read "
            "only the columns that you name",
        )


def require_columns(row: Row, data: Data) -> None:
    """Raise DataError (`data_format`) if the recipe names a column that this row does not have.

    For files with a header: no other row has it either.
    """
    header = dict.fromkeys(row.fields, "filled")
    try:
        if data.prompt is not None:
            _from_columns(header, data)
        if data.system is not None:
            fill(data.system, header, "data.system")
    except RowError as error:
        raise DataError("data_format", error.message, file=row.origin.file) from error


def pin_system(data: Data, first: Row) -> Data:
    """`system: persona` becomes `{persona}` if the data have a column of that name.

    Decided once: a later row without the column is rejected, not prompted with its name.
    """
    if data.system in first.fields:
        return data.model_copy(update={"system": f"{{{data.system}}}"})
    return data


def fill(template: str, fields: Fields, key: str) -> str:
    """The template filled with the row's values, numbers and booleans as written in the file.

    Raises RowError with the recipe's `key` and the column.
    """

    def value(match: re.Match[str]) -> str:
        column = match[1]
        if column is None:
            return match[0][0]
        if column not in fields and not column.isidentifier():
            raise RowError(f"{key}: no column {column}; write {{{{ where a brace is meant")
        found = _column(fields, column, key)
        if isinstance(found, Number):
            return found.written
        return json.dumps(found) if isinstance(found, (int, float)) else checked_text(found, column)

    return PLACEHOLDER.sub(value, template)


def _from_pairs(fields: Fields, _: Data) -> Content:
    _refuse_row(fields)
    pair = next((pair for pair in PAIRS if fields.keys() >= set(pair)), None)
    if pair is None:
        raise RowError(f"no pair of columns such as prompt/completion in {_listed(fields)}")
    prompt, answer = (filled_text(fields[name], name) for name in pair)
    return (*_own_system(fields), Message("user", prompt), Message("assistant", answer))


def _from_conversation(fields: Fields, _: Data) -> Content:
    _refuse_row(fields)
    column = _first(CONVERSATION_COLUMNS, fields)
    if column is None:
        raise RowError(f"no column {' or '.join(CONVERSATION_COLUMNS)} in {_listed(fields)}")
    messages = read_turns(fields[column], column)
    has_system = messages[:1] and messages[0].role == "system"
    return messages if has_system else (*_own_system(fields), *messages)


def _from_alpaca(fields: Fields, _: Data) -> Content:
    _refuse_row(fields)
    asked = (_optional_text(fields, name) for name in ("instruction", "input"))
    prompt = "\n\n".join(part for part in asked if part.strip())
    if not prompt:
        raise RowError("instruction and input are empty")
    answer = filled_text(fields.get("output"), "output")
    turns = (*_history(fields), Message("user", prompt), Message("assistant", answer))
    return (*_own_system(fields), *turns)


def _history(fields: Fields) -> tuple[Message, ...]:
    """Earlier turns, as in LLaMA-Factory's alpaca files: a list of [prompt, answer]."""
    history = fields.get("history") or []
    if not isinstance(history, list):
        raise RowError(f"history is {json_kind(history)}, where a list of pairs is expected")
    messages: list[Message] = []
    for number, pair in enumerate(history, 1):
        match pair:
            case [prompt, answer]:
                messages.append(Message("user", filled_text(prompt, f"history {number}")))
                messages.append(Message("assistant", filled_text(answer, f"history {number}")))
            case _:
                raise RowError(f"history {number} is not a list of prompt and answer")
    return tuple(messages)


def _from_text(fields: Fields, _: Data) -> Content:
    column = _first(TEXT_COLUMNS, fields)
    if column is None:
        raise RowError(f"no column {' or '.join(TEXT_COLUMNS)} in {_listed(fields)}")
    return filled_text(fields[column], column)


def _from_columns(fields: Fields, data: Data) -> Content:
    # The recipe's schema requires both.
    assert data.prompt is not None
    assert data.completion is not None
    prompt = _column_or_template(data.prompt, fields, "data.prompt")
    answer = _column_or_template(data.completion, fields, "data.completion")
    return (Message("user", prompt), Message("assistant", answer))


FORMATS: dict[str, Callable[[Fields, Data], Content]] = {
    "pairs": _from_pairs,
    "messages": _from_conversation,
    "sharegpt": _from_conversation,
    "alpaca": _from_alpaca,
    "text": _from_text,
    "columns": _from_columns,
}


def _with_system(messages: tuple[Message, ...], fields: Fields, data: Data) -> tuple[Message, ...]:
    if data.system is None or (messages and messages[0].role == "system"):
        return messages
    return (Message("system", fill(data.system, fields, "data.system")), *messages)


def _own_system(fields: Fields) -> tuple[Message, ...]:
    text = next((fields[name] for name in SYSTEM_COLUMNS if fields.get(name)), None)
    return () if text is None else (Message("system", checked_text(text, "system")),)


def _column_or_template(template: str, fields: Fields, key: str) -> str:
    if _is_template(template, fields):
        return filled_text(fill(template, fields, key), key)
    return filled_text(_column(fields, template, key), template)


def _is_template(text: str, fields: Fields) -> bool:
    return "{" in text and text not in fields


def _empty_columns(fields: Fields, data: Data) -> tuple[str, ...]:
    """Columns of the row without a value that its prompt and answer are filled with."""
    texts = (text for text in (data.prompt, data.completion) if text is not None)
    names = chain(*(_placeholders(text) for text in texts if _is_template(text, fields)))
    return tuple(name for name in dict.fromkeys(names) if not str(fields[name]).strip())


@lru_cache
def _placeholders(template: str) -> tuple[str, ...]:
    return tuple(match[1] for match in PLACEHOLDER.finditer(template) if match[1] is not None)


def _column(fields: Fields, column: str, key: str) -> object:
    if column not in fields:
        hint = did_you_mean(column, fields) or f"; the columns are {_listed(fields)}"
        raise RowError(f"{key}: no column {column}{hint}")
    return fields[column]


def _optional_text(fields: Fields, column: str) -> str:
    value = fields.get(column)
    return "" if value is None else checked_text(value, column)


def _unsupported(fields: Fields) -> str | None:
    """Why data with these columns are unsupported (preferences, media, tools), or None."""
    if not _suspicious(tuple(fields)):
        return None
    preference = [name for name in fields if name.startswith(PREFERENCE_COLUMNS)]
    both = {name[0] for name in preference} == {"c", "r"}
    verdicts = [name for name in VERDICT_COLUMNS if _is_verdict(fields, name)]
    shown = {
        "preference data": preference if both else verdicts,
        "images, video and sound": _filled(MEDIA_COLUMNS, fields),
        "tool calls": _filled(TOOL_COLUMNS, fields),
    }
    for what, columns in shown.items():
        if columns:
            noun = "column" if len(columns) == 1 else "columns"
            return f"{what} ({noun} {_listed(columns)}) are not supported"
    return None


@lru_cache
def _suspicious(columns: tuple[str, ...]) -> bool:
    """Whether a row's values have to be checked; a file's rows mostly have the same columns."""
    known = {*VERDICT_COLUMNS, *MEDIA_COLUMNS, *TOOL_COLUMNS}
    return any(name in known or name.startswith(PREFERENCE_COLUMNS) for name in columns)


def _is_verdict(fields: Fields, column: str) -> bool:
    """Whether the column rates an answer in the same row as true or false."""
    answers = (*CONVERSATION_COLUMNS, *(answer for _, answer in PAIRS))
    is_boolean = str(fields.get(column)).lower() in ("true", "false")
    return is_boolean and _first(answers, fields) is not None


def _refuse_row(fields: Fields) -> None:
    reason = _unsupported(fields)
    if reason:
        raise RowError(reason)


def _refuse_unused_context(row: Row, pair: tuple[str, str], suspects: Set[str]) -> None:
    unused = [name for name in row.fields if name in suspects and name not in pair]
    if unused:
        prompt, completion = pair
        raise _format_error(
            row,
            f"{_listed(unused)} would be ignored (only {prompt} and {completion} are read); write "
            "`format: pairs` if that is right, or `format: columns` with a template such as "
            f'`prompt: "{{{unused[0]}}} {{{prompt}}}"` and `completion: {completion}`',
        )


def _refuse_unused_answer(row: Row, text: str) -> None:
    answer = _first(ANSWER_COLUMNS, row.fields)
    if answer:
        raise _format_error(
            row,
            f"{answer} would be ignored (only {text} is read); write `format: text` if that is "
            f"right, or `format: columns` with `prompt: {text}` and `completion: {answer}`",
        )


def _turn_words(turns: object) -> str:
    """`sharegpt` if the first turn names its speaker in `from`, else `messages`."""
    first = turns[0] if isinstance(turns, list) and turns else None
    speaks_from = isinstance(first, Mapping) and TURN_KEYS["sharegpt"][0] in first
    return "sharegpt" if speaks_from else "messages"


def _filled(wanted: Iterable[str], fields: Fields) -> list[str]:
    return [name for name in wanted if fields.get(name) not in EMPTY]


def _first(wanted: Iterable[str], columns: Collection[str]) -> str | None:
    return next((name for name in wanted if name in columns), None)


def _listed(columns: Iterable[str]) -> str:
    return ", ".join(columns) or "(none)"


def _format_error(row: Row, message: str) -> DataError:
    return DataError("data_format", message, file=row.origin.file, line=row.origin.line)
