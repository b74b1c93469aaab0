"""Which linear modules of which layers LoRA adapts, and with which rank."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from ftcli.errors import ModelError, did_you_mean
from ftcli.memory.architecture import Architecture, Experts, Linear
from ftcli.memory.choices import Choices, Targets

RankPattern = tuple[tuple[str, int], ...]


class Update(NamedTuple):
    """LoRA of one linear module: A is rank × in, B is out × rank."""

    linear: Linear
    rank: int

    @property
    def parameters(self) -> int:
        return self.rank * (self.linear.inputs + self.linear.outputs)


Updates = tuple[Update, ...]
"""Those of one layer, in the order in which the modules run."""


class Alike(NamedTuple):
    """Layers of one kind with the same updates."""

    kind: int
    updates: Updates
    layers: int
    """How many."""


@dataclass(frozen=True)
class Adapted:
    """The layers that have updates."""

    kinds: tuple[Alike, ...]
    first_layer: int
    """Number of the first of them."""
    first: Updates
    """What it has."""
    names: tuple[str, ...]
    """Full names of the modules."""

    @property
    def last_names(self) -> list[str]:
        return list(dict.fromkeys(name.rpartition(".")[2] for name in self.names))

    @property
    def parameters(self) -> int:
        return sum(
            alike.layers * sum(one.parameters for one in alike.updates) for alike in self.kinds
        )


def adapted(architecture: Architecture, choices: Choices) -> Adapted:
    """What LoRA adapts; raises ModelError (`target_modules`, `layers`, `rank_pattern`)."""
    targets, layers = choices.target_modules, choices.layers
    return _adapted(architecture, targets, choices.rank, layers, choices.rank_pattern)


@lru_cache(maxsize=4096)
def _adapted(
    architecture: Architecture,
    targets: Targets,
    rank: int,
    layers: tuple[int, ...] | None,
    pattern: RankPattern,
) -> Adapted:
    reached = reached_modules(architecture, targets, layers)
    keys = {path: _rank_key(path, pattern) for _, _, path in reached}
    _require_used(last_names(architecture), pattern, keys.values())
    ranks = dict(pattern)
    by_layer: dict[int, Updates] = {}
    for layer, linear, path in reached:
        update = Update(linear, ranks.get(keys[path], rank))
        by_layer[layer] = (*by_layer.get(layer, ()), update)
    first = min(by_layer, default=0)
    numbers = {layer: n for n, kind in enumerate(architecture.kinds) for layer in kind.layers}
    kinds = Counter((numbers[layer], updates) for layer, updates in by_layer.items())
    return Adapted(
        kinds=tuple(Alike(kind, updates, count) for (kind, updates), count in kinds.items()),
        first_layer=first,
        first=by_layer.get(first, ()),
        names=tuple(path for _, _, path in reached),
    )


def reached_modules(
    architecture: Architecture, targets: Targets, layers: tuple[int, ...] | None
) -> list[tuple[int, Linear, str]]:
    """The modules that LoRA adapts: layer, module, and full name; a full name reaches its module
    whatever `layers` says. Raises ModelError (`target_modules`, `layers`)."""
    _require_no_head(targets)
    if not architecture.linear_parameters:
        raise ModelError(
            "target_modules",
            f"{architecture.name or architecture.model_type} has no linear layers to adapt "
            "(GPT-2's are Conv1D); take method.mode: full",
        )
    _require_known(architecture, targets)
    chosen = _chosen_layers(architecture, layers)
    modules = [
        (layer, linear, f"{architecture.stack}.{layer}.{linear.name}")
        for layer in range(architecture.layers)
        for linear in architecture.kind_of(layer).linear
    ]
    reached = [each for each in modules if _is_target(each[2], targets, each[0] in chosen)]
    _require_reached(targets, [path for _, _, path in reached], layers)
    return reached


def adapted_stacks(
    architecture: Architecture, layers: tuple[int, ...] | None
) -> list[tuple[int, Experts, str]]:
    """The stacks of experts that LoRA adapts with method.experts: layer, stack, and full name.

    Raises ModelError (`method_refused`, `layers`).
    """
    stacks = list(architecture.expert_stacks())
    name = architecture.name or architecture.model_type
    if not stacks:
        raise ModelError(
            "method_refused", f"{name} is no mixture of experts; remove method.experts"
        )
    adaptable = [each for each in stacks if each[1].adaptable]
    if not adaptable:
        raise ModelError(
            "method_refused",
            f"{name} computes its experts ({stacks[0][2]}) in its own way, not through "
            "transformers' interface for experts, so they cannot take an adapter; remove "
            "method.experts, which leaves them frozen",
        )
    chosen = _chosen_layers(architecture, layers)
    found = [each for each in adaptable if each[0] in chosen]
    if not found:
        numbers = ", ".join(map(str, layers or ()))
        raise ModelError("layers", f"layers {numbers} have no experts; remove method.experts")
    return found


def last_names(architecture: Architecture) -> list[str]:
    """`q_proj` and the others that the layers have, in the order in which they run."""
    linear = (each for kind in architecture.kinds for each in kind.linear)
    return list(dict.fromkeys(each.name.rsplit(".", 1)[-1] for each in linear))


def _require_known(architecture: Architecture, targets: Targets) -> None:
    known = last_names(architecture)
    wanted = () if targets == "all-linear" else targets
    absent = [name for name in dict.fromkeys(wanted) if name.rsplit(".", 1)[-1] not in known]
    if absent:
        last = [name.rsplit(".", 1)[-1] for name in absent]
        named = ", ".join(f"{name!r}{did_you_mean(name, known)}" for name in last)
        raise ModelError(
            "target_modules",
            f"{architecture.name or architecture.model_type} has no linear layer {named}; "
            f"it has {', '.join(known)}",
        )


def _require_no_head(targets: Targets) -> None:
    if targets != "all-linear" and any(each.rsplit(".", 1)[-1] == "lm_head" for each in targets):
        raise ModelError(
            "target_modules",
            "lm_head cannot take an adapter: the loss is computed from its weight directly; "
            "modules_to_save trains it fully",
        )


def _chosen_layers(architecture: Architecture, layers: tuple[int, ...] | None) -> Collection[int]:
    beyond = [str(layer) for layer in layers or () if layer >= architecture.layers]
    if beyond:
        raise ModelError(
            "layers",
            f"{architecture.name or architecture.model_type} has no layer "
            f"{', '.join(beyond)}: they are 0 to {architecture.layers - 1}",
        )
    return range(architecture.layers) if layers is None else layers


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
