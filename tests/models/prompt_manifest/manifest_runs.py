"""Runs whose base, template and tokenizer tests edit, and the commands that then refuse them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file, save_file

from ftcli.runs.folder import RunFolder
from tests.conftest import CHATML

Ask = Callable[..., tuple[int, str]]
# A template with a system prompt of its own.
WITH_DEFAULT = (
    "{% if messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}" + CHATML
)
OPENINGS = (["eval"], ["generate", "a prompt"], ["merge"])


def set_template(folder: Path, text: str | None) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(text) if text else file.unlink()


def other_weights(folder: Path) -> None:
    """Other weights of the same shape."""
    file = folder / "model.safetensors"
    save_file({n: t + 0.01 for n, t in load_file(file).items()}, file, metadata={"format": "pt"})


def edit_config(folder: Path) -> list[str]:
    """Edit config.json; returns the expected line of each changed key."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    rope, eps = config["rope_parameters"]["rope_theta"], config["rms_norm_eps"]
    config |= {"rms_norm_eps": 0.5, "rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}}
    file.write_text(json.dumps(config))
    return [f"rms_norm_eps: {eps} → 0.5", f"rope_parameters.rope_theta: {rope} → 7.0"]


def write_recipe(folder: Path, mode: str, **sections: Any) -> Path:
    recipe: dict[str, Any] = {
        "name": mode,
        "model": {"id": "base"},
        "method": {"mode": mode},
        "data": {"train": "rows.jsonl", "validation": 4, "test": 4, "max_length": 256},
        "training": {"max_steps": 4, "batch_size": 4, "save_steps": 2},
        "generation": {"max_new_tokens": 4},
    }
    path = folder / f"{sections.get('name', mode)}.yaml"
    path.write_text(yaml.safe_dump(recipe | sections))
    return path


def open_tokenizer(place: Path, name: str = "lora") -> Any:
    from ftcli.models.load import load_tokenizer

    return load_tokenizer(str(RunFolder(place / "runs" / name).trained()))


def refusals(ask: Ask, name: str = "lora") -> set[str]:
    """Error messages of eval, generate and merge, which must all refuse."""
    found = [ask(words[0], f"runs/{name}", *words[1:]) for words in OPENINGS]
    assert [code for code, _ in found] == [1, 1, 1]
    return {message for _, message in found}
