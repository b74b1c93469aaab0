"""Time an optimizer step while optimisations are added one by one, and compare the last with the
machine's speed in matrix products.

    python -m scripts.bench_optimizations --model models/SmolLM2-135M-Instruct [--data rows.jsonl]
    python -m scripts.bench_optimizations --model … --instruction 1000

Rows are {"prompt", "completion"}. `--instruction` puts the same N words before each. Prints JSON:
for each variant the median ratio of its seconds to the plain path's, the largest difference of a
step's loss, and the share of the limit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from ftcli.config.loader import load_recipe
from ftcli.console import Terminal
from ftcli.data.tokenizing.prefix_tree import build_prefix_tree
from ftcli.data.tokenizing.rendering import IGNORED
from ftcli.data.tokenizing.tokenize import prepare
from ftcli.kernels.lora import fuse_lora
from ftcli.models.batches import Row
from ftcli.runs.folder import RunFolder
from ftcli.training.building import build_trainer
from ftcli.training.collators import Collator, PackingCollator, PaddingCollator
from ftcli.training.job import TrainJob, open_model
from ftcli.training.plan.decide import make_plan
from ftcli.training.plan.plan import RowStatistics
from ftcli.training.trainer import FtcliTrainer
from scripts.machine import product_seconds, this_machine

SHIPPED = Path("recipes/data/shop/train.jsonl")
BATCH, ROWS_AT_ONCE = 16, 4
WAYS = ["plain", "loss on labels", "packed", "shared prefix", "one node"]
Step = Callable[[list[int]], float]


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(arguments, Path(folder))
    windows = [trainer.data.sampler[step] for step in range(arguments.steps + 1)]
    ways = {name: way for name, way in _ways(trainer).items() if name in arguments.ways}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    losses: dict[str, list[float]] = {name: [] for name in ways}
    limits: list[float] = []
    for number, window in enumerate(windows):
        for name, way in ways.items():
            started = time.perf_counter()
            loss = way(window)
            taken = time.perf_counter() - started
            trainer.zero_grad()
            if number:  # the first warms up
                seconds[name].append(taken)
                losses[name].append(loss)
                print(f"{name}: {taken:.2f} s, loss {loss:.5f}", file=sys.stderr, flush=True)
        if number:  # right after the fastest variant: other programs share the machine
            limits.append(_limit(trainer))
    found = _result(trainer, arguments, seconds, losses) | {"machine": this_machine()}
    print(json.dumps(found | _share(trainer, arguments, windows[1:], seconds, limits), indent=2))


def step_parser(description: str | None) -> argparse.ArgumentParser:
    """Inputs of `build` and of a number of steps."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=SHIPPED)
    parser.add_argument("--mode", choices=["lora", "qlora", "full"], default="lora")
    parser.add_argument("--steps", type=int, default=3)
    return parser


def _arguments() -> argparse.Namespace:
    parser = step_parser(__doc__)
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--instruction", type=int, default=0, help="words before each prompt")
    return parser.parse_args()


def build(arguments: argparse.Namespace, work: Path) -> FtcliTrainer:
    """The trainer of `ftcli train`, with every optimisation."""
    count = BATCH * (arguments.steps + 1)
    instruction = "Follow these notes. " + "be brief and name the price " * 400
    with arguments.data.open() as lines, (work / "rows.jsonl").open("w") as file:
        for pair in map(json.loads, islice(lines, count)):
            words = instruction.split()[: arguments.instruction]
            prompt = " ".join([*words, pair["prompt"]])
            file.write(json.dumps({"prompt": prompt, "completion": pair["completion"]}) + "\n")
    recipe = {
        "name": "optimizations",
        "model": {"id": str(arguments.model.absolute())},
        "method": {"mode": arguments.mode},
        "data": {"train": "rows.jsonl", "validation": 0, "shuffle": False, "max_length": 4096},
        "training": {"epochs": 1, "batch_size": BATCH, "optimizations": "auto"},
    }
    (work / "recipe.yaml").write_text(json.dumps(recipe))
    loaded = load_recipe(work / "recipe.yaml")
    model = open_model(loaded.recipe)
    run = RunFolder(work / "run")
    prepared = prepare(loaded.recipe, model.renderer, run.data, Terminal())
    plan = make_plan(loaded.recipe, model.architecture, RowStatistics.of(prepared), model.hardware)
    job = TrainJob(loaded.recipe, loaded.path, model, prepared, plan, run)
    trainer = build_trainer(job)
    trainer.model.train()
    return trainer


def _ways(trainer: FtcliTrainer) -> dict[str, Step]:
    planned = trainer.collator
    assert isinstance(planned, PackingCollator)
    padded = PaddingCollator(trainer.data.pad_id)
    ways: dict[str, Step] = {
        "plain": lambda window: _with_all_logits(trainer, window),
        "loss on labels": lambda window: _batches(trainer, window, padded),
        "packed": lambda window: _batches(
            trainer, window, PackingCollator(planned.tokens, planned.rows, share_prefix=False)
        ),
        "shared prefix": lambda window: _batches(trainer, window, planned),
    }
    if hasattr(trainer.model, "peft_config"):
        ways["one node"] = lambda window: _batches(trainer, window, planned, fuse_lora)
    return ways


def _batches(
    trainer: FtcliTrainer,
    window: list[int],
    collator: Collator,
    *switches: Callable[[Any], int],
) -> float:
    """Our own step; without optimisations, with PEFT's and transformers' own forward."""
    _unfuse(trainer.model)
    for switch in switches:
        switch(trainer.model)
    trainer.collator = collator
    most = ROWS_AT_ONCE if isinstance(collator, PaddingCollator) else BATCH
    examples = trainer.data.train.read(window)
    return float(
        trainer.forward_backward(trainer.split_micro_batches(examples, most), "a benchmark")
    )


def _unfuse(model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "lora_A") or type(module).__name__.endswith("RMSNorm"):
            module.__dict__.pop("forward", None)


def _with_all_logits(trainer: FtcliTrainer, window: list[int]) -> float:
    """transformers and PEFT on padded rows with a mask, and cross entropy of all logits."""
    _unfuse(trainer.model)
    rows: list[Row] = [trainer.data.train.dataset[row] for row in window]
    labelled = sum(label != IGNORED for row in rows for label in row["labels"][1:])
    total = 0.0
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[start : start + ROWS_AT_ONCE]
        longest = max(len(row["input_ids"]) for row in some)
        device = trainer.args.device
        ids = torch.zeros((len(some), longest), dtype=torch.long, device=device)
        labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
        for place, row in enumerate(some):
            length = len(row["input_ids"])
            ids[place, :length] = torch.as_tensor(row["input_ids"])
            labels[place, :length] = torch.as_tensor(row["labels"])
            mask[place, :length] = 1
        with trainer.compute_loss_context_manager():
            logits = trainer.model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
        loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
        (loss / labelled).backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach()) / labelled
    return total


def _result(
    trainer: FtcliTrainer,
    arguments: argparse.Namespace,
    seconds: dict[str, list[float]],
    losses: dict[str, list[float]],
) -> dict[str, Any]:
    plain = seconds["plain"]
    return {
        "mode": arguments.mode,
        "instruction_words": arguments.instruction,
        "steps": arguments.steps,
        "precision": str(trainer.accelerator.mixed_precision),
        "seconds_a_step": {name: statistics.median(taken) for name, taken in seconds.items()},
        "times_faster_than_plain": {
            name: statistics.median(a / b for a, b in zip(plain, taken, strict=True))
            for name, taken in seconds.items()
        },
        "largest_loss_difference": {
            name: max(abs(a - b) for a, b in zip(losses["plain"], found, strict=True))
            for name, found in losses.items()
        },
    }


def _share(
    trainer: FtcliTrainer,
    arguments: argparse.Namespace,
    windows: list[list[int]],
    seconds: dict[str, list[float]],
    limits: list[float],
) -> dict[str, float]:
    """The last variant's FLOP/s next to the machine's."""
    last = seconds[list(seconds)[-1]]
    needed = [_needed_flops(trainer, window, arguments.mode) for window in windows]

    def share(flops: list[float]) -> float:
        each = zip(flops, last, limits, strict=True)
        return statistics.median(needed / taken / limit for needed, taken, limit in each)

    return {
        "limit_tflops": statistics.median(limits) / 1e12,
        "share_of_limit": share([base for base, _ in needed]),
        "share_of_limit_of_all_products": share([base + rest for base, rest in needed]),
    }


def _matrices(trainer: FtcliTrainer) -> list[tuple[int, int]]:
    """(in, out) of each linear layer of the base, without the head."""
    head = trainer.model.get_output_embeddings()
    layers = [
        module
        for name, module in trainer.model.named_modules()
        if hasattr(module, "in_features")
        and module is not head
        and "lora_" not in name
        and not hasattr(module, "lora_A")
    ]
    return [(int(layer.in_features), int(layer.out_features)) for layer in layers]


def _needed_flops(trainer: FtcliTrainer, window: list[int], mode: str) -> tuple[float, float]:
    """FLOP of the products that a step needs, forward and backward: with the base's
    weights (of each token that is computed, and of the head for each label); with A and B, and of
    queries with the keys and values that they see.

    Model FLOPs of PaLM's appendix B (Chowdhery et al. 2022), without keys after a query, repeated
    shared tokens, and gradients of frozen weights.
    """
    examples = {example["row"]: example for example in trainer.data.train.read(window)}
    parts = trainer.split_micro_batches(list(examples.values()), BATCH)
    batches = [part.inputs for part in parts]
    tokens = sum(batch.input_ids.numel() for batch in batches)
    labels = sum(batch.label_count for batch in batches)
    head = int(trainer.model.get_output_embeddings().weight.numel())
    passes = 3 if mode == "full" else 2
    layers = sum(inputs * outputs for inputs, outputs in _matrices(trainer))
    updates = sum(
        weight.numel() for name, weight in trainer.model.named_parameters() if "lora_" in name
    )
    architecture = trainer.architecture
    share = isinstance(trainer.collator, PackingCollator) and trainer.collator.share_prefix
    seen = sum(
        _seen_keys([examples[row]["input_ids"] for row in part.rows], share) for part in parts
    )
    heads = sum(
        len(kind.layers) * call.heads * call.key_width
        for kind in architecture.kinds
        for call in kind.attention
    )
    attention = 3 * 2 * seen * heads
    base = 2.0 * passes * (tokens * layers + labels * head)
    return base, 2.0 * (3 * tokens * updates + attention)


def _seen_keys(rows: list[list[int]], share: bool) -> int:
    """Keys that the tokens of a micro-batch attend to, including themselves."""
    sizes = [
        (each.end - each.start, each.position)
        for each in build_prefix_tree(rows, share=share).segments
    ]
    return sum(size * before + size * (size + 1) // 2 for size, before in sizes)


def _limit(trainer: FtcliTrainer, tokens: int = 1024) -> float:
    """FLOP/s of products of the layers' shapes, in the dtype of the training."""
    mixed = str(trainer.accelerator.mixed_precision)
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(mixed, torch.float32)
    flops, taken = 0.0, 0.0
    for inputs, outputs in sorted(set(_matrices(trainer))):
        count = _matrices(trainer).count((inputs, outputs))
        flops += count * 2.0 * tokens * inputs * outputs
        taken += count * product_seconds(tokens, inputs, outputs, kind, trainer.args.device, 12)
    return flops / taken


if __name__ == "__main__":
    main()
