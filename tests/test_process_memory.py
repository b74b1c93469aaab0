"""Merging a model takes the memory of one copy of its weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ftcli.cli import run
from tests.conftest import save_tiny_model
from tests.test_merging import recipe_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
MEASURED = """
import sys, threading, time
import bitsandbytes, peft, torch, transformers
import ftcli.engine.merge
from ftcli.cli import run

def private_bytes():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) * 1024

def watch():
    while not done:
        seen.append(private_bytes())
        time.sleep(0.01)

done, seen = [], [private_bytes()]
watcher = threading.Thread(target=watch)
watcher.start()
code = run(sys.argv[1:])
done.append(True)
watcher.join()
print(code, max(seen) - seen[0])
"""


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
def test_a_merge_holds_one_copy_of_the_weights(
    large: Path, mode: str, dtype: str, tmp_path: Path
) -> None:
    """Pages of the base's files are not counted: the system takes them back when it wants."""
    command = [sys.executable, "-c", MEASURED, "merge", str(large / "runs" / mode)]
    command += ["--output", str(tmp_path / "one"), "--dtype", dtype]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    code, peak_bytes = map(int, found.stdout.split()[-2:])
    assert code == 0
    copy_bytes = (tmp_path / "one" / "model.safetensors").stat().st_size
    assert 0.5 * copy_bytes < peak_bytes < 1.5 * copy_bytes
