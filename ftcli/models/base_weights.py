"""Whether a base's files hold the weights that its config.json describes; no weight is read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from ftcli.console import megabytes
from ftcli.errors import ModelError
from ftcli.hub import hub_files
from ftcli.memory.shapes import Shape
from ftcli.models.fingerprint import INDEX, WHOLE, base_fingerprint, weight_files
from ftcli.models.load import open_config
from ftcli.runs.atomic import free_bytes

Sizes = Mapping[str, tuple[int, ...]]
"""Name of a tensor → its shape."""


def require_weights(source: str, revision: str | None, shape: Shape) -> str:
    """Prove that the weights are there and whole, or can be fetched; says in words what was found.

    Raises ModelError.
    """
    files = weight_files(source, revision)
    if not files and os.path.isdir(source):
        raise _absent(source)
    if not files:
        return _fetchable(source, revision, shape)
    base_fingerprint(source, revision)  # raises for a file that is cut
    _require_fitting(_skeleton(source, revision), _tensors(files), source)
    return f"weights whole ({megabytes(sum(file.stat().st_size for file in files))})"


def _absent(source: str) -> ModelError:
    """What is missing of the weights in a folder."""
    index = Path(source) / INDEX
    if not index.is_file():
        return ModelError("model", f"{source}: holds no weights ({WHOLE}); fetch them")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return ModelError("model", f"cannot be read ({error!r}); fetch it again", file=str(index))
    gone = [name for name in names if not index.with_name(name).is_file()]
    return ModelError(
        "model",
        f"{source}: {len(gone)} of {len(names)} weight files are missing, {gone[0]} first; fetch "
        "them again",
    )


def _fetchable(source: str, revision: str | None, shape: Shape) -> str:
    """That the hub has weights, and that the disk has room for them in 16 bits."""
    from huggingface_hub.constants import HF_HUB_CACHE

    names = hub_files(source, revision=revision, repo_type="model")
    if WHOLE not in names and INDEX not in names:
        raise ModelError("model", f"{source}: the repository holds no weights ({WHOLE})")
    wanted, free = 2 * shape.parameters, free_bytes(Path(HF_HUB_CACHE))
    if free < wanted:
        raise ModelError(
            "model",
            f"{source}: its weights are to be fetched, about {megabytes(wanted)}, and the disk of "
            f"{HF_HUB_CACHE} has {megabytes(free)} free; make room, or set HF_HOME to another disk",
        )
    return f"weights on the hub, to be fetched (about {megabytes(wanted)})"


def _tensors(files: Sequence[Path]) -> Sizes:
    """What the headers of the files say."""
    found: dict[str, tuple[int, ...]] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                found |= {name: tuple(file.get_slice(name).get_shape()) for name in names}
        except SafetensorError as error:
            raise ModelError("model", f"cannot be read: {error}", file=str(path)) from error
    return found


def _skeleton(source: str, revision: str | None) -> PreTrainedModel:
    """The model with names and shapes, and without memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(open_config(source, revision))


def _require_fitting(model: PreTrainedModel, held: Sizes, source: str) -> None:
    """Raise ModelError where transformers would make a weight up, or fail on its size."""
    wanted: dict[str, Any] = model.state_dict()
    transforms = get_model_conversion_mapping(model)
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    found: set[str] = set()
    for name, shape in held.items():
        here, converted = rename_source_key(
            name, renamings, converters, model.base_model_prefix, wanted
        )
        found.add(here)
        if here in wanted and converted is None and tuple(wanted[here].shape) != shape:
            raise ModelError(
                "model",
                f"{source}: its {name} is {_by(shape)}, and its config.json makes it "
                f"{_by(wanted[here].shape)}; one of the two is of another model: fetch both again",
            )
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    missing = sorted(set(wanted) - found - tied)
    if missing:
        raise ModelError(
            "model",
            f"{source}: {len(missing)} of {len(wanted)} weights are in none of its files, "
            f"{missing[0]} first; they would begin at random: fetch the model again",
        )


def _by(shape: Sequence[int]) -> str:
    return " × ".join(str(size) for size in shape)
