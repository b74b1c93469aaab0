"""Several adapters on one base in memory, one of them active at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from peft import PeftModel
from peft.tuners.lora import LoraLayer

from ftcli.inference.generation import Model
from ftcli.models.adapters import add_adapter
from ftcli.models.prompt_manifest import PromptContract


@dataclass(frozen=True)
class AdapterSet:
    """Models that share their weights; `slots` are PEFT's names of the adapters, by ours."""

    models: Mapping[str, Model]
    slots: Mapping[str, str]

    def use(self, name: str) -> Model:
        """The model that answers as `name`, until the next call."""
        model = self.models[name]
        if isinstance(model.network, PeftModel):
            model.network.set_adapter(self.slots[name], inference_mode=True)
        return model


def adapter_set(name: str, model: Model) -> AdapterSet:
    """A set of one."""
    return AdapterSet({name: model}, {name: "default"})


def renamed(adapters: AdapterSet, name: str, other: str) -> AdapterSet:
    """The same adapter under one more name."""
    return AdapterSet(
        {**adapters.models, other: adapters.models[name]},
        {**adapters.slots, other: adapters.slots[name]},
    )


def with_adapter(
    adapters: AdapterSet, name: str, folder: Path, contract: PromptContract
) -> AdapterSet:
    """One more adapter from a folder, on the same base; raises ModelError."""
    network = _network(adapters)
    slot = f"adapter{len(adapters.slots)}"  # PEFT's names may hold no dot
    add_adapter(network, folder, slot)
    return _with(adapters, name, slot, contract)


def with_sum(
    adapters: AdapterSet, name: str, parts: Sequence[tuple[str, float]], contract: PromptContract
) -> AdapterSet:
    """One more adapter that is a weighted sum of LoRA adapters in the set.

    Their ranks are put side by side (`cat`), which is exact; PEFT's default `svd` is not.
    """
    network = _network(adapters)
    slot = f"adapter{len(adapters.slots)}"
    network.add_weighted_adapter(
        [adapters.slots[part] for part, _ in parts],
        [weight for _, weight in parts],
        slot,
        combination_type="cat",
    )
    for module in network.modules():
        if isinstance(module, LoraLayer) and slot in module.scaling:
            module.scaling[slot] = 1.0  # the parts are scaled already; rsLoRA would do it again
    return _with(adapters, name, slot, contract)


def batches_by_name(names: Sequence[str], rows: int) -> Iterator[list[int]]:
    """Row numbers in batches of one name each, of at most `rows`.

    Batches come in the order of their first rows, and hold what a file with the rows of that name
    alone would give: answers do not depend on whom a batch is shared with.
    """
    waiting: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        waiting.setdefault(name, []).append(index)
    batches = [
        indices[start : start + rows]
        for indices in waiting.values()
        for start in range(0, len(indices), rows)
    ]
    yield from sorted(batches)


def _network(adapters: AdapterSet) -> PeftModel:
    return next(iter(adapters.models.values())).network


def _with(adapters: AdapterSet, name: str, slot: str, contract: PromptContract) -> AdapterSet:
    model = replace(next(iter(adapters.models.values())), contract=contract)
    return AdapterSet({**adapters.models, name: model}, {**adapters.slots, name: slot})
