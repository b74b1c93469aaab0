from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftcli.metrics.form import form_check
from ftcli.recipe import JsonFormat, RegexFormat


def matches(pattern: str, answer: str) -> bool:
    return form_check(RegexFormat(type="regex", pattern=pattern))(answer)


def is_object(answer: str, *keys: str) -> bool:
    return form_check(JsonFormat(type="json", keys=list(keys)))(answer)


@pytest.mark.parametrize(
    ("pattern", "answer", "fits"),
    [
        (r"# [^\n]+\n.+", "# Title\nBody", True),
        (r"# [^\n]+\n.+", "\n# Title\nBody \n", True),
        (r"# [^\n]+\n.+", "Sure! # Title\nBody", False),
        (r"# [^\n]+\n.+", "# Title\nBody\nmore", False),
        (r"yes|no", "yes", True),
        (r"yes|no", "yes and no", False),
        (r"yes|no", "", False),
        (r".*", "", True),
        (r"(?i)yes", "YES", True),
        (r"\w+", "Größe", True),
    ],
)
def test_a_pattern_takes_the_whole_answer(pattern: str, answer: str, fits: bool) -> None:
    assert matches(pattern, answer) is fits


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


@given(st.text())
def test_any_answer_gets_a_verdict(answer: str) -> None:
    assert is_object(answer) in (True, False)
