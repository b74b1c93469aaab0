"""`ftcli estimate-vram [RECIPE]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ftcli.cli import options
from ftcli.console import result, result_json
from ftcli.errors import UsageError

CALIBRATE_ALONE = (
    "--calibrate compares what runs recorded, and takes neither RECIPE nor another flag but "
    "--json; every run has its own: --calibrate RUN --calibrate RUN"
)


def estimate_vram(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="A recipe; without one, --model.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="M", help="An alias (7b, qwen2.5-7b), a hub id, a config.json."),
    ] = None,
    mode: Annotated[
        Literal["full", "lora", "qlora", "adapter", "prefix", "prompt"] | None,
        typer.Option(help="How to train."),
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
    dora: Annotated[
        bool | None, typer.Option("--dora/--no-dora", help="LoRA with a trained magnitude.")
    ] = None,
    modules_to_save: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Trained whole: embed_tokens, lm_head."),
    ] = None,
    bottleneck: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Inner width of an adapter.")
    ] = None,
    placement: Annotated[
        Literal["attention", "mlp", "both"] | None,
        typer.Option(help="The blocks that get an adapter."),
    ] = None,
    virtual_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Length of a prefix or prompt.")
    ] = None,
    projection: Annotated[
        bool | None,
        typer.Option("--projection/--no-projection", help="A prefix out of a small network."),
    ] = None,
    four_bit_base: Annotated[
        bool | None,
        typer.Option(
            "--four-bit-base/--no-four-bit-base", help="Of adapter, prefix and prompt; as QLoRA's."
        ),
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
    fit: Annotated[
        str | None,
        typer.Option(
            metavar="CARD", help="Find the cheapest changes that fit it; auto: this machine's."
        ),
    ] = None,
    write: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write RECIPE with what --fit finds.")
    ] = None,
    largest: Annotated[
        str | None,
        typer.Option("--max", metavar="SIZE", help="The largest seq-len, micro-batch or rank."),
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(metavar="SIZE=LIST", help="How memory grows: seq-len=512,1024,2048."),
    ] = None,
    calibrate: Annotated[
        list[Path] | None,
        typer.Option(metavar="RUN", help="Compare a run's memory with its estimate; repeatable."),
    ] = None,
    overrides: options.Overrides = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Estimate the memory of a training.

    Arithmetic only: needs no weights, and no network for known models. What a recipe leaves open
    (micro-batch, checkpointing) is taken at its smallest.
    """
    from ftcli.cli.estimate_view import estimate_lines
    from ftcli.training.estimate.estimate import Question, estimate_memory

    flags = {
        "mode": mode,
        "seq_len": seq_len,
        "micro_batch": micro_batch,
        "rank": rank,
        "targets": "all-linear" if targets == "all-linear" else _names(targets),
        "dora": dora,
        "modules_to_save": _names(modules_to_save),
        "bottleneck": bottleneck,
        "placement": placement,
        "virtual_tokens": virtual_tokens,
        "projection": projection,
        "four_bit_base": four_bit_base,
        "optimizer": optimizer,
        "precision": precision,
        "gradient_checkpointing": gradient_checkpointing,
        "attention": attention,
        "loss": loss,
        "packing": packing,
    }
    if calibrate:
        others = (recipe, overrides, model, gpu, fit, write, largest, sweep, *flags.values())
        if any(other is not None for other in others):
            raise UsageError("flag", CALIBRATE_ALONE)
        _calibrate(calibrate, json)
        return
    question = Question(
        recipe=recipe,
        overrides=tuple(overrides or ()),
        model=model,
        flags={name: value for name, value in flags.items() if value is not None},
        gpu=gpu,
        fit=fit,
        write=write,
        max=largest,
        sweep=sweep,
    )
    found = estimate_memory(question)
    if json:
        result_json(found.as_json())
        return
    for line in estimate_lines(found):
        result(line)


def _calibrate(runs: list[Path], json: bool) -> None:
    from ftcli.cli.calibrate_view import calibration_lines
    from ftcli.training.estimate.calibrate import calibrate_runs

    found = calibrate_runs(runs)
    if json:
        result_json(found.as_json())
        return
    for line in calibration_lines(found):
        result(line)


def _names(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    return tuple(name.strip() for name in text.split(",") if name.strip())
