"""Keys that are unknown, missing, duplicate or contradictory."""

from __future__ import annotations

import pytest

from ftcli.config.wording import KEYS, every_key
from ftcli.errors import RecipeError
from tests.config.shop import SHOP, fault, load, method, more


def test_an_unknown_key_gets_the_nearest() -> None:
    assert fault(method("rnak: 3")) == ("shop.yaml:6: method.rnak: unknown key; did you mean rank?")
    assert fault(more("eval:\n  format:\n    type: json\n    key: [a]\n")) == (
        "shop.yaml:11: eval.format.key: unknown key; did you mean keys?"
    )
    assert fault(more("1: a\n")) == "shop.yaml:8: 1: unknown key"


def test_a_key_of_another_mode_or_type_is_named_as_such() -> None:
    assert fault(SHOP.replace("mode: lora", "mode: full\n  rank: 3")) == (
        "shop.yaml:6: method.rank: not a key of mode full, but of lora, qlora"
    )
    regex = method("rank: 3") + "eval:\n  format:\n    type: regex\n    pattern: a\n"
    for override, message in (
        (
            "method.mode=full",
            "shop.yaml:6: method.rank: not a key of mode full, but of lora, qlora; "
            "--set 'method={mode: full}' replaces the whole section",
        ),
        (
            "eval.format.type=json",
            "shop.yaml:12: eval.format.pattern: not a key of type json, but of regex; "
            "--set 'eval.format={type: json}' replaces the whole section",
        ),
    ):
        assert fault(regex, override) == message
    assert load(regex, "method={mode: full}").recipe.method.mode == "full"


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
        "shop.yaml:5: method.mode: unknown value qlroa; did you mean qlora? "
        "(there is full, lora, qlora, bottleneck, prefix-tuning, prompt-tuning)"
    )
    assert fault(SHOP.replace("lora", "[lora]")) == (
        "shop.yaml:5: method.mode: unknown value [lora] "
        "(there is full, lora, qlora, bottleneck, prefix-tuning, prompt-tuning)"
    )


@pytest.mark.parametrize(("written", "found"), [("lora", "lora"), ("", "null"), ("[a]", "[a]")])
def test_a_section_has_to_be_one(written: str, found: str) -> None:
    assert fault(SHOP.replace("method:\n  mode: lora", f"method: {written}")) == (
        f"shop.yaml:4: method: expected a section of keys and values, found {found}"
    )


def test_keys_that_do_not_go_together_are_named_at_their_line() -> None:
    assert fault(more("training:\n  epochs: 1\n  micro_batch_size: 5\n")) == (
        "shop.yaml:10: training: micro_batch_size 5 does not divide batch_size 16"
    )
    for keys, message in (
        (
            "  lr_scheduler: constant\n  warmup_ratio: 0.1\n",
            "lr_scheduler constant has no warm-up; take constant_with_warmup, or remove "
            "warmup_ratio",
        ),
        (
            "  lr_scheduler: constant_with_warmup\n",
            "lr_scheduler constant_with_warmup needs a warmup_ratio, such as 0.03",
        ),
    ):
        assert fault(more(f"training:\n{keys}")) == f"shop.yaml:9: training: {message}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "base_model: a/b\nadapter: lora\nlora_r: 8\nlearning_rate: 1e-4\nsequence_len: 512\n",
            "an Axolotl config, not a recipe; its keys in a recipe: "
            "base_model → model.id, adapter → method.mode, lora_r → method.rank, "
            "learning_rate → training.learning_rate, sequence_len → data.max_length; ",
        ),
        (
            "# LLaMA-Factory\nmodel_name_or_path: a/b\nfinetuning_type: lora\nstage: sft\n",
            "a LLaMA-Factory config, not a recipe; its keys in a recipe: "
            "model_name_or_path → model.id, finetuning_type → method.mode; ",
        ),
    ],
)
def test_a_config_of_another_trainer_is_recognised(text: str, words: str) -> None:
    line = 3 if "finetuning_type" in text else 1
    said = fault(text)
    assert said.startswith(f"shop.yaml:{line}: this is {words}") and "\n" not in said


def test_all_words_of_other_trainers_lead_to_keys() -> None:
    assert set(KEYS.values()) <= set(every_key())
    assert not set(KEYS) & {key.rpartition(".")[2] for key in every_key()} - {"template"}


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
  lr_sheduler: linear
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
        "shop.yaml:15: training.lr_sheduler: unknown key; did you mean lr_scheduler?",
    ]
    assert (caught.value.code, caught.value.file) == ("recipe", "shop.yaml")
