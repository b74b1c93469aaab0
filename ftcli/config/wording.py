"""pydantic's errors in a recipe, as one sentence per key."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from ftcli.config.nodes import MOST_PROBLEMS, KeyPath, ParseState
from ftcli.config.recipe import Recipe
from ftcli.errors import Problem, did_you_mean, nearest
from ftcli.redact import secret_in

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


def problems_of(
    error: ValidationError, values: dict[str, Any], found: ParseState
) -> Iterator[Problem]:
    """One problem per invalid key, at its line."""
    at: dict[KeyPath, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        if len(at) <= 2 * MOST_PROBLEMS:  # each is compared with all others
            at.setdefault(_user_path(detail, values), []).append(detail)
    for path, details in at.items():
        if not any(other[: len(path)] == path and other != path for other in at):
            message, place = _message(details, path, values, found), path
            if _is_item(path, values):
                message, place = f"item {int(path[-1]) + 1}: {message}", path[:-1]
            yield found.problem(place, message)


def _is_item(path: KeyPath, values: object) -> bool:
    """Whether the path ends at an item of a key's list; not within a JSON Schema."""
    if path[:3] == ("eval", "format", "schema"):
        return False
    here: Any = values
    for part in path[:-1]:
        here = here[int(part)] if isinstance(here, list) else here.get(part)
        if not isinstance(here, dict | list):
            return False
    return isinstance(here, list) and path[-1].isdecimal()


def _user_path(detail: ErrorDetails, values: object) -> KeyPath:
    """pydantic's location without the names of union members: the path that the user wrote."""
    path: list[str] = []
    here: Any = values
    for part in detail["loc"]:
        inside_mapping = isinstance(here, dict) and part in here
        if inside_mapping or (isinstance(here, list) and isinstance(part, int)):
            here = here[part]
            path.append(str(part))
        elif detail["type"] == "missing" and part == detail["loc"][-1]:
            path.append(str(part))
    if detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
        path.append(detail["ctx"]["discriminator"].strip("'"))
    if detail["type"] == "value_at":  # a validator found the error deeper inside
        path += detail["ctx"]["at"]
    return tuple(path)


# pydantic's error types in our words (docs.pydantic.dev, "Validation Errors").
EXPECTED = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "a text (put it in quotes)",
    "string_too_short": "a text that is not empty",
    "string_pattern_mismatch": "a name that can be a folder's: no / or \\, not only dots",
    "list_type": "a list",
    "too_short": "a list that is not empty",
    "dict_type": "keys and values",
    "invalid-json-value": "a value that JSON has (put dates in quotes)",
    "model_type": "a section of keys and values",
    "model_attributes_type": "a section of keys and values",
}
PACKING = (
    "packing is training.packing here, on where possible: no token attends to another row, and the "
    "rows of a step stay the same; remove the key"
)
TRUST = (
    "ftcli never runs code of a model, and no key or flag changes that: transformers itself has "
    "every architecture that ftcli trains; remove the key"
)
# Keys of other trainers → why there are none here.
NOT_OFFERED = dict.fromkeys(("packing", "packing_strategy", "sample_packing"), PACKING)
NOT_OFFERED |= {"trust_remote_code": TRUST}
LIMITS = {"greater_than": ("above", "gt"), "greater_than_equal": ("at least", "ge")}
LIMITS |= {"less_than": ("below", "lt"), "less_than_equal": ("at most", "le")}


def _message(
    details: list[ErrorDetails], path: KeyPath, values: dict[str, Any], found: ParseState
) -> str:
    """One sentence for all of pydantic's errors about one key."""
    first = details[0]
    match first["type"]:
        case "extra_forbidden":
            if other := _key_of_another_choice(path, values, found):
                return other
            hint = suggestion(path[-1], _section(path[:-1], values)[0])
            return NOT_OFFERED.get(path[-1], f"unknown key{hint}")
        case "missing" | "union_tag_not_found":
            return "is missing"
        case "union_tag_invalid":
            tag = first["input"][path[-1]]
            names = [name.strip(" '") for name in str(first["ctx"]["expected_tags"]).split(",")]
            hint = did_you_mean(tag, names) if isinstance(tag, str) else ""
            return f"unknown value {as_yaml(tag)}{hint} (there is {', '.join(names)})"
    special = [d for d in details if d["type"] in ("value_error", "value_at", *LIMITS)]
    if special:
        return _judged(special[0])
    wanted = dict.fromkeys(_expected(detail) for detail in details)
    value = first["input"]
    hint = did_you_mean(value, _choices(details)) if isinstance(value, str) else ""
    if (
        not hint
        and isinstance(value, str)
        and any(detail["type"] == "list_type" for detail in details)
    ):
        hint = _as_list(value, path)
    return f"expected {' or '.join(wanted)}, found {as_yaml(value)}{hint}"


def _as_list(value: str, path: KeyPath) -> str:
    """How to write a list, and its possible items, if they are limited."""
    names = _names(_annotation(path))
    if not names or value in names:
        return f"; write it in brackets: [{as_yaml(value)}]"
    near = did_you_mean(value, names)
    return f"{near} (write a list in brackets: [{', '.join(names)}])"


def _names(annotation: Any) -> list[str]:
    """The values of all `Literal`s in a type."""
    if get_origin(annotation) is Literal:
        return [word for word in get_args(annotation) if isinstance(word, str)]
    return [word for argument in get_args(annotation) for word in _names(argument)]


def _annotation(path: KeyPath) -> Any:
    """Type of a key; None if one of its sections may be of several classes."""
    section: type[BaseModel] = Recipe
    for part in path[:-1]:
        field = section.model_fields.get(part)
        classes = section_classes(field.annotation) if field is not None else []
        if len(classes) != 1:
            return None
        section = classes[0]
    field = section.model_fields.get(path[-1])
    return None if field is None else field.annotation


def _judged(detail: ErrorDetails) -> str:
    if detail["type"] in LIMITS:
        word, key = LIMITS[detail["type"]]
        limit = detail["ctx"][key]
        written = f"{limit:,}" if isinstance(limit, int) else f"{limit:g}"
        return f"must be {word} {written}, found {as_yaml(detail['input'])}"
    return detail["msg"].removeprefix("Value error, ")


def _expected(detail: ErrorDetails) -> str:
    if detail["type"] == "literal_error":
        return str(detail["ctx"]["expected"]).replace("'", "")
    fallback = detail["msg"].removeprefix("Input should be ").removeprefix("String should ")
    return EXPECTED.get(detail["type"], fallback)


def _choices(details: list[ErrorDetails]) -> list[str]:
    texts = [str(d["ctx"]["expected"]) for d in details if d["type"] == "literal_error"]
    return [word for text in texts for word in re.findall(r"'([^']+)'", text)]


def _key_of_another_choice(
    path: KeyPath, values: Mapping[str, Any], found: ParseState
) -> str | None:
    """The sentence for a key that belongs to another mode or type of the section."""
    section, others = _section(path[:-1], values)
    for tag in _tags(section):
        chosen = get_args(section.model_fields[tag].annotation)
        owners = [
            word
            for other in others
            if path[-1] in other.model_fields
            for word in get_args(other.model_fields[tag].annotation)
        ]
        if owners:
            flag = found.flag_of((*path[:-1], tag))
            whole = f"--set '{'.'.join(path[:-1])}={{{tag}: {chosen[0]}}}'"
            advice = f"; {whole} replaces the whole section" if flag is not None else ""
            return f"not a key of {tag} {chosen[0]}, but of {', '.join(owners)}{advice}"
    return None


def _section(
    path: KeyPath, values: Mapping[str, Any]
) -> tuple[type[BaseModel], list[type[BaseModel]]]:
    """Class of the section at `path`, by its mode or type, and its other possible classes."""
    section: type[BaseModel] = Recipe
    others: list[type[BaseModel]] = []
    here: Any = values
    for part in path:
        here = here.get(part, {}) if isinstance(here, dict) else {}
        classes = section_classes(section.model_fields[part].annotation)
        section = next((c for c in classes if _takes(c, here)), classes[0])
        others = [c for c in classes if c is not section]
    return section, others


def _takes(section: type[BaseModel], values: object) -> bool:
    if not isinstance(values, dict):
        return False
    return all(
        values.get(tag) in get_args(section.model_fields[tag].annotation) for tag in _tags(section)
    )


def _tags(section: type[BaseModel]) -> set[str]:
    """The discriminator of a section, if any."""
    return {"mode", "type"} & set(section.model_fields)


def as_yaml(value: object) -> str:
    """A value as YAML on one line, shortened."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True)
    return " ".join(text.removesuffix("\n").removesuffix("\n...").split())[:60]


def secrets_of(value: object, path: KeyPath, found: ParseState) -> Iterator[Problem]:
    """A problem for each value that contains a password or a token, at its line."""
    match value:
        case dict():
            for key, inner in value.items():
                yield from secrets_of(inner, (*path, str(key)), found)
        case list():
            for index, inner in enumerate(value):
                yield from secrets_of(inner, (*path, str(index)), found)
        case str() if (kind := secret_in(value)) is not None:
            yield found.problem(
                path,
                f"contains {kind}, and a recipe is copied into every run; remove it: private "
                "models and data need `hf auth login`, or HF_TOKEN in the environment",
            )


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
    **dict.fromkeys(("scheduler", "lr_scheduler_type"), "training.lr_scheduler"),
    "warmup_steps": "training.warmup_ratio",
    "gradient_accumulation_steps": "training.batch_size",
    "per_device_train_batch_size": "training.micro_batch_size",
    "optim": "training.optimizer",
    **dict.fromkeys(("bf16", "fp16", "tf32"), "training.precision"),
    **dict.fromkeys(("wandb_project", "use_wandb"), "training.report_to"),
    "output_dir": "output",
}
# Keys that identify the config of another trainer, most specific first.
FILES = {
    "base_model": "an Axolotl config",
    "finetuning_type": "a LLaMA-Factory config",
    "model_name_or_path": "a config of another trainer (TRL or LLaMA-Factory)",
}


def known_file(values: Mapping[str, Any]) -> tuple[str, str] | None:
    """The key that identifies another trainer's config, and a message; None for a recipe."""
    mark = next((key for key in FILES if key in values), None)
    if mark is None or isinstance(values.get("model"), dict):
        return None
    named = {key: recipe_key(key) for key in values}
    ours = ", ".join(f"{key} → {own}" for key, own in named.items() if own is not None)
    return mark, (
        f"this is {FILES[mark]}, not a recipe; its keys in a recipe: {ours}; start from a recipe "
        "in recipes/; all keys: ftcli schema --text"
    )


def recipe_key(word: str) -> str | None:
    """The recipe's key for another trainer's key, or for the last part of a key."""
    own = (key for key in every_key() if key.rpartition(".")[2] == word and "." in key)
    return KEYS.get(word) or next(own, None)


def suggestion(word: str, section: type[BaseModel]) -> str:
    """A hint for an unknown key of a section, or nothing."""
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
    """`method.rank` and all other keys, of all classes of each section."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        for inner in section_classes(field.annotation):
            yield from every_key(inner, f"{prefix}{name}.")


def section_classes(annotation: Any) -> list[type[BaseModel]]:
    """The possible classes of a section; empty for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [each for argument in get_args(annotation) for each in section_classes(argument)]
