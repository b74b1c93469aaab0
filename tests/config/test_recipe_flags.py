"""The recipe file, and overrides by --set."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftcli.config.loader import load_recipe
from ftcli.config.recipe import Lora
from ftcli.errors import FtcliError
from tests.config.shop import SHOP, fault, load, method, more

# The file


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("shpo.yaml", "shpo.yaml: no such recipe; did you mean shop.yaml?"),
        ("zzz.yaml", "zzz.yaml: no such recipe"),
        ("nowhere/shop.yaml", "nowhere/shop.yaml: no such recipe"),
        ("folder", "folder: is a folder, not a recipe"),
        ("x" * 300, f"{'x' * 300}: cannot be read: File name too long"),
    ],
)
def test_a_missing_recipe_had_to_be_looked_for(here: Path, asked: str, message: str) -> None:
    load(SHOP)
    (here / "folder").mkdir()
    with pytest.raises(FtcliError) as caught:
        load_recipe(Path(asked))
    assert str(caught.value) == message
    assert (caught.value.code, caught.value.exit_code) == ("recipe_missing", 2)


# --set


def test_an_override_lies_over_the_file() -> None:
    loaded = load(
        method("rank: 8"),
        "method.rank=4",
        "training.learning_rate=1e-4",
        "training.report_to=[wandb]",
        "data.system=Answer in German, briefly.",
        "name=other",
        "eval.format={type: json, keys: [a]}",
    )
    assert loaded.recipe.method == Lora(mode="lora", rank=4)
    assert loaded.recipe.training.learning_rate == 1e-4
    assert loaded.recipe.training.report_to == ["wandb"]
    assert loaded.recipe.data.system == "Answer in German, briefly."
    assert loaded.recipe.name == "other"
    assert loaded.recipe.eval.format is not None
    assert loaded.overrides[0] == "method.rank=4"


def test_the_last_override_of_a_key_counts() -> None:
    loaded = load(SHOP, "method.rank=many", "method.rank=8", "output=a=b")
    assert loaded.recipe.method == Lora(mode="lora", rank=8)
    assert loaded.recipe.run_dir.name == "a=b"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.rnak=3", "method.rnak: unknown key; did you mean rank?"),
        ("method.rank=true", "method.rank: expected a number, found true"),
        (
            "method.rank=010",
            "method.rank: 010 may mean octal or decimal; write it without the leading 0, or in "
            "quotes if it is a text",
        ),
        ("name=no", "name: expected a text (put it in quotes), found false"),
        ("nmae=x", "nmae: unknown key; did you mean name?"),
        ("food.rank=3", "food: unknown key"),
        ("lr=1e-4", "lr: unknown key; here it is training.learning_rate"),
        ("training.lr=1e-4", "training.lr: unknown key; here it is training.learning_rate"),
        ("rank=3", "rank: unknown key; did you mean method.rank?"),
        ("training.rank=3", "training.rank: unknown key; did you mean method.rank?"),
        ("lerning_rate=1", "lerning_rate: unknown key; did you mean training.learning_rate?"),
        ("training=3", "training: expected a section of keys and values, found 3"),
        ("training={epohcs: 2}", "training.epohcs: unknown key; did you mean epochs?"),
        ("method.rank.x=1", "method.rank: expected a whole number, found {x: 1}"),
        (
            "training.micro_batch_size=5",
            "training: micro_batch_size 5 does not divide batch_size 16",
        ),
        (
            "name=!!python/name:os.system x",
            "name: tag tag:yaml.org,2002:python/name:os.system is not allowed",
        ),
        (
            "name=&a [*a]",
            f"name{'.0' * 8}: nested too deeply or repeated too often; the limit is 8 levels "
            "and 10000 values",
        ),
    ],
)
def test_a_fault_of_an_override_names_the_flag(override: str, message: str) -> None:
    assert fault(more("training:\n  epochs: 1\n"), override) == f"--set {override}: {message}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.rank", "expected section.key=value"),
        ("=3", "expected section.key=value"),
        ("training.max_steps=", "no value; write training.max_steps=null for none"),
        ("name=", "no value; write name=null for none"),
        ("method..rank=3", "expected section.key=value"),
        ("name.x=1", "name is not a section"),
        ("method.rank=[", "the value is not YAML"),
        ("data.train=a: b: c", "the value is not YAML"),
        ("method.rank=" + "[" * 150, "the value is nested too deeply"),
        ("method.rank=a\tb: c", "the value is not YAML"),
        (f"method{'.a' * 8}=1", "expected section.key=value"),
    ],
)
def test_an_override_that_cannot_be_understood(override: str, message: str) -> None:
    shown = override if override.isprintable() else ascii(override)
    assert fault(SHOP, override) == f"--set {shown}: {message}"


def test_a_long_override_is_shown_in_part() -> None:
    assert fault(SHOP, "method.rank=" + "[" * 100_000) == (
        f"--set method.rank={'[' * 188}…: the value is nested too deeply"
    )


def test_faults_of_file_and_flag_come_together() -> None:
    assert fault(method("rnak: 3"), "training.epochs=many", "method.dropout=2").splitlines() == [
        "--set method.dropout=2: method.dropout: must be below 1, found 2",
        "--set training.epochs=many: training.epochs: expected a number, found many",
        "shop.yaml:6: method.rnak: unknown key; did you mean rank?",
    ]
