"""`ftcli estimate-vram`: figures, flags and recipes, each method, and what a person reads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ftcli.cli import run
from ftcli.config.loader import load_recipe
from ftcli.config.recipe import Bottleneck, Lora, Method, PrefixTuning, PromptTuning
from ftcli.data.dataset import LongestRow
from ftcli.memory.hardware import find_card
from ftcli.models.architectures.find import find_architecture
from ftcli.training.plan.decide import make_plan
from ftcli.training.plan.plan import RowStatistics
from tests.conftest import prepared_data

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
TABLES = ["embed_tokens", "lm_head"]
BREAKDOWN = "weights quantization adapter gradients optimizer activations logits workspace context"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop.yaml").write_text(RECIPE)
    lora = RECIPE.replace("qlora", "lora").replace("smollm2-135m", "7b")
    (tmp_path / "seven.yaml").write_text(lora + "  micro_batch_size: 8\n")
    return tmp_path


def joined(text: str) -> str:
    """Without the line ends of the terminal's width."""
    return " ".join(text.split())


def test_json_has_the_fields_that_scripts_rely_on(ask: Any) -> None:
    found = ask("--model", "7b", "--mode", "full")
    assert set(found) >= {
        "peak_bytes",
        "device_bytes",
        "breakdown",
        "trainable_parameters",
        "total_parameters",
        "fits",
        "assumptions",
    }
    assert list(found["breakdown"]) == BREAKDOWN.split()
    parts = sum(size for name, size in found["breakdown"].items() if name != "context")
    assert parts == found["peak_bytes"] <= found["device_bytes"]
    assert found["total_parameters"] == found["trainable_parameters"] == 6_738_415_616
    assert found["fits"]["RTX 4090 24GB"] is False
    assert found["fits"]["H200 141GB"] is True
    assert [figure["label"] for figure in found["textbook"]] == ["fp32", "bf16 mixed", "pure bf16"]


def test_a_7b_in_qlora_fits_a_24_gb_card(ask: Any) -> None:
    found = ask("--model", "7b", "--mode", "qlora")
    assert found["fits"]["RTX 4090 24GB"] is True
    assert found["textbook"] == []
    assert 0.0005 < found["trainable_parameters"] / found["total_parameters"] < 0.01


def test_a_person_reads_items_peak_and_cards(show: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    lines = show("--model", "7b", "--mode", "qlora", "--rank", "8").splitlines()
    assert lines[0].startswith("Fits: RTX 3060 12GB, ")
    (what,) = [n for n, line in enumerate(lines) if line.startswith("7b (meta-llama/Llama-2-7b-hf")]
    assert lines[what].startswith(
        "7b (meta-llama/Llama-2-7b-hf, 6.74 B parameters), QLoRA r=8 (0.30%"
    )
    assert lines[what + 1] == "  tokens, bf16, with gradient checkpointing, adamw, sdpa"
    weights = next(line for line in lines if line.startswith("  weights"))
    assert weights.split()[1:3] == ["3.5", "GiB"]
    assert any(line.startswith("peak ") for line in lines)


def test_a_training_that_fits_nowhere(show: Any) -> None:
    lines = show("--model", "70b", "--mode", "full").splitlines()
    assert lines[0] == "Fits none of the known GPUs"


@pytest.mark.parametrize(
    ("card", "verdict", "named"),
    [
        ("4090", r"Fits: \d+\.\d of 22.8 GiB \(RTX 4090 24GB\)", "RTX 4090 24GB"),
        ("8GB", r"Does not fit: \d+\.\d of 7.0 GiB \(GPU of 8GB\)", "GPU of 8GB"),
        ("8", r"Does not fit: \d+\.\d of 7.0 GiB \(GPU of 8GB\)", "GPU of 8GB"),
    ],
)
def test_one_gpu_gets_a_verdict(show: Any, ask: Any, card: str, verdict: str, named: str) -> None:
    arguments = ["--model", "7b", "--mode", "qlora", "--max-length", "2048", "--micro-batch", "4"]
    assert re.fullmatch(verdict, show(*arguments, "--gpu", card).splitlines()[0])
    assert ask(*arguments, "--gpu", card)["fits"][named] is verdict.startswith("Fits")


def test_a_gpu_has_its_own_context(ask: Any) -> None:
    known = ask("--model", "7b", "--gpu", "T4")["breakdown"]["context"]
    assert known < ask("--model", "7b")["breakdown"]["context"]


def test_targets_are_names_with_commas(ask: Any) -> None:
    pair = ask("--model", "7b", "--target-modules", "q_proj, v_proj", "--rank", "16")
    assert pair["trainable_parameters"] == 32 * 2 * 16 * (4096 + 4096)
    whole = ask("--model", "7b", "--target-modules", "all-linear", "--rank", "16")
    assert whole["trainable_parameters"] == 32 * 16 * (4 * 2 * 4096 + 3 * (4096 + 11008))
    assert ask("--model", "7b") == whole


def test_an_unknown_target_gets_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["estimate-vram", "--model", "7b", "--target-modules", "q_prj"]) == 1
    assert "7b has no linear layer 'q_prj'; did you mean q_proj?" in capsys.readouterr().err


def test_a_recipe_says_what_its_training_takes(ask: Any) -> None:
    choices = ask("shop.yaml")["assumptions"]["choices"]
    assert choices == {
        **choices,
        "mode": "qlora",
        "rank": 8,
        "dropout": 0.05,
        "target_modules": ["q_proj", "v_proj"],
        "seq_len": 512,
        "micro_batch": 1,
        "gradient_accumulation": 8,
        "gradient_checkpointing": True,
        "precision": "bf16",
        "optimizer": "adamw",
    }


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        (["--mode", "lora"], "mode", "lora"),
        (["--rank", "32"], "rank", 32),
        (["--target-modules", "o_proj"], "target_modules", ["o_proj"]),
        (["--max-length", "64"], "seq_len", 64),
        (["--micro-batch", "4"], "micro_batch", 4),
        (["--optimizer", "sgd"], "optimizer", "sgd"),
        (["--precision", "fp16"], "precision", "fp16"),
        (["--mode", "lora", "--precision", "fp32"], "precision", "fp32"),
        (["--dora"], "dora", True),
        (["--modules-to-save", "embed_tokens, lm_head"], "modules_to_save", TABLES),
        (["--mode", "bottleneck", "--bottleneck", "8"], "bottleneck", 8),
        (["--mode", "prompt-tuning", "--virtual-tokens", "8"], "virtual_tokens", 8),
        (["--mode", "prefix-tuning", "--projection"], "projection", True),
        (["--mode", "bottleneck", "--placement", "mlp"], "placement", "mlp"),
        (["--mode", "prompt-tuning", "--four-bit-base"], "four_bit_base", True),
        (["--no-gradient-checkpointing"], "gradient_checkpointing", False),
        (["--attention", "eager"], "attention", "eager"),
        (["--loss", "full"], "loss", "full"),
        (["--packing"], "packing", True),
        (["--set", "method.rank=4"], "rank", 4),
        (["--set", "data.max_length=99"], "seq_len", 99),
        (["--set", "training.micro_batch_size=2"], "micro_batch", 2),
    ],
)
def test_flags_go_before_the_recipe(ask: Any, flags: list[str], name: str, value: object) -> None:
    before = ask("shop.yaml")["assumptions"]["choices"]
    after = ask("shop.yaml", *flags)["assumptions"]["choices"]
    assert before[name] != value
    assert after[name] == value


def test_a_micro_batch_by_flag_leaves_the_batch_as_it_is(ask: Any) -> None:
    choices = ask("shop.yaml", "--micro-batch", "4")["assumptions"]["choices"]
    assert choices["micro_batch"] * choices["gradient_accumulation"] == 8


def test_another_model_takes_the_recipe_s_place(ask: Any) -> None:
    assert ask("shop.yaml")["total_parameters"] == 134_515_008
    assert ask("shop.yaml", "--model", "7b")["total_parameters"] == 6_738_415_616


def test_a_model_by_flag_is_relative_to_the_working_directory(ask: Any, here: Path) -> None:
    config = {
        "model_type": "llama",
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 32,
    }
    (here / "tiny").mkdir()
    (here / "tiny" / "config.json").write_text(json.dumps(config))
    (here / "recipes").mkdir()
    (here / "recipes" / "shop.yaml").write_text(RECIPE)
    alone = ask("--model", "./tiny", "--mode", "full")["total_parameters"]
    assert ask("recipes/shop.yaml", "--model", "./tiny")["total_parameters"] == alone


@pytest.mark.parametrize(
    "mode", ["full", "lora", "qlora", "bottleneck", "prefix-tuning", "prompt-tuning"]
)
def test_defaults_of_the_rest_are_what_a_bare_recipe_gives(ask: Any, here: Path, mode: str) -> None:
    bare = RECIPE.split("method")[0] + f"method: {{mode: {mode}}}\ndata: {{train: a.jsonl}}\n"
    (here / "bare.yaml").write_text(bare)
    by_recipe = ask("bare.yaml")["assumptions"]["choices"]
    by_flags = ask("--model", "smollm2-135m", "--mode", mode)["assumptions"]["choices"]
    # A recipe accumulates up to its batch size; flags alone know of no batch.
    assert by_recipe.pop("gradient_accumulation") == 16
    assert by_flags.pop("gradient_accumulation") == 1
    assert by_recipe == by_flags


def test_a_gpu_between_estimate_and_upper_bound_may_not_fit(show: Any, ask: Any) -> None:
    found = ask("--model", "7b")
    perhaps = {name for name, fits in found["fits"].items() if fits}
    surely = {name for name, fits in found["fits_upper_bound"].items() if fits}
    assert surely < perhaps
    text = joined(show("--model", "7b"))
    assert "may not fit (upper bound too large): " in text
    for name in perhaps - surely:
        assert name in text.partition("may not fit ")[2]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--model mixtral-8x7b --mode qlora", "note: the experts stay frozen; method.experts"),
        ("--model gemma-2-2b", "note: gemma-2-2b has no sdpa attention in transformers"),
        ("--model 7b --mode prefix-tuning", "note: no gradient checkpointing: keys and values"),
        ("--model olmo-2-1b", "no run covers model type olmo2"),
        ("--model 7b --mode full", "no run covers fp32 weights in full fine-tuning"),
    ],
)
def test_what_flags_do_not_say_is_noted(show: Any, flags: str, words: str) -> None:
    assert words in joined(show(*flags.split()))


def test_what_no_run_covers_widens_the_interval(ask: Any) -> None:
    def width(*flags: str) -> float:
        found = ask("--model", "7b", "--mode", "lora", *flags)
        return (found["high_bytes"] - found["low_bytes"]) / found["device_bytes"]

    assert width("--dora") > width() + 0.05


# Methods


@pytest.mark.parametrize(
    ("flags", "trained"),
    [
        ("--mode bottleneck --bottleneck 32", 32 * 2 * (2 * 32 * 4096 + 32 + 4096)),
        ("--mode prefix-tuning --virtual-tokens 10", 10 * 2 * 32 * 4096),
        ("--mode prompt-tuning --virtual-tokens 10", 10 * 4096),
        ("--dora --rank 1 --target-modules q_proj", 32 * (4096 + 2 * 4096)),
        ("--rank 1 --target-modules q_proj --modules-to-save lm_head", 32 * 8192 + 32_000 * 4096),
    ],
)
def test_methods_by_formula(ask: Any, show: Any, flags: str, trained: int) -> None:
    assert ask("--model", "7b", *flags.split())["trainable_parameters"] == trained
    assert show("--model", "7b", *flags.split(), "--gpu", "4090")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--mode lora --rank 4", "LoRA r=4 (0.15% trained)"),
        ("--mode bottleneck --bottleneck 8", "bottleneck adapters of width 8 (0.07% trained)"),
        ("--mode prefix-tuning", "prefix tuning with 20 virtual tokens (0.08% trained)"),
        (
            "--mode prompt-tuning --virtual-tokens 5 --four-bit-base",
            "prompt tuning with 5 virtual tokens on a 4-bit base (0.00% trained)",
        ),
    ],
)
def test_a_method_is_named_with_its_size(show: Any, flags: str, words: str) -> None:
    assert words in joined(show("--model", "7b", *flags.split()))


def test_what_cannot_be_merged_has_no_memory_for_it(ask: Any, show: Any) -> None:
    for mode in ("bottleneck", "prefix-tuning", "prompt-tuning"):
        assert ask("--model", "7b", "--mode", mode)["moments"]["merge_on_cpu"] == 0
        assert "merge" not in joined(show("--model", "7b", "--mode", mode))
    assert ask("--model", "7b")["moments"]["merge_on_cpu"] > 13e9
    assert "merge 1" in joined(show("--model", "7b"))


def test_another_mode_drops_keys_that_it_does_not_have(ask: Any, here: Path) -> None:
    extras = "dora: true\n  modules_to_save: [lm_head]\n  layers: [1]"
    (here / "extras.yaml").write_text(RECIPE.replace("dropout: 0.05", extras))
    trained = ask("extras.yaml")["trainable_parameters"]
    assert trained == 2 * 8 * 576 + 8 * (576 + 192) + 576 + 192 + 49_152 * 576
    asked = ("extras.yaml", "--mode", "bottleneck", "--bottleneck", "8")
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
        2,
    )
    text, code = refused("  mode: lora\n  rank_pattern: {down_prj: 8}\n")
    assert text.startswith("wrong.yaml:6: method.rank_pattern: no module gets its rank from 'down_")
    assert "did you mean down_proj?" in text and code == 2
    text, code = refused("  mode: lora\n  rank_pattern: {'(': 8}\n")
    assert text.startswith("wrong.yaml:6: method.rank_pattern: (: not a regular expression: ")
    assert code == 2
    override = "training.gradient_checkpointing=true"
    text, code = refused("  mode: prefix-tuning\n", "--set", override)
    assert text.startswith(f"--set {override}: training.gradient_checkpointing: keys and")
    assert code == 2


@pytest.mark.parametrize(
    ("flags", "method"),
    [
        (
            "--mode bottleneck --bottleneck 16 --placement mlp --four-bit-base",
            Bottleneck(mode="bottleneck", bottleneck=16, placement="mlp", quantization="nf4"),
        ),
        (
            "--mode prefix-tuning --virtual-tokens 8 --projection",
            PrefixTuning(mode="prefix-tuning", virtual_tokens=8, projection=True),
        ),
        (
            "--mode prompt-tuning --no-four-bit-base --virtual-tokens 8",
            PromptTuning(mode="prompt-tuning", virtual_tokens=8),
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
    found = ask("seven.yaml", *flags.split(), "--fit", "H200", "--write", "fits.yaml")
    assert found["suggestions"] == []
    recipe = load_recipe(here / "fits.yaml").recipe
    assert recipe.method == method
    profile = RowStatistics.of(prepared_data(longest=LongestRow("shop.jsonl", 7, 512)))
    plan = make_plan(recipe, find_architecture("7b"), profile, find_card("H200").hardware)
    assert plan.estimate.trainable_parameters == found["trainable_parameters"]


def test_a_base_in_4_bits_is_a_suggestion_of_its_own(ask: Any, show: Any, here: Path) -> None:
    flags = ("seven.yaml", "--mode", "bottleneck", "--fit", "12GB")
    found = ask(*flags, "--write", "fits.yaml")
    by_key = {each["key"]: each for each in found["suggestions"]}
    assert list(by_key)[-1] == "method.quantization"
    assert by_key["method.quantization"]["value"] == "nf4"
    assert found["fit"]["choices"]["four_bit_base"] is True
    text = joined(show(*flags))
    assert "the frozen base in 4 bits: " in text and "costs time: 4-bit weights" in text
    assert load_recipe(here / "fits.yaml").recipe.method == Bottleneck(
        mode="bottleneck", quantization="nf4"
    )
    assert ask("fits.yaml", "--fit", "12GB")["suggestions"] == []
