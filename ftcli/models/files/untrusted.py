"""Checks of an untrusted model folder before transformers opens it; nothing in it is run.

transformers follows the JSON files of a model to classes, other files, adapters and code. Anything
unusual is refused here with a message. `trust_remote_code` is always False, and no flag changes it:
an architecture that ftcli can size is one of transformers' own, and a fast tokenizer is data.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name
from transformers.utils import DummyObject

from ftcli.errors import FtcliError, ModelError
from ftcli.hub import hub_error, hub_file, hub_files
from ftcli.models.device import is_out_of_memory
from ftcli.models.files.base_files import INDEX, WHOLE, model_folder, refuse_pickles, shard_files

# Keys of config.json that make transformers 5.24 read other files or change its own classes.
REFUSED_KEYS = ("configuration_files", "transformers_weights", "fusion_config")
ADAPTER = "adapter_config.json"
# transformers 5.24, utils/import_utils.py: the errors of requires_backends.
NEEDED_PACKAGE = re.compile(r"requires the ([\w-]+) library")
# transformers 5.24, utils/__init__.py: IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, VIDEO_PROCESSOR_NAME.
TOWER_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
# Tokenizers that are data.
VOCABULARIES = ("tokenizer.json", "tokenizer.model")
# Files of a processor with its chat template as a key, the first that has one.
PROCESSOR_FILES = ("processor_config.json", "chat_template.json")


def refuse_foreign_weights(source: str, revision: str | None) -> None:
    """Raise ModelError if a model has weights that ftcli does not open."""
    names = _names(source, revision)
    if ADAPTER in names and "config.json" in names:
        raise ModelError(
            "model",
            f"{source}: has an adapter next to the model ({ADAPTER}), which transformers would "
            "apply unasked; remove it",
        )
    refuse_pickles(source, names)
    if WHOLE not in names and INDEX in names:
        index = _file(source, INDEX, revision)
        if index is not None:
            shard_files(index)  # raises for names outside the folder


def refuse_foreign_config(source: str, revision: str | None) -> None:
    """Raise ModelError if config.json refers to files outside the folder."""
    config = _json(source, "config.json", revision)
    strange = next(_refused_keys(config), None)
    if strange is not None:
        raise ModelError(
            "model",
            f"{source}: its config.json has {strange}, which makes transformers read files that "
            "ftcli has not checked; remove the key",
        )
    _require_tokenizer_class(source, config.get("tokenizer_class"))


def _refused_keys(value: object, path: str = "") -> Iterator[str]:
    """Refused keys of a config and of the configs in it, such as `text_config.fusion_config`."""
    if isinstance(value, list):
        for item in value:
            yield from _refused_keys(item, path)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key in REFUSED_KEYS and inner is not None:
                yield f"{path}{key}"
            yield from _refused_keys(inner, f"{path}{key}.")


def processor_template(source: str, revision: str | None) -> str | None:
    """The chat template of a vision model's processor, which AutoTokenizer does not read
    (transformers 5.24, processing_utils.py, get_processor_dict); None if it has none."""
    names = _names(source, revision)
    for name in PROCESSOR_FILES:
        found = _json(source, name, revision).get("chat_template") if name in names else None
        if isinstance(found, str) and found:
            return found
    return None


def refuse_foreign_tokenizer(source: str, revision: str | None) -> None:
    """Raise ModelError if a tokenizer is code of its repository, or not a tokenizer."""
    config = _json(source, "tokenizer_config.json", revision)
    if "auto_map" in config and not any(_file(source, name, revision) for name in VOCABULARIES):
        raise _is_code(source, "tokenizer")
    _require_tokenizer_class(source, config.get("tokenizer_class"))


def _require_tokenizer_class(source: str, name: object) -> None:
    """Raise ModelError for another class: transformers loads any class named, and some run code."""
    if name is None:
        return
    if isinstance(name, str):
        stem = name.removesuffix("Fast")
        found = [tokenizer_class_from_name(each) for each in (name, stem, f"{stem}Fast")]
        if all(_is_tokenizer(each) for each in found if each is not None):
            return
    raise ModelError(
        "tokenizer", f"{source}: its tokenizer_class is {name!r}, which is not a tokenizer"
    )


def _is_tokenizer(found: object) -> bool:
    """Whether it is a tokenizer, or transformers' placeholder for one with a missing package."""
    own = isinstance(found, type) and issubclass(found, PreTrainedTokenizerBase)
    return own or isinstance(found, DummyObject)


def copy_processor(source: str, revision: str | None, folder: Path) -> None:
    """Copy the files that say how a model's towers read images and sound."""
    for name in TOWER_FILES:
        if (file := _file(source, name, revision)) is not None:
            shutil.copyfile(file, folder / name)


@contextmanager
def opening(source: str, what: str, code: str = "model") -> Iterator[None]:
    """Raise ModelError for any error of a library about untrusted files."""
    try:
        yield
    except BaseException as error:
        # tokenizers raises plain Exception, and a panic in Rust (pyo3) is not even that.
        of_files = isinstance(error, Exception) or type(error).__name__ == "PanicException"
        if not of_files or isinstance(error, FtcliError) or is_out_of_memory(error):
            raise
        raise _model_error(error, source, what, code) from error


def _model_error(error: BaseException, source: str, what: str, code: str) -> ModelError:
    cause = error.__cause__
    if not Path(source).exists() and isinstance(cause, Exception):
        found = hub_error(cause, source, "model")
        if isinstance(found, ModelError) and found.code != "hub_unreachable":
            return found
    if "trust_remote_code" in str(error):
        return _is_code(source, what)
    if isinstance(error, ImportError) and (needed := NEEDED_PACKAGE.search(str(error))):
        name = needed[1]
        reason = f"needs {name}, which is not installed: pip install {name}"
        return ModelError("package_missing", f"{source}: its {what} {reason}")
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ModelError(code, f"{source}: the {what} cannot be opened: {first}")


def _is_code(source: str, what: str) -> ModelError:
    return ModelError(
        "model",
        f"{source}: its {what} is code of its own (auto_map), and ftcli runs no code of a model; "
        "use one that transformers has a class for",
    )


def _names(source: str, revision: str | None) -> frozenset[str]:
    """The file names of a model: in its folder, its repository, or the cache of that."""
    if os.path.isdir(source):
        return frozenset(os.listdir(source))
    try:
        return _listed(source, revision)
    except ModelError:  # the hub does not answer
        folder = model_folder(source, revision)
        return frozenset(os.listdir(folder)) if folder is not None else frozenset()


@functools.cache
def _listed(source: str, revision: str | None) -> frozenset[str]:
    return frozenset(hub_files(source, revision=revision, repo_type="model"))


def _json(source: str, name: str, revision: str | None) -> dict[str, Any]:
    """A JSON object of a model's folder or repository; empty without such a file."""
    path = _file(source, name, revision)
    return {} if path is None else json_object(path, "model")


def json_object(path: Path, code: str) -> dict[str, Any]:
    """The JSON object in an untrusted file; raises ModelError (`code`) for anything else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(code, f"cannot be read: {error}", file=str(path)) from error
    if not isinstance(values, dict):
        raise ModelError(code, "is not a JSON object", file=str(path))
    return values


def _file(source: str, name: str, revision: str | None) -> Path | None:
    if os.path.isdir(source):
        path = Path(source, name)
        return path if path.is_file() else None
    try:
        return hub_file(source, name, revision=revision)
    except ModelError as error:
        if error.code in ("hub_not_found", "hub_unreachable"):
            return None
        raise
