"""`ftcli estimate-vram [RECIPE]`."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ftcli.cli import options
from ftcli.console import gigabytes, result, result_json, width
from ftcli.hardware import find_card

if TYPE_CHECKING:
    from ftcli.stages.estimate import EstimateResult


LABELS = {
    "weights": "weights",
    "quantization": "quantisation constants",
    "adapter": "adapter",
    "gradients": "gradients",
    "optimizer": "optimizer states",
    "activations": "activations",
    "logits": "logits and loss",
    "workspace": "workspace",
    "context": "CUDA context",
}
MODES = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA"}
# Too small to be worth a line.
LEAST_BYTES = 5e6


def estimate_vram(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="A recipe; without one, --model.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="M", help="An alias (7b, qwen2.5-7b), a hub id, a config.json."),
    ] = None,
    mode: Annotated[
        Literal["full", "lora", "qlora"] | None, typer.Option(help="How to train.")
    ] = None,
    seq_len: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Tokens of the longest row.")
    ] = None,
    micro_batch: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Rows that go through at once.")
    ] = None,
    rank: Annotated[int | None, typer.Option(min=1, metavar="R", help="LoRA's rank.")] = None,
    targets: Annotated[
        str | None, typer.Option(metavar="LIST", help="all-linear, or names with commas.")
    ] = None,
    optimizer: Annotated[
        Literal["adamw", "adamw-8bit", "paged-adamw-8bit", "sgd"] | None,
        typer.Option(help="The optimizer."),
    ] = None,
    precision: Annotated[
        Literal["bf16", "fp16", "fp32", "pure-bf16"] | None,
        typer.Option(help="bf16 and fp16 are mixed precision."),
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None, typer.Option("--gradient-checkpointing/--no-gradient-checkpointing")
    ] = None,
    attention: Annotated[
        Literal["flash", "sdpa", "eager"] | None, typer.Option(help="The attention kernel.")
    ] = None,
    loss: Annotated[
        Literal["chunked", "full"] | None,
        typer.Option(help="full: all logits at once, as older stacks do."),
    ] = None,
    packing: Annotated[
        bool | None, typer.Option("--packing/--no-packing", help="Several rows in one sequence.")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(metavar="CARD", help="A card (4090, 3060) or a size (24GB).")
    ] = None,
    overrides: options.Overrides = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Estimate the memory of a training.

    Arithmetic only: needs no weights, and no network for known models. What a recipe leaves open
    (micro-batch, checkpointing) is taken at its smallest.
    """
    from ftcli.stages.estimate import estimate_memory

    flags = {
        "mode": mode,
        "seq_len": seq_len,
        "micro_batch": micro_batch,
        "rank": rank,
        "targets": _targets(targets),
        "optimizer": optimizer,
        "precision": precision,
        "gradient_checkpointing": gradient_checkpointing,
        "attention": attention,
        "loss": loss,
        "packing": packing,
    }
    given = {name: value for name, value in flags.items() if value is not None}
    card = find_card(gpu) if gpu is not None else None
    found = estimate_memory(recipe, overrides or [], model, given, card)
    if json:
        result_json(found.as_json())
    else:
        _show(found)


def _targets(text: str | None) -> str | tuple[str, ...] | None:
    if text is None or text == "all-linear":
        return text
    return tuple(name.strip() for name in text.split(","))


def _show(found: EstimateResult) -> None:
    estimate, choices = found.estimate, found.choices
    rows = f"micro-batch {choices.micro_batch} × {choices.seq_len} tokens"
    _wrapped(f"{_what(found)}, {rows}", "  ")
    items = [(LABELS[k], size) for k, size in estimate.breakdown.items() if size >= LEAST_BYTES]
    bar = max(10, width() - 42)
    largest = max(size for _, size in items)
    for label, size in items:
        result(f"  {label:<24}{gigabytes(size):>9}  {'█' * max(1, round(bar * size / largest))}")
    result(f"peak {gigabytes(estimate.peak_bytes)}, at the {estimate.peak_phase}")
    result(f"on the card {gigabytes(estimate.device_bytes)} (allocator's reserve and context)")
    _wrapped(_fits(found), "      ")
    if found.textbook:
        result("\nTextbook figures for full fine-tuning, before activations:")
        for figure in found.textbook:
            start = f"  {figure.label:<24}{gigabytes(figure.total_bytes):>9}  "
            _wrapped(start + figure.why, " " * len(start))


def _wrapped(text: str, indent: str) -> None:
    for line in textwrap.wrap(text, width(), subsequent_indent=indent):
        result(line)


def _what(found: EstimateResult) -> str:
    estimate, choices = found.estimate, found.choices
    size = f"{found.shape.name} ({estimate.total_parameters / 1e9:.2f} B parameters)"
    if choices.mode == "full":
        return f"{size}, full fine-tuning in {choices.precision}"
    share = estimate.trainable_parameters / estimate.total_parameters
    return f"{size}, {MODES[choices.mode]} r={choices.rank} ({share:.2%} trained)"


def _fits(found: EstimateResult) -> str:
    if found.card is not None:
        verdict = "fits" if found.fits_card else "does not fit"
        return f"{verdict}: {found.card.name} ({gigabytes(found.card.usable_bytes)} usable)"
    cards = [name for name, fits in found.estimate.fits.items() if fits]
    return f"fits: {', '.join(cards)}" if cards else "fits no single card that is known here"
