"""`ftcli merge`: proven before it is there, refused with nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import validate
from transformers import AutoModelForCausalLM

from ftcli.cli import run
from ftcli.errors import ModelError
from ftcli.runs.atomic import sha256_file
from ftcli.runs.folder import RunFolder
from ftcli.shell import shown_size
from tests.conftest import pair, save_tiny_model
from tests.json_shapes import SHAPES

Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, rows, and a run of each method that has learned them in part."""
    home = tmp_path_factory.mktemp("merging")
    save_tiny_model(home / "base", head_dim=16, initializer_range=0.2)
    for mode in ("lora", "qlora"):
        assert run(["train", str(recipe_of(home, mode))]) == 0
    return home


def recipe_of(home: Path, mode: str, *, test: int = 6, **training: Any) -> Path:
    """A recipe in `home`, with the rows that it names."""
    rows = "".join(json.dumps(pair(number)) + "\n" for number in range(48))
    (home / "rows.jsonl").write_text(rows)
    # 16 bits would decide between answers that are as likely.
    exact = {"precision": "fp32"}
    recipe = {
        "name": mode,
        "model": {"id": "base"},
        "method": {"mode": mode, "rank": 16},
        "data": {"train": "rows.jsonl", "validation": 4, "test": test},
        "training": {"max_steps": 30, "batch_size": 8, "learning_rate": 5e-3} | exact | training,
        "generation": {"max_new_tokens": 4},
    }
    path = home / f"{mode}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture
def lora(home: Path) -> Path:
    return home / "runs" / "lora"


@pytest.fixture
def qlora(home: Path) -> Path:
    return home / "runs" / "qlora"


@pytest.fixture
def merge(capsys: pytest.CaptureFixture[str]) -> Ask:
    """Run `ftcli merge` with --json, and give its object and what was told on stderr."""

    def ask(*arguments: object, code: int = 0) -> dict[str, Any]:
        capsys.readouterr()
        assert run(["merge", *map(str, arguments), "--json"]) == code
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        value: dict[str, Any] = json.loads(out)
        validate(value, SHAPES["error" if code else "merge"])
        return {**value, "told": err}

    return ask


def digests(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): sha256_file(file) for file in files}


def left_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# What is proven


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
    merge: Ask,
    lora: Path,
    home: Path,
    tmp_path: Path,
    dtype: str,
    stored: str,
    reason: str,
    observed: Callable[[str], None],
) -> None:
    before = digests(home)
    found = merge(lora, "--output", tmp_path / "one", "--dtype", dtype)
    assert (found["verdict"], found["dtype"], found["base"]) == ("pass", stored, "base")
    assert (found["dtype_reason"], found["rows"], found["mismatch"]) == (reason, 6, None)
    exact, rounding = found["exact"], found["rounding"]
    assert exact["max_logit_difference"] < exact["limit"] == 1e-3
    assert rounding["dtype"] == stored and found["other_types"] == []
    assert (rounding["kl"] == 0.0) is (stored == "float32")
    assert found["kl"] == pytest.approx(rounding["kl"], abs=1e-9)
    report = json.loads((tmp_path / "one" / "merge_report.json").read_text())
    assert report == {n: v for n, v in found.items() if n not in ("output", "told")}
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert config["dtype"] == stored and "quantization_config" not in config
    assert digests(home) == before
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
    merge: Ask, home_16: Path, tmp_path: Path
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
    merge: Ask, home_16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    merge: Ask, home_16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ftcli.export.verdict.MAX_FP16_ACTIVATION", 0.5)
    found = merge(home_16 / "runs/lora", "--output", tmp_path / "one")
    reached = "; activations of the model reach "
    assert found["dtype"] == "float32" and reached in found["dtype_reason"]
    assert found["largest_activation"] > 1
    asked = merge(home_16 / "runs/lora", "--output", tmp_path / "two", "--dtype", "fp16")
    assert asked["dtype"] == "float16"
    assert "serve the merged model in bf16" in asked["told"], "obeyed, with a warning"


def test_the_merged_model_answers_as_the_run(
    merge: Ask, lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
    merge: Ask, qlora: Path, tmp_path: Path, observed: Callable[[str], None]
) -> None:
    found = merge(qlora, "--output", tmp_path / "one", "--dtype", "bf16")
    assert found["verdict"] == "pass" and found["base"] == "dequantized"
    assert found["exact"]["kl"] < 1e-6 and found["kl"] < 1e-3
    observed(f"dequantised, bf16: KL {found['exact']['kl']:.0e}, rounded {found['kl']:.0e}")


@pytest.mark.fault(8)
def test_the_original_base_is_another_model(
    merge: Ask, qlora: Path, tmp_path: Path, observed: Callable[[str], None]
) -> None:
    arguments = (qlora, "--output", tmp_path / "one", "--base", "original")
    refused = merge(*arguments, code=1)
    assert refused["error"]["code"] == "merge_differs"
    assert "(at most 0.01); take --base dequantized, or keep" in refused["error"]["message"]
    assert "trained on weights rounded to 4 bits" in refused["told"]
    assert left_below(tmp_path) == []
    kept = merge(*arguments, "--allow-mismatch")
    assert kept["verdict"] == "mismatch allowed" and kept["kl"] > 1e-2
    assert kept["base"] == "original" and kept["exact"]["max_logit_difference"] < 1e-2
    assert f"KL {kept['mismatch']['kl']:.2g} nats per token" in kept["told"]
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


# What is lost, and caught


@pytest.mark.fault(8, 9)
def test_an_update_lost_in_part_leaves_nothing(
    merge: Ask, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.tuners.lora import Linear

    whole = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda *a: whole(*a) * 0.999)
    output = tmp_path / "new" / "folder" / "one"
    error = merge(lora, "--output", output, "--dtype", "bf16", code=1)["error"]
    assert error["code"] == "merge_differs"
    assert "largest logit difference " in error["message"] and "(at most " in error["message"]
    assert left_below(tmp_path) == []


@pytest.mark.fault(8)
def test_4_bit_weights_rounded_otherwise_are_found_out(
    merge: Ask, qlora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the original base is: the difference is that of 4 bits."""
    from ftcli.export import merged_model

    monkeypatch.setattr(merged_model, "NF4_BLOCK", 256)
    error = merge(qlora, "--output", tmp_path / "one", code=1)["error"]
    assert "KL" in error["message"]
    assert left_below(tmp_path) == []


def test_a_model_that_is_no_number_is_found_out(
    merge: Ask, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftcli.export import merged_model as engine

    def broken(*arguments: Any) -> Any:
        model = original(*arguments)
        model.model.norm.weight.data[0] = float("nan")
        return model

    original = engine.merge_adapter
    monkeypatch.setattr(engine, "merge_adapter", broken)
    message = merge(lora, "--output", tmp_path / "one", code=1)["error"]["message"]
    assert "nan" in message and "is not what was measured before it was written" in message
    assert left_below(tmp_path) == []


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell that starts a program in the background has it ignore Ctrl-C."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, earlier)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("phase", "number"),
    [("merged", signal.SIGINT), ("write", signal.SIGTERM), ("read_back", signal.SIGTERM)],
)
def test_a_stopped_merge_leaves_nothing(
    lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str, number: signal.Signals
) -> None:
    from ftcli.export import merged_model as engine

    def stopped(*arguments: Any) -> Any:
        os.kill(os.getpid(), number)
        return original(*arguments)

    original = getattr(engine.Merger, phase)
    monkeypatch.setattr(engine.Merger, phase, stopped)
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    assert run(["merge", str(lora), "--output", str(tmp_path / "new" / "one")]) == 128 + number
    assert left_below(tmp_path) == []
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_folder_filled_in_the_meantime_is_kept(
    merge: Ask, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftcli.export import merged_model as engine

    def filled(*arguments: Any) -> Any:
        (tmp_path / "one").mkdir()
        (tmp_path / "one" / "thesis.txt").write_text("mine")
        return original(*arguments)

    original = engine.Merger.read_back
    monkeypatch.setattr(engine.Merger, "read_back", filled)
    assert merge(lora, "--output", tmp_path / "one", code=1)["error"]["code"] == "output_taken"
    assert left_below(tmp_path) == ["one", "one/thesis.txt"]


# What is refused before any work


@pytest.mark.fault(34)
def test_a_merge_touches_neither_base_nor_run(merge: Ask, home: Path, lora: Path) -> None:
    (home / "link").symlink_to(home / "base")
    before = digests(home)
    for where, words in (
        ("base", "base is in the base"),
        ("base/merged", "merged is in the base"),
        ("runs/../base/merged", "merged is in the base"),
        ("link/merged", "merged is in the base"),
        ("runs/lora", "lora is the run itself"),
        ("runs/lora/adapter/merged", "merged is in the run's adapter"),
        ("runs/lora/checkpoints/step-9", "step-9 is in the run's checkpoints"),
        ("runs/qlora", "qlora exists and is not overwritten"),
        ("lora.yaml", "lora.yaml exists and is not overwritten"),
    ):
        error = merge(lora, "--output", f"{home}/{where}", code=1)["error"]
        assert error["code"] == "output_taken" and words in error["message"]
    assert digests(home) == before


def test_a_lora_run_has_one_base_only(merge: Ask, lora: Path) -> None:
    error = merge(lora, "--base", "original", code=2)["error"]
    assert "only a QLoRA run was trained on a quantised base" in error["message"]


def test_methods_that_no_weight_can_hold(merge: Ask, lora: Path, tmp_path: Path) -> None:
    copied = RunFolder(shutil.copytree(lora, tmp_path / "run"))
    recipe = yaml.safe_load(copied.recipe.read_text())
    for mode, words in (
        ("bottleneck", "its network is not linear"),
        ("prefix-tuning", "its virtual tokens precede the input"),
        ("prompt-tuning", "its virtual tokens precede the input"),
    ):
        copied.recipe.write_text(yaml.safe_dump(recipe | {"method": {"mode": mode}}))
        message = merge(copied.path, code=2)["error"]["message"]
        assert message.startswith(f"method.mode: {mode} cannot be merged: ")
        assert words in message and "ftcli generate" in message and message.endswith("train lora")


@pytest.mark.fault(8)
def test_a_base_whose_files_are_quantised_is_refused(
    merge: Ask, home: Path, lora: Path, tmp_path: Path
) -> None:
    config = home / "base" / "config.json"
    before = config.read_text()
    quantised = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    try:
        config.write_text(json.dumps(json.loads(before) | quantised))
        error = merge(lora, "--output", tmp_path / "one", code=1)["error"]
    finally:
        config.write_text(before)
    assert error["code"] == "merge_quantized" and "would be rounded away" in error["message"]
    assert left_below(tmp_path) == []
