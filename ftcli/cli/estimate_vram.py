"""`ftcli estimate-vram [RECIPE]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ftcli.cli import options
from ftcli.errors import UsageError

CALIBRATE_ALONE = (
    "--calibrate compares recorded runs with their estimates, and takes neither RECIPE nor another "
    "flag than --json; repeat it for several runs: --calibrate RUN --calibrate RUN"
)


def _number(metavar: str, help: str) -> Any:
    return typer.Option(min=1, metavar=metavar, help=help)


Recipe = Annotated[Path | None, typer.Argument(metavar="RECIPE", help="A recipe; or give --model.")]
Model = Annotated[
    str | None,
    typer.Option(metavar="M", help="Alias (7b, qwen2.5-7b), hub id or config.json."),
]
Mode = Annotated[
    Literal["full", "lora", "qlora", "bottleneck", "prefix-tuning", "prompt-tuning"] | None,
    typer.Option(help="The training method."),
]
MaxLength = Annotated[int | None, _number("N", "Tokens of the longest row.")]
MicroBatch = Annotated[int | None, _number("N", "Rows of a micro-batch.")]
Rank = Annotated[int | None, _number("R", "Rank of LoRA.")]
TargetModules = Annotated[
    str | None, typer.Option(metavar="LIST", help="all-linear, or names separated by commas.")
]
Dora = Annotated[bool | None, typer.Option("--dora/--no-dora", help="DoRA.")]
ModulesToSave = Annotated[
    str | None, typer.Option(metavar="LIST", help="Modules trained fully: embed_tokens, lm_head.")
]
Bottleneck = Annotated[int | None, _number("N", "Inner width of a bottleneck adapter.")]
Placement = Annotated[
    Literal["attention", "mlp", "both"] | None,
    typer.Option(help="Blocks that get a bottleneck adapter."),
]
VirtualTokens = Annotated[int | None, _number("N", "Length of the prefix or soft prompt.")]
Projection = Annotated[
    bool | None,
    typer.Option("--projection/--no-projection", help="Prefix reparametrised by an MLP."),
]
FourBitBase = Annotated[
    bool | None,
    typer.Option(
        "--four-bit-base/--no-four-bit-base",
        help="Base in NF4: bottleneck, prefix-tuning, prompt-tuning.",
    ),
]
Optimizer = Annotated[
    Literal["adamw", "adamw-8bit", "paged-adamw-8bit", "sgd"] | None,
    typer.Option(help="The optimizer."),
]
Precision = Annotated[
    Literal["bf16", "fp16", "fp32", "pure-bf16"] | None,
    typer.Option(help="bf16 and fp16 are mixed precision."),
]
Checkpointing = Annotated[
    bool | None, typer.Option("--gradient-checkpointing/--no-gradient-checkpointing")
]
Offload = Annotated[
    bool | None,
    typer.Option("--activation-offload/--no-activation-offload", help="Hidden states in RAM."),
]
Ends = Annotated[
    bool | None,
    typer.Option(
        "--embedding-offload/--no-embedding-offload", help="Frozen embeddings and head in RAM."
    ),
]
TiledMlp = Annotated[
    bool | None, typer.Option("--tiled-mlp/--no-tiled-mlp", help="MLPs on 4,096 tokens at a time.")
]
Attention = Annotated[
    Literal["flash", "sdpa", "eager"] | None, typer.Option(help="The attention kernel.")
]
Loss = Annotated[
    Literal["chunked", "full"] | None,
    typer.Option(help="full: all logits in memory, as in older stacks."),
]
Packing = Annotated[
    bool | None, typer.Option("--packing/--no-packing", help="Several rows in one sequence.")
]
Gpu = Annotated[
    str | None, typer.Option(metavar="GPU", help="A GPU (4090, 3060) or a size (24GB).")
]
Fit = Annotated[
    str | None,
    typer.Option(
        metavar="GPU", help="Find the cheapest changes that fit it; auto: this machine's GPU."
    ),
]
Write = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write RECIPE with the changes of --fit.")
]
Max = Annotated[
    str | None,
    typer.Option(
        "--max", metavar="SIZE", help="Find the largest max-length, micro-batch or rank that fits."
    ),
]
Sweep = Annotated[
    str | None,
    typer.Option(metavar="SIZE=LIST", help="Estimate several sizes: max-length=512,1024,2048."),
]
Time = Annotated[
    bool, typer.Option("--time", help="Estimate tokens per second, hours, and with a price cost.")
]
Price = Annotated[float | None, typer.Option(min=0, metavar="P", help="For --time.")]
Calibrate = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="RUN", help="Compare a run's measured memory with its estimate; repeatable."
    ),
]

# Parameters that are not inputs of the estimator.
NAMED = ("gpu", "fit", "write", "sweep", "cost_per_hour")
OTHERS = ("recipe", "overrides", "model", "largest", "time", "calibrate", *NAMED)


def estimate_vram(
    context: typer.Context,
    recipe: Recipe = None,
    model: Model = None,
    mode: Mode = None,
    max_length: MaxLength = None,
    micro_batch: MicroBatch = None,
    rank: Rank = None,
    target_modules: TargetModules = None,
    dora: Dora = None,
    modules_to_save: ModulesToSave = None,
    bottleneck: Bottleneck = None,
    placement: Placement = None,
    virtual_tokens: VirtualTokens = None,
    projection: Projection = None,
    four_bit_base: FourBitBase = None,
    optimizer: Optimizer = None,
    precision: Precision = None,
    gradient_checkpointing: Checkpointing = None,
    embedding_offload: Ends = None,
    activation_offload: Offload = None,
    tiled_mlp: TiledMlp = None,
    attention: Attention = None,
    loss: Loss = None,
    packing: Packing = None,
    gpu: Gpu = None,
    fit: Fit = None,
    write: Write = None,
    largest: Max = None,
    sweep: Sweep = None,
    time: Time = False,
    cost_per_hour: Price = None,
    calibrate: Calibrate = None,
    overrides: options.Overrides = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Estimate the memory of a training, and with --time how long it takes.

    Needs no weights, and no network for known models. With --gpu, a recipe is planned as by train;
    without, each `auto` of the recipe takes its smallest value.
    """
    from ftcli.cli.estimate_view import show_estimate
    from ftcli.training.estimate.estimate_memory import EstimateOptions, estimate_memory

    given = {
        name: _names(value) if name in ("target_modules", "modules_to_save") else value
        for name, value in context.params.items()
        if value not in (None, (), []) and name not in ("json", "debug")
        if name != "time" or value
    }
    if calibrate:
        _compare_runs(calibrate, given, json=json)
        return
    flags = {name: value for name, value in given.items() if name not in OTHERS}
    others: dict[str, Any] = {name: given[name] for name in NAMED if name in given}
    question = EstimateOptions(
        recipe, tuple(overrides or ()), model, flags, max=largest, time=time, **others
    )
    options.print_found(estimate_memory(question), show_estimate, json=json)


def _compare_runs(runs: list[Path], given: dict[str, Any], *, json: bool) -> None:
    from ftcli.cli.estimate_view import show_calibration
    from ftcli.training.estimate.calibrate import calibrate_runs

    if given.keys() != {"calibrate"}:
        raise UsageError("flag", CALIBRATE_ALONE)
    options.print_found(calibrate_runs(runs), show_calibration, json=json)


def _names(text: str) -> str | tuple[str, ...]:
    if text == "all-linear":
        return text
    return tuple(name.strip() for name in text.split(",") if name.strip())
