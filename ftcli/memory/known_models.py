"""Model names → architectures and sources; well-known models are in a table, without network."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from ftcli.config.section import looks_like_path
from ftcli.errors import ModelError, UsageError
from ftcli.hub import hub_file
from ftcli.memory.architecture import Architecture, read_architecture

MEASURED = Path(__file__).with_name("measured_models.tsv")

_SIZE = re.compile(r"\d+(\.\d+)?b")
"""An alias that is a size alone, such as 7b or 0.5b."""


@dataclass(frozen=True)
class _KnownModels:
    hub_ids: dict[str, str]
    """Short name → hub id."""
    configs: dict[str, dict[str, object]]
    """Hub id → the part of its config.json that gives its shape."""


@cache
def _known_models() -> _KnownModels:
    text = Path(__file__).with_name("known_models.json").read_text(encoding="utf-8")
    models = json.loads(text)["models"]
    return _KnownModels(
        hub_ids={name: hub_id for model in models for name, hub_id in model["hub_ids"].items()},
        configs={
            hub_id: model["config"] for model in models for hub_id in model["hub_ids"].values()
        },
    )


def known_architecture(model_id: str) -> Architecture | None:
    """A well-known model by alias or hub id, measured before; None for any other.

    A published model keeps its sizes, whatever the revision.
    """
    hub_id = known_hub_id(model_id)
    found = _measured_models().get(hub_id)
    if found is None:
        return None
    return replace(read_architecture(found), name=model_id, hub_id=hub_id)


def known_hub_id(model_id: str) -> str:
    """The hub id of an alias, or of a known hub id in any case of letters; else unchanged."""
    known = _known_models()
    same = (each for each in known.configs if each.lower() == model_id.lower())
    return known.hub_ids.get(model_id.lower(), next(same, model_id))


def known_config(hub_id: str) -> dict[str, object] | None:
    """The part of a known model's config.json that gives its layers."""
    return _known_models().configs.get(hub_id)


def config_values(model_id: str, revision: str | None) -> dict[str, object]:
    """The config.json of a local folder, of a file, or of a model of the hub.

    Raises UsageError (`model_unknown`) and ModelError (`model_missing`, `config_unreadable`, and
    those of `hub_file`).
    """
    if not model_id.strip():
        raise _unknown(model_id)
    if looks_like_path(model_id):
        local = _local(model_id)
        config_file = local / "config.json" if os.path.isdir(local) else local
        if os.path.isfile(config_file):
            return _read_config(config_file)
        if os.path.isdir(local):
            raise ModelError("model_missing", f"{local} has no config.json: not a model's folder")
        raise _missing(local)
    require_no_namesake(model_id)
    if "/" not in model_id:
        raise _unknown(model_id)
    return _read_config(_hub_config(model_id, revision))


def known_configs() -> dict[str, dict[str, object]]:
    """Hub id → its config, of all known models."""
    return _known_models().configs


@cache
def _measured_models() -> dict[str, str]:
    """Hub id → an Architecture as JSON; a line has all hub ids of one config, and is made by
    scripts/measure_models.py."""
    lines = MEASURED.read_text(encoding="utf-8").splitlines() if MEASURED.is_file() else []
    models = (line.split("\t", 1) for line in lines)
    return {hub_id: text for hub_ids, text in models for hub_id in hub_ids.split(" ")}


def _missing(local: Path) -> ModelError:
    fault = "is not a model's folder" if os.path.lexists(local) else "does not exist"
    return ModelError("model_missing", f"{os.path.normpath(local)} {fault}")


def _hub_config(model_id: str, revision: str | None) -> Path:
    try:
        return hub_file(model_id, "config.json", revision=revision)
    except ModelError as error:
        near = _near(model_id, _known_models().configs)
        if not near:
            raise
        raise ModelError(error.code, f"{error.message}{near}") from error


def hub_id_of(alias: str) -> str:
    """Hub id of a short name such as `smollm2-135m`; raises UsageError (`model_unknown`)."""
    hub_id = _known_models().hub_ids.get(alias.lower())
    if hub_id is None:
        raise _unknown(alias)
    return hub_id


def _unknown(model_id: str) -> UsageError:
    aliases = _known_models().hub_ids
    sizes = sorted((alias for alias in aliases if _SIZE.fullmatch(alias)), key=_billions)
    return UsageError(
        "model_unknown",
        f"no model {model_id!r}: neither a local folder, an alias nor a hub id (owner/name)"
        f"{_near(model_id.lower(), aliases)}; a size is one of {', '.join(sizes)}, a name is the "
        "hub's in small letters, such as qwen2.5-7b-instruct; any other model answers to its hub "
        "id, its folder or its config.json",
    )


def _billions(size: str) -> float:
    return float(size[:-1])


def _near(word: str, aliases: Iterable[str]) -> str:
    """`; did you mean gemma-2-9b, glm-4-9b or yi-9b?`: names with the word, else near ones."""
    containing = [alias for alias in aliases if word and word in alias]
    near = containing[:3] or difflib.get_close_matches(word, list(aliases), n=3, cutoff=0.6)
    if not near:
        return ""
    *others, last = near
    return f"; did you mean {', '.join(others)} or {last}?" if others else f"; did you mean {last}?"


def _read_config(file: Path) -> dict[str, object]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            "config_unreadable", f"not a model's config.json: {error}", file=str(file)
        ) from error
    if not isinstance(config, dict):
        raise ModelError("config_unreadable", "not a JSON object", file=str(file))
    return config


def model_source(model_id: str) -> str:
    """Where transformers finds the model: an absolute folder, or a hub id.

    Raises ModelError (`model_missing`) where a path leads to no folder, and for a hub id that is
    also a folder of the working directory.
    """
    if looks_like_path(model_id):
        local = _local(model_id)
        if os.path.isdir(local):
            return str(local)
        raise _missing(local)
    source = _known_models().hub_ids.get(model_id.lower(), model_id)
    require_no_namesake(source)
    return source


def from_here(model: str) -> str:
    """`--model` of a command line: a model's folder or file goes before a hub id, as a path."""
    path = os.path.abspath(os.path.expanduser(model))
    there = os.path.isfile(path) or os.path.isfile(os.path.join(path, "config.json"))
    return path if there and model.strip() else model


def require_no_namesake(hub_id: str) -> None:
    """transformers and tokenizers take a folder of the working directory before a hub id."""
    if os.path.isdir(hub_id):
        raise ModelError(
            "model_missing",
            f"{hub_id} is a folder here, but paths of a recipe start at its own folder; if you "
            f"mean the folder, write {os.path.abspath(hub_id)}; if the hub's model, run this "
            "elsewhere",
        )


def _local(model_id: str) -> Path:
    # pathlib raises where there is no such user, and in is_dir where a name is too long.
    return Path(os.path.expanduser(model_id)).absolute()
