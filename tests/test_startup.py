"""What needs no torch answers without it."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ["torch", "transformers", "datasets", "peft", "trl", "bitsandbytes", "accelerate"]
HEAVY += ["pandas", "numpy", "scipy", "pyarrow", "rich", "huggingface_hub", "matplotlib"]

RUN = """
import json, sys
from ftcli.cli import run
code = run(sys.argv[2:])
print(json.dumps([code, sorted(set(json.loads(sys.argv[1])) & set(sys.modules))]))
"""
IMPORT = """
import importlib, json, sys
heavy = set(json.loads(sys.argv[1]))
for name in sys.argv[2:]:
    importlib.import_module(name)
    if heavy & set(sys.modules):
        sys.exit(f"{name} loads {sorted(heavy & set(sys.modules))}")
print(len(sys.argv) - 2)
"""


def python(code: str, *arguments: str) -> str:
    found = subprocess.run(
        [sys.executable, "-c", code, json.dumps(HEAVY), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["--help"], 0),
        (["estimate-vram", "--model", "7b", "--mode", "full"], 0),
        (["estimate-vram", "recipes/ecommerce-qlora.yaml", "--gpu", "4090"], 0),
        (["train", "nowhere.yaml"], 2),
        (["compare", "nowhere.yaml"], 2),
        (["compare", "recipes/ecommerce-lora.yaml", "--methods", "lroa"], 2),
        (["train", "recipes/ecommerce-lora.yaml", "--set", "method.rnak=3"], 2),
        (["train", "recipes/ecommerce-lora.yaml", "--set", "data.train=nowhere.jsonl"], 1),
        (["prepare", "recipes/ecommerce-lora.yaml", "--set", "data.train=nowhere.jsonl"], 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_a_light_command_loads_nothing_heavy(command: list[str], code: int) -> None:
    assert json.loads(python(RUN, *command).splitlines()[-1]) == [code, []]


def test_every_module_of_the_light_rooms_is_light() -> None:
    """Those that pyproject.toml names: importing them loads nothing heavy, directly or not."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (rooms,) = (c["source_modules"] for c in contracts["contracts"] if c["type"] == "forbidden")
    files = sorted((ROOT / "ftcli").rglob("*.py"))
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    light = [
        name.removesuffix(".__init__")
        for name in names
        if any(name == room or name.startswith(f"{room}.") for room in rooms)
    ]
    assert len(light) >= 45
    assert int(python(IMPORT, *light)) == len(light)


def test_telemetry_of_the_hub_is_off() -> None:
    code = "import ftcli.hub, huggingface_hub.constants as c; print(c.HF_HUB_DISABLE_TELEMETRY)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "True"
