"""All six commands on a tiny random model, in one process, for every method."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import validate

from ftcli.cli import run
from tests.json_shapes import SHAPES
from tests.tiers import tiers

METHODS: dict[str, dict[str, Any]] = {
    "full": {"mode": "full"},
    "lora": {"mode": "lora", "rank": 4},
    "qlora": {"mode": "qlora", "rank": 4},
    "bottleneck": {"mode": "bottleneck", "bottleneck": 8},
    "prefix-tuning": {"mode": "prefix-tuning", "virtual_tokens": 4},
    "prefix on 4 bits": {"mode": "prefix-tuning", "virtual_tokens": 4, "quantization": "nf4"},
    "prompt-tuning": {"mode": "prompt-tuning", "virtual_tokens": 4, "init_text": "Product, colour"},
}
LONGEST = ("qlora", "bottleneck", "prefix-tuning", "prefix on 4 bits", "prompt-tuning")
FOLDED = ("lora", "qlora")
TOKENIZER = {"chat_template.jinja", "tokenizer.json", "tokenizer_config.json"}
ADAPTER = {"adapter_config.json", "adapter_model.safetensors"}
MODEL = {"config.json", "generation_config.json", "model.safetensors"}
STATE = {
    "manifest.json",
    "records.jsonl",
    "optimizer.pt",
    "rng_state.pth",
    "scheduler.pt",
    "trainer_state.json",
}
RUN_FILES = {
    *(f"data/{split}.arrow" for split in ("train", "validation", "test")),
    "data/prepared.json",
    "data/advice.json",
    "README.md",
    "metrics.jsonl",
    "plan.json",
    "prompt_manifest.json",
    "recipe.yaml",
    "report.html",
    "run.json",
    "speed.jsonl",
}


def ask(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """Run one command with --json and read its one object."""
    capsys.readouterr()
    code = run([*map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert "Warning" not in err and "deprecated" not in err
    value: dict[str, Any] = json.loads(out)
    validate(value, SHAPES[str(arguments[0])])
    return value


def expected_files(mode: str) -> set[str]:
    """Of a finished run with checkpoints at steps 4 and 8."""
    where, names = ("model", MODEL) if mode == "full" else ("adapter", ADAPTER)
    weights = {f"{where}/{name}" for name in names | TOKENIZER}
    checkpoints = {f"checkpoints/step-{step}/{name}" for step in (4, 8) for name in names | STATE}
    return weights | checkpoints | RUN_FILES


def files_below(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("mode", tiers(METHODS, *(m for m in METHODS if m not in LONGEST)))
def test_six_commands(
    mode: str,
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    training = {"epochs": 1, "batch_size": 4, "eval_steps": 4}
    recipe = write_recipe(method=METHODS[mode], training=training)

    prepared = ask(capsys, "prepare", recipe)
    assert prepared["rows_read"] == 48
    assert prepared["train_rows"] == 32
    assert prepared["rows_read"] == prepared["rows_accepted"] + prepared["rows_rejected"]

    estimate = ask(capsys, "estimate-vram", recipe)
    parts = {k: v for k, v in estimate["breakdown"].items() if k != "context"}
    assert estimate["peak_bytes"] == sum(parts.values())

    trained = ask(capsys, "train", recipe)
    folder = Path(trained["run_dir"])
    assert trained["state"] == "finished" and trained["steps"] == 8
    assert trained["eval_loss"] < trained["first_eval_loss"]
    assert trained["trainable_parameters"] == estimate["trainable_parameters"]

    assert files_below(folder) - {".lock"} == expected_files(mode)

    again = ask(capsys, "train", recipe)
    assert again == trained | {"trained": False}

    scores = ask(capsys, "eval", recipe)
    assert scores["rows"] == 8
    assert scores["tuned"]["loss"] < scores["base"]["loss"]
    low, high = scores["tuned"]["stop_rate_interval"]
    assert low <= scores["tuned"]["stop_rate"] <= high

    answer = ask(capsys, "generate", folder, "Product: kettle 99\nColour: red")
    assert isinstance(answer["answer"], str)

    if mode not in ("full", *FOLDED):
        assert run(["merge", str(folder)]) == 2
        assert "ftcli generate" in capsys.readouterr().err
        return
    merged = ask(capsys, "merge", folder)
    if mode == "full":
        assert merged["verdict"] == "nothing to merge"
    else:
        assert merged["verdict"] == "pass"
        target = Path(merged["output"])
        assert files_below(target) == MODEL | TOKENIZER | {"merge_report.json"}
    from transformers import AutoModelForCausalLM

    alone = AutoModelForCausalLM.from_pretrained(merged["output"])
    assert alone.num_parameters() == trained["total_parameters"]


def test_failure_is_one_json_object_too(
    write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recipe = write_recipe()
    for arguments, code in (
        (["prepare", recipe, "--set", "data.train=missing.jsonl"], 1),
        (["estimate-vram", "--model", "7x"], 2),
        (["train", recipe, "--set", "method.rank=0"], 2),
        (["train", recipe, "--set", "method.target_modules=[q_porj, v_proj]"], 2),
        (["eval", recipe], 1),
        (["merge", tmp_path], 1),
        (["generate", recipe, "a prompt"], 1),
    ):
        capsys.readouterr()
        assert run([*map(str, arguments), "--json"]) == code
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        validate(json.loads(out), SHAPES["error"])


def test_generate_answers_a_file_and_resumes(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"mug {n}"}) + "\n" for n in range(5)))
    answers = tmp_path / "answers.jsonl"
    flags = ["--input", prompts, "--output", answers, "--max-new-tokens", "4"]
    first = ask(capsys, "generate", tiny_run, *flags)
    assert first["rows"] == 5 and first["answered_before"] == 0
    whole = answers.read_text()
    answers.write_text("".join(whole.splitlines(keepends=True)[:2]) + '{"prompt": "mu')
    again = ask(capsys, "generate", tiny_run, *flags)
    assert again["answered_before"] == 2
    assert answers.read_text() == whole
    one = ask(capsys, "generate", tiny_run, "mug 3", "--max-new-tokens", "4")
    assert one["answer"] == json.loads(whole.splitlines()[3])["answer"]


def test_eval_of_a_file_and_without_the_base(
    tiny_run: Path, tmp_path: Path, rows_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = shutil.copytree(tiny_run, tmp_path / "run")
    command = ["eval", copied, "--data", rows_file, "--limit", "3", "--no-base"]
    found = ask(capsys, *command)
    assert found["rows"] == 3 and "base" not in found
    assert ask(capsys, *command) == found
