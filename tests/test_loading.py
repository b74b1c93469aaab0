from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftcli.errors import DataError, FtcliError, ModelError, RecipeError, UsageError
from ftcli.loading import (
    Loaded,
    differences,
    dump_recipe,
    load_recipe,
    resolved,
)
from ftcli.loading.nodes import MOST_VALUES
from ftcli.recipe import Lora, Recipe

# Line 1 is the name, 3 the model's id, 5 the mode, 7 the training rows.
SHOP = """\
name: shop
model:
  id: smollm2-135m
method:
  mode: lora
data:
  train: shop.jsonl
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Errors name files as the user would: from the folder where he stands."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(text: str | bytes, *overrides: str) -> Loaded:
    file = Path("shop.yaml")
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_recipe(file, overrides)


def fault(text: str | bytes, *overrides: str) -> str:
    """The whole text of the error that a recipe gives; the exit code is always 2."""
    with pytest.raises(UsageError) as caught:
        load(text, *overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def method(keys: str) -> str:
    """The recipe with one more line below `mode`, which is line 6."""
    return SHOP.replace("mode: lora\n", f"mode: lora\n  {keys}\n")


def more(text: str) -> str:
    """The recipe with lines at its end, from line 8 on."""
    return SHOP + text


# What is read


def test_the_smallest_recipe_loads(here: Path) -> None:
    loaded = load(SHOP)
    assert loaded.recipe.name == "shop"
    assert loaded.recipe.method == Lora(mode="lora")
    assert loaded.base == here
    assert loaded.output == here / "runs" / "shop"
    assert loaded.shown_path() == "shop.yaml"


@pytest.mark.parametrize("number", ["1e-4", "1.0e-4", "0.0001", "'1e-4'", "1E-4", ".0001"])
def test_every_way_to_write_a_number_works(number: str) -> None:
    found = load(more(f"training:\n  learning_rate: {number}\n"))
    assert found.recipe.training.learning_rate == 1e-4


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
    assert loaded.recipe.output == "shop"


def test_an_output_is_told_without_detours(here: Path) -> None:
    folder = here / "recipes"
    folder.mkdir()
    (folder / "shop.yaml").write_text(more("output: ../runs/shop\n"))
    assert load_recipe(Path("recipes/shop.yaml")).output == here / "runs" / "shop"


# What YAML says differently from what was meant


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


def test_a_number_to_base_60_is_refused() -> None:
    assert fault(method("rank: 1:30")) == (
        "shop.yaml:6: method.rank: 1:30 may mean base 60; put it in quotes"
    )


def test_true_is_no_number() -> None:
    assert fault(method("rank: true")) == (
        "shop.yaml:6: method.rank: expected a number, found true"
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
        ("target_modules: q_proj", "target_modules: expected all-linear or a list, found q_proj"),
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
            "target_modules.1: expected a text (put it in quotes), found 1",
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
            "scheduler: cosin",
            "scheduler: expected cosine, linear, constant or constant_with_warmup, found cosin; "
            "did you mean cosine?",
        ),
        (
            "gradient_checkpointing: maybe",
            "gradient_checkpointing: expected auto or true or false, found maybe",
        ),
        ("report_to: wandb", "report_to: expected a list, found wandb"),
        (
            "report_to: [wandbb]",
            "report_to.0: expected tensorboard, wandb, mlflow or trackio, found wandbb; "
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


# Keys


def test_an_unknown_key_gets_the_nearest() -> None:
    assert fault(method("rnak: 3")) == ("shop.yaml:6: method.rnak: unknown key; did you mean rank?")
    assert fault(SHOP.replace("mode: lora", "mode: full\n  rank: 3")) == (
        "shop.yaml:6: method.rank: unknown key"
    )
    assert fault(more("eval:\n  format:\n    type: json\n    key: [a]\n")) == (
        "shop.yaml:11: eval.format.key: unknown key; did you mean keys?"
    )
    assert fault(more("1: a\n")) == "shop.yaml:8: 1: unknown key"


def test_a_key_written_twice_names_both_lines() -> None:
    assert fault(more("name: other\n")) == ("shop.yaml:8: name: written twice; first on line 1")
    assert fault(method("rank: 8\n  rank: 8")) == (
        "shop.yaml:7: method.rank: written twice; first on line 6"
    )


def test_what_is_missing_is_named_in_its_section() -> None:
    assert fault(SHOP.replace("  id: smollm2-135m\n", "  revision: main\n")) == (
        "shop.yaml:2: model.id: is missing"
    )
    assert fault(SHOP.replace("mode: lora", "rank: 8")) == "shop.yaml:4: method.mode: is missing"
    assert fault("name: shop\n") == (
        "shop.yaml: data: is missing\nshop.yaml: method: is missing\nshop.yaml: model: is missing"
    )


def test_an_unknown_mode_gets_the_nearest_and_all() -> None:
    assert fault(SHOP.replace("lora", "qlroa")) == (
        "shop.yaml:5: method.mode: no such choice: qlroa; did you mean qlora? "
        "(there is full, lora, qlora, adapter, prefix, prompt)"
    )
    assert fault(SHOP.replace("lora", "[lora]")) == (
        "shop.yaml:5: method.mode: no such choice: [lora] "
        "(there is full, lora, qlora, adapter, prefix, prompt)"
    )


@pytest.mark.parametrize(("written", "found"), [("lora", "lora"), ("", "null"), ("[a]", "[a]")])
def test_a_section_has_to_be_one(written: str, found: str) -> None:
    assert fault(SHOP.replace("method:\n  mode: lora", f"method: {written}")) == (
        f"shop.yaml:4: method: expected a section of keys and values, found {found}"
    )


def test_keys_that_do_not_go_together_are_told_at_their_line() -> None:
    assert fault(more("training:\n  epochs: 1\n  micro_batch_size: 5\n")) == (
        "shop.yaml:10: training: micro_batch_size 5 does not divide batch_size 16"
    )
    assert fault(more("  max_length: 64\n  prompt: question\n")) == (
        "shop.yaml:9: data: data.prompt names a column or template, and data.completion is "
        "missing; give both"
    )
    assert fault(more("  format: pairs\n  prompt: q\n  completion: a\n")) == (
        "shop.yaml:8: data: data.prompt and data.completion need format columns or auto, found "
        "format pairs"
    )


def test_all_faults_come_at_once() -> None:
    text = """\
nmae: shop
model:
  di: smollm2-135m
method:
  mode: lora
  rank: true
  rnak: 3
data:
  train: a.jsonl
  train: b.jsonl
  max_length: 010
  validation: 1.5
training:
  epochs: many
  sheduler: linear
"""
    with pytest.raises(RecipeError) as caught:
        load(text)
    assert str(caught.value).splitlines() == [
        "shop.yaml: name: is missing",
        "shop.yaml:1: nmae: unknown key; did you mean name?",
        "shop.yaml:2: model.id: is missing",
        "shop.yaml:3: model.di: unknown key",
        "shop.yaml:6: method.rank: expected a number, found true",
        "shop.yaml:7: method.rnak: unknown key; did you mean rank?",
        "shop.yaml:10: data.train: written twice; first on line 9",
        "shop.yaml:11: data.max_length: 010 may mean octal or decimal; write it without the "
        "leading 0, or in quotes if it is a text",
        "shop.yaml:12: data.validation: 1.5 is neither a share below 1 nor a whole number of rows",
        "shop.yaml:14: training.epochs: expected a number, found many",
        "shop.yaml:15: training.sheduler: unknown key; did you mean scheduler?",
    ]
    assert (caught.value.code, caught.value.file) == ("recipe", "shop.yaml")


# What is no recipe


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

    # 9⁷ values, were they all built.
    steps = "".join(f"{new}: &{new} {nine(f'*{old}')}\n" for old, new in pairwise("abcdefg"))
    message = fault(f"a: &a {nine('x')}\n{steps}")
    assert message.endswith(
        f"nested too deeply or repeated too often; the limit is 8 levels and {MOST_VALUES} values"
    )


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
    assert (caught.value.code, caught.value.exit_code) == ("recipe_missing", 1)


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
    assert loaded.recipe.output == "a=b"


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
        ("name=", "name: expected a text (put it in quotes), found null"),
        ("nmae=x", "nmae: unknown key; did you mean name?"),
        ("food.rank=3", "food: unknown key"),
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
        ("method..rank=3", "expected section.key=value"),
        ("name.x=1", "name is not a section"),
        ("method.rank=[", "the value is not YAML"),
        ("data.train=a: b: c", "the value is not YAML"),
        ("method.rank=" + "[" * 600, "the value is not YAML"),
    ],
)
def test_an_override_that_cannot_be_understood(override: str, message: str) -> None:
    assert fault(SHOP, override) == f"--set {override}: {message}"


def test_faults_of_file_and_flag_come_together() -> None:
    assert fault(method("rnak: 3"), "training.epochs=many", "method.dropout=2").splitlines() == [
        "--set method.dropout=2: method.dropout: must be below 1, found 2",
        "--set training.epochs=many: training.epochs: expected a number, found many",
        "shop.yaml:6: method.rnak: unknown key; did you mean rank?",
    ]


# Round trip


texts = st.text(st.characters(codec="utf-8"), max_size=40)
names = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc"], exclude_characters="/\\"),
    min_size=1,
    max_size=20,
).filter(lambda name: name.strip("."))
shares = st.floats(0, 0.99) | st.integers(0, 10_000)
recipes = st.fixed_dictionaries(
    {
        "name": names,
        "model": st.fixed_dictionaries({"id": texts}),
        "method": st.sampled_from([{"mode": "full"}, {"mode": "qlora", "dropout": 0.05}])
        | st.fixed_dictionaries(
            {
                "mode": st.just("lora"),
                "rank": st.integers(1, 512),
                "alpha": st.floats(1e-6, 1e6),
                "target_modules": st.lists(texts, min_size=1, max_size=3),
            }
        ),
        "data": st.fixed_dictionaries(
            {"train": texts, "validation": shares},
            optional={
                "system": texts,
                "template_kwargs": st.dictionaries(
                    texts, texts | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9), max_size=3
                ),
            },
        ),
        "training": st.fixed_dictionaries(
            {}, optional={"learning_rate": st.floats(1e-9, 0.9), "epochs": st.floats(0.01, 100)}
        ),
        "eval": st.just({}) | st.just({"format": {"type": "json", "keys": ["a: b", "no", "1"]}}),
    },
)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)
@given(recipes)
def test_what_is_dumped_is_read_back(here: Path, values: dict[str, Any]) -> None:
    recipe = Recipe.model_validate(values)
    loaded = Loaded(recipe, here / "shop.yaml", here)
    whole = resolved(loaded)
    assert load(dump_recipe(whole)).recipe == whole


def test_a_resolved_recipe_holds_wherever_it_is_put(here: Path) -> None:
    for name in ("shop.jsonl", "held-out.csv", "chat.jinja"):
        (here / name).touch()
    (here / "tiny").mkdir()
    text = SHOP.replace("smollm2-135m", "tiny") + (
        "  validation: held-out.csv\n  test: 12\n  template: chat.jinja\noutput: runs/a\n"
    )
    whole = resolved(load(text))
    assert whole.model.id == str(here / "tiny")
    assert whole.data.train == str(here / "shop.jsonl")
    assert whole.data.validation == str(here / "held-out.csv")
    assert whole.data.test == 12
    assert whole.data.template == str(here / "chat.jinja")
    assert whole.output == str(here / "runs" / "a")
    elsewhere = here / "runs" / "a" / "recipe.yaml"
    elsewhere.parent.mkdir(parents=True)
    elsewhere.write_text(dump_recipe(whole))
    again = load_recipe(elsewhere)
    assert resolved(again) == again.recipe == whole
    assert again.output == here / "runs" / "a"


@pytest.mark.parametrize("template", ["plain", "{{ a }}", "{% if a %}\n{% endif %}\n" * 99])
def test_a_template_that_is_no_file_stays_as_it_is(here: Path, template: str) -> None:
    (here / "plain").mkdir()
    recipe = load(SHOP).recipe
    data = recipe.data.model_copy(update={"template": template})
    loaded = Loaded(recipe.model_copy(update={"data": data}), here / "shop.yaml", here)
    whole = resolved(loaded)
    assert whole.data.template == template
    assert load(dump_recipe(whole)).recipe.data.template == template


def test_a_hub_id_stays_one() -> None:
    whole = resolved(load(SHOP.replace("smollm2-135m", "Qwen/Qwen2.5-7B-Instruct")))
    assert whole.model.id == "Qwen/Qwen2.5-7B-Instruct"
    assert whole.data.train == "shop.jsonl"


def test_a_dump_writes_every_default_out() -> None:
    values = yaml.safe_load(dump_recipe(load(SHOP).recipe))
    assert set(values) == set(Recipe.model_fields)
    assert values["training"]["batch_size"] == 16
    assert values["method"]["rank"] == 16


# Differences


def test_differences_name_old_and_new() -> None:
    old = load(SHOP).recipe
    new = load(SHOP, "method.rank=8", "training.epochs=5", "data.system=Hi", "name=other").recipe
    assert differences(old, old, set()) == []
    assert differences(old, new, set()) == [
        "name: shop → other",
        "method.rank: 16 → 8",
        "data.system: null → Hi",
        "training.epochs: 3.0 → 5.0",
    ]
    assert differences(old, new, {"name", "training", "data.system"}) == ["method.rank: 16 → 8"]
    assert differences(old, new, {"nam", "train"}) == differences(old, new, set())


def test_differences_see_keys_of_one_side_only() -> None:
    lora = load(SHOP).recipe
    full = load(SHOP.replace("lora", "full")).recipe
    found = differences(lora, full, set())
    assert "method.mode: lora → full" in found
    assert "method.rank: 16 → null" in found
    formed = load(more("eval:\n  format:\n    type: json\n")).recipe
    assert "eval.format.type: null → json" in differences(lora, formed, set())


# Whatever is written


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
        assert isinstance(load((beginning + text).encode("utf-8", "replace"), *overrides), Loaded)
    except FtcliError as error:
        assert error.exit_code == 2
        assert str(error).startswith(("shop.yaml", "--set"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_load_or_are_told_what_is_wrong(here: Path, content: bytes) -> None:
    try:
        assert isinstance(load(content), Loaded)
    except FtcliError as error:
        assert error.exit_code == 2
        assert str(error).startswith("shop.yaml:")


# Errors found later


def test_a_key_has_its_place(here: Path) -> None:
    loaded = load(method("rank: 8"), "data.max_length=64", "data.max_length=32", "output=a")
    assert loaded.place("model.id") == ("shop.yaml", 3)
    assert loaded.place("method.rank") == ("shop.yaml", 6)
    assert loaded.place("method.alpha") == ("shop.yaml", 4)
    assert loaded.place("training.precision") == ("shop.yaml", None)
    assert loaded.place("data.max_length") == ("--set data.max_length=32", None)
    whole = load(SHOP, "training={epochs: 1, seed: 3}", "training.seed=4")
    assert whole.place("training.epochs") == ("--set training={epochs: 1, seed: 3}", None)
    assert whole.place("training.seed") == ("--set training.seed=4", None)


def test_an_error_of_a_key_gets_its_place(here: Path) -> None:
    loaded = load(SHOP)
    with pytest.raises(ModelError) as caught, loaded.blame():
        raise ModelError("model_missing", "nowhere does not exist")
    assert str(caught.value) == "shop.yaml:3: model.id: nowhere does not exist"
    with pytest.raises(ModelError) as caught, loaded.blame():
        raise ModelError("model_missing", "model.id: nowhere does not exist")
    assert str(caught.value) == "shop.yaml:3: model.id: nowhere does not exist"


@pytest.mark.parametrize(
    "error",
    [
        ModelError("model_missing", "no such folder", file="config.json"),
        DataError("data_missing", "no such file"),
    ],
    ids=["placed already", "no key's fault"],
)
def test_another_error_stays_as_it_is(error: FtcliError) -> None:
    before = str(error)
    with pytest.raises(FtcliError) as caught, load(SHOP).blame():
        raise error
    assert str(caught.value) == before
