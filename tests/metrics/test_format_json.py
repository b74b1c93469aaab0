from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftcli.errors import DataError
from ftcli.metrics.format import format_files, format_scorer
from ftcli.metrics.format.fields import compare_fields
from ftcli.metrics.scorer import ExampleResult, Question
from ftcli.metrics.scores import gathered
from ftcli.recipe import JsonFormat

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "price": {"$ref": "#/$defs/price"},
        "colours": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
    },
    "required": ["name", "price"],
    "additionalProperties": False,
    "$defs": {"price": {"type": "number", "minimum": 0}},
}


def judged(answer: str, reference: str = "{}", base: Path = Path(), **form: Any) -> ExampleResult:
    judge = format_scorer(JsonFormat(type="json", **form), base)
    return judge.score(answer, Question("", reference, ""))


def is_object(answer: str, *keys: str) -> bool:
    return judged(answer, keys=list(keys)).counts["format_rate"] == (1, 1)


def first(answer: str, said: ExampleResult) -> tuple[str, str]:
    """Message of the first finding, and what it marks."""
    found = said.findings[0]
    return found.message, "" if found.start is None else answer[found.start : found.end]


@pytest.mark.parametrize(
    ("answer", "fits"),
    [
        ('{"a": 1, "b": null}', True),
        (' {"b": [1, {"c": 2}], "a": "x"}\n', True),
        ('{"a": 1}', False),
        ('{"a": 1, "b": 2, "c": 3}', False),
        ('{"A": 1, "b": 2}', False),
        ('{"a": 1, "a": 2, "b": 3}', False),
        ('{"a": NaN, "b": 1}', False),
        ('{"a": 1, "b": -Infinity}', False),
        ('[{"a": 1, "b": 2}]', False),
        ('"a, b"', False),
        ("null", False),
        ("{'a': 1, 'b': 2}", False),
        ('{"a": 1, "b": 2', False),
        ('Here it is: {"a": 1, "b": 2}', False),
        ('```json\n{"a": 1, "b": 2}\n```', False),
        ('{"a": 1, "b": 2}{"a": 1, "b": 2}', False),
        ("", False),
        ("[" * 100_000, False),
        ('{"a":' * 100_000, False),
        ("[" * 1_000_000, False),
    ],
)
def test_a_json_answer_is_one_object_with_these_keys(answer: str, fits: bool) -> None:
    assert is_object(answer, "a", "b") is fits


def test_without_keys_any_object_will_do() -> None:
    assert is_object("{}")
    assert is_object('{"whatever": 1}')
    assert not is_object("[]")


@given(st.dictionaries(st.text(), st.none() | st.text() | st.integers(), min_size=1))
def test_what_json_writes_is_accepted(value: dict[str, object]) -> None:
    assert is_object(json.dumps(value), *value)
    assert not is_object(json.dumps(value), *value, "".join(value) + "x")


@pytest.mark.parametrize(
    ("answer", "message", "marked"),
    [
        ("", "empty", ""),
        (
            "```json\n{}\n```",
            "in a code fence: a script that reads the whole answer fails on it",
            "```json",
        ),
        ('{"a": 1} ok', "more text after the JSON value", "ok"),
        ('{"a": 1', "ends too early: Expecting ',' delimiter", ""),
        ("{'a': 1}", "Expecting property name enclosed in double quotes at character 2", "'"),
        ("Sure: {}", "Expecting value at character 1", "S"),
        ('{"a": NaN}', "NaN is no JSON value", ""),
        ('{"a": 1, "a": 1}', "key a stands twice in one object", ""),
        ("[" * 150 + "]" * 150, "more than 100 levels deep", ""),
        ("9" * 5000, "a number of 5000 digits", ""),
    ],
)
def test_what_keeps_an_answer_from_being_json(answer: str, message: str, marked: str) -> None:
    said = judged(answer)
    assert said.counts["json_valid"] == (0, 1)
    assert said.findings[0].kind == "not JSON"
    assert first(answer, said) == (message, marked)


@pytest.mark.parametrize(
    ("answer", "message", "marked"),
    [
        ('{"a": 1}', "b is missing", ""),
        ('{"a": 1, "b": 2, "see": 3}', "see is not asked for", '"see"'),
        ("[1]", "a list, where an object is asked for", "[1]"),
    ],
)
def test_keys_that_are_wrong_are_named(answer: str, message: str, marked: str) -> None:
    said = judged(answer, keys=["a", "b"])
    assert said.counts["json_valid"] == (1, 1)
    assert said.counts["json_conforming"] == (0, 1)
    assert first(answer, said) == (message, marked)


@pytest.mark.parametrize(
    ("answer", "message", "marked"),
    [
        ('{"name": "a", "price": -1}', "price: -1 is less than the minimum of 0", "-1"),
        ('{"name": 5, "price": 1}', "name: 5 is not of type 'string'", "5"),
        ('{"price": 1}', "'name' is a required property", '{"price": 1}'),
        (
            '{"name": "a", "price": 1, "colours": ["red", 7 ]}',
            "colours.1: 7 is not of type 'string'",
            "7",
        ),
    ],
)
def test_what_does_not_conform_is_marked(answer: str, message: str, marked: str) -> None:
    said = judged(answer, schema=SCHEMA)
    assert said.counts["json_conforming"] == (0, 1)
    assert said.counts["format_rate"] == (0, 1)
    assert first(answer, said) == (message, marked)


def test_a_schema_may_ask_for_something_else_than_an_object() -> None:
    schema = {"type": "array", "items": {"type": "integer"}}
    assert judged("[1, 2.0]", schema=schema).counts["format_rate"] == (1, 1)
    assert judged("[true]", schema=schema).counts["format_rate"] == (0, 1)


def test_the_draft_is_the_one_that_the_schema_names() -> None:
    # A list of schemas for the items: draft 7 knows it, draft 2020-12 has prefixItems.
    old = {"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "string"}]}
    new = {"prefixItems": [{"type": "string"}]}
    for schema in (old, new):
        assert judged('["a", 1]', schema=schema).counts["json_conforming"] == (1, 1)
        assert judged("[1]", schema=schema).counts["json_conforming"] == (0, 1)


def test_a_schema_in_a_file_judges_like_one_written_out(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(json.dumps(SCHEMA), "utf-8")
    for answer in ('{"name": "a", "price": 1}', '{"name": "a", "price": -1}', "[]"):
        written = judged(answer, schema=SCHEMA)
        assert judged(answer, base=tmp_path, schema="record.json") == written
    wanted = JsonFormat(type="json", schema="record.json")
    assert format_files(wanted, tmp_path) == [tmp_path / "record.json"]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (None, None, "eval.format.schema names this file, and there is none"),
        ('{\n"type": \n}', 3, "not JSON: Expecting value at character 12"),
        ("[]", None, "a JSON Schema is an object, found a list"),
        (
            '{\n"properties": {\n"a": {"type": "strnig"}}}',
            3,
            "properties.a.type: no type of JSON: strnig; did you mean string? (there is string, "
            "number, integer, boolean, array, object, null)",
        ),
        ('{"propertis": {}}', 1, "propertis is no word of JSON Schema; did you mean properties?"),
    ],
)
def test_a_file_that_is_no_schema_is_refused(
    tmp_path: Path, text: str | None, line: int | None, message: str
) -> None:
    if text is not None:
        (tmp_path / "record.json").write_text(text, "utf-8")
    with pytest.raises(DataError) as caught:
        format_scorer(JsonFormat(type="json", schema="record.json"), tmp_path)
    assert caught.value.exit_code == 1
    assert (caught.value.file or "").endswith("record.json")
    assert (caught.value.line, caught.value.message) == (line, message)


def test_nothing_is_ever_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_socket(*_: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", no_socket)
    monkeypatch.setattr(socket, "getaddrinfo", no_socket)
    for reference in ("http://localhost:9/a.json", "https://example.com/b", "file:///etc/c.json"):
        (tmp_path / "remote.json").write_text(json.dumps({"$ref": reference}), "utf-8")
        with pytest.raises(DataError, match="nothing is ever fetched"):
            format_scorer(JsonFormat(type="json", schema="remote.json"), tmp_path)
    # A draft is at hand.
    draft = {"$ref": "https://json-schema.org/draft/2020-12/schema"}
    assert judged('{"type": "string"}', schema=draft).counts["json_conforming"] == (1, 1)
    assert judged('{"type": "strnig"}', schema=draft).counts["json_conforming"] == (0, 1)


@pytest.mark.parametrize(
    ("answer", "reference", "accuracy", "micro"),
    [
        ({"a": 1, "b": "x"}, {"a": 1, "b": "x"}, (2, 2), (4, 4)),
        ({"a": 1.0}, {"a": 1}, (1, 1), (2, 2)),
        ({"a": True}, {"a": 1}, (0, 1), (0, 2)),
        ({"a": "X"}, {"a": "x"}, (0, 1), (0, 2)),
        ({"a": "1"}, {"a": 1}, (0, 1), (0, 2)),
        # Missing, null, an empty list and an empty object say nothing; they are not the same.
        ({}, {"a": None}, (0, 1), (0, 0)),
        ({"a": None}, {"a": None}, (1, 1), (0, 0)),
        ({"a": []}, {"a": None}, (0, 1), (0, 0)),
        ({"a": {}}, {"a": {}}, (1, 1), (0, 0)),
        ({"a": "x"}, {"a": None}, (0, 1), (0, 1)),
        ({"a": None}, {"a": "x"}, (0, 1), (0, 1)),
        ({"a": ""}, {"a": None}, (0, 1), (0, 1)),
        # Lists: accuracy looks at the order, F1 at the items and how often each stands there.
        ({"a": ["r", "g"]}, {"a": ["g", "r"]}, (0, 1), (4, 4)),
        ({"a": ["r", "r"]}, {"a": ["r"]}, (0, 1), (2, 3)),
        ({"a": [1, 2, 3]}, {"a": [2, 4]}, (0, 1), (2, 5)),
        ({"a": [{"x": 1, "y": 2}]}, {"a": [{"y": 2, "x": 1}]}, (1, 1), (2, 2)),
        # Objects within objects are fields of their own.
        ({"s": {"w": 1, "h": 2}}, {"s": {"w": 1, "h": 3}}, (1, 2), (2, 4)),
        ({"s": 1}, {"s": {"w": 1}}, (0, 2), (0, 2)),
        ({"a": 1, "more": 2}, {"a": 1}, (1, 2), (2, 3)),
        ([1, 2], [2, 1], (0, 1), (4, 4)),
        ("x", {"a": 1}, (0, 2), (0, 2)),
    ],
)
def test_fields_are_counted(
    answer: object,
    reference: object,
    accuracy: tuple[float, float],
    micro: tuple[float, float],
) -> None:
    counts = compare_fields(answer, reference, answered=True)
    assert counts.accuracy == accuracy
    assert counts.micro == micro
    said = judged(json.dumps(answer), json.dumps(reference))
    assert said.counts["field_accuracy"] == accuracy
    assert said.counts["field_f1"] == micro


def test_every_field_of_the_references_has_a_score() -> None:
    judge = format_scorer(JsonFormat(type="json"), Path())
    reference = '{"name": "a", "size": {"w": 1}, "tags": ["x", "y"]}'
    said = judge.score('{"name": "b", "size": {"w": 1}, "tags": ["y"], "z": 1}', ask(reference))
    single = {
        n: c for n, c in said.counts.items() if n.startswith("field_f1.") and n in judge.kinds
    }
    assert single == {
        "field_f1.name": (0, 2),
        "field_f1.size.w": (2, 2),
        "field_f1.tags": (2, 3),
    }
    assert said.counts["field_f1"] == (4, 8)
    assert judge.kinds["field_f1.size.w"].label == "field F1, size.w"


def test_an_answer_that_is_no_json_misses_every_field() -> None:
    said = judged("no", '{"a": 1, "b": [1, 2], "c": null}')
    assert said.counts["field_accuracy"] == (0, 3)
    assert said.counts["field_f1"] == (0, 3)
    assert said.counts["field_f1.b"] == (0, 2)


def test_a_reference_that_is_no_json_counts_for_nothing() -> None:
    said = judged('{"a": 1}', "not json")
    assert said.counts == {"format_rate": (1, 1), "json_valid": (1, 1)}
    assert [f.kind for f in said.findings] == ["reference"]


def test_another_value_is_marked() -> None:
    answer = '{"a": "tools", "s": {"w": [1, 2]}}'
    said = judged(answer, '{"a": "outdoors", "s": {"w": [1]}}')
    assert [(f.message, answer[f.start : f.end]) for f in said.findings] == [
        ('a: "tools", in the reference "outdoors"', '"tools"'),
        ("s.w: [1, 2], in the reference [1]", "[1, 2]"),
    ]
    assert said.counts["format_rate"] == (1, 1)


def test_a_record_of_many_fields_has_no_score_for_each() -> None:
    many = json.dumps({f"key {number}": number for number in range(500)})
    judge = format_scorer(JsonFormat(type="json"), Path())
    said = judge.score(many, ask(many))
    assert said.counts["field_f1"] == (1000, 1000)
    assert len([name for name in judge.kinds if name.startswith("field_f1.")]) == 40


def test_a_field_counts_wherever_the_first_record_that_has_it_stands() -> None:
    rows = [('{"a": 1, "b": 1}', '{"a": 1}'), ('{"a": 1, "b": 2}', '{"a": 1, "b": 2}')]
    values = []
    for order in (rows, rows[::-1]):
        judge = format_scorer(JsonFormat(type="json"), Path())
        said = [judge.score(answer, ask(reference)) for answer, reference in order]
        values.append(gathered(said, judge.kinds)["field_f1.b"].value)
    assert values == [pytest.approx(2 / 3)] * 2


def ask(reference: str) -> Question:
    return Question("", reference, "")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_a_record_is_all_right_beside_itself(value: object) -> None:
    counts = compare_fields(value, value, answered=True)
    assert counts.accuracy[0] == counts.accuracy[1]
    assert counts.micro[0] == counts.micro[1]


@given(VALUES, VALUES)
def test_f1_is_the_same_both_ways(one: object, other: object) -> None:
    there, back = (compare_fields(*p, answered=True) for p in ((one, other), (other, one)))
    assert (there.accuracy, there.micro) == (back.accuracy, back.micro)


PIECES = st.lists(
    st.sampled_from(['{"name":', '"price"', ":", "[", "]", "{", "}", ",", "1e999", "\ud800", '"']),
    max_size=30,
).map("".join)


@given(st.text() | PIECES | VALUES.map(json.dumps), st.text() | VALUES.map(json.dumps))
def test_any_answer_gets_a_judgement(answer: str, reference: str) -> None:
    said = judged(answer, reference, schema=SCHEMA)
    for top, bottom in said.counts.values():
        assert 0 <= top <= bottom
    for finding in said.findings:
        if finding.start is not None and finding.end is not None:
            assert 0 <= finding.start < finding.end <= len(answer)
