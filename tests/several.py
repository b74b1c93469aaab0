"""Runs on one base for the tests of `ftcli generate` with several adapters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from ftcli.cli import run
from ftcli.inference.generator import GenerateOptions
from ftcli.inference.several_adapters import Member
from tests.conftest import pair

LORA: dict[str, Any] = {"mode": "lora", "rank": 4}
QLORA = LORA | {"mode": "qlora"}
TRAINING = {"max_steps": 6, "batch_size": 4, "learning_rate": "2e-2"}
PROMPTS = [f"Product: mug {number}" for number in range(6)]
NAMES = ["shop", "sql", "shop", "note", "sql", "shop"]


def train(home: Path, model: Path, name: str, **method: Any) -> Path:
    """A run that is made to say something of its own, with its own system prompt."""
    lines = [json.dumps(pair(n) | {"completion": f"{name} {n % 3}"}) for n in range(16)]
    (home / f"{name}.jsonl").write_text("\n".join(lines))
    recipe = {
        "name": name,
        "model": {"id": str(model)},
        "method": method or LORA,
        "data": {"train": f"{name}.jsonl", "validation": 0, "system": f"You write {name}."},
        "training": TRAINING,
        "generation": {"max_new_tokens": 8},
    }
    path = home / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    assert run(["train", str(path)]) == 0
    return home / "runs" / name


def three_runs(home: Path, model: Path) -> None:
    """Three adapters on one base."""
    for name in ("shop", "sql", "note"):
        train(home, model, name)


def others(runs: Path) -> list[str]:
    return ["--adapter", f"sql={runs / 'sql'}", "--adapter", f"note={runs / 'note'}"]


def file_of(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answered(arguments: list[Any], source: Path, output: Path) -> list[dict[str, Any]]:
    flags = ["--input", str(source), "--output", str(output)]
    assert run(["generate", *map(str, arguments), *flags]) == 0
    return [json.loads(line) for line in output.read_text().splitlines()]


def members(runs: Path, *flags: str, first: str = "shop", **more: Any) -> tuple[Member, ...]:
    return GenerateOptions(runs / first, adapters=flags, **more).open()


def copy_of(run_folder: Path, folder: Path, **planned: str) -> Path:
    """The same run elsewhere, planned otherwise."""
    shutil.copytree(run_folder, folder)
    plan = json.loads((folder / "plan.json").read_text())
    for name, value in planned.items():
        section = plan["model"] if name in plan["model"] else plan["training"]
        assert section[name] != value
        section[name] = value
    (folder / "plan.json").write_text(json.dumps(plan))
    return folder


def flip_a_bit(file: Path) -> None:
    """One bit of the last tensor's last bytes: the header stays as it is."""
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(data)
