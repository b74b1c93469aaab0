"""Flags of `estimate-vram` that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ftcli.errors import UsageError
from ftcli.memory import Choices
from ftcli.memory.architecture import Architecture
from ftcli.memory.choices import (
    MODE_NAMES,
    Mode,
    why_no_checkpointing,
    why_no_embedding_offload,
    why_no_tiles,
)
from ftcli.memory.fit.limits import Size

LORA: tuple[Mode, ...] = ("lora", "qlora")

# Field of Choices → the modes that have it, and its meaning.
_ONLY_IN: dict[str, tuple[tuple[Mode, ...], str]] = {
    "rank": (LORA, "the inner width of LoRA's update"),
    "target_modules": (LORA, "the modules that get a LoRA update"),
    "dora": (LORA, "LoRA with a trained magnitude"),
    "modules_to_save": (LORA, "modules trained in full next to LoRA's updates"),
    "bottleneck": (("bottleneck",), "the inner width of a bottleneck adapter"),
    "placement": (("bottleneck",), "the blocks that get a bottleneck adapter"),
    "virtual_tokens": (("prefix-tuning", "prompt-tuning"), "the number of trained positions"),
    "projection": (("prefix-tuning",), "the MLP that makes a prefix"),
}
# Mode, and whether the flag asks for a 4-bit base → the error.
_BASES: dict[tuple[Mode, bool], str] = {
    ("full", True): "--four-bit-base: 4-bit weights cannot be trained: take --mode qlora",
    ("lora", True): "--four-bit-base: LoRA on a 4-bit base is a mode: take --mode qlora",
    ("qlora", False): "--no-four-bit-base: QLoRA on a 16-bit base is a mode: take --mode lora",
}


def require_consistent(
    given: Mapping[str, Any], choices: Choices, architecture: Architecture
) -> None:
    """Raise UsageError (`flag`) with every flag that has no effect or contradicts another."""
    found = [*_unused(given, choices.mode), *_impossible(given, choices, architecture)]
    if found:
        raise UsageError("flag", "\n".join(found))


def _unused(given: Mapping[str, Any], mode: Mode) -> Iterator[str]:
    for name, (modes, what) in _ONLY_IN.items():
        if given.get(name) and mode not in modes:
            wanted = " or ".join(f"--mode {each}" for each in modes)
            flag = f"--{name.replace('_', '-')}"
            yield f"{flag}: {what}, and {MODE_NAMES[mode]} has none: leave it out, or take {wanted}"


def _impossible(
    given: Mapping[str, Any], choices: Choices, architecture: Architecture
) -> Iterator[str]:
    if "four_bit_base" in given and (choices.mode, given["four_bit_base"]) in _BASES:
        yield _BASES[choices.mode, given["four_bit_base"]]
    asked = {"mode", "precision", "four_bit_base"} & set(given)
    if asked and choices.quantization == "nf4" and choices.precision == "fp32":
        yield _computes_in_16_bits(choices)
    why = why_no_checkpointing(choices.mode, architecture)
    if given.get("gradient_checkpointing") and why is not None:
        yield f"--gradient-checkpointing: {why}: take --no-gradient-checkpointing"
    yield from _not_spared(given, choices, architecture)


def _not_spared(
    given: Mapping[str, Any], choices: Choices, architecture: Architecture
) -> Iterator[str]:
    """Flags that save memory in a way that this training does not have."""
    if given.get("activation_offload") and not choices.checkpointing:
        why = why_no_checkpointing(choices.mode, architecture)
        remedy = f"{why}: take --no-activation-offload" if why else "turn that on"
        yield f"--activation-offload keeps what gradient checkpointing keeps: {remedy}"
    if given.get("embedding_offload"):
        ends = why_no_embedding_offload(choices, architecture)
        if ends is not None:
            yield f"--embedding-offload: {ends}: take --no-embedding-offload"
    if given.get("tiled_mlp"):
        if (why := why_no_tiles(choices.mode, architecture)) is not None:
            yield f"--tiled-mlp: {why}: take --no-tiled-mlp"
        elif not choices.checkpointing:
            yield "--tiled-mlp goes with gradient checkpointing: turn that on"


def _computes_in_16_bits(choices: Choices) -> str:
    """The head and trained weights keep their type; only linear layers are in 4 bits."""
    name, instead = MODE_NAMES[choices.mode], "--no-four-bit-base"
    if choices.mode == "qlora":
        instead = "--mode lora"
    else:
        name += " with --four-bit-base"
    return (
        f"--precision fp32: {name} has the base in 4 bits, computes in 16 bits, and trains in "
        f"fp32: take --precision bf16 (fp16 on GPUs before RTX 30), or {instead} for fp32 weights"
    )


def require_size(size: Size, choices: Choices, flag: str) -> None:
    """Raise UsageError for a size that the mode does not have."""
    if size == "rank" and choices.mode not in LORA:
        raise UsageError(
            "flag", f"{flag} rank: {MODE_NAMES[choices.mode]} has none: take --mode lora"
        )


def require_trainable(choices: Choices, flag: str) -> None:
    """Raise UsageError for choices that `ftcli train` does not support."""
    untrainable = {"--loss full": choices.loss == "full", "--packing": choices.packing}
    named = [name for name, is_asked in untrainable.items() if is_asked]
    if named:
        raise UsageError(
            "flag",
            f"{flag} proposes only what `ftcli train` supports, which {', '.join(named)} is not: "
            "leave it out; --max and --sweep accept it",
        )
