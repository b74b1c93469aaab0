"""Texts that are not recipes: an error with its line, never executed, never a traceback."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftcli.config.loader import RecipeFile
from ftcli.config.nodes import MOST_VALUES
from ftcli.errors import FtcliError
from tests.config.shop import SHOP, fault, load, method, more

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
        (
            SHOP.replace("  mode", "\tmode"),
            "shop.yaml:5: not YAML: found character '\\t' that cannot start any token",
        ),
        (SHOP + "output: *there\n", "shop.yaml:8: not YAML: found undefined alias 'there'"),
        (SHOP + "---\n" + SHOP, "shop.yaml:8: not YAML: but found another document"),
        (SHOP + "? [a, b]\n: c\n", "shop.yaml:8: a key must be a plain word"),
        (SHOP + "output: a\x00b\n", "shop.yaml:8: not YAML: character #x0000 is not allowed"),
        (
            SHOP.replace("train: shop", "train: Größe").encode("latin-1"),
            "shop.yaml:7: not UTF-8 text (byte 0xf6); save it as UTF-8",
        ),
        (SHOP.encode("utf-16"), "shop.yaml:1: not UTF-8 text (byte 0xff); save it as UTF-8"),
        (
            SHOP.replace("mode: lora", "<<: {mode: lora}"),
            "shop.yaml:4: method.mode: is missing\n"
            "shop.yaml:5: method.<<: merging is not supported; write the keys out",
        ),
    ],
)
def test_what_is_not_yaml_is_told_with_its_line(text: str | bytes, message: str) -> None:
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


def test_an_anchor_inside_itself_is_refused() -> None:
    assert fault(more("training: &a\n  epochs: *a\n")) == (
        f"shop.yaml:8: training{'.epochs' * 8}: nested too deeply or repeated too often; the "
        "limit is 8 levels and 10000 values"
    )


def test_anchors_that_multiply_end_early() -> None:
    def nine(item: str) -> str:
        return f"[{', '.join([item] * 9)}]"

    # 9⁷ values if all were built.
    steps = "".join(f"{new}: &{new} {nine(f'*{old}')}\n" for old, new in pairwise("abcdefg"))
    message = fault(f"a: &a {nine('x')}\n{steps}")
    assert message.endswith(
        f"nested too deeply or repeated too often; the limit is 8 levels and {MOST_VALUES} values"
    )


# Random texts


WORDS = """
name model id method mode lora qlora rank data train training eval format type json validation
no ~ 1e-4 010 1:30 .inf 0x1f !!int !!float !!bool !!timestamp !!binary !!set !!python/name:os.system
&a *a << = - ? : [ ] { } ' " | > % \\ é
"""
SPACES = ["\n", "\n  ", "\n    ", "\t", ": ", ", ", "- ", "# ", "---\n", "\ufeff", "9" * 400]
words = st.sampled_from(WORDS.split() + SPACES)
lines = st.lists(words | st.text(max_size=4), max_size=25).map("".join)
beginnings = st.sampled_from(["", SHOP, SHOP + "training:\n  ", "name: shop\nmethod: "])


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200
)
@given(beginnings, lines, st.lists(st.tuples(words, words | st.text(max_size=4)), max_size=2))
def test_any_text_loads_or_is_told_what_is_wrong(
    here: Path, beginning: str, text: str, flags: list[tuple[str, str]]
) -> None:
    overrides = [f"{key}={value}" for key, value in flags]
    try:
        assert isinstance(
            load((beginning + text).encode("utf-8", "replace"), *overrides), RecipeFile
        )
    except FtcliError as error:
        assert error.exit_code == 2
        assert str(error).startswith(("shop.yaml", "--set"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_load_or_are_told_what_is_wrong(here: Path, content: bytes) -> None:
    try:
        assert isinstance(load(content), RecipeFile)
    except FtcliError as error:
        assert error.exit_code == 2
        assert str(error).startswith("shop.yaml:")
