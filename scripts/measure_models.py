"""Measure the known models: ftcli/memory/known_models.json → measured_models.tsv.

    python -m scripts.measure_models [HUB_ID ...]

Without arguments all that are not there yet; a line for each model, with the ways of computing that
most trainings take. It takes seconds a model.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Literal

from ftcli.errors import ModelError
from ftcli.memory.architecture import PACKED_TYPES, Architecture, Way, write_architecture
from ftcli.memory.known_models import MEASURED, known_configs
from ftcli.models.architectures.measure import config_of, measure
from ftcli.models.architectures.ways import Measurer

# (bytes of a weight, autocast, every weight trained): mixed and pure bf16, and fp32; the published
# runs of docs/vram.md need no other for 16-bit weights.
COMPUTING: tuple[tuple[Literal[2, 4], bool, bool], ...] = (
    (2, True, False),
    (2, False, False),
    (4, False, False),
    (4, True, True),
    (2, False, True),
    (4, False, True),
)


def ways(architecture: Architecture) -> list[Way]:
    """What is measured of a model; with MLPs in tiles, what fits a GPU longest."""
    attention = architecture.attention
    kinds = (
        [(False, False), (False, True)] if "sdpa" in attention else [(False, False), (True, False)]
    )
    found = [
        Way(weight_bytes, autocast, False, eager, masked, trained)
        for weight_bytes, autocast, trained in COMPUTING
        for eager, masked in kinds
    ]
    tiled = architecture.model_type in PACKED_TYPES
    return found + [replace(found[0], tiled=True)] * tiled


def measured(values: dict[str, object]) -> str:
    config = config_of(values)
    architecture, measurer = measure(config), Measurer(config)
    architecture.ways.extend(measurer.way(way) for way in ways(architecture))
    return write_architecture(architecture)


def main(wanted: list[str]) -> None:
    """Measure what is not there yet, and the hub ids that are asked for."""
    by_config: dict[str, list[str]] = {}
    for hub_id, values in known_configs().items():
        by_config.setdefault(json.dumps(values, sort_keys=True), []).append(hub_id)
    lines = MEASURED.read_text(encoding="utf-8").splitlines() if MEASURED.is_file() else []
    there = dict(line.split("\t", 1) for line in lines)
    for key, hub_ids in by_config.items():
        name = " ".join(hub_ids)
        if name in there and not {*hub_ids} & {*wanted}:
            continue
        print(name, flush=True)
        try:
            there[name] = measured(json.loads(key))
        except ModelError as error:  # a class that needs a package
            print(f"left out: {error}", flush=True)
            continue
        names = [" ".join(each) for each in by_config.values()]
        text = "".join(f"{each}\t{there[each]}\n" for each in names if each in there)
        MEASURED.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
