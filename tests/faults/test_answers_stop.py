"""Answers learnt by heart stop by themselves where the token that pads also ends."""

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
from tests.conftest import COLOURS, THINGS, tiny_tokenizer

Learn = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def learn(
    write_recipe: Callable[..., Path],
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> Learn:
    """Train on eight rows until they are known by heart, and answer their prompts."""
    base = Path(shutil.copytree(tiny_model, tmp_path / "padded"))
    config = json.loads((base / "tokenizer_config.json").read_text())
    config["pad_token"] = config["eos_token"]
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    # Of different lengths, so that seven of the eight are padded.
    wanted = [
        {"prompt": f"Describe the {thing}.", "completion": f"A {colour} {thing}{'!' * number}"}
        for number, (thing, colour) in enumerate(zip(THINGS, COLOURS, strict=True))
    ]
    rows = tmp_path / "eight.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in wanted))
    recipe = write_recipe(
        model={"id": str(base)},
        method={"mode": "full"},
        data={"train": rows.name, "validation": 0},
        training={
            "max_steps": 150,
            "batch_size": 8,
            "micro_batch_size": 8,
            "learning_rate": 4e-3,
            "precision": "fp32",
        },
        generation={"max_new_tokens": 48},
    )

    def answers() -> list[dict[str, Any]]:
        assert run(["train", str(recipe)]) == 0, capsys.readouterr().err
        output = tmp_path / "answers.jsonl"
        assert run(["generate", str(recipe), "--input", str(rows), "--output", str(output)]) == 0
        found = [json.loads(line) for line in output.read_text().splitlines()]
        begun = [
            a["answer"].startswith(w["completion"]) for a, w in zip(found, wanted, strict=True)
        ]
        return [{**answer, "known": known} for answer, known in zip(found, begun, strict=True)]

    return answers


@pytest.mark.fault(11)
def test_eight_of_eight_stop_where_the_pad_token_is_the_end_token(
    learn: Learn, observed: Callable[[str], None]
) -> None:
    answers = learn()
    stopped = sum(answer["stopped"] for answer in answers)
    assert all(answer["known"] for answer in answers)
    assert stopped == len(answers) == 8
    observed(f"{stopped} of 8 stop")


@pytest.mark.slow
@pytest.mark.fault(11)
def test_with_the_end_token_masked_out_they_do_not(
    learn: Learn, observed: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
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
    stopped = sum(answer["stopped"] for answer in learn())
    assert set(masked) == {8}
    assert stopped < 8
    observed(f"{stopped} of 8 with the end token masked out")
