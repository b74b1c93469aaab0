"""Liger's Triton kernels on a CPU: python -m tests.card.interpreted FAMILY …

Triton's interpreter runs a kernel with numpy. Of Liger 0.8.5 it lacks three things, which are given
to it here: numbers with a decimal point as tensors, an index from an array with one element (numpy
2.4 refuses), and the functions of CUDA's libdevice. Prints JSON: for each family what differs from
transformers' own layers, and what a layer of LoRA saves by count and by formula.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

import ftcli.environment  # noqa: F401  # before the libraries
from ftcli.kernels.liger import apply_liger
from ftcli.models.architectures.find import architecture_of
from ftcli.models.batches import padded
from tests.kernels.test_packed_families import model_of, rows, through

sys.path.insert(0, str(Path(__file__).parents[1] / "memory"))
from counting import batch_of, build, kept_by_layers, tiny_config

from tests.memory.test_layer_bytes import METHODS, expected_bytes

ROWS = 3


@triton.jit
def rsqrt(x):  # type: ignore[no-untyped-def]
    return tl.rsqrt(x)


@triton.jit
def tanh(x):  # type: ignore[no-untyped-def]
    return 2 * tl.sigmoid(2 * x) - 1


def complete_interpreter() -> None:
    own_number, own_tensor = interpreter._implicit_cvt, interpreter._patch_lang_tensor

    def number(value: Any) -> Any:
        if not isinstance(value, float):
            return own_number(value)
        handle = interpreter.TensorHandle(np.array([value], dtype=np.float32), tl.float32)
        return tl.core.tensor(handle, tl.float32)

    def tensor(kind: Any, scope: Any) -> None:
        own_tensor(kind, scope)
        scope.set_attr(kind, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._implicit_cvt, interpreter._patch_lang_tensor = number, tensor
    for name in ("rms_norm", "geglu"):
        module = importlib.import_module(f"liger_kernel.ops.{name}")
        for function in (rsqrt, tanh):
            if hasattr(module, function.__name__):
                setattr(module, function.__name__, function)


def differences(family: str) -> dict[str, Any]:
    """Of loss and gradients, relative; and how many norms use Liger's kernel."""
    batch = padded(rows()[:ROWS], 0)
    plain = through(model_of(family, "full"), batch)
    model = model_of(family, "full")
    norms = apply_liger(model)
    found = through(model, batch)
    largest = max(each.abs().max().item() for each in plain[1].values())
    gradients = [(found[1][name] - each).abs().max().item() for name, each in plain[1].items()]
    return {
        "norms": norms,
        "loss": abs(found[0] / plain[0] - 1),
        "gradients": max(gradients) / largest,
    }


def main(families: list[str]) -> None:
    choices = replace(METHODS["lora"], liger=True, gradient_checkpointing=False)
    # Before Liger's kernels are in the classes: fake tensors have no values to interpret.
    expected = {
        each: expected_bytes(architecture_of(tiny_config(each)), attention_of(each, choices))
        for each in families
    }
    complete_interpreter()
    found = {}
    for family in families:
        taken = attention_of(family, choices)
        torch.manual_seed(1)
        model = build(tiny_config(family), taken)
        apply_liger(model.get_base_model())
        counted = kept_by_layers(model, taken, batch_of(taken))
        found[family] = differences(family) | {"saved": counted, "estimated": expected[family]}
    sys.stdout.write(json.dumps(found) + "\n")


def attention_of(family: str, choices: Any) -> Any:
    return replace(choices, attention="eager" if family == "gemma2" else "sdpa")


if __name__ == "__main__":
    main(sys.argv[1:])
