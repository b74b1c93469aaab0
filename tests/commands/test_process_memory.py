"""A merge takes the memory of one copy of the weights; adapters share that of their base."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ftcli.cli import run
from tests.conftest import save_tiny_model
from tests.merged import recipe_of
from tests.process_memory import held_bytes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on a base of 155 million weights in bf16: 310 MB."""
    import torch
    from transformers import AutoModelForCausalLM

    home = tmp_path_factory.mktemp("large")
    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 16}
    save_tiny_model(home / "base", **sizes, **heads, tie_word_embeddings=False)
    base = AutoModelForCausalLM.from_pretrained(home / "base", dtype=torch.bfloat16)
    base.save_pretrained(home / "base")
    for mode in ("lora", "qlora"):
        recipe = recipe_of(home, mode, max_steps=1, batch_size=1)
        assert run(["train", str(recipe), "--set", "data.test=2"]) == 0
    return home


@pytest.mark.parametrize(("mode", "dtype"), [("lora", "fp32"), ("qlora", "bf16")])
def test_a_merge_has_one_copy_of_the_weights_in_memory(
    large: Path, mode: str, dtype: str, tmp_path: Path
) -> None:
    """Pages of the base's files are not counted: the system can reclaim them."""
    command = ["merge", str(large / "runs" / mode), "--output", str(tmp_path / "one")]
    peak = held_bytes([*command, "--dtype", dtype], "RssAnon").peak
    copy = (tmp_path / "one" / "model.safetensors").stat().st_size
    assert 0.5 * copy < peak < 1.5 * copy


def test_three_adapters_take_one_base_and_three_adapters(large: Path) -> None:
    """A second base would be at least 310 MB; an adapter of this rank is 121 MB."""
    recipe = recipe_of(large, "lora", max_steps=1, batch_size=1)
    sizes = ["--set", "method.rank=128", "--set", "data.test=2"]
    first = large / "runs" / "first"
    assert run(["train", str(recipe), *sizes, "--set", f"output={first}"]) == 0
    for name in ("second", "third"):
        shutil.copytree(first, first.with_name(name))
    adapter = (first / "adapter" / "adapter_model.safetensors").stat().st_size
    others = [f"--adapter={name}={first.with_name(name)}" for name in ("second", "third")]
    command = ["generate", str(first), "hello", "--set", "generation.max_new_tokens=128"]
    alone, three = (held_bytes([*command, *more], "VmRSS").usual for more in ([], others))
    assert 1.8 * adapter < three - alone < 2.2 * adapter
