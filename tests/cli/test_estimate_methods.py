"""`ftcli estimate-vram` for each method: what it trains, how it is named, what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import validate

from ftcli.cli import run
from ftcli.config.loader import load_recipe
from ftcli.config.recipe import Adapter, Lora, Method, Prefix, Prompt
from ftcli.data.prepared import LongestRow
from ftcli.memory.hardware import find_card
from ftcli.memory.shapes import find_shape
from ftcli.training.plan.decide import make_plan
from ftcli.training.plan.plan import RowStatistics
from tests.conftest import prepared_data
from tests.json_shapes import SHAPES

RECIPE = """\
name: shop
model:
  id: smollm2-135m
method:
  mode: qlora
  rank: 8
  dropout: 0.05
  target_modules: [q_proj, v_proj]
data:
  train: shop.jsonl
  max_length: 512
training:
  batch_size: 8
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    lora = RECIPE.replace("qlora", "lora").replace("smollm2-135m", "7b")
    (tmp_path / "shop.yaml").write_text(lora + "  micro_batch_size: 8\n")
    return tmp_path


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Any:
    """The JSON that the command prints, of its shape."""

    def estimate(*arguments: str) -> dict[str, Any]:
        assert run(["estimate-vram", *arguments, "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        validate(found, SHAPES["estimate-vram"])
        return found

    return estimate


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str]) -> Any:
    """The text that the command prints, on one line."""

    def estimate(*arguments: str) -> str:
        assert run(["estimate-vram", *arguments]) == 0
        return " ".join(capsys.readouterr().out.split())

    return estimate


@pytest.mark.parametrize(
    ("flags", "trained"),
    [
        ("--mode adapter --bottleneck 32", 32 * 2 * (2 * 32 * 4096 + 32 + 4096)),
        ("--mode prefix --virtual-tokens 10", 10 * 2 * 32 * 4096),
        ("--mode prompt --virtual-tokens 10", 10 * 4096),
        ("--dora --rank 1 --targets q_proj", 32 * (4096 + 2 * 4096)),
        ("--rank 1 --targets q_proj --modules-to-save lm_head", 32 * 8192 + 32_000 * 4096),
    ],
)
def test_methods_by_formula(ask: Any, show: Any, flags: str, trained: int) -> None:
    assert ask("--model", "7b", *flags.split())["trainable_parameters"] == trained
    assert show("--model", "7b", *flags.split(), "--gpu", "4090")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--mode lora --rank 4", "LoRA r=4 (0.15% trained)"),
        ("--mode adapter --bottleneck 8", "bottleneck adapters of width 8 (0.07% trained)"),
        ("--mode prefix", "prefix tuning with 20 virtual tokens (0.08% trained)"),
        (
            "--mode prompt --virtual-tokens 5 --four-bit-base",
            "prompt tuning with 5 virtual tokens on a 4-bit base (0.00% trained)",
        ),
    ],
)
def test_a_method_is_named_with_its_size(show: Any, flags: str, words: str) -> None:
    assert words in show("--model", "7b", *flags.split())


def test_what_cannot_be_merged_has_no_memory_for_it(ask: Any, show: Any) -> None:
    for mode in ("adapter", "prefix", "prompt"):
        assert ask("--model", "7b", "--mode", mode)["moments"]["merge_on_cpu"] == 0
        assert "merge" not in show("--model", "7b", "--mode", mode)
    assert ask("--model", "7b")["moments"]["merge_on_cpu"] > 13e9
    assert "merge 1" in show("--model", "7b")


def test_another_mode_keeps_no_key_that_it_has_not(ask: Any, here: Path) -> None:
    extras = "dora: true\n  modules_to_save: [lm_head]\n  layers: [1]"
    (here / "extras.yaml").write_text(RECIPE.replace("dropout: 0.05", extras))
    trained = ask("extras.yaml")["trainable_parameters"]
    assert trained == 2 * 8 * 576 + 8 * (576 + 192) + 576 + 192 + 49_152 * 576
    asked = ("extras.yaml", "--mode", "adapter", "--bottleneck", "8")
    assert ask(*asked)["trainable_parameters"] == 30 * 2 * (2 * 8 * 576 + 8 + 576)
    assert ask("extras.yaml", "--mode", "lora")["trainable_parameters"] == trained


def test_a_recipe_s_keys_are_refused_at_their_lines(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(method: str, *more: str) -> tuple[str, int]:
        start, end = RECIPE.index("  mode"), RECIPE.index("data")
        (here / "wrong.yaml").write_text(RECIPE[:start] + method + RECIPE[end:])
        code = run(["estimate-vram", "wrong.yaml", *more])
        return capsys.readouterr().err.splitlines()[0], code

    assert refused("  mode: lora\n  layers: [30]\n") == (
        "wrong.yaml:6: method.layers: smollm2-135m has no layer 30: they are 0 to 29",
        1,
    )
    text, code = refused("  mode: lora\n  rank_pattern: {down_prj: 8}\n")
    assert text.startswith("wrong.yaml:6: method.rank_pattern: no module gets its rank from 'down_")
    assert "did you mean down_proj?" in text and code == 1
    text, code = refused("  mode: lora\n  rank_pattern: {'(': 8}\n")
    assert text.startswith("wrong.yaml:6: method.rank_pattern: (: not a regular expression: ")
    assert code == 2
    override = "training.gradient_checkpointing=true"
    text, code = refused("  mode: prefix\n", "--set", override)
    assert text.startswith(f"--set {override}: training.gradient_checkpointing: keys and")
    assert code == 2


@pytest.mark.parametrize(
    ("flags", "method"),
    [
        (
            "--mode adapter --bottleneck 16 --placement mlp --four-bit-base",
            Adapter(mode="adapter", bottleneck=16, placement="mlp", quantization="nf4"),
        ),
        (
            "--mode prefix --virtual-tokens 8 --projection",
            Prefix(mode="prefix", virtual_tokens=8, projection=True),
        ),
        (
            "--mode prompt --no-four-bit-base --virtual-tokens 8",
            Prompt(mode="prompt", virtual_tokens=8),
        ),
        (
            "--dora --modules-to-save lm_head --rank 4",
            Lora(
                mode="lora",
                rank=4,
                dropout=0.05,
                target_modules=["q_proj", "v_proj"],
                dora=True,
                modules_to_save=["lm_head"],
            ),
        ),
    ],
)
def test_methods_by_flags_are_written(ask: Any, here: Path, flags: str, method: Method) -> None:
    found = ask("shop.yaml", *flags.split(), "--fit", "H200", "--write", "fits.yaml")
    assert found["suggestions"] == []
    recipe = load_recipe(here / "fits.yaml").recipe
    assert recipe.method == method
    profile = RowStatistics.of(prepared_data(longest=LongestRow("shop.jsonl", 7, 512)))
    plan = make_plan(recipe, find_shape("7b", here), profile, find_card("H200").hardware)
    assert plan.estimate.trainable_parameters == found["trainable_parameters"]


def test_a_base_in_4_bits_is_a_suggestion_of_its_own(ask: Any, show: Any, here: Path) -> None:
    flags = ("shop.yaml", "--mode", "adapter", "--fit", "12GB")
    found = ask(*flags, "--write", "fits.yaml")
    by_key = {each["key"]: each for each in found["suggestions"]}
    assert list(by_key)[-1] == "method.quantization"
    assert by_key["method.quantization"]["value"] == "nf4"
    assert found["fit"]["choices"]["four_bit_base"] is True
    text = show(*flags)
    assert "the frozen base in 4 bits: " in text and "costs time: 4-bit weights" in text
    assert load_recipe(here / "fits.yaml").recipe.method == Adapter(
        mode="adapter", quantization="nf4"
    )
    assert ask("fits.yaml", "--fit", "12GB")["suggestions"] == []
