"""Measure the known models: ftcli/memory/known_models.json → measured_models.tsv.

    python -m scripts.measure_models [HUB_ID ...]

Without arguments all that are not there yet; a line for each model, with the ways of computing that
most trainings take. It takes seconds a model.
"""

from __future__ import annotations

import json
import sys
from typing import Literal

from ftcli.errors import ModelError
from ftcli.memory.architecture import Way, write_architecture
from ftcli.memory.known_models import MEASURED, known_configs
from ftcli.models.architectures.measure import config_of, measure
from ftcli.models.architectures.ways import Measurer

# (bytes of a weight, autocast, every weight trained): mixed and pure bf16, and fp32.
COMPUTING: tuple[tuple[Literal[2, 4], bool, bool], ...] = (
    (2, True, False),
    (4, False, False),
    (4, True, True),
    (2, False, True),
    (4, False, True),
)


def ways(attention: tuple[str, ...]) -> list[Way]:
    """What is measured of a model with these implementations of attention."""
    kinds = (
        [(False, False), (False, True)] if "sdpa" in attention else [(False, False), (True, False)]
    )
    return [
        Way(weight_bytes, autocast, False, eager, masked, trained)
        for weight_bytes, autocast, trained in COMPUTING
        for eager, masked in kinds
    ]


def measured(values: dict[str, object]) -> str:
    config = config_of(values)
    architecture, measurer = measure(config), Measurer(config)
    architecture.ways.extend(measurer.way(way) for way in ways(architecture.attention))
    return write_architecture(architecture)


def main(wanted: list[str]) -> None:
    lines = MEASURED.read_text(encoding="utf-8").splitlines() if MEASURED.is_file() else []
    there = dict(line.split("\t", 1) for line in lines)
    by_config: dict[str, str] = {}
    configs = known_configs()
    for hub_id, values in configs.items():
        key = json.dumps(values, sort_keys=True)
        if hub_id in there and hub_id not in wanted:
            by_config.setdefault(key, there[hub_id])
            continue
        if key not in by_config:
            print(hub_id, flush=True)
            try:
                by_config[key] = measured(values)
            except ModelError as error:  # a class that needs a package
                print(f"left out: {error}", flush=True)
                continue
        there[hub_id] = by_config[key]
        text = "".join(f"{each}\t{there[each]}\n" for each in configs if each in there)
        MEASURED.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
