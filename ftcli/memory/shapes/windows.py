"""Sliding windows: how far attention looks back, and in how many of the layers.

Source: transformers 5.24, models/*/configuration_*.py (`layer_types`) and modeling_*.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Config = Mapping[str, object]


@dataclass(frozen=True)
class Window:
    """The sliding window of a model type."""

    default: int | None
    """Tokens where config.json has no `sliding_window`; None: no window."""
    layers: Callable[[Config, int], int]
    """(config, layers) → those that use it."""
    switch: bool = False
    """No layer uses it unless `use_sliding_window` says so (Qwen)."""


def every_layer(config: Config, layers: int) -> int:
    return layers


def listed_layers(config: Config, layers: int) -> int:
    """Those that `layer_types` names, all where it is absent (Ministral)."""
    listed = _listed(config)
    return layers if listed is None else listed


def later_layers(config: Config, layers: int) -> int:
    """Those from `max_window_layers` on (28 in configuration_qwen2.py)."""
    listed = _listed(config)
    return max(0, layers - _count(config, "max_window_layers", 28)) if listed is None else listed


def layers_without_rope(config: Config, layers: int) -> int:
    """Those whose positions are not rotated (SmolLM3)."""
    listed, rotated = _listed(config), config.get("no_rope_layers")
    if listed is not None:
        return listed
    if isinstance(rotated, list):
        return rotated.count(0)
    return layers // _count(config, "no_rope_layer_interval", 4)


def all_but_every(step: int, key: str | None = None) -> Callable[[Config, int], int]:
    """Every `step`-th layer sees all tokens; `key` is where a config may give another step."""

    def layers_with_window(config: Config, layers: int) -> int:
        listed = _listed(config)
        full = layers // (_count(config, key, step) if key else step)
        return layers - full if listed is None else listed

    return layers_with_window


def _listed(config: Config) -> int | None:
    """Where config.json names each layer's kind, that is what holds."""
    kinds = config.get("layer_types")
    return kinds.count("sliding_attention") if isinstance(kinds, list) else None


def _count(config: Config, key: str, default: int) -> int:
    found = config.get(key)
    return found if isinstance(found, int) and found > 0 else default
