"""The check of the longest batch takes as much memory as a step, though it ends before one does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ftcli.engine import probe
from ftcli.engine.probe import WHERE
from ftcli.engine.trainer import FtcliTrainer
from tests.conftest import save_tiny_model
from tests.test_training import train

LAYERS = 9
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"mode": "lora"},
    "qlora": {"mode": "qlora"},
    "dora": {"mode": "lora", "dora": True},
    "few layers": {"mode": "lora", "layers": [1, 2, 5, 7]},
}


@pytest.fixture(params=ADAPTERS)
def method(request: pytest.FixtureRequest) -> dict[str, Any]:
    return ADAPTERS[request.param]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_check_holds_as_much_at_once_as_a_whole_pass(
    method: dict[str, Any],
    checkpointing: bool,
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, peaks, went = FtcliTrainer.gradients_of, {}, {}

    def watched(
        trainer: FtcliTrainer,
        batches: list[list[int]],
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

    monkeypatch.setattr(FtcliTrainer, "gradients_of", watched)
    monkeypatch.setattr(probe, "LITTLE", 1)  # whatever the gradients of a tiny model count for
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
    assert peaks["whole"] <= peaks["check"] * 1.001


def peak_bytes(work: Callable[[], Any]) -> int:
    """Most that torch's tensors took at once on a CPU, above what they took before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    events = found.profiler.kineto_results.events()
    sizes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held: int = max(accumulate(size for _, size in sizes))
    return held
