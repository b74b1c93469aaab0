"""Which linear modules of which layers LoRA adapts, and with which rank."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ftcli.errors import ModelError, did_you_mean
from ftcli.memory.choices import Choices
from ftcli.memory.shapes import Shape, Targets

# Model type → what it calls its layers, and the attention in them (transformers 5.24, models/*).
# The MLP is `mlp` everywhere.
_PATHS = {
    "gpt_neox": ("gpt_neox.layers", "attention"),
    "falcon": ("transformer.h", "self_attention"),
}
_USUAL_PATHS = ("model.layers", "self_attn")

RankPattern = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Update:
    """LoRA of one linear module: A is rank × in, B is out × rank."""

    name: str
    inputs: int
    outputs: int
    rank: int

    @property
    def parameters(self) -> int:
        return self.rank * (self.inputs + self.outputs)


Updates = tuple[Update, ...]
"""Those of one layer."""


@dataclass(frozen=True)
class Adapted:
    """The layers that have updates."""

    kinds: tuple[tuple[Updates, int], ...]
    """What a layer has → how many layers have it so."""
    first_layer: int
    """Number of the first of them."""
    first: Updates
    """What it has."""

    @property
    def parameters(self) -> int:
        return sum(count * sum(one.parameters for one in updates) for updates, count in self.kinds)


def adapted(shape: Shape, choices: Choices) -> Adapted:
    """Raises ModelError: `target_modules`, `layers`, `rank_pattern`."""
    layers = choices.layers
    return _adapted(shape, choices.target_modules, choices.rank, layers, choices.rank_pattern)


@lru_cache(maxsize=4096)
def _adapted(
    shape: Shape,
    targets: Targets,
    rank: int,
    layers: tuple[int, ...] | None,
    pattern: RankPattern,
) -> Adapted:
    _require_no_head(targets)
    sizes = shape.target_modules(targets)
    chosen = _chosen_layers(shape, layers)
    paths = [(n, name, _path(shape, n, name)) for n in range(shape.layers) for name in sizes]
    reached = [each for each in paths if _is_target(each[2], targets, each[0] in chosen)]
    _require_reached(targets, [path for _, _, path in reached], layers)
    keys = {path: _rank_key(path, pattern) for _, _, path in reached}
    _require_used(sizes, pattern, keys.values())
    ranks = dict(pattern)
    by_layer: dict[int, Updates] = {}
    for layer, name, path in reached:
        update = Update(name, *sizes[name], ranks.get(keys[path], rank))
        by_layer[layer] = (*by_layer.get(layer, ()), update)
    first = min(by_layer, default=0)
    kinds = Counter(by_layer.values())
    return Adapted(tuple(kinds.items()), first, by_layer.get(first, ()))


def _require_no_head(targets: Targets) -> None:
    if targets != "all-linear" and any(each.rsplit(".", 1)[-1] == "lm_head" for each in targets):
        raise ModelError(
            "target_modules",
            "lm_head cannot take an adapter: the loss is computed from its weight directly; "
            "modules_to_save trains it fully",
        )


def _chosen_layers(shape: Shape, layers: tuple[int, ...] | None) -> Collection[int]:
    beyond = [str(layer) for layer in layers or () if layer >= shape.layers]
    if beyond:
        raise ModelError(
            "layers",
            f"{shape.name or shape.model_type} has no layer {', '.join(beyond)}: they are 0 to "
            f"{shape.layers - 1}",
        )
    return range(shape.layers) if layers is None else layers


def _path(shape: Shape, layer: int, name: str) -> str:
    """The module's full name."""
    stack, attention = _PATHS.get(shape.model_type, _USUAL_PATHS)
    layout = shape.layout
    block = attention if name in (*layout.queries, layout.output) else "mlp"
    return f"{stack}.{layer}.{block}.{name}"


def _is_target(path: str, targets: Targets, chosen: bool) -> bool:
    """As PEFT 0.21 decides (tuners_utils.py, check_target_module_exists): a full name is adapted
    whatever layers are chosen."""
    if targets == "all-linear":
        return chosen
    return path in targets or (chosen and any(path.endswith(f".{each}") for each in targets))


def _require_reached(
    targets: Targets, reached: Sequence[str], layers: tuple[int, ...] | None
) -> None:
    """PEFT drops a name that reaches nothing as long as another one does."""
    names = () if targets == "all-linear" else targets
    idle = [each for each in names if not any(f".{path}".endswith(f".{each}") for path in reached)]
    if idle:
        where = "" if layers is None else f" in layers {', '.join(map(str, layers))}"
        raise ModelError("target_modules", f"no linear layer{where} is called {', '.join(idle)}")


def _rank_key(path: str, pattern: RankPattern) -> str:
    """The key that gives a module its rank, or nothing: the first that matches the end of its
    name, as a pattern (peft 0.21, utils/other.py, get_pattern_key)."""
    return next((key for key, _ in pattern if re.match(rf"(.*\.)?({key})$", path)), "")


def _require_used(sizes: Iterable[str], pattern: RankPattern, used: Collection[str]) -> None:
    """PEFT passes over a key that matches nothing."""
    known = list(sizes)
    idle = [key for key, _ in pattern if key not in used]
    if idle:
        near = {key: "" if key in known else did_you_mean(key, known) for key in idle}
        names = ", ".join(f"{key!r}{word}" for key, word in near.items())
        raise ModelError(
            "rank_pattern",
            f"no module gets its rank from {names}; a key is the end of a name among "
            f"{', '.join(known)}, and the first key that matches counts",
        )
