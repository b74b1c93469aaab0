"""`ftcli estimate-vram --write`: the recipe with what was asked by flags and found by --fit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftcli.config.loader import Loaded
from ftcli.config.rewriting import changed, moved, overridden, rewritten
from ftcli.console import shown_path
from ftcli.errors import FtcliError
from ftcli.runs.atomic import write_text

# Field of vram.Choices that a flag sets → the recipe's key. Flags without a key are only estimated.
KEYS = {
    "mode": "method.mode",
    "rank": "method.rank",
    "targets": "method.target_modules",
    "dora": "method.dora",
    "modules_to_save": "method.modules_to_save",
    "bottleneck": "method.bottleneck",
    "placement": "method.placement",
    "virtual_tokens": "method.virtual_tokens",
    "projection": "method.projection",
    "four_bit_base": "method.quantization",
    "seq_len": "data.max_length",
    "micro_batch": "training.micro_batch_size",
    "optimizer": "training.optimizer",
    "precision": "training.precision",
    "gradient_checkpointing": "training.gradient_checkpointing",
    "attention": "model.attention",
}


def write_recipe(
    loaded: Loaded,
    model: str | None,
    flags: Mapping[str, Any],
    changes: Mapping[str, Any],
    target: Path,
) -> Path:
    """Write the recipe with `--set`, flags and changes, in this order, and return its path.

    Raises FtcliError where another file is there, UsageError where keys do not go together.
    """
    _require_free(loaded, target)
    settings = {**overridden(loaded), **_of_flags(loaded, model, flags), **changes}
    settings |= moved(changed(loaded.recipe, settings), loaded.base, target.absolute().parent)
    with loaded.path.open(encoding="utf-8-sig", newline="") as file:
        text = rewritten(file.read(), settings, changed(loaded.recipe, settings))
    write_text(target, text)
    return target


def _require_free(loaded: Loaded, target: Path) -> None:
    if os.path.lexists(target) and not (target.exists() and target.samefile(loaded.path)):
        raise FtcliError(
            "exists",
            f"--write {shown_path(target)}: it is there already, and only "
            f"{loaded.shown_path()} itself may be changed in place; name a new file",
        )


def _of_flags(loaded: Loaded, model: str | None, flags: Mapping[str, Any]) -> dict[str, Any]:
    settings = {
        KEYS[name]: list(value) if isinstance(value, tuple) else value
        for name, value in flags.items()
        if name in KEYS
    }
    if "four_bit_base" in flags:
        settings[KEYS["four_bit_base"]] = "nf4" if flags["four_bit_base"] else "none"
    if model is not None:
        # The flag starts where the user stands, the recipe's key where the recipe does.
        settings["model.id"] = (
            os.path.relpath(model, loaded.base) if Path(model).exists() else model
        )
        if loaded.recipe.model.revision is not None:
            settings["model.revision"] = None  # it was another model's
    return settings
