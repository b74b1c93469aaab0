"""JSON answers: valid, conforming, and their fields compared with the reference."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftcli.config.recipe import JsonFormat
from ftcli.errors import DataError
from ftcli.evaluation.scorers.format import format_scorer
from ftcli.evaluation.scorers.scorer import ExampleResult, Question
from ftcli.evaluation.scoring import collect_counts

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


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def ask(reference: str) -> Question:
    return Question("", reference, "")


def scored(answer: str, reference: str = "{}", **form: Any) -> ExampleResult:
    return format_scorer(JsonFormat(type="json", **form)).score(answer, ask(reference))


def is_valid(answer: str, **form: Any) -> bool:
    return scored(answer, **form).counts["format_rate"] == (1, 1)


def test_an_answer_is_one_object_with_these_keys() -> None:
    assert is_valid(' {"b": [1, {"c": 2}], "a": null}\n', keys=["a", "b"])
    assert is_valid('{"whatever": 1}') and is_valid("{}")
    assert not is_valid("[]")


@given(st.dictionaries(st.text(), st.none() | st.text() | st.integers(), min_size=1))
def test_what_json_writes_is_valid(value: dict[str, object]) -> None:
    assert is_valid(json.dumps(value), keys=list(value))
    assert not is_valid(json.dumps(value), keys=[*value, "".join(value) + "x"])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("", "empty"),
        ("```json\n{}\n```", "in a code fence: a JSON parser fails on it"),
        ('{"a": 1} ok', "Extra data at character 10"),
        ('{"a": 1}{"a": 1}', "Extra data at character 9"),
        ('{"a": 1', "Expecting ',' delimiter at character 8"),
        ("{'a': 1}", "Expecting property name enclosed in double quotes at character 2"),
        ("Sure: {}", "Expecting value at character 1"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": -Infinity}', "-Infinity is not JSON"),
        ('{"a": 1, "a": 1}', "key a twice in one object"),
        ("[" * 150 + "]" * 150, "more than 100 levels deep"),
        ('{"a":' * 101 + "1" + "}" * 101, "more than 100 levels deep"),
        ("[" * 1_000, "maximum recursion depth exceeded"),
        ("[" * 100_000, "maximum recursion depth exceeded"),
        ("9" * 5000, "Exceeds the limit (4300 digits)"),
    ],
)
def test_a_text_that_is_not_json_is_not_valid(answer: str, message: str) -> None:
    result = scored(answer)
    assert result.counts["json_valid"] == result.counts["format_rate"] == (0, 1)
    assert result.findings[0].kind == "not JSON"
    assert result.findings[0].message.startswith(message)
    assert is_valid("[" * 100 + "]" * 100, schema={})


@pytest.mark.parametrize(
    ("answer", "form", "message"),
    [
        ('{"a": 1}', {"keys": ["a", "b"]}, "b is missing"),
        ('{"a": 1, "b": 2, "see": 3}', {"keys": ["a", "b"]}, "unexpected: see"),
        ('{"A": 1, "b": 2}', {"keys": ["a", "b"]}, "a is missing"),
        ("[1]", {"keys": ["a"]}, "expected an object"),
        ('{"name": "a", "price": -1}', {"schema": SCHEMA}, "price: -1 is less than the minimum"),
        ('{"name": 5, "price": 1}', {"schema": SCHEMA}, "name: 5 is not of type 'string'"),
        ('{"price": 1}', {"schema": SCHEMA}, "'name' is a required property"),
        (
            '{"name": "a", "price": 1, "colours": ["red", 7]}',
            {"schema": SCHEMA},
            "colours.1: 7 is not of type 'string'",
        ),
    ],
)
def test_what_does_not_conform_is_named(answer: str, form: dict[str, Any], message: str) -> None:
    result = scored(answer, **form)
    assert result.counts["json_valid"] == (1, 1)
    assert result.counts["json_conforming"] == result.counts["format_rate"] == (0, 1)
    assert result.findings[0].message.startswith(message)


def test_a_schema_has_the_draft_that_it_names() -> None:
    assert is_valid("[1, 2.0]", schema={"type": "array", "items": {"type": "integer"}})
    assert not is_valid("[true]", schema={"type": "array", "items": {"type": "integer"}})
    # Draft 7 has a list of schemas for the items, draft 2020-12 has prefixItems.
    old = {"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "string"}]}
    for schema in (old, {"prefixItems": [{"type": "string"}]}):
        assert is_valid('["a", 1]', schema=schema) and not is_valid("[1]", schema=schema)


def test_a_schema_in_a_file_is_the_same_as_in_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(json.dumps(SCHEMA), "utf-8")
    for answer in ('{"name": "a", "price": 1}', '{"name": "a", "price": -1}', "[]"):
        in_file = scored(answer, schema="record.json")
        assert in_file == scored(answer, schema=SCHEMA)


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        (None, None, "eval.format.schema: cannot be read: No such file or directory"),
        (b"\xff", None, "not JSON: 'utf-8' codec can't decode"),
        (b'{\n"type": \n}', 3, "not JSON: Expecting value"),
        (b"[]", None, "expected an object: a JSON Schema"),
        (
            b'{"properties": {"a": {"type": "strnig"}}}',
            None,
            "properties.a.type: unknown type strnig; did you mean string?",
        ),
        (b'{"propertis": {}}', None, "propertis is not a keyword of JSON Schema; did you mean"),
    ],
)
def test_a_file_that_is_not_a_schema_is_refused(
    tmp_path: Path, content: bytes | None, line: int | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "record.json").write_bytes(content)
    with pytest.raises(DataError) as caught:
        format_scorer(JsonFormat(type="json", schema="record.json"))
    assert (caught.value.code, caught.value.exit_code) == ("answer_schema", 1)
    assert (caught.value.file or "").endswith("record.json")
    assert caught.value.line == line and caught.value.message.startswith(message)


def test_nothing_is_ever_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_socket(*_: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", no_socket)
    monkeypatch.setattr(socket, "getaddrinfo", no_socket)
    for reference in ("http://localhost:9/a.json", "https://example.com/b", "file:///etc/c.json"):
        (tmp_path / "remote.json").write_text(json.dumps({"$ref": reference}), "utf-8")
        with pytest.raises(DataError, match="nothing is fetched"):
            format_scorer(JsonFormat(type="json", schema="remote.json"))
    draft = {"$ref": "https://json-schema.org/draft/2020-12/schema"}
    assert is_valid('{"type": "string"}', schema=draft)
    assert not is_valid('{"type": "strnig"}', schema=draft)


@pytest.mark.parametrize(
    ("answer", "reference", "accuracy", "f1"),
    [
        ({"a": 1, "b": "x"}, {"a": 1, "b": "x"}, (2, 2), (4, 4)),
        ({"a": 1.0}, {"a": 1}, (1, 1), (2, 2)),
        ({"a": [{"b": 2.0}]}, {"a": [{"b": 2}]}, (1, 1), (2, 2)),
        ({"a": True}, {"a": 1}, (0, 1), (0, 2)),
        ({"a": "X"}, {"a": "x"}, (0, 1), (0, 2)),
        ({"a": "1"}, {"a": 1}, (0, 1), (0, 2)),
        # Missing, null, [] and {} have no item, and are not equal.
        ({}, {"a": None}, (0, 1), (0, 0)),
        ({"a": None}, {"a": None}, (1, 1), (0, 0)),
        ({"a": []}, {"a": None}, (0, 1), (0, 0)),
        ({"a": {}}, {"a": {}}, (1, 1), (0, 0)),
        ({"a": None}, {"a": "x"}, (0, 1), (0, 1)),
        ({"a": ""}, {"a": None}, (0, 1), (0, 1)),
        # Lists: accuracy needs the same order, F1 counts the items.
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
    answer: object, reference: object, accuracy: object, f1: object
) -> None:
    counts = scored(json.dumps(answer), json.dumps(reference)).counts
    assert (counts["field_accuracy"], counts["field_f1"]) == (accuracy, f1)
    other = scored(json.dumps(reference), json.dumps(answer)).counts
    assert (other["field_accuracy"], other["field_f1"]) == (accuracy, f1)


def test_every_field_of_the_references_has_a_score() -> None:
    scorer = format_scorer(JsonFormat(type="json"))
    reference = '{"name": "a", "size": {"w": 1}, "tags": ["x", "y"]}'
    answer = '{"name": "b", "size": {"w": 1}, "tags": ["y"], "z": 1}'
    counts = scorer.score(answer, ask(reference)).counts
    single = {name: pair for name, pair in counts.items() if name in scorer.kinds}
    assert single == {
        "format_rate": (1, 1),
        "json_valid": (1, 1),
        "field_accuracy": (1, 4),
        "field_f1": (4, 8),
        "field_f1.name": (0, 2),
        "field_f1.size.w": (2, 2),
        "field_f1.tags": (2, 3),
    }
    assert scorer.kinds["field_f1.size.w"].label == "field F1, size.w"
    many = json.dumps({f"key {number}": number for number in range(500)})
    assert scorer.score(many, ask(many)).counts["field_f1"] == (1000, 1000)
    assert len([name for name in scorer.kinds if name.startswith("field_f1.")]) == 40


def test_an_answer_that_is_not_json_misses_every_field() -> None:
    counts = scored("no", '{"a": 1, "b": [1, 2], "c": null}').counts
    assert counts["field_accuracy"] == counts["field_f1"] == (0, 3)
    assert counts["field_f1.b"] == (0, 2)


def test_a_reference_that_is_not_json_does_not_count() -> None:
    result = scored('{"a": 1}', "not json")
    assert result.counts == {"format_rate": (1, 1), "json_valid": (1, 1)}
    assert [finding.kind for finding in result.findings] == ["reference"]


def test_another_value_is_named() -> None:
    result = scored('{"a": "tüll", "s": {"w": [1, 2]}}', '{"a": "b", "s": {"w": [1]}}')
    assert [(finding.kind, finding.message) for finding in result.findings] == [
        ("other value", 'a: "tüll", in the reference "b"'),
        ("other value", "s.w: [1, 2], in the reference [1]"),
    ]
    assert result.counts["format_rate"] == (1, 1)


def test_a_field_counts_also_if_only_later_references_have_it() -> None:
    rows = [('{"a": 1, "b": 1}', '{"a": 1}'), ('{"a": 1, "b": 2}', '{"a": 1, "b": 2}')]
    for order in (rows, rows[::-1]):
        scorer = format_scorer(JsonFormat(type="json"))
        results = [scorer.score(answer, ask(reference)) for answer, reference in order]
        assert collect_counts(results, scorer.kinds)["field_f1.b"].value == pytest.approx(2 / 3)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
).map(json.dumps)
PIECES = st.lists(
    st.sampled_from(['{"name":', '"price"', ":", "[", "]", "{", "}", ",", "1e999", "\ud800", '"']),
    max_size=30,
).map("".join)


@given(st.text() | PIECES | VALUES, st.text() | VALUES)
def test_any_answer_gets_counts(answer: str, reference: str) -> None:
    result = scored(answer, reference, schema=SCHEMA)
    assert all(0 <= numerator <= denominator for numerator, denominator in result.counts.values())
    assert all(f.start is None or 0 <= f.start < len(answer) for f in result.findings)
    same = scored(reference, reference).counts
    if "field_f1" in same:
        assert all(same[name][0] == same[name][1] for name in ("field_accuracy", "field_f1"))
