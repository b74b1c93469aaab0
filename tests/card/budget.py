"""What a step may do on a card: `python -m tests.card.budget` writes what it launches and moves."""

from __future__ import annotations

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.card.conftest import FAMILIES, LAYERS, METHODS, Jobs, jobs_in
from tests.card.pretended import pretended_card
from tests.card.steps import Counts, take_steps

Cost = dict[str, float]

BUDGET = Path(__file__).with_name("budget.json")
MOST_SYNCS = 3  # of a step but the last: is the loss finite, the norm of the gradient, the loss
IMPOSSIBLE = {
    ("mixtral", "full"): "torch's fake tensors multiply experts in bf16 alone",
    ("mixtral", "bottleneck"): "refused: its MLP has no last linear layer",
}
CASES = [(f, m) for f in FAMILIES for m in METHODS if (f, m) not in IMPOSSIBLE]
# Of full training, whose states would be paged by CUDA.
SMALL = {"hidden_size": 1024, "intermediate_size": 4096, "vocab_size": 32_000, "head_dim": 128}


def counted(job_of: Jobs, family: str, method: str, **keys: Any) -> Counts:
    """The second step: the first also makes the optimizer's states."""
    sizes = (SMALL if method == "full" else {}) | keys.pop("sizes", {})
    job = job_of(family, method, sizes=sizes, **keys)
    with pretended_card():
        return take_steps(job)[1]


def problems(job_of: Jobs, family: str, method: str, **keys: Any) -> list[str]:
    """What a card would feel of a step: tensors of the host, waiting, other types, more work."""
    try:
        step = counted(job_of, family, method, **keys)
    except (RuntimeError, TypeError, AssertionError) as error:
        return [f"error: {type(error).__name__}"]
    found = [f"stray: {each}" for each in step.strays]
    found += [f"copy: {each}" for each in step.copies]
    if len(step.syncs) > MOST_SYNCS:
        found += [f"sync: {each}" for each in step.syncs]
    found += [f"type: {each}" for each in step.product_types if each != "bfloat16"]
    budget = json.loads(BUDGET.read_text())[f"{family} {method}"]
    for name, value in cost(step).items():
        most = LAYERS * budget["layer"][name] + budget["rest"][name]
        if value > most:
            found.append(f"{name}: {value:.0f}, and {most} is the budget")
    return found


def cost(step: Counts) -> Cost:
    return {"launches": step.launches, "megabytes": sum(step.moved.values()) / 1e6}


def main() -> None:
    found = {}
    for family, method in CASES:
        with TemporaryDirectory() as folder:
            job_of = jobs_in(Path(folder))
            few = {"num_hidden_layers": LAYERS - 1}
            less, more = (cost(counted(job_of, family, method, sizes=s)) for s in (few, {}))
        layer = {name: math.ceil(more[name] - less[name]) for name in more}
        rest = {name: math.ceil(more[name] - LAYERS * layer[name]) for name in more}
        found[f"{family} {method}"] = {"layer": layer, "rest": rest}
    BUDGET.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
