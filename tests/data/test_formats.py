from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from ftcli.config.recipe import Data
from ftcli.data.example import Example, Origin, RejectedRow, Row
from ftcli.data.formats import FORMATS, fill, pin_system, recognise, to_example
from ftcli.errors import DataError

ORIGIN = Origin("shop.jsonl", 7)


def data(**keys: Any) -> Data:
    return Data.model_validate({"train": "shop.jsonl", **keys})


def turns_of(fields: Mapping[str, object], format_name: str, **keys: Any) -> list[tuple[str, str]]:
    example = to_example(Row(ORIGIN, fields), data(**keys), format_name)
    assert isinstance(example, Example), example
    return [(message.role, message.content) for message in example.messages]


def reason_of(fields: Mapping[str, object], format_name: str, **keys: Any) -> str:
    reject = to_example(Row(ORIGIN, fields), data(**keys), format_name)
    assert isinstance(reject, RejectedRow), reject
    assert reject.origin == ORIGIN
    return reject.reason


def chat(*turns: tuple[str, object]) -> dict[str, object]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


# recognise


@pytest.mark.parametrize(
    ("fields", "format_name"),
    [
        ({"prompt": "p", "completion": "c", "id": 1}, "pairs"),
        ({"input": "p", "output": "c"}, "pairs"),
        ({"question": "p", "answer": "c"}, "pairs"),
        ({"instruction": "p", "response": "c"}, "pairs"),
        ({"source": "p", "target": "c"}, "pairs"),
        ({"prompt": "p", "response": "c"}, "pairs"),
        ({"instruction": "p", "input": "", "output": "c"}, "alpaca"),
        ({"instruction": "p", "output": "c"}, "alpaca"),
        ({"text": "t", "url": "u"}, "text"),
        ({"content": "t"}, "text"),
        (chat(("user", "p")), "messages"),
        ({"prompt": "p", "prompt_id": "1", **chat(("user", "p"))}, "messages"),
        ({"conversations": [{"role": "user", "content": "p"}]}, "messages"),
        ({"conversation": [{"from": "human", "value": "p"}]}, "sharegpt"),
        ({"conversations": [{"from": "human", "value": "p"}], "tools": "[]"}, "sharegpt"),
        ({"messages": None}, "messages"),
    ],
)
def test_recognise(fields: Mapping[str, object], format_name: str) -> None:
    assert recognise(Row(ORIGIN, fields)) == format_name


ADVICE = (
    "keep only the text to be learned, or write `format: columns` to read only the columns that "
    "you name"
)
PAIR = {"prompt": "p", "completion": "c"}


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        (
            {"prompt": "p", "chosen": "c", "rejected": "r"},
            "preference data (columns chosen, rejected)",
        ),
        ({**PAIR, "label": True}, "preference data (column label)"),
        ({**chat(("user", "p")), "kto_tag": "false"}, "preference data (column kto_tag)"),
        ({**PAIR, "image": "1.jpg"}, "images, video and sound (column image)"),
        (
            {**chat(("user", "p")), "videos": ["1.mp4"], "audios": ["1.mp3"]},
            "images, video and sound (columns videos, audios)",
        ),
        ({"conversations": [], "tools": '[{"name": "f"}]'}, "tool calls (column tools)"),
    ],
)
def test_data_of_another_kind_are_refused(fields: Mapping[str, object], what: str) -> None:
    with pytest.raises(DataError) as caught:
        recognise(Row(ORIGIN, fields))
    assert caught.value.code == "data_format"
    assert str(caught.value) == f"shop.jsonl:7: {what} are not supported; {ADVICE}"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"titel": "t", "body": "b"},
            "no format is known for the columns titel, body; known are prompt/completion, "
            "input/output, question/answer, instruction/response, source/target, prompt/response, "
            "instruction/input/output, messages, conversations, conversation, text, content; for "
            "others write `format: columns` and give data.prompt and data.completion, each a "
            "column or a template such as `Product: {name}`",
        ),
        (
            {"instruction": "i", "context": "", "response": "r"},
            "context would be ignored (only instruction and response are read); write `format: "
            "pairs` if that is right, or `format: columns` with a template such as "
            '`prompt: "{context} {instruction}"` and `completion: response`',
        ),
        (
            {"prompt": "p", "completion": "c", "response": "r"},
            "response would be ignored (only prompt and completion are read); write `format: "
            "pairs` if that is right, or `format: columns` with a template such as "
            '`prompt: "{response} {prompt}"` and `completion: completion`',
        ),
        (
            {"text": "t", "label": 1},
            "label would be ignored (only text is read); write `format: text` if that is right, or "
            "`format: columns` with `prompt: text` and `completion: label`",
        ),
    ],
)
def test_columns_that_fit_no_format_or_not_wholly(
    fields: Mapping[str, object], message: str
) -> None:
    with pytest.raises(DataError) as caught:
        recognise(Row(ORIGIN, fields))
    assert caught.value.message == message


def test_the_recipe_knows_the_same_formats() -> None:
    assert {"auto", *FORMATS} == set(Data.model_fields["format"].annotation.__args__)  # type: ignore[union-attr]


# pairs, alpaca, text


def test_pairs_keep_content_byte_for_byte() -> None:
    fields = {"question": " a\r\n<|im_end|> ", "answer": "\tb\n", "system": "s"}
    assert turns_of(fields, "pairs") == [
        ("system", "s"),
        ("user", " a\r\n<|im_end|> "),
        ("assistant", "\tb\n"),
    ]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"prompt": " \n", "completion": "c"}, "prompt is empty"),
        ({"prompt": "p", "completion": "\u00a0"}, "completion is empty"),
        ({"prompt": None, "completion": "c"}, "prompt is null, where text is expected"),
        ({"prompt": "p", "completion": 5}, "completion is the number 5, where text is expected"),
        ({"prompt": "p", "completion": True}, "completion is true, where text is expected"),
        ({"prompt": ["p"], "completion": "c"}, "prompt is a list, where text is expected"),
        (
            {"prompt": "p", "completion": "\ud83d"},
            "completion contains half of a character (\\ud83d)",
        ),
        ({"prompt": "p", "id": 1}, "no pair of columns such as prompt/completion in prompt, id"),
        ({**PAIR, "tools": [{}]}, "tool calls (column tools) are not supported"),
    ],
)
def test_pairs_that_are_rejected(fields: Mapping[str, object], reason: str) -> None:
    assert reason_of(fields, "pairs") == reason


def test_alpaca_joins_instruction_and_input() -> None:
    fields = {
        "instruction": "Translate.",
        "input": "Haus",
        "output": "house",
        "system": "Be short.",
        "history": [["Hi", "Hello"]],
    }
    assert turns_of(fields, "alpaca") == [
        ("system", "Be short."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Translate.\n\nHaus"),
        ("assistant", "house"),
    ]


@pytest.mark.parametrize("nothing", [{}, {"input": ""}, {"input": None}, {"input": " \n"}])
def test_alpaca_without_input(nothing: Mapping[str, object]) -> None:
    fields = {"instruction": "i", "output": "o", **nothing}
    assert turns_of(fields, "alpaca") == [("user", "i"), ("assistant", "o")]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"instruction": "", "input": " ", "output": "o"}, "instruction and input are empty"),
        (
            {"instruction": "i", "input": 3, "output": "o"},
            "input is the number 3, where text is expected",
        ),
        ({"instruction": "i", "output": " "}, "output is empty"),
        ({"instruction": "i"}, "output is null, where text is expected"),
        (
            {"instruction": "i", "output": "o", "history": [["a"]]},
            "history 1 is not a list of prompt and answer",
        ),
        (
            {"instruction": "i", "output": "o", "history": "a"},
            "history is text, where a list of pairs is expected",
        ),
    ],
)
def test_alpaca_rows_that_are_rejected(fields: Mapping[str, object], reason: str) -> None:
    assert reason_of(fields, "alpaca") == reason


def test_text() -> None:
    example = to_example(Row(ORIGIN, {"text": " t\n"}), data(), "text")
    assert example == Example((), ORIGIN, text=" t\n")
    assert reason_of({"text": " "}, "text") == "text is empty"
    assert reason_of({"body": "b"}, "text") == "no column text or content in body"


# conversations


def test_messages_with_text_parts_and_roles_of_openai() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    fields = chat(("developer", ""), ("user", parts), ("assistant", "c"))
    assert turns_of(fields, "messages") == [("system", ""), ("user", "ab"), ("assistant", "c")]


def test_sharegpt_roles() -> None:
    turns = [
        ("human", "a"),
        ("gpt", "b"),
        ("user", "c"),
        ("bing", "d"),
        ("human", "e"),
        ("chatgpt", "f"),
    ]
    fields = {
        "conversations": [{"from": role, "value": text} for role, text in turns],
        "system": "s",
    }
    assert turns_of(fields, "sharegpt") == [
        ("system", "s"),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
        ("assistant", "d"),
        ("user", "e"),
        ("assistant", "f"),
    ]


def test_keys_that_parquet_fills_with_null_are_absent() -> None:
    turn = {"tool_calls": None, "function_call": None, "weight": None, "from": None}
    fields: Mapping[str, object] = {
        "messages": [
            {**turn, "role": "user", "content": "a"},
            {**turn, "role": "assistant", "content": "b"},
        ],
        "tools": None,
    }
    assert turns_of(fields, "messages") == [("user", "a"), ("assistant", "b")]


def test_conversations_that_are_rejected() -> None:
    assert reason_of(chat(("user", "a")), "messages") == "no assistant turn"
    assert reason_of({"chat": []}, "messages") == (
        "no column messages or conversations or conversation in chat"
    )


# columns and system prompts


def test_columns_are_names_or_templates() -> None:
    fields: Mapping[str, object] = {"name": "Vase", "price": 12.5, "new": True, "the text": " t "}
    keys = {"prompt": "{{Product}} {name}, {price}, {new}", "completion": "the text"}
    assert turns_of(fields, "columns", **keys) == [
        ("user", "{Product} Vase, 12.5, true"),
        ("assistant", " t "),
    ]


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"prompt": "titel"}, "data.prompt: no column titel; did you mean title?"),
        ({"prompt": "About {x}"}, "data.prompt: no column x; the columns are title, text, none"),
        ({"prompt": '{"a": 1}'}, 'data.prompt: no column "a": 1; write {{ where a brace is meant'),
        ({"prompt": "{none}"}, "none is null, where text is expected"),
        ({"completion": "none"}, "none is null, where text is expected"),
        ({"prompt": "{text}"}, "data.prompt is empty"),
        ({"completion": "text"}, "text is empty"),
        (
            {"system": "{persona}"},
            "data.system: no column persona; the columns are title, text, none",
        ),
    ],
)
def test_columns_that_are_rejected(keys: dict[str, str], reason: str) -> None:
    fields = {"title": "t", "text": " ", "none": None}
    assert (
        reason_of(fields, "columns", **{"prompt": "title", "completion": "title", **keys}) == reason
    )


def test_columns_take_what_stands_next_to_preferences() -> None:
    fields = {"prompt": "p", "chosen": "c", "rejected": "r"}
    assert turns_of(fields, "columns", prompt="prompt", completion="chosen") == [
        ("user", "p"),
        ("assistant", "c"),
    ]


@pytest.mark.parametrize(
    ("template", "text"),
    [("{a}{a}", "11"), ("{{a}}", "{a}"), ("{ {a}", "{ 1"), ("{}", "{}"), ("{{{a}}}", "{1}")],
)
def test_fill(template: str, text: str) -> None:
    assert fill(template, {"a": 1}, "data.prompt") == text


def test_the_recipes_system_prompt_yields_to_the_rows_own() -> None:
    own = chat(("system", "row"), ("user", "a"), ("assistant", "b"))
    without = chat(("user", "a"), ("assistant", "b"))
    assert turns_of(own, "messages", system="recipe")[0] == ("system", "row")
    assert turns_of(without, "messages", system="recipe")[0] == ("system", "recipe")
    assert turns_of({**PAIR, "tone": "kind"}, "pairs", system="Be {tone}.")[0] == (
        "system",
        "Be kind.",
    )
    assert turns_of({**PAIR, "system": ""}, "pairs", system="")[0] == ("system", "")


def test_a_system_prompt_that_names_a_column_becomes_a_template() -> None:
    first = Row(ORIGIN, {"persona": "p"})
    assert pin_system(data(system="persona"), first).system == "{persona}"
    assert pin_system(data(system="Be kind."), first).system == "Be kind."
    assert pin_system(data(), first).system is None
