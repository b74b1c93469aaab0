"""A tiny random model of any type, with rows and a recipe, as a job of `ftcli train`.

Sizes are small and layers few (ftcli.training.smoke.tiny_config); the tokenizer reads bytes.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerFast

from ftcli.config.loader import load_recipe
from ftcli.data.tokenizing.tokenize import prepare
from ftcli.models.architectures.find import find_architecture
from ftcli.models.architectures.model_class import model_class
from ftcli.models.device import hardware_for
from ftcli.models.load import load_renderer
from ftcli.runs.folder import RunFolder
from ftcli.runs.signals import StopSignals
from ftcli.training.job import BaseModel, TrainJob, TrainResult
from ftcli.training.plan.decide import make_plan
from ftcli.training.plan.plan import RowStatistics
from ftcli.training.smoke.tiny_config import Short, tiny_values
from ftcli.training.train import train
from scripts.model_defaults import DEFAULTS

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"mode": "lora", "rank": 8},
    "qlora": {"mode": "qlora", "rank": 8},
    "full": {"mode": "full"},
    "bottleneck": {"mode": "bottleneck", "bottleneck": 16},
    "prefix-tuning": {"mode": "prefix-tuning", "virtual_tokens": 4},
    "prompt-tuning": {"mode": "prompt-tuning", "virtual_tokens": 4},
}
RATES = {"full": 3e-3, "prefix-tuning": 1e-1, "prompt-tuning": 3e-1}
RATE = 2e-2
STEPS, STOPPED_AT = 4, 1
BATCH, MICRO_BATCH = 8, 4
ROWS, NEW_TOKENS = 24, 6

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content']"
    " + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SHORT = Short(vocab=320, window=16, layers=2)
# Far from zero, so that a wrong mask or position shows.
INITIAL_STD = 0.1


class Silent:
    """A reporter that prints nothing; `on_step` gets the number of each step."""

    def __init__(self, on_step: Callable[[int], None] = lambda _: None) -> None:
        self.on_step = on_step
        self.is_step = False

    def note(self, text: str) -> None:
        """Drop notes."""

    def warn(self, text: str) -> None:
        """Drop warnings."""

    @contextmanager
    def meter(self, label: str, total: int) -> Iterator[Any]:
        before, self.is_step = self.is_step, label == "step"
        yield self
        self.is_step = before

    def update(self, done: int, figures: str = "") -> None:
        if self.is_step:
            self.on_step(done)


def tiny_config_of(model_type: str) -> Any:
    """A small config of a type; raises what transformers raises for defaults of no model."""
    defaults = DEFAULTS.get(model_type, {})
    config = AutoConfig.for_model(model_type, **defaults)
    known = config.to_dict()
    values = _with_wide_weights(tiny_values(known, known, short=SHORT))
    values |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return type(config).from_dict(values)


def _with_wide_weights(values: Mapping[str, Any]) -> dict[str, Any]:
    """The config with larger initial weights, also in configs in it."""
    wide = {
        key: _with_wide_weights(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
    }
    for key in ("initializer_range", "init_std"):
        if key in wide:
            wide[key] = INITIAL_STD
    return wide


def write_model(config: Any, folder: Path) -> PreTrainedModel:
    """Write a random model and its tokenizer."""
    torch.manual_seed(0)
    model: PreTrainedModel = model_class(config).from_config(config, dtype=torch.float32)
    for (
        weight
    ) in model.parameters():  # zeros, as of some scales, would hide the weights before them
        if not weight.any():
            torch.nn.init.normal_(weight, std=INITIAL_STD)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return model


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are bytes, with ChatML."""
    controls = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokens = [*controls, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(controls))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=controls[2], pad_token=controls[0]
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def write_recipe(folder: Path, method: str, slower: int = 1) -> Path:
    """A recipe for the model in the folder; every run of it takes the same steps, at so many times
    less than the method's learning rate."""
    rows = folder / "rows.jsonl"
    if not rows.is_file():
        lines = [{"prompt": f"{n} " * (n % 5 + 1), "completion": "yes"} for n in range(ROWS)]
        rows.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    name = f"{method}-{slower}"
    values = {
        "name": name,
        "model": {"id": str(folder / "model")},
        "method": METHODS[method],
        "data": {"train": str(rows), "validation": 0.2, "test": 0, "allow_overlap": True},
        "training": {
            "max_steps": STEPS,
            "batch_size": BATCH,
            "micro_batch_size": MICRO_BATCH,
            "learning_rate": RATES.get(method, RATE) / slower,
            "lr_scheduler": "constant",
            "packing": False,
            "precision": "fp32",
            "gradient_checkpointing": False,
            "eval_steps": STEPS,
            "save_steps": STEPS,
        },
        "output": str(folder / "runs" / name),
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return file


def job_of(recipe_file: Path, run: RunFolder | None = None) -> TrainJob:
    """The job that `ftcli train` would make, in a folder of its own if one is given."""
    loaded = load_recipe(recipe_file)
    recipe = loaded.recipe
    run = run or RunFolder(recipe.run_dir)
    run.path.mkdir(parents=True, exist_ok=True)
    source = recipe.model.id
    renderer = load_renderer(recipe, source)
    dataset = prepare(recipe, renderer, run.data, Silent())
    hardware, architecture = hardware_for(recipe), find_architecture(source)
    base = BaseModel(source, None, architecture, renderer, hardware)
    plan = make_plan(recipe, architecture, RowStatistics.of(dataset), hardware)
    return TrainJob(recipe, recipe_file, base, dataset, plan, run)


def train_job(job: TrainJob, stop_at: int | None = None) -> TrainResult:
    """Train, and stop as after a signal; raises KeyboardInterrupt then."""
    stops = StopSignals(lambda _: None)

    def stop(step: int) -> None:
        if step == stop_at:
            stops.number = signal.SIGTERM

    return train(job, stops, Silent(stop))
