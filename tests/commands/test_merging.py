"""`ftcli merge`: the merged model is proven equal before it is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from ftcli.cli import run
from ftcli.errors import ModelError
from ftcli.shell import shown_size
from tests.conftest import pair, save_tiny_model
from tests.merged import Merge, digests, left_below, recipe_of


@pytest.mark.fault(9)
@pytest.mark.parametrize(
    ("dtype", "stored", "reason"),
    [
        ("auto", "float32", "nothing is rounded"),
        pytest.param("bf16", "bfloat16", "as asked", marks=pytest.mark.slow),
        pytest.param("fp16", "float16", "as asked", marks=pytest.mark.slow),
    ],
)
def test_a_lora_run_becomes_one_model(
    merge: Merge,
    lora: Path,
    merge_home: Path,
    tmp_path: Path,
    dtype: str,
    stored: str,
    reason: str,
    observed: Callable[[str], None],
) -> None:
    before = digests(merge_home)
    found = merge(lora, "--output", tmp_path / "one", "--dtype", dtype)
    assert (found["verdict"], found["dtype"], found["base"]) == ("pass", stored, "base")
    assert (found["dtype_reason"], found["rows"], found["mismatch"]) == (reason, 6, None)
    exact, rounding = found["exact"], found["rounding"]
    assert exact["max_logit_difference"] < exact["limit"] == 1e-3
    assert rounding["dtype"] == stored and found["other_types"] == []
    assert (rounding["kl"] == 0.0) is (stored == "float32")
    assert found["kl"] == pytest.approx(rounding["kl"], abs=1e-9)
    report = json.loads((tmp_path / "one" / "merge_report.json").read_text())
    assert report == {n: v for n, v in found.items() if n not in ("output", "stderr")}
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert config["dtype"] == stored and "quantization_config" not in config
    assert digests(merge_home) == before
    assert left_below(tmp_path)[0] == "one", "and no temporary folder"
    observed(
        f"{stored}: exact before rounding (largest logit difference "
        f"{exact['max_logit_difference']:.0e}); rounded KL {rounding['kl']:.0e}"
    )


@pytest.fixture(scope="module")
def home_16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a base whose files are in bf16."""
    home = tmp_path_factory.mktemp("merging-16")
    base = save_tiny_model(home / "base", head_dim=16, initializer_range=0.5)
    model = AutoModelForCausalLM.from_pretrained(base).bfloat16()
    model.save_pretrained(base)
    assert run(["train", str(recipe_of(home, "lora", test=16))]) == 0
    return home


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers round away less than thirty: KL 8e-4 in bf16, 1e-5 in fp16."""
    monkeypatch.setattr("ftcli.export.verdict.MEASURABLE", 1e-4)


@pytest.mark.usefixtures("strict")
def test_auto_takes_the_smallest_type_without_a_measurable_cost(
    merge: Merge, home_16: Path, tmp_path: Path
) -> None:
    found = merge(home_16 / "runs/lora", "--output", tmp_path / "one")
    (bf16,) = found["other_types"]
    assert bf16["dtype"] == "bfloat16" and bf16["shows"]
    assert found["dtype"] == "float16" and not found["rounding"]["shows"]
    assert found["dtype_reason"].startswith("no measurable cost; bfloat16 would cost ")
    low, high = bf16["loss_difference_interval"]
    assert low < bf16["loss_difference"] < high
    asked = merge(home_16 / "runs/lora", "--output", tmp_path / "two", "--dtype", "bf16")
    assert asked["dtype"] == "bfloat16" and asked["verdict"] == "pass"
    assert asked["rounding"] == bf16, "obeyed, with its cost"


@pytest.mark.usefixtures("strict")
def test_weights_beyond_fp16_are_kept_in_fp32(
    merge: Merge, home_16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftcli.export import merged_model

    def refuse(weight: Any, stored: Any) -> None:
        if str(stored) == "torch.float16":
            raise ModelError("merge_range", "a weight is too large for float16")

    monkeypatch.setattr(merged_model, "require_in_range", refuse)
    found = merge(home_16 / "runs/lora", "--output", tmp_path / "one")
    assert found["dtype"] == "float32" and [c["dtype"] for c in found["other_types"]] == [
        "bfloat16"
    ]
    assert found["dtype_reason"].endswith("; a weight is too large for float16")
    arguments = ("--output", tmp_path / "two", "--dtype", "fp16")
    assert merge(home_16 / "runs/lora", *arguments, code=1)["error"]["code"] == "merge_range"
    assert left_below(tmp_path)[0] == "one" and not (tmp_path / "two").exists()


@pytest.mark.usefixtures("strict")
def test_a_model_that_fp16_arithmetic_cannot_compute_is_not_stored_in_fp16(
    merge: Merge, home_16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ftcli.export.verdict.MAX_FP16_ACTIVATION", 0.5)
    found = merge(home_16 / "runs/lora", "--output", tmp_path / "one")
    reached = "; activations of the model reach "
    assert found["dtype"] == "float32" and reached in found["dtype_reason"]
    assert found["largest_activation"] > 1
    asked = merge(home_16 / "runs/lora", "--output", tmp_path / "two", "--dtype", "fp16")
    assert asked["dtype"] == "float16"
    assert "serve the merged model in bf16" in asked["stderr"], "obeyed, with a warning"


def test_the_merged_model_answers_as_the_run(
    merge: Merge, lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With nothing but its folder: template, stop tokens, greedy decoding."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    merge(lora, "--output", tmp_path / "one")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "one")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    turns = [{"role": "user", "content": pair(3)["prompt"]}]
    ids = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**ids, max_new_tokens=4)[0, ids["input_ids"].shape[1] :]
    text = tokenizer.decode(answer, skip_special_tokens=True)
    capsys.readouterr()
    assert run(["generate", str(lora), pair(3)["prompt"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["answer"] == text and text


@pytest.mark.fault(8)
def test_a_qlora_run_is_merged_onto_what_it_was_trained_on(
    merge: Merge, qlora: Path, tmp_path: Path, observed: Callable[[str], None]
) -> None:
    found = merge(qlora, "--output", tmp_path / "one", "--dtype", "bf16")
    assert found["verdict"] == "pass" and found["base"] == "dequantized"
    assert found["exact"]["kl"] < 1e-6 and found["kl"] < 1e-3
    observed(f"dequantised, bf16: KL {found['exact']['kl']:.0e}, rounded {found['kl']:.0e}")


@pytest.mark.fault(8)
def test_the_original_base_is_another_model(
    merge: Merge, qlora: Path, tmp_path: Path, observed: Callable[[str], None]
) -> None:
    arguments = (qlora, "--output", tmp_path / "one", "--base", "original")
    refused = merge(*arguments, code=1)
    assert refused["error"]["code"] == "merge_differs"
    assert "(at most 0.01); take --base dequantized, or keep" in refused["error"]["message"]
    assert "trained on weights rounded to 4 bits" in refused["stderr"]
    assert left_below(tmp_path) == []
    kept = merge(*arguments, "--allow-mismatch")
    assert kept["verdict"] == "mismatch allowed" and kept["kl"] > 1e-2
    assert kept["base"] == "original" and kept["exact"]["max_logit_difference"] < 1e-2
    assert f"KL {kept['mismatch']['kl']:.2g} nats per token" in kept["stderr"]
    # The base's own weights, plus the update: not those that 4 bits hold.
    lost = merge(qlora, "--output", tmp_path / "other")
    one, other = (digests(tmp_path / name)["model.safetensors"] for name in ("one", "other"))
    assert lost["verdict"] == "pass" and one != other
    observed(f"original base: KL {kept['kl']:.2g}, exit 1 and nothing written unless accepted")


def test_words_for_people(qlora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--output", str(tmp_path / "one"), "--base", "original", "--allow-mismatch"]
    assert run(["merge", str(qlora), *flags, "--dtype", "bf16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    size = json.loads((tmp_path / "one" / "merge_report.json").read_text())["bytes"]
    assert lines[0] == f"merged {tmp_path / 'one'} (bfloat16, {shown_size(size)})"
    assert lines[-2:] == [
        f"next   vllm serve {tmp_path / 'one'}",
        f'       or AutoModelForCausalLM.from_pretrained("{tmp_path / "one"}")',
    ]
    text = " ".join(line.strip() for line in lines[1:-2])
    assert text.startswith("exact before rounding (KL ") and " stored as bfloat16: loss " in text
    assert "(95% interval of the difference " in text and " tokens of 6 rows)" in text
    assert "not the model that was trained on the 4-bit base: KL " in text and text.endswith(
        "; accepted"
    )
    assert all(len(line) <= 80 for line in lines[1:-2])
