"""Words of other trainers: an unknown key that is one is answered with the recipe's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel

from ftcli.config.recipe import Recipe
from ftcli.errors import did_you_mean, nearest

# Axolotl, LLaMA-Factory, TRL, transformers and PEFT, OpenAI → the recipe's key.
KEYS = {
    **dict.fromkeys(("base_model", "model_name_or_path", "model_name", "pretrained"), "model.id"),
    **dict.fromkeys(("flash_attention", "attn_implementation", "flash_attn"), "model.attention"),
    **dict.fromkeys(("torch_dtype", "model_dtype"), "model.dtype"),
    **dict.fromkeys(("adapter", "finetuning_type", "peft_type", "load_in_4bit"), "method.mode"),
    **dict.fromkeys(("r", "lora_r", "lora_rank"), "method.rank"),
    "lora_alpha": "method.alpha",
    "lora_dropout": "method.dropout",
    **dict.fromkeys(("lora_target", "lora_target_modules"), "method.target_modules"),
    **dict.fromkeys(("use_rslora", "peft_use_rslora"), "method.rslora"),
    **dict.fromkeys(("use_dora", "peft_use_dora"), "method.dora"),
    **dict.fromkeys(("lora_modules_to_save", "additional_target"), "method.modules_to_save"),
    **dict.fromkeys(("datasets", "dataset", "dataset_name", "training_file"), "data.train"),
    **dict.fromkeys(("val_set_size", "val_size", "validation_file"), "data.validation"),
    **dict.fromkeys(("test_datasets", "eval_dataset"), "data.test"),
    **dict.fromkeys(("sequence_len", "cutoff_len", "max_seq_length", "seq_len"), "data.max_length"),
    **dict.fromkeys(("chat_template", "template"), "data.template"),
    **dict.fromkeys(("train_on_inputs", "train_on_prompt", "completion_only_loss"), "data.loss_on"),
    **dict.fromkeys(("lr", "learning_rate_multiplier"), "training.learning_rate"),
    **dict.fromkeys(("num_epochs", "num_train_epochs", "n_epochs"), "training.epochs"),
    **dict.fromkeys(("lr_scheduler", "lr_scheduler_type"), "training.scheduler"),
    "warmup_steps": "training.warmup_ratio",
    "gradient_accumulation_steps": "training.batch_size",
    "per_device_train_batch_size": "training.micro_batch_size",
    "optim": "training.optimizer",
    **dict.fromkeys(("bf16", "fp16", "tf32"), "training.precision"),
    "save_total_limit": "training.keep_checkpoints",
    **dict.fromkeys(("wandb_project", "use_wandb"), "training.report_to"),
    "output_dir": "output",
}
# Keys that tell whose file it is; the first that is there counts.
FILES = {
    "base_model": "an Axolotl config",
    "finetuning_type": "a LLaMA-Factory config",
    "model_name_or_path": "a config of another trainer (TRL or LLaMA-Factory)",
}


def known_file(values: Mapping[str, Any]) -> tuple[str, str] | None:
    """The key that shows that a file is another trainer's, and the sentence about it."""
    mark = next((key for key in FILES if key in values), None)
    if mark is None or isinstance(values.get("model"), dict):
        return None
    named = {key: recipe_key(key) for key in values}
    ours = ", ".join(f"{key} → {own}" for key, own in named.items() if own is not None)
    return mark, (
        f"this is {FILES[mark]}, not a recipe; of its keys a recipe has, each in its section: "
        f"{ours}; a recipe to start from is in recipes/, all keys: ftcli schema --text"
    )


def recipe_key(word: str) -> str | None:
    """The recipe's key for a word of another trainer, or for the last part of a key."""
    own = (key for key in every_key() if key.rpartition(".")[2] == word and "." in key)
    return KEYS.get(word) or next(own, None)


def suggestion(word: str, section: type[BaseModel]) -> str:
    """What to write for an unknown key of a section, or nothing."""
    if word in KEYS:
        return f"; here it is {KEYS[word]}"
    if (elsewhere := recipe_key(word)) is not None:
        return f"; did you mean {elsewhere}?"
    if near := did_you_mean(word, section.model_fields):
        return near
    leaves = {key.rpartition(".")[2]: key for key in every_key() if "." in key}
    found = nearest(word, leaves)
    return f"; did you mean {leaves[found]}?" if found is not None else ""


def every_key(section: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    """`method.rank` and all others, of every class that a section may be."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        for inner in section_classes(field.annotation):
            yield from every_key(inner, f"{prefix}{name}.")


def section_classes(annotation: Any) -> list[type[BaseModel]]:
    """The classes that a section may be of; none for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [each for argument in get_args(annotation) for each in section_classes(argument)]
