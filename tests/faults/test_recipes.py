"""Fault 23: any recipe or flag loads, or is an error with its place."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ftcli.cli import run
from ftcli.config.loader import RecipeFile, load_recipe
from ftcli.config.nodes import MOST_PROBLEMS
from ftcli.errors import RecipeError, UsageError
from tests.tiers import tiers

SHOP: dict[str, Any] = {
    "name": "shop",
    "model": {"id": "smollm2-135m"},
    "method": {"mode": "lora", "rank": 8, "target_modules": ["q_proj", "v_proj"]},
    "data": {"train": "shop.jsonl", "validation": 0.1, "max_length": 256},
    "training": {"epochs": 2, "learning_rate": "1e-4", "batch_size": 4},
    "eval": {"format": {"type": "regex", "pattern": "#.*"}},
    "output": "runs/shop",
}
TEXT = yaml.safe_dump(SHOP, sort_keys=False)
# `shop.yaml:4: `, or without a line where the YAML has no place for it: a key that is missing.
PLACE = re.compile(r"(shop\.yaml(:\d+)?|--set [^\n]*): ")

pytestmark = pytest.mark.fault(23)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Judged:
    """Loads recipes and counts them; any exception other than a recipe's error fails."""

    def __init__(self) -> None:
        self.loaded = self.refused = 0

    def __call__(self, content: bytes, *overrides: str) -> str:
        """The message of the error, or an empty text."""
        file = Path("shop.yaml")
        file.write_bytes(content)
        try:
            assert isinstance(load_recipe(file, overrides), RecipeFile)
        except UsageError as error:
            assert error.exit_code == 2
            self.refused += 1
            message = str(error)
            assert PLACE.match(message), message
            for line in re.findall(r"^shop\.yaml:(\d+): ", message, re.MULTILINE):
                assert 1 <= int(line) <= len(re.findall(rb"\r\n|\r|\n", content)) + 1
            return message
        self.loaded += 1
        return ""


@pytest.fixture
def judge() -> Judged:
    return Judged()


# Values of one key

WORDS = r"""
1e-4 -1e-4 1e999 .nan .inf -.inf no yes ~ null 010 0o10 1_000 0x10 0b101 1:30 -0 +.5 2024-01-01
2024-99-99 2024-01-01T10:00:00+99:99 !!int !!float !!bool !!binary !!set !!str !!null !!timestamp
!!python/object/apply:os.system !!python/name:os.system !mine &a *a << = - ? | > % @ ` [] {} [[[]]]
[a, [b]] {a: b} '' "" "\0" "\ud800" "\x07"
"""
LONG = ("9" * 400, "9" * 5000, "0x" + "f" * 5000, "(" * 3000, f"!!float '1{':1' * 300}'")
plain = st.sampled_from([*WORDS.split(), "\ufeff", *LONG]) | st.text(max_size=6)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.dates() | plain
values = st.recursive(
    scalars | st.binary(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(plain | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)
parts = st.lists(plain | st.sampled_from(["\n", "\t", " ", "---\n", ": ", "- ", "\r"]), max_size=4)


def any_value_of_any_key(judge: Judged) -> Any:
    @given(data=st.data(), value=values)
    def check(data: st.DataObject, value: object) -> None:
        recipe = copy.deepcopy(SHOP)
        section: Any = recipe
        key = data.draw(st.sampled_from(list(section)))
        while isinstance(section[key], dict) and data.draw(st.booleans()):
            section = section[key]
            key = data.draw(st.sampled_from(list(section)))
        section[data.draw(plain | st.just(key))] = value
        judge(yaml.dump(recipe, sort_keys=False, allow_unicode=True).encode("utf-8", "replace"))

    return check


def anything_written_for_any_value(judge: Judged) -> Any:
    """As it stands, and not as YAML would quote it."""
    lines = TEXT.splitlines()
    valued = [number for number, line in enumerate(lines) if ": " in line]

    @given(number=st.sampled_from(valued), written=plain)
    def check(number: int, written: str) -> None:
        changed = list(lines)
        changed[number] = f"{lines[number].partition(':')[0]}: {written}"
        judge("\n".join(changed).encode("utf-8", "replace"))

    return check


def any_part_overwritten(judge: Judged) -> Any:
    @given(start=st.integers(0, len(TEXT)), length=st.integers(0, 30), new=parts)
    def check(start: int, length: int, new: list[str]) -> None:
        changed = TEXT[:start] + "".join(new) + TEXT[start + length :]
        judge(changed.encode("utf-8", "replace"))

    return check


def any_bytes(judge: Judged) -> Any:
    @given(content=st.binary(max_size=80), before=st.sampled_from([b"", TEXT.encode()]))
    def check(content: bytes, before: bytes) -> None:
        judge(before + content)

    return check


def any_flag(judge: Judged) -> Any:
    names = st.sampled_from(["method", "rank", "training", "epochs", "data", "name", "eval"])

    @given(
        keys=st.lists(names | plain, max_size=4),
        sign=st.sampled_from(["=", " = ", ""]),
        value=plain,
    )
    def check(keys: list[str], sign: str, value: str) -> None:
        judge(TEXT.encode(), ".".join(keys) + sign + value)

    return check


PROPERTIES = (
    any_value_of_any_key,
    anything_written_for_any_value,
    any_part_overwritten,
    any_bytes,
    any_flag,
)


@pytest.mark.parametrize("of", PROPERTIES, ids=lambda of: of.__name__)
def test_it_loads_or_its_place_is_named(
    of: Callable[[Judged], Any], judge: Judged, complete: bool, observed: Callable[[str], None]
) -> None:
    wanted = settings(max_examples=5000 if complete else 150, deadline=None)
    wanted(of(judge))()
    assert judge.refused > 10
    observed(
        f"{of.__name__.replace('_', ' ')}: {judge.refused:,} of {judge.loaded + judge.refused:,} "
        "refused, each with its place"
    )


# What people write

SAID = {
    "unknown key": (
        "method:\n  mode: lora\n  rnak: 8\n",
        "shop.yaml:3: method.rnak: unknown key; did you mean rank?",
    ),
    "key twice": ("name: a\nname: b\n", "shop.yaml:2: name: written twice; first on line 1"),
    "no": ("name: no\n", "shop.yaml:1: name: expected a text"),
    "010": ("method:\n  mode: lora\n  rank: 010\n", "shop.yaml:3: method.rank: 010 may mean octal"),
    "1:30": ("training:\n  epochs: 1:30\n", "shop.yaml:2: training.epochs: 1:30 may mean base 60"),
    "date": ("output: 2024-01-01\n", "shop.yaml:1: output: expected a text"),
    ".nan": ("training:\n  epochs: .nan\n", "shop.yaml:2: training.epochs: expected a finite"),
    "huge": (f"training:\n  seed: {'9' * 30}\n", "shop.yaml:2: training.seed: 9999999999"),
    "seed": ("training:\n  seed: 4294967296\n", "shop.yaml:2: training.seed: must be at most"),
    "for ever": ("training:\n  epochs: 1e300\n", "shop.yaml:2: training.epochs: must be at most"),
    "python": (
        "name: !!python/object/apply:os.system [touch made]\n",
        "shop.yaml:1: name: tag tag:yaml.org,2002:python/object/apply:os.system is not allowed",
    ),
    "merge": ("data:\n  <<: {train: a}\n", "shop.yaml:2: data.<<: merging is not supported"),
    "list on top": ("- a\n", "shop.yaml:1: the recipe is not a mapping"),
    "tab": ("method:\n\tmode: lora\n", "shop.yaml:2: not YAML: found character '\\t'"),
    "two documents": ("name: a\n---\nname: b\n", "shop.yaml:2: not YAML: but found another"),
    "empty": ("", "shop.yaml:1: the recipe is empty"),
    "byte 0": ("name: a\0\n", "shop.yaml:1: not YAML: character #x0000 is not allowed"),
    "byte 0 written": ('output: "a\\0b"\n', "shop.yaml:1: output: holds the character '\\x00'"),
    "half a character": ('output: "\\ud800"\n', "shop.yaml:1: output: holds the character"),
    "mark in the middle": ("name: a\n\ufeffoutput: b\n", "shop.yaml:2: a key is '\\ufeffoutput'"),
    "other line ends": (
        "name: 'a\u2028b'\noutput: 'a\x85\u2029b'\ndate: 8\n",
        "shop.yaml:3: date: unknown key",
    ),
    "expression": (
        f"eval:\n  format:\n    type: regex\n    pattern: {'(' * 3000}{')' * 3000}\n",
        "shop.yaml:4: eval.format.pattern: not a regular expression",
    ),
}


@pytest.mark.parametrize("name", list(SAID))
def test_what_is_wrong_is_said_at_its_line(name: str, judge: Judged) -> None:
    text, said = SAID[name]
    lines = judge(text.encode()).splitlines()
    assert [line for line in lines if line.startswith(said)], lines
    assert not Path("made").exists()


@pytest.mark.parametrize("written", ["1e-4", "0.0001", "1.0e-4", "1E-4", "'1e-4'"])
def test_a_rate_can_be_written_as_one_does(written: str, judge: Judged) -> None:
    text = TEXT.replace("'1e-4'", written)
    assert judge(text.encode()) == ""
    assert load_recipe(Path("shop.yaml")).recipe.training.learning_rate == 1e-4


def test_utf_16_is_named(judge: Judged) -> None:
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        assert judge(TEXT.encode(encoding)).startswith("shop.yaml:1: not ")
    assert judge(TEXT.encode("utf-8-sig")) == ""


def test_of_very_many_faults_the_first_are_named(judge: Judged) -> None:
    message = judge(b"".join(b"k%d: 1\n" % number for number in range(2000))).splitlines()
    assert len(message) == MOST_PROBLEMS + 1
    assert message[-1] == f"shop.yaml: and more; these are the first {MOST_PROBLEMS} errors"


# Recipes that try to exhaust memory or time

BOMBS = {
    "10,000 lists in lists": "a: " + "[" * 10_000 + "]" * 10_000,
    "10,000 mappings in mappings": "{a: " * 10_000 + "}" * 10_000,
    "10,000 items in items": "- " * 10_000,
    "anchors that multiply to 9 to the 30th": "a0: &a0 [x]\n"
    + "".join(
        f"a{new}: &a{new} [{', '.join([f'*a{old}'] * 9)}]\n" for old, new in pairwise(range(31))
    ),
    "an anchor within itself": TEXT + "generation: &g\n  top_k: [*g, *g, *g]\n",
    "9,000 unknown keys": "".join(f"k{number}: 1\n" for number in range(9000)),
    "9,000 times one key": TEXT + "a: 1\n" * 9000,
    "80,000 values": "a: [" + "1," * 80_000 + "]\n",
    "100 MB": "# ",
}
LIMITED = """
import resource, sys
from pathlib import Path
from ftcli.cli import run
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
# Twenty seconds of CPU time, and 500 MB besides the imports.
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
code = run(["train", sys.argv[1], "--json"])
print(code, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) * 1024)
"""


@pytest.mark.parametrize("name", tiers(BOMBS, *list(BOMBS)[::3]))
def test_bombs_end_in_a_line(name: str, here: Path, observed: Callable[[str], None]) -> None:
    (here / "shop.yaml").write_text(BOMBS[name])
    if name == "100 MB":
        os.truncate(here / "shop.yaml", 100_000_000)
    found = subprocess.run(
        [sys.executable, "-c", LIMITED, "shop.yaml"], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr[-2000:]
    message, counted = found.stdout.splitlines()
    code, grown_bytes = map(int, counted.split())
    error = json.loads(message)["error"]
    assert (code, error["file"]) == (2, "shop.yaml")
    assert error["message"].startswith("shop.yaml")
    assert len(error["message"]) < 20_000
    assert grown_bytes < 100e6
    if name in ("10,000 lists in lists", "anchors that multiply to 9 to the 30th"):
        observed(f"{name}: exit 2 with {grown_bytes / 1e6:.0f} MB")


# The whole command

COMMANDS = ("prepare", "train", "estimate-vram", "eval", "merge")


def test_commands_answer_with_one_json_object(
    capsys: pytest.CaptureFixture[str], observed: Callable[[str], None]
) -> None:
    answered = 0

    @settings(max_examples=60, deadline=None)
    @given(command=st.sampled_from(COMMANDS), key=plain, value=plain)
    def check(command: str, key: str, value: str) -> None:
        nonlocal answered
        Path("shop.yaml").write_bytes(f"{TEXT}{key}: {value}\n".encode("utf-8", "replace"))
        try:
            load_recipe(Path("shop.yaml"))
        except RecipeError:
            capsys.readouterr()
        else:
            return  # a comment, say: nothing is wrong with it
        assert run([command, "shop.yaml", "--json"]) == 2
        out, err = capsys.readouterr()
        error = json.loads(out)["error"]
        assert error["file"] == "shop.yaml"
        assert PLACE.match(error["message"])
        assert "Traceback" not in err
        answered += 1

    check()
    assert answered > 10
    observed(f"{answered} commands exit 2 with one JSON object that names the file")
