"""Losses are those of the label tokens, whatever the other rows and the batch are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ftcli.cli import run
from ftcli.runs.folder import RunFolder
from tests.conftest import COLOURS, save_tiny_model

Observed = Callable[[str], None]
SIZES = {"lora": (1, 2, 3, 5), "full": (1, 3)}


def uneven(count: int, name: str) -> list[dict[str, str]]:
    """Rows of about 25 to 110 tokens, and answers from one word on."""
    return [
        {
            "prompt": f"{name} {number} " + "kettle, " * (9 * number % 41),
            "completion": " ".join(COLOURS[: 1 + 3 * number % 8]) + "." * (number % 5),
        }
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose logits are far from uniform, 30 rows to train on and 11 to validate on."""
    home = tmp_path_factory.mktemp("losses")
    save_tiny_model(home / "base", head_dim=16, initializer_range=0.2)
    for name, count in (("train", 30), ("held", 11)):
        lines = [json.dumps(row) + "\n" for row in uneven(count, name)]
        (home / f"{name}.jsonl").write_text("".join(lines))
    return home


def train(home: Path, name: str, method: dict[str, Any], micro_batch: int) -> RunFolder:
    recipe = {
        "name": name,
        "model": {"id": "base"},
        "method": method,
        "data": {"train": "train.jsonl", "validation": "held.jsonl"},
        "training": {
            "max_steps": 1,
            "batch_size": 30,
            "micro_batch_size": micro_batch,
            "learning_rate": 1e-2,
            "warmup_ratio": 0,
            "precision": "fp32",
        },
        "generation": {"max_new_tokens": 1},
    }
    (home / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    assert run(["train", str(home / f"{name}.yaml")]) == 0
    return RunFolder(home / "runs" / name)


def numpy_loss(network: Any, rows: Sequence[dict[str, Any]]) -> float:
    """Per label token: each row alone and without padding; logits apart, NumPy in float64."""
    import torch

    total, tokens = 0.0, 0
    for row in rows:
        with torch.no_grad():
            found = network(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        logits, targets = found.numpy().astype(np.float64), np.array(row["labels"][1:])
        highest = logits.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(logits - highest).sum(axis=1)) + highest[:, 0]
        wanted = targets >= 0
        total += (log_sum - logits[np.arange(len(targets)), targets])[wanted].sum()
        tokens += int(wanted.sum())
    return float(total / tokens)


def expected_losses(home: Path, folder: RunFolder, method: str) -> tuple[float, float]:
    """Of the base and of what was trained, both opened by plain transformers and PEFT."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from ftcli.data.tokenizing.arrow_rows import read_split

    rows = read_split(folder.data, "validation").to_pylist()
    lengths = [len(row["input_ids"]) for row in rows]
    assert len(rows) == 11 and max(lengths) > 3 * min(lengths)
    base = AutoModelForCausalLM.from_pretrained(home / "base", dtype=torch.float32).eval()
    before = numpy_loss(base, rows)
    if method == "full":
        tuned = AutoModelForCausalLM.from_pretrained(folder.model, dtype=torch.float32)
    else:
        tuned = PeftModel.from_pretrained(base, folder.adapter)
    return before, numpy_loss(tuned.eval(), rows)


@pytest.mark.slow
@pytest.mark.fault(16)
@pytest.mark.parametrize("mode", SIZES)
def test_a_loss_is_that_of_its_tokens_at_any_batch_size(
    mode: str,
    home: Path,
    observed: Observed,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from ftcli.inference import generation

    method = {"mode": mode} | ({"rank": 4} if mode == "lora" else {})
    differences: dict[str, list[float]] = {"validation": [], "eval": []}
    for size in SIZES[mode]:
        folder = train(home, f"{mode}-{size}", method, size)
        wanted = expected_losses(home, folder, mode)
        assert abs(wanted[0] - wanted[1]) > 0.01
        result = folder.read_manifest()["result"]
        found = (result["first_eval_loss"], result["eval_loss"])
        differences["validation"] += [abs(a - b) for a, b in zip(found, wanted, strict=True)]
        monkeypatch.setattr(generation, "SCORED_ROWS", size)
        shutil.rmtree(folder.evaluations, ignore_errors=True)
        capsys.readouterr()
        assert run(["eval", str(folder.path), "--data", str(home / "held.jsonl"), "--json"]) == 0
        scores = json.loads(capsys.readouterr().out)
        found = (scores["base"]["loss"], scores["tuned"]["loss"])
        differences["eval"] += [abs(a - b) for a, b in zip(found, wanted, strict=True)]
    furthest = {what: max(found) for what, found in differences.items()}
    assert all(far <= 1e-6 for far in furthest.values()), furthest
    found = " and ".join(f"{what} {far:.0e}" for what, far in furthest.items())
    observed(f"{mode}, in {'/'.join(map(str, SIZES[mode]))}: {found} off")
