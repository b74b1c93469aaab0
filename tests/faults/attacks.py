"""Payloads that leave a mark where they are executed, and what carries them."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        return _touch, (str(self.mark),)


def _touch(path: str) -> None:
    Path(path).touch()


@dataclass(frozen=True)
class Attack:
    """What makes a file at `mark` when it is run, as a pickle and as Python."""

    mark: Path

    @property
    def pickled(self) -> bytes:
        return pickle.dumps(Touch(self.mark))

    @property
    def python(self) -> str:
        return (
            f"from pathlib import Path\nPath({str(self.mark)!r}).touch()\n"
            "from transformers import LlamaConfig, LlamaForCausalLM\n"
            "from transformers import PreTrainedTokenizerFast as Tokenizer\n"
            "class Config(LlamaConfig):\n    model_type = 'evil'\n"
            "class Model(LlamaForCausalLM):\n    config_class = Config\n"
            "def generate(model, **rest):\n    raise AssertionError('the model generates itself')\n"
        )

    def succeeded(self) -> bool:
        return self.mark.exists()


def copied(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def change_json(file: Path, **values: Any) -> None:
    """Lay values over a JSON object; the file may not be there yet."""
    held = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**held, **values}))
