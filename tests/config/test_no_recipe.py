"""Texts that are not recipes: an error with its line, never executed, never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.config.shop import SHOP, fault, method, more

# Not a recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the recipe is empty; see `ftcli schema`"),
        ("# a comment\n", "the recipe is empty; see `ftcli schema`"),
        ("- a\n- b\n", "the recipe is not a mapping of keys to values; see `ftcli schema`"),
        ("shop\n", "the recipe is not a mapping of keys to values; see `ftcli schema`"),
        ("name: [\n", "not YAML: expected the node content, but found '<stream end>'"),
    ],
)
def test_something_else_than_keys_and_values(text: str, message: str) -> None:
    assert fault(text).split(": ", 1)[1] == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SHOP + "output: *there\n", "shop.yaml:8: not YAML: found undefined alias 'there'"),
        (SHOP + "? [a, b]\n: c\n", "shop.yaml:8: a key must be a plain word"),
        (
            SHOP.replace("train: shop", "train: Größe").encode("latin-1"),
            "shop.yaml:7: not UTF-8 text (byte 0xf6); save it as UTF-8",
        ),
        (
            SHOP.replace("mode: lora", "<<: {mode: lora}"),
            "shop.yaml:4: method.mode: is missing\n"
            "shop.yaml:5: method.<<: merging is not supported; write the keys out",
        ),
    ],
)
def test_what_is_not_yaml_is_named_with_its_line(text: str | bytes, message: str) -> None:
    assert fault(text) == message


@pytest.mark.parametrize(
    ("text", "place", "tag"),
    [
        ("name: !!python/object/apply:os.mkdir [made]", "1: name", "object/apply:os.mkdir"),
        ("name: !!python/name:os.system x", "1: name", "name:os.system"),
        ("name: !!python/object/new:os.mkdir {args: [made]}", "1: name", "object/new:os.mkdir"),
        ("name: !!python/tuple [a]", "1: name", "tuple"),
    ],
)
def test_no_tag_runs_code(here: Path, text: str, place: str, tag: str) -> None:
    assert fault(SHOP.replace("name: shop", text)) == (
        f"shop.yaml:{place}: tag tag:yaml.org,2002:python/{tag} is not allowed"
    )
    assert not (here / "made").exists()


def test_a_tag_on_a_section_or_on_everything_is_refused() -> None:
    assert fault(SHOP.replace("method:", "method: !!python/object:a.B")) == (
        "shop.yaml:4: method: tag tag:yaml.org,2002:python/object:a.B is not allowed"
    )
    assert fault("!!python/object:a.B\n" + SHOP) == (
        "shop.yaml:1: tag tag:yaml.org,2002:python/object:a.B is not allowed"
    )
    assert fault(SHOP.replace("lora", "!mine lora")) == (
        "shop.yaml:5: method.mode: tag !mine is not allowed"
    )


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("!!int many", "int: many"),
        ("!!int ''", "int: "),
        ("!!float many", "float: many"),
        ("!!bool many", "bool: many"),
        ("!!timestamp many", "timestamp: many"),
        ("2024-99-99", "timestamp: 2024-99-99"),
    ],
)
def test_a_value_that_its_tag_does_not_fit(value: str, kind: str) -> None:
    assert fault(method(f"rank: {value}")) == (
        f"shop.yaml:6: method.rank: cannot be read as {kind}"
    )


def test_deep_nesting_is_refused_with_its_line() -> None:
    limits = "nested too deeply or repeated too often; the limit is 8 levels and 10000 values"
    steps = "".join("  " * depth + f"a{depth}:\n" for depth in range(1, 20))
    assert fault(more("a:\n" + steps)) == (f"shop.yaml:17: a.a1.a2.a3.a4.a5.a6.a7.a8: {limits}")
    assert fault(more("output: " + "[" * 600 + "]" * 600)) == "shop.yaml:8: nested too deeply"
