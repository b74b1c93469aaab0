"""Is a sound training ever refused its merge, and what do stored types cost? 30 of three models.

The small model with its files in bf16, and as a Qwen 2 (with biases) and a Mistral (with a window),
both tuned whole first so that no weight is the Llama's; each is tuned ten times and merged with
`--dtype auto`. A training that is in the output file is not done again.

    python scripts/sound_merges.py --model models/SmolLM2-135M-Instruct --data ../shared/data \\
        --output docs/data/merges.csv
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from kept_rows import append, read
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ftcli.cli import run

HELD_OUT_ROWS = 8
ROWS = 32
BATCH = 4
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "mistral": {"sliding_window": 128},
}
DATA = ("ecommerce_retail_demo", "sql_wikisql_large")
METHODS = ({"mode": "lora"}, {"mode": "qlora"}, {"mode": "lora", "dora": True})
RATES = (2e-4, 1e-3)
TRAININGS = 10


@dataclass(frozen=True)
class Merged:
    """One training, and what its merge says; empty where the merge was refused."""

    model: str
    data: str
    method: str
    rate: str
    loss: str = ""
    verdict: str = ""
    exact_max_logit_difference: str = ""
    """Of the merge before it is rounded."""
    compared_in: str = ""
    """The type in which that was computed."""
    bf16_kl: str = ""
    bf16_loss_difference: str = ""
    """What rounding to bf16 costs."""
    dtype: str = ""
    """The type that was saved, whose cost follows."""
    kl: str = ""
    loss_difference: str = ""
    largest_activation: str = ""


def main() -> None:
    arguments = _arguments()
    done = {tuple(asdict(each).values())[:4] for each in read(arguments.output, Merged)}
    with tempfile.TemporaryDirectory() as name:
        for model in MODELS:
            home = Path(name) / model
            home.mkdir()
            wanted = [each for each in _trainings(model) if each[:4] not in done]
            if wanted:
                _save_base(model, arguments.model, arguments.data, home)
            for _, data, method, rate in wanted:
                append(arguments.output, _merge(model, data, method, rate, arguments.data, home))


def _trainings(model: str) -> list[tuple[str, str, str, str]]:
    pairs = itertools.product(METHODS, DATA, RATES)
    return [(model, data, json.dumps(m), f"{rate:g}") for m, data, rate in pairs][:TRAININGS]


def _save_base(model: str, real: Path, data: Path, home: Path) -> None:
    """The base of a model, its files in bf16."""
    tokenizer = AutoTokenizer.from_pretrained(real)
    network = AutoModelForCausalLM.from_pretrained(real)
    if model != network.config.model_type:
        _as(model, network).save_pretrained(home / "as")
        tokenizer.save_pretrained(home / "as")
        rows = _rows(data, "instruct_dolly_short", 48 + HELD_OUT_ROWS, home)
        first = _recipe(home, "first", home / "as", {"mode": "full"}, rows, 5e-5)
        assert run(["train", str(first)]) == 0
        network = AutoModelForCausalLM.from_pretrained(home / "runs/first/model")
    network.bfloat16().save_pretrained(home / "base")
    tokenizer.save_pretrained(home / "base")


def _as(model_type: str, network: Any) -> Any:
    """A Llama as another type; what it has besides begins small and random."""
    torch.manual_seed(0)
    config = network.config.to_dict() | MODELS[model_type]
    known = AutoConfig.for_model(model_type).to_dict()
    sizes = {key: value for key, value in config.items() if key in known and key != "model_type"}
    found = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes))
    missing, _ = found.load_state_dict(network.state_dict(), strict=False)
    for name in missing:
        torch.nn.init.normal_(found.get_parameter(name), std=0.02)
    return found


def _merge(model: str, data: str, method: str, rate: str, rows: Path, home: Path) -> Merged:
    name = f"{data}-{abs(hash((method, rate)))}"
    file = _rows(rows, data, ROWS + HELD_OUT_ROWS, home)
    recipe = _recipe(home, name, home / "base", json.loads(method), file, float(rate))
    assert run(["train", str(recipe)]) == 0
    folder = home / "runs" / name
    loss = json.loads((folder / "run.json").read_text())["result"]["eval_loss"]
    code = run(["merge", str(folder)])
    found = Merged(
        model, data, method, rate, f"{loss:.4f}", "pass" if code == 0 else f"exit {code}"
    )
    if code:
        return found
    report = json.loads((folder / "merged" / "merge_report.json").read_text())
    costs = {cost["dtype"]: cost for cost in [*report["other_types"], report["rounding"]]}
    bf16, taken = costs["bfloat16"], costs[report["dtype"]]
    values = {
        "exact_max_logit_difference": f"{report['exact']['max_logit_difference']:.1e}",
        "compared_in": report["exact"]["compared_in"],
        "bf16_kl": f"{bf16['kl']:.1e}",
        "bf16_loss_difference": f"{bf16['loss_difference']:+.4f}",
        "dtype": report["dtype"],
        "kl": f"{taken['kl']:.1e}",
        "loss_difference": f"{taken['loss_difference']:+.4f}",
        "largest_activation": f"{report['largest_activation']:.3g}",
    }
    return Merged(**asdict(found) | values)


def _rows(data: Path, name: str, count: int, home: Path) -> Path:
    file = home / f"{name}.jsonl"
    with (data / name / "train.jsonl").open(encoding="utf-8") as lines:
        file.write_text("".join(itertools.islice(lines, count)), encoding="utf-8")
    return file


def _recipe(
    home: Path,
    name: str,
    base: Path,
    method: dict[str, Any],
    rows: Path,
    rate: float,
) -> Path:
    recipe = {
        "name": name,
        "model": {"id": str(base)},
        "method": method,
        "data": {"train": str(rows), "validation": HELD_OUT_ROWS},
        "training": {"epochs": 1, "learning_rate": rate, "batch_size": BATCH},
        "generation": {"max_new_tokens": 1},
    }
    path = home / f"{name}.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    return path


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
