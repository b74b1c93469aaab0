"""Flags of `estimate-vram` that cannot be meant together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ftcli.errors import UsageError
from ftcli.fit.limits import Size
from ftcli.vram import Choices
from ftcli.vram.choices import MODE_NAMES, Mode

LORA: tuple[Mode, ...] = ("lora", "qlora")
TRAINED: tuple[Mode, ...] = ("full", *LORA)
WITHOUT_FULL: tuple[Mode, ...] = ("lora", "qlora", "adapter", "prefix", "prompt")

# Field of Choices → the modes in which its flag says anything, and what it is.
_ONLY_IN: dict[str, tuple[tuple[Mode, ...], str]] = {
    "rank": (LORA, "the inner width of LoRA's update"),
    "targets": (LORA, "the modules that get a LoRA update"),
    "dora": (LORA, "a kind of LoRA with a trained magnitude"),
    "modules_to_save": (WITHOUT_FULL, "modules trained whole beside an adapter"),
    "bottleneck": (("adapter",), "the inner width of a bottleneck adapter"),
    "virtual_tokens": (("prefix", "prompt"), "the number of trained positions"),
    "projection": (("prefix",), "the network that a prefix may come out of"),
}
# The head and the modules to save keep their type, and the linear layers are 4-bit in any case.
_QLORA_COMPUTES_IN_16_BITS = (
    "--precision fp32: QLoRA holds the base in 4 bits and dequantises it to the 16-bit type it "
    "computes in, with its adapters in fp32: take --precision bf16 (fp16 on cards before RTX 30), "
    "or --mode lora for fp32 weights"
)


def require_consistent(given: Mapping[str, Any], choices: Choices) -> None:
    """Raise UsageError (`flag`) with every flag given that the choices have no use for."""
    found = [*_unused(given, choices.mode), *_impossible(given, choices)]
    if found:
        raise UsageError("flag", "\n".join(found))


def _unused(given: Mapping[str, Any], mode: Mode) -> Iterator[str]:
    for name, (modes, what) in _ONLY_IN.items():
        if given.get(name) and mode not in modes:
            wanted = " or ".join(f"--mode {each}" for each in modes)
            flag = f"--{name.replace('_', '-')}"
            yield f"{flag}: {what}, and {MODE_NAMES[mode]} has none: leave it out, or take {wanted}"


def _impossible(given: Mapping[str, Any], choices: Choices) -> Iterator[str]:
    if given.get("targets") == ():
        yield "--targets: no module is named: take all-linear, or names such as q_proj,v_proj"
    asked = {"mode", "precision"} & set(given)
    if asked and choices.mode == "qlora" and choices.precision == "fp32":
        yield _QLORA_COMPUTES_IN_16_BITS
    if given.get("gradient_checkpointing") and choices.mode == "prefix":
        yield (
            "--gradient-checkpointing: PEFT refuses it for prefix tuning, whose keys and values "
            "come from outside the layers: take --no-gradient-checkpointing"
        )


def require_size(size: Size, choices: Choices, flag: str) -> None:
    """Raise UsageError where the size is none of this mode's."""
    if size == "rank" and choices.mode not in LORA:
        raise UsageError(
            "flag", f"{flag} rank: {MODE_NAMES[choices.mode]} has none: take --mode lora"
        )


def require_trainable(choices: Choices, flag: str) -> None:
    """Raise UsageError where `ftcli train` carries nothing of the kind out."""
    beyond = {
        f"--mode {choices.mode}": choices.mode not in TRAINED,
        "--dora": choices.dora,
        "--modules-to-save": bool(choices.modules_to_save),
        "--loss full": choices.loss == "full",
        "--packing": choices.packing,
    }
    named = [name for name, is_beyond in beyond.items() if is_beyond]
    if named:
        raise UsageError(
            "flag",
            f"{flag} proposes what `ftcli train` carries out, and {', '.join(named)} is estimated "
            "by formula alone: leave it out; --max and --sweep take it",
        )
