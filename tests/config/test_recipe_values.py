"""Spellings of values, and what they mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftcli.config.loader import load_recipe
from ftcli.config.recipe import Lora
from tests.config.shop import SHOP, fault, load, method, more

# What is read


def test_the_smallest_recipe_loads(here: Path) -> None:
    loaded = load(SHOP)
    assert loaded.recipe.name == "shop"
    assert loaded.recipe.method == Lora(mode="lora")
    assert loaded.output == here / "runs" / "shop"
    assert loaded.shown_path() == "shop.yaml"


@pytest.mark.parametrize(
    ("written", "rank"), [("16", 16), ("'16'", 16), ("16.0", 16), ("0x10", 16), ("09", 9)]
)
def test_whole_numbers_have_one_reading(written: str, rank: int) -> None:
    assert load(method(f"rank: {written}")).recipe.method == Lora(mode="lora", rank=rank)


@pytest.mark.parametrize("quoted", ["'no'", '"no"', "'007'", "'12'", "'~'", "'2024-01-01'"])
def test_a_text_in_quotes_is_a_text(quoted: str) -> None:
    assert load(SHOP.replace("shop\n", f"{quoted}\n", 1)).recipe.name == quoted[1:-1]


def test_a_byte_order_mark_and_windows_lines_do_not_matter() -> None:
    text = SHOP.replace("\n", "\r\n").encode("utf-8-sig")
    assert load(text).recipe == load(SHOP).recipe


def test_an_anchor_is_what_it_stands_for() -> None:
    loaded = load(SHOP.replace("name: shop", "name: &it shop") + "output: *it\n")
    assert loaded.recipe.run_dir.name == "shop"


def test_an_output_is_shown_without_detours(here: Path) -> None:
    folder = here / "recipes"
    folder.mkdir()
    (folder / "shop.yaml").write_text(more("output: ../runs/shop\n"))
    assert load_recipe(Path("recipes/shop.yaml")).output == here / "runs" / "shop"


# YAML that means something else than intended


@pytest.mark.parametrize(
    ("name", "found"),
    [("no", "false"), ("on", "true"), ("~", "null"), ("12", "12"), ("2024-01-01", "2024-01-01")],
)
def test_a_name_that_yaml_takes_for_something_else(name: str, found: str) -> None:
    assert fault(SHOP.replace("shop\n", f"{name}\n", 1)) == (
        f"shop.yaml:1: name: expected a text (put it in quotes), found {found}"
    )


@pytest.mark.parametrize("number", ["010", "-010", "00", "0_7"])
def test_an_octal_is_refused(number: str) -> None:
    assert fault(method(f"rank: {number}")) == (
        f"shop.yaml:6: method.rank: {number} may mean octal or decimal; write it without the "
        "leading 0, or in quotes if it is a text"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("rank: many", "rank: expected a whole number, found many"),
        ("rank: 16.5", "rank: expected a whole number, found 16.5"),
        ("rank:", "rank: expected a whole number, found null"),
        ("rank: {a: 1}", "rank: expected a whole number, found {a: 1}"),
        ("rank: 0", "rank: must be at least 1, found 0"),
        ("alpha: 0", "alpha: must be above 0, found 0"),
        ("alpha: .inf", "alpha: expected a finite number, found .inf"),
        ("dropout: 1", "dropout: must be below 1, found 1"),
        (
            "target_modules: q_proj",
            "target_modules: expected all-linear or a list, found q_proj; write it in brackets: "
            "[q_proj]",
        ),
        (
            "target_modules: all-liner",
            "target_modules: expected all-linear or a list, found all-liner; "
            "did you mean all-linear?",
        ),
        (
            "target_modules: []",
            "target_modules: expected all-linear or a list that is not empty, found []",
        ),
        (
            "target_modules: [q_proj, 1]",
            "target_modules: item 2: expected a text (put it in quotes), found 1",
        ),
    ],
)
def test_a_value_of_the_wrong_kind(line: str, message: str) -> None:
    assert fault(method(line)) == f"shop.yaml:6: method.{message}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("learning_rate: fast", "learning_rate: expected auto or a number, found fast"),
        (
            "learning_rate: atuo",
            "learning_rate: expected auto or a number, found atuo; did you mean auto?",
        ),
        ("learning_rate: 2", "learning_rate: must be below 1, found 2"),
        (
            "lr_scheduler: cosin",
            "lr_scheduler: expected cosine, linear, constant or constant_with_warmup, found cosin; "
            "did you mean cosine?",
        ),
        (
            "gradient_checkpointing: maybe",
            "gradient_checkpointing: expected auto or true or false, found maybe",
        ),
        (
            "report_to: wandb",
            "report_to: expected a list, found wandb; write it in brackets: [wandb]",
        ),
        (
            "report_to: wandbb",
            "report_to: expected a list, found wandbb; did you mean wandb? (write a list in "
            "brackets: [tensorboard, wandb, mlflow, trackio])",
        ),
        (
            "report_to: [wandbb]",
            "report_to: item 1: expected tensorboard, wandb, mlflow or trackio, found wandbb; "
            "did you mean wandb?",
        ),
    ],
)
def test_a_choice_that_is_not_there(line: str, message: str) -> None:
    assert fault(more(f"training:\n  {line}\n")) == f"shop.yaml:9: training.{message}"


def test_a_name_that_cannot_be_a_folder() -> None:
    assert fault(SHOP.replace("shop\n", "a/b\n", 1)) == (
        "shop.yaml:1: name: expected a name that can be a folder's: no / or \\, not only dots, "
        "found a/b"
    )
    assert fault(SHOP.replace("shop\n", "''\n", 1)) == (
        "shop.yaml:1: name: expected a text that is not empty, found ''"
    )


L2_SP = "training:\n  learning_rate: 1e-3\n  l2_sp: {}\n"
REFUSED = (
    "training: each step goes learning_rate × l2_sp = {} of the way back to the start, so that "
    "nothing is learnt; take l2_sp well below {}"
)


def test_an_l2_sp_that_leaves_nothing_to_learn_is_refused_where_it_was_written() -> None:
    assert load(more(L2_SP.format(999))).recipe.training.l2_sp == 999
    said = REFUSED.format("0.001 × 1000 = 1", 1000)
    assert fault(more(L2_SP.format(1000))) == f"shop.yaml:9: {said}"
    flag = "training.l2_sp=2000"
    said = REFUSED.format("0.001 × 2000 = 2", 1000)
    assert fault(more(L2_SP.format(10)), flag) == f"--set {flag}: {said}"
    flag = "training.learning_rate=0.5"
    said = REFUSED.format("0.5 × 10 = 5", 2)
    assert fault(more(L2_SP.format(10)), flag) == f"--set {flag}: {said}"
    auto = load(more(L2_SP.format(9000)), "training.learning_rate=auto")
    assert auto.recipe.training.learning_rate == "auto", "the method's own rate is the plan's"
