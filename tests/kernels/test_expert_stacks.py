"""Stacks of experts: found, in 4 bits after loading, and adapted on request."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ftcli.config.recipe import Model
from ftcli.errors import ModelError
from ftcli.kernels.expert_stacks import expert_stacks, plain_stacks
from ftcli.kernels.experts import NAME
from ftcli.models.load import load_base
from tests.experts import IDS, in_4_bits, mixture, nf4
from tests.tiny_models import logits


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("qwen3_moe", {"gate_up_proj", "down_proj"}),
        ("nemotron_h", {"up_proj", "down_proj"}),
        ("gpt_oss", {"gate_up_proj", "down_proj"}),  # its files have stacks, the others' experts
    ],
)
def test_a_base_in_4_bits_has_its_experts_in_4_bits(
    kind: str, names: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first: none is quantised after loading, when all would be in 16 bits."""
    monkeypatch.setattr("bitsandbytes.nn.parametrize.replace_parameter_4bit", None)
    mixture(kind).save_pretrained(tmp_path)
    model = Model(id=str(tmp_path))
    base = load_base(
        str(tmp_path),
        model,
        dtype=torch.bfloat16,
        attention="eager",
        device=torch.device("cpu"),
        quantization=nf4(),
    )
    plain = load_base(
        str(tmp_path), model, dtype=torch.bfloat16, attention="eager", device=torch.device("cpu")
    )
    stacks = expert_stacks(base)
    assert {stack.name for stack in stacks} == names
    for stack, full in zip(stacks, expert_stacks(plain), strict=True):
        assert stack.in_4_bits and not full.in_4_bits and stack.full_name == full.full_name
        weight, wanted = getattr(stack.module, stack.name), getattr(full.module, full.name)
        assert weight.shape == wanted.shape and weight.dtype == torch.bfloat16
        assert 0 < (weight - wanted).abs().max() < 0.3 * wanted.abs().max()
        packed = stack.module.parametrizations[stack.name].original
        assert packed.nbytes == wanted.numel() // 2 and not packed.requires_grad
    assert base.config._experts_implementation == NAME
    assert logits(base, IDS).isfinite().all()


def test_a_stack_of_another_size_than_the_config_s_is_named(tmp_path: Path) -> None:
    mixture("qwen3_moe").save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    values = json.loads(config.read_text()) | {"moe_intermediate_size": 128}
    config.write_text(json.dumps(values))
    with pytest.raises(
        ModelError, match=r"experts\.gate_up_proj is 4 × 128 × 64, but 4 × 256 × 64"
    ):
        load_base(
            str(tmp_path),
            Model(id=str(tmp_path)),
            dtype=torch.bfloat16,
            attention="eager",
            device=torch.device("cpu"),
            quantization=nf4(),
        )


def test_stacks_look_plain_for_a_while_and_are_restored() -> None:
    model, _ = in_4_bits(mixture("nemotron_h"))
    before = logits(model, IDS)
    names = [stack.full_name for stack in expert_stacks(model)]
    with plain_stacks(model):
        stacks = expert_stacks(model)
        assert [stack.full_name for stack in stacks] == names
        assert not any(stack.in_4_bits for stack in stacks)
        weight = getattr(stacks[0].module, stacks[0].name)
        assert weight.shape == (4, 64, 64) and weight.untyped_storage().nbytes() == 4
    assert torch.equal(logits(model, IDS), before)
    assert all(stack.in_4_bits for stack in expert_stacks(model))


def test_rows_that_are_no_whole_blocks_stay_in_16_bits() -> None:
    model, _ = in_4_bits(mixture("qwen3_moe", moe_intermediate_size=96))
    assert {stack.name: stack.in_4_bits for stack in expert_stacks(model)} == {
        "gate_up_proj": True,
        "down_proj": False,
    }
