"""Eight rows learnt by heart come back word for word, and every answer finishes (EOS)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ftcli.cli import run
from ftcli.models.batches import Batch
from tests.conftest import COLOURS, THINGS, pair, save_recipe, save_tiny_model, tiny_tokenizer
from tests.published import tokenizer_named

# Their ends make answers of different lengths, so that seven of the eight are padded.
PLAIN, UNEVEN = ["."] * 8, ["!" * number for number in range(8)]


def learn(
    folder: Path, base: Path, method: dict[str, Any], ends: list[str] = PLAIN, **training: Any
) -> tuple[int, int]:
    """How many of eight answers are right, and how many stop, after a training on their rows."""
    wanted = [
        {"prompt": f"Describe the {thing}.", "completion": f"A {colour} {thing}{end}"}
        for thing, colour, end in zip(THINGS, COLOURS, ends, strict=True)
    ]
    rows, output = folder / "eight.jsonl", folder / "answers.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in wanted))
    recipe = save_recipe(
        folder,
        base,
        method=method,
        data={"train": rows.name, "validation": 0},
        training={"batch_size": 8, **training},
        generation={"max_new_tokens": 48},
    )
    assert run(["train", str(recipe)]) == 0
    assert run(["generate", str(recipe), "--input", str(rows), "--output", str(output)]) == 0
    found = [json.loads(line) for line in output.read_text().splitlines()]
    right = [a["answer"] == w["completion"] for a, w in zip(found, wanted, strict=True)]
    return sum(right), sum(answer["stopped"] for answer in found)


@pytest.fixture
def padded_with_its_end(tiny_model: Path, tmp_path: Path) -> Path:
    base = Path(shutil.copytree(tiny_model, tmp_path / "padded"))
    config = json.loads((base / "tokenizer_config.json").read_text())
    config["pad_token"] = config["eos_token"]
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    return base


FULL: dict[str, Any] = {
    "method": {"mode": "full"},
    "ends": UNEVEN,
    "max_steps": 150,
    "micro_batch_size": 8,
    "learning_rate": 4e-3,
    "precision": "fp32",
}


@pytest.mark.fault(11)
def test_eight_of_eight_stop_where_the_pad_token_is_the_end_token(
    padded_with_its_end: Path, tmp_path: Path, observed: Callable[[str], None]
) -> None:
    assert learn(tmp_path, padded_with_its_end, **FULL) == (8, 8)
    observed("8 of 8 stop")


@pytest.mark.slow
@pytest.mark.fault(11)
@pytest.mark.parametrize("name", ["gptoss", "deepseek_r1_distill", "glm4moe", "qwen3_5_think"])
def test_eight_of_eight_are_right_and_stop_with_a_published_template(
    name: str, tmp_path: Path
) -> None:
    """The model writes the channel, or the end of the thinking block, and nobody reads it."""
    base = save_tiny_model(tmp_path / "base", tokenizer=tokenizer_named(name))
    assert learn(tmp_path, base, **FULL) == (8, 8)


@pytest.mark.slow
@pytest.mark.fault(11)
def test_with_the_end_token_masked_out_they_do_not(
    padded_with_its_end: Path,
    tmp_path: Path,
    observed: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the test above is there to find: labels masked wherever the pad token stands."""
    from ftcli.models import loss as losses

    stop = tiny_tokenizer().convert_tokens_to_ids("<|im_end|>")
    original, masked = losses.summed_loss, []

    def without_ends(model: Any, batch: Batch) -> Any:
        kept = batch.targets != stop
        masked.append(int((~kept).sum()))
        parts = {name: getattr(batch, name)[kept] for name in ("sources", "targets", "rows")}
        return original(model, replace(batch, **parts))

    monkeypatch.setattr(losses, "summed_loss", without_ends)
    _, stopped = learn(tmp_path, padded_with_its_end, **FULL)
    assert set(masked) == {8}
    assert stopped < 8
    observed(f"{stopped} of 8 with the end token masked out")


@pytest.fixture(scope="module")
def knowing_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model after a full training on other rows: frozen random weights would give an
    adapter nothing to stand on."""
    folder = tmp_path_factory.mktemp("knowing")
    lines = [json.dumps(pair(number)) + "\n" for number in range(64)]
    (folder / "rows.jsonl").write_text("".join(lines))
    recipe = save_recipe(
        folder,
        tiny_model,
        method={"mode": "full"},
        data={"train": "rows.jsonl", "validation": 0},
        training={"max_steps": 150, "batch_size": 16, "learning_rate": 3e-3},
    )
    assert run(["train", str(recipe)]) == 0
    return folder / "runs" / "tiny" / "model"


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        {"mode": "full"},
        {"mode": "lora", "rank": 16},
        {"mode": "bottleneck", "bottleneck": 64},
        {"mode": "lora", "rank": 16, "dora": True},
        {"mode": "qlora", "rank": 16},
    ],
    ids=lambda method: "-".join(map(str, method.values())),
)
def test_eight_rows_come_back_and_stop(
    method: dict[str, Any], knowing_model: Path, tmp_path: Path
) -> None:
    # Measured: an adapter has six of the eight after 150 steps.
    steps, rate = (300, 1e-2) if method["mode"] == "bottleneck" else (150, 4e-3)
    found = learn(tmp_path, knowing_model, method, max_steps=steps, learning_rate=rate)
    assert found == (8, 8)


# Steps and rates that do it on the small model, and how many rows must be right: a soft prompt has
# all eight here, but so few weights leave a word to how a machine rounds.
BY_HEART = {"lora": (30, 1e-3, 8), "prefix-tuning": (60, 3e-2, 8), "prompt-tuning": (40, 3e-2, 6)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode", [pytest.param("lora", marks=pytest.mark.fault(11)), "prefix-tuning", "prompt-tuning"]
)
def test_the_small_model_learns_eight_rows_by_heart(
    mode: str, small_model: Path, tmp_path: Path, observed: Callable[[str], None], complete: bool
) -> None:
    """Its pad token is its end token."""
    if mode == "prompt-tuning" and not complete:
        pytest.skip("FTCLI_FAULTS=complete learns them with a prompt too")
    steps, rate, least = BY_HEART[mode]
    right, stopped = learn(
        tmp_path, small_model, {"mode": mode}, max_steps=steps, learning_rate=rate
    )
    assert right >= least and stopped == 8
    observed(f"the small model with {mode}: {stopped} of 8 stop")
