"""Tests that need a CUDA GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ftcli.cli import run
from ftcli.memory.hardware import context_bytes
from ftcli.training.estimate.calibrate import CalibratedRun, calibrate_runs
from scripts import measure_vram
from tests.architectures import FAMILIES

ROOT = Path(__file__).parents[1]

MIB = 2**20
STATES = ("state1", "state2")  # of a weight, in bitsandbytes' optimizers
# 0.3 B parameters: torch's libraries, which the formula omits, take little in comparison.
MIDDLE_SIZED = {
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "vocab_size": 65_536,
    "tie_word_embeddings": True,
}

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True, scope="module")
def needs_a_card() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU and pytest -m gpu")


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize(
    "mode", ["full", "lora", "qlora", "bottleneck", "prefix-tuning", "prompt-tuning"]
)
def test_training_on_a_card_learns_answers_and_merges(
    mode: str, quantization: str, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    merges = mode in ("full", "lora", "qlora")
    if merges and quantization == "nf4":
        pytest.skip("its base is in 4 bits by its mode, or never")
    keys = {} if merges else {"quantization": quantization}
    training = {"epochs": 1, "batch_size": 4, "eval_steps": 4}
    recipe = write_recipe(method={"mode": mode, **keys}, training=training)
    assert run(["train", str(recipe)]) == 0
    result = json.loads((tmp_path / "runs/tiny/run.json").read_text())["result"]
    assert result["eval_loss"] < result["first_eval_loss"]
    assert run(["generate", str(recipe), "Product: kettle"]) == 0
    assert run(["merge", str(recipe)]) == (0 if merges else 2)


@pytest.fixture(scope="module")
def middle_sized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "middle"
    measure_vram.make_model(MIDDLE_SIZED, folder, "cuda")
    return folder


def measured_run(
    folder: Path, model: Path, method: dict[str, Any], training: dict[str, Any]
) -> CalibratedRun:
    """Two steps of `ftcli train` on rows of 1024 tokens, with what they took."""
    rows = ({"text": f"{number:03} " + "x" * 1024} for number in range(10))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": "rows.jsonl", "format": "text", "validation": 2, "max_length": 1024}
    recipe = {
        "name": "measured",
        "model": {"id": str(model)},
        "method": method,
        "data": data | {"too_long": "truncate"},
        "training": {"max_steps": 2, "batch_size": 4, "micro_batch_size": 2, **training},
    }
    (folder / "measured.yaml").write_text(yaml.safe_dump(recipe))
    assert run(["train", str(folder / "measured.yaml")]) == 0
    return calibrate_runs([folder / "runs" / "measured"]).runs[0]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("mode", "precision"),
    [
        ("full", "bf16"),
        ("full", "pure-bf16"),
        ("lora", "bf16"),
        ("qlora", "bf16"),
        ("bottleneck", "bf16"),
        ("prompt-tuning", "bf16"),
    ],
)
@pytest.mark.parametrize("optimizations", ["off", "auto"])
def test_a_training_takes_what_was_estimated(
    mode: str,
    precision: str,
    checkpointing: bool,
    optimizations: str,
    middle_sized: Path,
    tmp_path: Path,
) -> None:
    training = {
        "precision": precision,
        "gradient_checkpointing": checkpointing,
        "optimizations": optimizations,
    }
    found = measured_run(tmp_path, middle_sized, {"mode": mode}, training)
    assert [figure.measure for figure in found.figures] == ["allocated", "reserved"]
    for figure in found.figures:
        assert figure.inside, figure
    assert found.record.device == "cuda" and found.record.resident_bytes is None
    assert found.record.allocated_bytes is not None
    assert found.record.allocated_bytes <= found.run.read_manifest()["result"]["peak_memory_bytes"]
    validation = found.record.validation_bytes
    assert validation is not None and validation < found.figures[0].measured_bytes


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("heads, kv_heads, width", [(8, 8, 64), (28, 4, 128), (8, 1, 256)])
def test_the_kernel_for_packed_rows_is_what_the_cpu_s_tests_take_it_for(
    heads: int, kv_heads: int, width: int, window: int | None
) -> None:
    """Queries after a shared prefix: fewer than keys, aligned at the last key."""
    import torch

    from ftcli.data.tokenizing.prefix_tree import build_prefix_tree
    from ftcli.kernels import varlen
    from tests.card.test_varlen import sequences
    from tests.kernels.test_packed_families import rows

    tree = build_prefix_tree([row["input_ids"] for row in rows()], share=True)
    layout = varlen.key_layout(tree)
    shapes = ((tree.tokens, heads), (tree.tokens, kv_heads), (tree.tokens, kv_heads))
    torch.manual_seed(0)
    tensors = [torch.randn(1, count, tokens, width) for tokens, count in shapes]
    upstream = torch.randn(1, tree.tokens, heads, width)
    found = [each.to("cuda", torch.bfloat16).requires_grad_() for each in tensors]
    on_gpu = layout.changed(lambda each: each.to("cuda"))
    output, _ = varlen.attend(torch.nn.Module(), *found, None, layout=on_gpu, sliding_window=window)
    output.backward(upstream.to("cuda", torch.bfloat16))
    assert layout.keys is not None

    # The definition in fp32, on numbers that are rounded as on the GPU.
    query, key, value = (
        each.bfloat16().float()[0].transpose(0, 1).requires_grad_() for each in tensors
    )
    before = -1 if window is None else window - 1
    ends, parts = (layout.query_ends, layout.key_ends), []
    repeated = (query, key[layout.keys], value[layout.keys])
    for _, _, each in sequences(*repeated, ends, None, [before, 0]):
        parts.append((each.probabilities() @ each.value).transpose(0, 1))
    expected = torch.cat(parts)
    expected.backward(upstream.bfloat16().float()[0])
    close = {"rtol": 0.02, "atol": 0.02}
    torch.testing.assert_close(output[0].float().cpu(), expected.detach(), **close)
    for mine, theirs in zip(found, (query, key, value), strict=True):
        assert mine.grad is not None and theirs.grad is not None
        grad = mine.grad[0].transpose(0, 1).float().cpu()
        torch.testing.assert_close(grad, theirs.grad, rtol=0.03, atol=0.06)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("name", [name for name in FAMILIES if not name.startswith("gemma2")])
def test_a_card_s_optimisations_give_the_loss_and_the_gradients_of_padded_rows(
    name: str, method: str
) -> None:
    import torch

    from ftcli.kernels.lora import fuse_lora
    from ftcli.models.batches import packed
    from tests.kernels.test_packed_families import assert_same, model_of, plain, rows, through

    model = model_of(name, method).to("cuda")
    with torch.autocast("cuda", torch.bfloat16):
        expected = plain(model)
        fuse_lora(model)
        for share in (False, True):
            batch = packed(rows(), share_prefix=share, on_gpu=True)
            assert_same(through(model, batch), expected, 1e-2, 5e-2)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("name", FAMILIES)
def test_liger_gives_the_loss_and_the_gradients_of_transformers(
    name: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("liger_kernel")
    from ftcli.kernels.liger import apply_liger
    from ftcli.models.batches import padded
    from ftcli.models.virtual_tokens import causal_model
    from tests.kernels.test_packed_families import assert_same, model_of, plain, rows, through

    model = model_of(name, method).to("cuda")
    expected = plain(model)
    modeling = sys.modules[type(causal_model(model)).__module__]
    for part, value in list(vars(modeling).items()):
        if part == "apply_rotary_pos_emb" or part.endswith("MLP"):
            # It takes another one for all models of this type: until the test is over.
            monkeypatch.setattr(modeling, part, value)
    assert apply_liger(model) > 0
    assert_same(through(model, padded(rows(), 0)), expected, 1e-5, 1e-4)


SAVERS = ("activation_offload", "embedding_offload", "tiled_mlp")


@pytest.mark.parametrize("taken", [*((each,) for each in SAVERS), SAVERS], ids=" ".join)
@pytest.mark.parametrize("mode", ["lora", "qlora"])
def test_what_saves_memory_learns_the_same_and_takes_what_was_estimated(
    mode: str,
    taken: tuple[str, ...],
    middle_sized: Path,
    write_recipe: Callable[..., Path],
    tmp_path: Path,
) -> None:
    on = {"gradient_checkpointing": True} | dict.fromkeys(taken, True)
    found = measured_run(tmp_path, middle_sized, {"mode": mode}, on)
    assert all(figure.inside for figure in found.figures), found.figures
    curves = {}
    for name, keys in (("saving", on), ("plain", {"gradient_checkpointing": True})):
        training = {"epochs": 1, "batch_size": 8} | keys
        recipe = write_recipe(name, method={"mode": mode}, training=training)
        assert run(["train", str(recipe)]) == 0
        lines = (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()
        curves[name] = [record["loss"] for record in map(json.loads, lines) if "loss" in record]
        assert run(["generate", str(recipe), "Product: kettle"]) == 0
    assert curves["saving"] == pytest.approx(curves["plain"], abs=2e-2)


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_a_card_with_all_optimisations_learns_the_same(
    method: str, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    curves = {}
    for name, optimizations in (("all", "auto"), ("plain", "off")):
        training = {
            "epochs": 1,
            "batch_size": 8,
            "optimizations": optimizations,
        }
        recipe = write_recipe(name, method={"mode": method}, training=training)
        assert run(["train", str(recipe)]) == 0
        lines = (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()
        curves[name] = [record["loss"] for record in map(json.loads, lines) if "loss" in record]
        planned = json.loads((tmp_path / "runs" / name / "plan.json").read_text())
        assert bool(planned["training"]["packing"]) == (name == "all")
    assert curves["all"] == pytest.approx(curves["plain"], abs=2e-2)


@pytest.mark.parametrize("optimizer", ["adamw-8bit", "paged-adamw-8bit"])
def test_8_bit_states_resume_as_what_they_were(
    optimizer: str, middle_sized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bitsandbytes pages the states of weights of 100,000 numbers and more."""
    from bitsandbytes.optim.optimizer import Optimizer2State

    from tests.commands.test_training import stop_at

    training = {"optimizer": optimizer, "max_steps": 4, "learning_rate": 1e-4}
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    measured_run(tmp_path / "whole", middle_sized, {"mode": "full"}, training)
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        with pytest.raises(AssertionError):
            measured_run(tmp_path / "stopped", middle_sized, {"mode": "full"}, training)
    paged: set[tuple[bool, bool]] = set()
    update = Optimizer2State.update_step

    def watched(self: Any, group: Any, weight: Any, *places: int) -> None:
        state = self.state[weight]
        paged.update((weight.numel() >= 1e5, hasattr(state[name], "is_paged")) for name in STATES)
        update(self, group, weight, *places)

    monkeypatch.setattr(Optimizer2State, "update_step", watched)
    measured_run(tmp_path / "stopped", middle_sized, {"mode": "full"}, training)
    assert paged == {(True, optimizer.startswith("paged")), (False, False)}
    losses = {}
    for name in ("whole", "stopped"):
        lines = (tmp_path / name / "runs/measured/metrics.jsonl").read_text().splitlines()
        losses[name] = [record["loss"] for record in map(json.loads, lines) if "loss" in record]
    assert losses["stopped"] == pytest.approx(losses["whole"], abs=1e-2)


@pytest.mark.fault(32)
def test_a_card_that_runs_out_of_memory_goes_on_smaller(
    middle_sized: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    observed: Callable[[str], None],
) -> None:
    """torch's share of the card is cut to what two rows take and eight do not."""
    import torch

    sizes = {}
    for rows in (2, 8):
        place = tmp_path / str(rows)
        place.mkdir()
        training = {"batch_size": 8, "micro_batch_size": rows, "gradient_checkpointing": False}
        found = measured_run(place, middle_sized, {"mode": "lora"}, training)
        sizes[rows] = found.record.reserved_bytes or 0
    assert sizes[2] < sizes[8]
    share = (sizes[2] + (sizes[8] - sizes[2]) / 3) / torch.cuda.get_device_properties(
        0
    ).total_memory
    capsys.readouterr()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        (tmp_path / "short").mkdir()
        training = {"batch_size": 8, "micro_batch_size": 8, "gradient_checkpointing": False}
        measured_run(tmp_path / "short", middle_sized, {"mode": "lora"}, training)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    said = capsys.readouterr().err
    assert "out of memory in the longest batch: micro-batch 8 → 4" in said
    observed(f"{torch.cuda.get_device_name()}: a real lack of memory, 8 rows → fewer, finished")


def test_the_context_is_that_of_the_table() -> None:
    """Measured as the table was made: nvidia-smi minus the reserve, after one element."""
    import torch

    code = "import scripts.measure_point as m; print(m.context_taken_bytes(m.card_bytes()))"
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    measured = int(output.stdout.splitlines()[-1])
    known = context_bytes(torch.cuda.get_device_capability(0))
    # Drivers differ by a few percent; a table that is too low says "fits" where it does not.
    assert 0.5 * known <= measured <= 1.1 * known, (
        f"ftcli/memory/hardware.py says {known / MIB:.0f} MiB, measured {measured / MIB:.0f} MiB"
    )


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss"])
def test_experts_on_a_gpu_are_in_4_bits_and_answer_as_on_a_cpu(kind: str, tmp_path: Path) -> None:
    import torch

    from ftcli.config.recipe import Model
    from ftcli.kernels.expert_stacks import expert_stacks
    from ftcli.models.load import load_base
    from ftcli.models.methods import attach
    from tests.experts import IDS, mixture, nf4, through
    from tests.tiny_models import lora, shake

    mixture(kind, num_experts_per_tok=4).save_pretrained(tmp_path)  # of 4: rounding moves no token
    found = []
    for device in ("cpu", "cuda"):
        base = load_base(
            str(tmp_path),
            Model(id=str(tmp_path)),
            dtype=torch.bfloat16,
            attention="eager",
            device=torch.device(device),
            quantization=nf4(),
        )
        assert {parameter.device.type for parameter in base.parameters()} == {device}
        assert all(stack.in_4_bits for stack in expert_stacks(base))
        adapted = attach(base, lora(experts=True), seed=0)
        torch.manual_seed(0)
        shake(adapted)
        found.append(through(adapted, IDS.to(device)))
    for name, on_cpu in found[0].items():
        difference = (found[1][name].cpu().float() - on_cpu.float()).norm()
        assert difference <= 0.1 * on_cpu.float().norm(), name
