"""Which learning-rate schedule, warm-up and row order learn most in one budget of steps?

Trains the same rows with the same seeds under each setting, and reads the held-out loss behind the
last step. Finished trainings are kept in the output file, so that the study can be interrupted.

    python scripts/schedules.py --model models/SmolLM2-135M-Instruct --data ../shared/data \\
        --output docs/data/schedules.csv
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from kept_rows import append, read

from ftcli.cli.train import train_recipe
from ftcli.console import Terminal

DATA = ("ecommerce_retail_demo", "sql_wikisql_large", "instruct_dolly_short")
SEEDS = (1, 2, 3)
HELD_OUT_ROWS = 64


@dataclass(frozen=True)
class Setting:
    """What is compared: how the rate falls, how it rises, and in which order rows come."""

    scheduler: str
    warmup_ratio: float
    shuffle: bool


# The first is the default of TRL 1.16; the second was ftcli's.
SETTINGS = (
    Setting("linear", 0.0, True),
    Setting("cosine", 0.03, True),
    Setting("linear", 0.0, False),
)


@dataclass(frozen=True)
class Length:
    """How long a training is; four rows a step."""

    rows: int
    epochs: int


# Trained with the first two settings, the first data and seed: does any of them need a warm-up?
OTHERS = (
    ("lora", "2e-3"),
    ("full", "auto"),
    ("prefix", "auto"),
)
LENGTHS = {"short": Length(64, 1), "long": Length(96, 2)}
BATCH = 4


@dataclass(frozen=True)
class Training:
    """One training and what it came to; losses are held-out, per label token."""

    method: str
    rate: str
    data: str
    length: str
    scheduler: str
    warmup_ratio: str
    shuffle: str
    seed: str
    steps: str = ""
    first_loss: str = ""
    loss: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        return tuple(asdict(self).values())[:8]


def main() -> None:
    arguments = _arguments()
    done = {training.key for training in read(arguments.output, Training)}
    for wanted in _wanted(arguments):
        if wanted.key not in done:
            found = _train(wanted, arguments.model.absolute(), arguments.data.absolute())
            append(arguments.output, found)
            print(" ".join(asdict(found).values()), flush=True)


def _wanted(arguments: argparse.Namespace) -> Iterator[Training]:
    """Settings are outermost: an interrupted study lacks the last ones, and those wholly."""
    for length in arguments.lengths:
        for setting, seed, data in itertools.product(SETTINGS, SEEDS, DATA):
            yield _training("lora", "auto", data, length, setting, seed)
    if "short" in arguments.lengths:
        for (method, rate), setting in itertools.product(OTHERS, SETTINGS[:2]):
            yield _training(method, rate, DATA[0], "short", setting, SEEDS[0])


def _training(
    method: str, rate: str, data: str, length: str, setting: Setting, seed: int
) -> Training:
    values = {name: str(value) for name, value in asdict(setting).items()}
    return Training(method, rate, data, length, seed=str(seed), **values)


def _train(wanted: Training, model: Path, data: Path) -> Training:
    length = LENGTHS[wanted.length]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (data / wanted.data / "train.jsonl").open(encoding="utf-8") as file:
            lines = list(itertools.islice(file, length.rows + HELD_OUT_ROWS))
        (folder / "train.jsonl").write_text("".join(lines[: length.rows]), encoding="utf-8")
        (folder / "held_out.jsonl").write_text("".join(lines[length.rows :]), encoding="utf-8")
        recipe = folder / "recipe.yaml"
        recipe.write_text(
            f"name: study\nmodel: {{id: {model}}}\nmethod: {{mode: {wanted.method}}}\n"
            "data: {train: train.jsonl, validation: held_out.jsonl, deduplicate: false,"
            f" shuffle: {wanted.shuffle.lower()}}}\n"
            f"training: {{epochs: {length.epochs}, batch_size: {BATCH},"
            f" learning_rate: {wanted.rate},"
            f" scheduler: {wanted.scheduler}, warmup_ratio: {wanted.warmup_ratio},"
            f" seed: {wanted.seed}, eval_steps: 100000}}\n"
            "generation: {max_new_tokens: 1}\n",
            encoding="utf-8",
        )
        found = train_recipe(recipe, (), fresh=False, init_from=None, reporter=Terminal())
        losses = _eval_losses(found.run.metrics)
        steps = found.report["steps"]
    values = {"steps": str(steps), "first_loss": f"{losses[0]:.4f}", "loss": f"{losses[steps]:.4f}"}
    return Training(**(asdict(wanted) | values))


def _eval_losses(metrics: Path) -> dict[int, float]:
    records = map(json.loads, metrics.read_text(encoding="utf-8").splitlines())
    return {record["step"]: record["eval_loss"] for record in records if "eval_loss" in record}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--lengths", nargs="+", choices=list(LENGTHS), default=list(LENGTHS))
    return parser.parse_args()


if __name__ == "__main__":
    main()
