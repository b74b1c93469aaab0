"""What a step may launch and move on a card, by layer and for the rest: `python -m
tests.card.budget` writes it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.card.conftest import FAMILIES, METHODS, Jobs, jobs_in
from tests.card.pretended import pretended_card
from tests.card.steps import Counts, take_steps

Cost = dict[str, float]

BUDGET = Path(__file__).with_name("budget.json")
IMPOSSIBLE = {
    ("mixtral", "full"): "torch's fake tensors multiply experts in bf16 alone",
    ("mixtral", "bottleneck"): "refused: its MLP has no last linear layer",
}
CASES = [(f, m) for f in FAMILIES for m in METHODS if (f, m) not in IMPOSSIBLE]
# Of full training, whose states would be paged by CUDA.
SMALL = {"hidden_size": 1024, "intermediate_size": 4096, "vocab_size": 32_000, "head_dim": 128}


def counted(job_of: Jobs, family: str, method: str, **keys: Any) -> Counts:
    """The second step: the first also makes the optimizer's states."""
    sizes = SMALL if method == "full" else {}
    job = job_of(family, method, **{"sizes": sizes} | keys)
    with pretended_card():
        return take_steps(job)[1]


def cost(step: Counts) -> Cost:
    return {"launches": step.launches, "megabytes": sum(step.moved.values()) / 1e6}


def costs(job_of: Jobs, family: str, method: str, two: Counts) -> dict[str, Cost]:
    """Of a layer and of the rest, from a step with two layers and one with one."""
    sizes = SMALL if method == "full" else {}
    one = cost(counted(job_of, family, method, sizes=sizes | {"num_hidden_layers": 1}))
    layer = {name: value - one[name] for name, value in cost(two).items()}
    return {"layer": layer, "rest": {name: one[name] - layer[name] for name in layer}}


def main() -> None:
    found = {}
    for family, method in CASES:
        with TemporaryDirectory() as folder:
            job_of = jobs_in(Path(folder))
            each = costs(job_of, family, method, counted(job_of, family, method))
        shown = {
            part: {n: math.ceil(v) for n, v in values.items()} for part, values in each.items()
        }
        found[f"{family} {method}"] = shown
    BUDGET.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
