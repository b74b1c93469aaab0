"""How the bench starts other trainers: its settings in the words of each, one function a program.

LoRA r=16, alpha 32, dropout 0, all linear layers (QLoRA: over NF4, double quantisation; full: every
weight); learning rate 2e-4 (full: 2e-5), cosine after a warm-up of 3%, effective batch 16, one
epoch, no weight decay, loss on answers only, no validation, seed 42.

What cannot be made equal: TRL and LLaMA-Factory also train on the line break that ChatML writes
behind the end token of an answer (one label a row); litgpt clips no gradients, weighs the
micro-batches of a step alike, and merges its adapter into a whole model before it ends.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from ftcli.memory.hardware import Hardware

RANK, ALPHA, BATCH, WARM_UP, SEED = 16, 32, 16, 0.03, 42
MODES = ("lora", "qlora", "full")

# No look-ups on the network, no counting of users.
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
# litgpt knows models by name, and a folder may be called anything.
LITGPT_NAME = "SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class Job:
    """One training, the same for every side."""

    model: Path
    rows: Path
    """JSONL of {"prompt", "completion"}."""
    mode: str
    precision: str
    """auto, bf16 or fp32."""
    hardware: Hardware
    folder: Path
    """What a side needs beside its output."""

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def learning_rate(self) -> float:
        return 2e-5 if self.mode == "full" else 2e-4

    @property
    def bf16(self) -> bool:
        """What a side takes whose settings are chosen for the machine."""
        return self.hardware.fast_bf16 if self.precision == "auto" else self.precision == "bf16"

    @property
    def threads(self) -> dict[str, str]:
        return {"OMP_NUM_THREADS": str(self.hardware.cores)}

    def pairs(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in self.rows.read_text().splitlines()]


@dataclass(frozen=True)
class Command:
    """What a user would type, and the variables that would be set."""

    words: list[str]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Side:
    """One way to run a peer."""

    environment: str
    """Name of its virtual environment (scripts/bench_peers.py)."""
    command: Callable[[Job, Path], Command]
    """The job and the folder of the environment's programs → the command that is timed."""
    prepare: Callable[[Job, Path], list[Command]] = lambda job, programs: []
    """Run once before it, not timed: what a user does once a model."""
    convert: Callable[[Job, Path], list[Command]] = lambda job, programs: []
    """Run after it, not timed: its weights in a form that the scorer reads."""
    modes: tuple[str, ...] = MODES


def saved_weights(job: Job) -> Path:
    """The file of the trained weights: litgpt's own after all others, then the least deep."""
    names = ["model.pth", "adapter_model.safetensors", "lit_model.pth"]
    if job.mode == "full":
        names[1:2] = ["model.safetensors", "model.safetensors.index.json"]
    found = [path for name in names for path in job.out.rglob(name)]
    if not found:
        raise SystemExit(f"no trained weights in {job.out}; see {job.folder / 'log'}")
    return min(found, key=lambda path: (names.index(path.name), len(path.parts)))


def _trl_defaults(job: Job, programs: Path) -> Command:
    """Its own defaults for all that is no setting: micro-batch 8, checkpointing, bf16 autocast."""
    words = _trl_words(job, programs, micro_batch=8)
    if job.precision != "auto":
        words += ["--bf16", str(job.bf16)]
    return Command(words)


def _trl_defaults_threads(job: Job, programs: Path) -> Command:
    """Its launcher leaves one thread to who does not say otherwise."""
    return Command(_trl_defaults(job, programs).words, job.threads)


def _trl_best(job: Job, programs: Path) -> Command:
    words = _trl_words(job, programs, micro_batch=4)
    words += ["--bf16", str(job.bf16), "--gradient_checkpointing", "False"]
    if job.bf16 and job.mode != "full":  # what full trains stays in fp32 under autocast
        words += ["--dtype", "bfloat16"]
    return Command(words, job.threads)


def _trl_words(job: Job, programs: Path, *, micro_batch: int) -> list[str]:
    rows = job.folder / "rows"
    rows.mkdir(exist_ok=True)
    with (rows / "train.jsonl").open("w") as file:
        for pair in job.pairs():
            row = {
                "prompt": [{"role": "user", "content": pair["prompt"]}],
                "completion": [{"role": "assistant", "content": pair["completion"]}],
            }
            file.write(json.dumps(row) + "\n")
    flags: dict[str, Any] = {
        "model_name_or_path": job.model,
        "dataset_name": rows,
        "output_dir": job.out,
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": WARM_UP,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": BATCH // micro_batch,
        "num_train_epochs": 1,
        "completion_only_loss": True,
        "seed": SEED,
        "report_to": "none",
    }
    if job.mode != "full":
        flags |= {"use_peft": True, "lora_r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0}
        flags |= {"lora_target_modules": "all-linear"}
    if job.mode == "qlora":
        flags |= {"load_in_4bit": True, "use_bnb_nested_quant": True}
    if job.hardware.kind == "cpu":
        flags |= {"use_cpu": True}  # it refuses to start otherwise
    words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    return [str(programs / "trl"), "sft", *words]


def _llamafactory(job: Job, programs: Path) -> Command:
    """`cutoff_len`, micro-batch and template as in its docs; checkpointing is its default."""
    return _llamafactory_command(job, programs, {})


def _llamafactory_best(job: Job, programs: Path) -> Command:
    command = _llamafactory_command(job, programs, {"disable_gradient_checkpointing": True})
    return Command(command.words, job.threads)


def _llamafactory_command(job: Job, programs: Path, more: dict[str, Any]) -> Command:
    (job.folder / "rows.jsonl").write_text(job.rows.read_text())
    columns = {"prompt": "prompt", "response": "completion"}
    info = {"bench": {"file_name": "rows.jsonl", "columns": columns}}
    (job.folder / "dataset_info.json").write_text(json.dumps(info))
    settings: dict[str, Any] = {
        "model_name_or_path": str(job.model),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "full" if job.mode == "full" else "lora",
        "dataset": "bench",
        "dataset_dir": str(job.folder),
        "template": "chatml",
        "default_system": _system_prompt(job.model),
        "cutoff_len": 1024,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": BATCH // 4,
        "learning_rate": job.learning_rate,
        "num_train_epochs": 1.0,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": WARM_UP,
        "seed": SEED,
        "bf16": job.bf16,
        "output_dir": str(job.out),
        "report_to": "none",
        "use_cpu": job.hardware.kind == "cpu",
    }
    if job.mode != "full":
        settings |= {"lora_rank": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0}
        settings |= {"lora_target": "all"}
    if job.mode == "qlora":
        settings |= {"quantization_bit": 4, "double_quantization": True}
    recipe = job.folder / "llamafactory.yaml"
    recipe.write_text(json.dumps(settings | more))
    return Command([str(programs / "llamafactory-cli"), "train", str(recipe)])


def _litgpt_prepare(job: Job, programs: Path) -> list[Command]:
    """Its own form of the base, beside links to the tokenizer."""
    base = _litgpt_base(job)
    if (base / "lit_model.pth").is_file():
        return []
    base.mkdir(parents=True, exist_ok=True)
    for file in job.model.iterdir():
        (base / file.name).unlink(missing_ok=True)
        (base / file.name).symlink_to(file)
    words = [str(programs / "litgpt"), "convert_to_litgpt", str(base), "--model_name", LITGPT_NAME]
    return [Command(words)]


def _litgpt(job: Job, programs: Path) -> Command:
    """Weights in bf16 where that is fast, as its docs advise; for full in fp32 under autocast."""
    rows = [{"instruction": pair["prompt"], "output": pair["completion"]} for pair in job.pairs()]
    data = job.folder / "rows"
    data.mkdir(exist_ok=True)
    for name, chosen in (("train", rows), ("val", rows[:1])):  # it does not go without the second
        (data / f"{name}.json").write_text(json.dumps(chosen))
    optimizer = {"lr": job.learning_rate, "weight_decay": 0.0}
    spoken = {"system_message": _system_prompt(job.model)}
    style = {"class_path": "litgpt.prompts.ChatML", "init_args": spoken}
    fast = "bf16-mixed" if job.mode == "full" else "bf16-true"
    settings: dict[str, Any] = {
        "out_dir": str(job.out),
        "precision": fast if job.bf16 else "32-true",
        "data": {
            "class_path": "litgpt.data.JSON",
            "init_args": {"json_path": str(data), "mask_prompt": True, "prompt_style": style},
        },
        "train": {
            "global_batch_size": BATCH,
            "micro_batch_size": 4,
            "epochs": 1,
            "lr_warmup_steps": math.ceil(WARM_UP * len(rows) / BATCH),
            "max_seq_length": 1024,
        },
        "eval": {"final_validation": False, "max_new_tokens": 1, "max_iters": 1},
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": optimizer},
        "seed": SEED,
    }
    if job.mode == "lora":
        settings |= {"lora_r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0}
        settings |= {
            f"lora_{part}": True for part in ("query", "key", "value", "projection", "mlp")
        }
    recipe = job.folder / "litgpt.yaml"
    recipe.write_text(json.dumps(settings))
    program = "finetune_lora" if job.mode == "lora" else "finetune_full"
    words = [str(programs / "litgpt"), program, str(_litgpt_base(job)), "--config", str(recipe)]
    return Command(words, job.threads)


def _litgpt_convert(job: Job, programs: Path) -> list[Command]:
    words = [str(programs / "litgpt"), "convert_from_litgpt", str(job.out / "final")]
    return [Command([*words, str(job.out / "hf")])]


def _litgpt_base(job: Job) -> Path:
    return job.folder.parent / "litgpt-base" / LITGPT_NAME


def _system_prompt(model: Path) -> str:
    """What the model's chat template says when a conversation has no system message."""
    os.environ |= OFFLINE
    text = AutoTokenizer.from_pretrained(model).apply_chat_template(
        [{"role": "user", "content": "?"}], tokenize=False
    )
    found = re.match(r"<\|im_start\|>system\n(.*?)<\|im_end\|>\n", text, re.DOTALL)
    if found is None and not text.startswith("<|im_start|>user\n"):
        raise SystemExit(f"{model} has no ChatML template; this peer is told to use one")
    return found[1] if found else ""


SIDES: dict[str, Side] = {
    "trl-defaults": Side("trl", _trl_defaults),
    "trl-defaults-threads": Side("trl", _trl_defaults_threads),
    "trl-best": Side("trl", _trl_best),
    "llamafactory": Side("llamafactory", _llamafactory),
    "llamafactory-best": Side("llamafactory", _llamafactory_best),
    # its 4-bit layers come from a plug-in that asks for a CUDA card
    "litgpt": Side("litgpt", _litgpt, _litgpt_prepare, _litgpt_convert, ("lora", "full")),
}
