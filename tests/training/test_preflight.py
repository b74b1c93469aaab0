"""The preflight takes as much memory as a step, though it ends earlier, and estimates the time."""

from __future__ import annotations

import json
import re
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ftcli.kernels.attention import saved_probabilities
from ftcli.training import preflight
from ftcli.training.collators import MicroBatch
from ftcli.training.plan.plan import Plan
from ftcli.training.preflight import WHERE
from ftcli.training.trainer import FtcliTrainer
from tests.commands.test_training import train
from tests.conftest import Capture, Patch, Recipes, save_tiny_model
from tests.tiers import tiers

LAYERS = 9
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"mode": "lora"},
    "qlora": {"mode": "qlora"},
    "dora": {"mode": "lora", "dora": True},
    "few layers": {"mode": "lora", "layers": [1, 2, 5, 7]},
}


@pytest.fixture(params=tiers(ADAPTERS, "lora", "qlora"))
def method(request: pytest.FixtureRequest) -> dict[str, Any]:
    return ADAPTERS[request.param]


@pytest.mark.parametrize("checkpointing", tiers([False, True], False))
def test_the_preflight_takes_as_much_memory_as_a_whole_pass(
    method: dict[str, Any],
    checkpointing: bool,
    write_recipe: Recipes,
    tmp_path: Path,
    monkeypatch: Patch,
) -> None:
    original, peaks, went = FtcliTrainer.forward_backward, {}, {}

    def watched(
        trainer: FtcliTrainer,
        batches: list[MicroBatch],
        where: str,
        of: Sequence[Tensor] | None = None,
    ) -> Tensor:
        if where == WHERE:
            weights = [p for p in trainer.model.parameters() if p.requires_grad]
            assert of and all(p.grad is not None for p in weights)
            for name, some in (("whole", None), ("check", of)):
                peaks[name] = peak_bytes(partial(original, trainer, batches, where, some))
                went[name] = sum(bool(p.grad.any()) for p in weights)
                for p in weights:
                    p.grad.zero_()
        return original(trainer, batches, where, of)

    monkeypatch.setattr(FtcliTrainer, "forward_backward", watched)
    monkeypatch.setattr(
        preflight, "SMALL_SHARE", 1
    )  # whatever the gradients of a tiny model count for
    save_tiny_model(tmp_path / "tiny", num_hidden_layers=LAYERS)
    training = {
        "max_steps": 1,
        "batch_size": 64,
        "gradient_checkpointing": checkpointing,
        "precision": "fp32",
    }
    recipe = write_recipe(method=method, training=training, model={"id": str(tmp_path / "tiny")})
    assert train(recipe) == 0
    assert 0 < went["check"] < went["whole"], "the backward pass ended early"
    # But for one hidden state of a micro-batch, whose share is large in a model this small.
    assert peaks["whole"] <= peaks["check"] * 1.01


def peak_bytes(work: Callable[[], Any]) -> int:
    """Most that torch's tensors took at once on a CPU, above what they took before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    events = found.profiler.kineto_results.events()
    sizes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held: int = max(accumulate(size for _, size in sizes))
    return held


BEGINNING = "Each of these questions is about the shop and its hours, which the sign shows. " * 5
ROWS = {
    "what rows begin with is long": [(BEGINNING + f"No. {n}", "Yes. " * 4) for n in range(48)],
    "short rows keep more than long ones": [
        (f"Is no. {n} open? ", "Yes. " * (85 if n % 16 == 0 else 20)) for n in range(48)
    ],
}


@pytest.mark.parametrize("name", ROWS)
def test_no_step_has_a_larger_micro_batch(
    name: str, write_recipe: Recipes, tmp_path: Path, monkeypatch: Patch
) -> None:
    original, tried, trained = FtcliTrainer.forward_backward, [], []

    def watched(trainer: FtcliTrainer, batches: list[MicroBatch], where: str, **of: Any) -> Tensor:
        for batch in (micro_batch.inputs for micro_batch in batches):
            assert batch.layout is not None
            size = (batch.input_ids.numel(), saved_probabilities(batch.layout))
            (tried if where == WHERE else trained).append(size)
        return original(trainer, batches, where, **of)

    monkeypatch.setattr(FtcliTrainer, "forward_backward", watched)
    pairs = [{"prompt": prompt, "completion": answer} for prompt, answer in ROWS[name]]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    training = {"max_steps": 3, "batch_size": 16, "packing": 512}
    data = {"train": "rows.jsonl", "validation": 0, "max_length": 512}
    assert train(write_recipe(data=data, training=training)) == 0
    [(tokens, kept)] = tried
    assert len(trained) > 3
    assert tokens >= 0.9 * max(size for size, _ in trained)
    assert kept >= 0.9 * max(kept for _, kept in trained)


def test_the_time_is_estimated_from_one_batch_until_a_run_has_measured_it(
    write_recipe: Recipes, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    original = FtcliTrainer.forward_backward

    def slower(trainer: FtcliTrainer, batches: list[MicroBatch], where: str, **of: Any) -> Tensor:
        if where == WHERE:
            time.sleep(2)
        return original(trainer, batches, where, **of)

    monkeypatch.setattr(FtcliTrainer, "forward_backward", slower)
    row = json.dumps({"prompt": "Is it open?", "completion": "Yes, from nine to five."})
    (tmp_path / "rows.jsonl").write_text(f"{row}\n" * 48)
    data = {"train": "rows.jsonl", "validation": 0, "max_length": 64}
    training = {"batch_size": 4, "micro_batch_size": 2, "max_steps": 5, "packing": False}
    recipe = write_recipe(data=data, training=training, method={"mode": "full"})
    assert train(recipe) == 0
    said = capsys.readouterr().err
    found = re.search(r"time   about (\d+) s, estimated from one batch\n", said)
    assert found is not None and 20 <= int(found[1]) < 40, "10 micro-batches of 2 s and more"
    assert train(recipe, "--fresh") == 0
    said = capsys.readouterr().err
    assert "estimated from one batch" not in said
    assert re.search(r"^plan   .* · about \d+ s$", said, re.M)


def test_a_full_fine_tuning_runs_the_whole_backward_pass_next_to_its_optimizer_states(
    write_recipe: Recipes, tmp_path: Path, monkeypatch: Patch
) -> None:
    """Its gradients take much of the memory, though few exist at its peak. The optimizer's states
    exist from the first step on."""
    original, ends, held = FtcliTrainer.forward_backward, [], []
    make_room = preflight._reserve_optimizer_states

    def room(trainer: FtcliTrainer, plan: Plan) -> Tensor | None:
        found = make_room(trainer, plan)
        assert found is not None
        held.append(weakref.ref(found))
        return found

    def watched(trainer: FtcliTrainer, batches: list[MicroBatch], where: str, **of: Any) -> Tensor:
        if where == WHERE:
            ends.append(of["of"])
            states, trained = held[0](), sum(p.numel() for p in trainer.model.parameters())
            assert states is not None and states.nbytes == 2 * 4 * trained
            assert states.min() > 0, "written to"
        return original(trainer, batches, where, **of)

    monkeypatch.setattr(FtcliTrainer, "forward_backward", watched)
    monkeypatch.setattr(preflight, "_reserve_optimizer_states", room)
    save_tiny_model(tmp_path / "tiny", num_hidden_layers=LAYERS, intermediate_size=1024)
    model, training = {"id": str(tmp_path / "tiny")}, {"max_steps": 1, "batch_size": 4}
    assert train(write_recipe(model=model, method={"mode": "full"}, training=training)) == 0
    assert ends == [None]
