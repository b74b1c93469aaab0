"""Folders of finished runs as a training and an evaluation leave them, for tests of the report."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ftcli.artifacts import RunFolder
from ftcli.prepared import SplitCounts, save_prepared
from tests.conftest import pair, prepared_data

STEPS = 60
KEY = "0123456789abcdef"
SCORES: dict[str, dict[str, Any]] = {
    "format_rate": {"label": "in the format", "unit": "share", "better": "higher"},
    "faithful_rate": {
        "label": "no new number",
        "unit": "share",
        "better": "higher",
        "own": True,
    },
    "stop_rate": {"label": "stops by itself", "unit": "share", "better": "higher"},
    "exact_match": {"label": "exact match", "unit": "share", "better": "higher"},
    "chrf": {"label": "chrF", "unit": "value", "better": "higher"},
    "answer_tokens": {"label": "tokens an answer", "unit": "value", "better": None},
    "loss": {"label": "loss", "unit": "value", "better": "lower"},
    "perplexity": {"label": "perplexity", "unit": "value", "better": "lower"},
}
Score = tuple[float, float, float]
HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "{{ run.recipe }}{% for x in y %}{# #}",
    "</style><style>*{display:none}</style>",
    "\x00\x07\x1b[31m null and bell",
    "half \ud800 a character \udfff",
    "\u202eright to left\u202c שלום",
    '" onmouseover="alert(1)" x="',
    "'&amp;'<!-- --><![CDATA[ ]]>",
    "https://user:password@example.com/x",
    "javascript:alert(1)",
    "\ufffe\uffff\x85",
)
BASE: dict[str, Score] = {
    "format_rate": (0.02, 0.0, 0.09),
    "faithful_rate": (0.40, 0.29, 0.53),
    "stop_rate": (0.35, 0.24, 0.48),
    "exact_match": (0.0, 0.0, 0.06),
    "chrf": (0.17, 0.16, 0.19),
    "answer_tokens": (101.0, 94.0, 108.0),
    "loss": (2.31, 2.25, 2.38),
    "perplexity": (10.07, 9.49, 10.80),
}
TUNED: dict[str, Score] = {
    "format_rate": (0.97, 0.92, 0.99),
    "faithful_rate": (0.93, 0.84, 0.97),
    "stop_rate": (1.0, 0.97, 1.0),
    "exact_match": (0.02, 0.0, 0.09),
    "chrf": (0.50, 0.49, 0.52),
    "answer_tokens": (72.0, 70.0, 74.0),
    "loss": (0.88, 0.84, 0.93),
    "perplexity": (2.41, 2.32, 2.53),
}
VERDICTS = dict.fromkeys(SCORES, "better") | {
    "exact_match": "no difference shown",
    "answer_tokens": "changed",
}
ABILITY = {"before": 14.2, "after": 14.5, "change": 0.02, "change_interval": [-0.01, 0.05]}
FORGETTING: dict[str, dict[str, Any]] = {
    "text": {
        "name": "general text",
        "tokens": 51_000,
        **ABILITY,
        "words": "+2%: nothing shown to be forgotten",
    },
    "follows": {
        "before": 0.8,
        "after": 0.75,
        "difference": -0.05,
        "interval": [-0.2, 0.1],
        "rows": 20,
        "words": "no difference shown with 20 rows: take more (about 180)",
    },
}
BREAKDOWN = {
    "weights": 538_000_000,
    "quantization": 0,
    "adapter": 19_500_000,
    "optimizer": 39_000_000,
    "activations": 857_000_000,
    "logits": 145_000_000,
    "workspace": 8_500_000,
    "context": 590_000_000,
}


def side(scores: Mapping[str, Score], **further: Any) -> dict[str, Any]:
    """Scores of one model as an evaluation writes them."""
    found: dict[str, Any] = {}
    for name, (value, low, high) in scores.items():
        found |= {name: value, f"{name}_interval": [low, high]}
    return found | {"prompt_tokens": 68.0, "tokens_per_second": 82.0} | further


def evaluation(**changes: Any) -> dict[str, Any]:
    """An evaluation with differences and forgetting, changed as asked; None takes a part away."""
    differences = {
        name: {
            "difference": TUNED[name][0] - BASE[name][0],
            "interval": [TUNED[name][1] - BASE[name][2], TUNED[name][2] - BASE[name][1]],
            "verdict": verdict,
            "words": verdict,
            "rows_to_show": 220 if verdict == "no difference shown" else None,
        }
        for name, verdict in VERDICTS.items()
    }
    report: dict[str, Any] = {
        "rows": 120,
        "data": "test",
        "rows_chose_checkpoint": False,
        "base": side(BASE),
        "tuned": side(TUNED),
        "scores": SCORES,
        "differences": {"tuned_vs_base": differences},
        "forgetting": FORGETTING,
        "samples": [],
        "answers": f"answers/{KEY}.jsonl",
    }
    kept = {name: value for name, value in (report | changes).items() if value is not None}
    return copy.deepcopy(kept)


def verdicts(**changed: str) -> dict[str, Any]:
    """`differences` against the base with other verdicts; `all` is that of every score."""
    usual = changed.pop("all", None)
    kept = evaluation()["differences"]["tuned_vs_base"]
    for name, found in kept.items():
        found["verdict"] = found["words"] = changed.get(name, usual or found["verdict"])
    return {"tuned_vs_base": kept}


def answer(text: str, *, stopped: bool = True, **further: Any) -> dict[str, Any]:
    """One side of a line of answers."""
    counts = {"format_rate": [1.0, 1.0], "stop_rate": [float(stopped), 1.0]}
    return {
        "text": text,
        "tokens": max(1, len(text) // 4),
        "stopped": stopped,
        "loss": 1.0,
        "loss_tokens": 2,
        "counts": counts,
        "findings": [],
        **further,
    }


def finding(text: str, words: str, kind: str) -> dict[str, Any]:
    """A finding that the words in a text prove."""
    start = text.index(words)
    message = f"“{words}” is not in the facts"
    return {"kind": kind, "message": message, "start": start, "end": start + len(words)}


def usual_lines(rows: int) -> list[dict[str, Any]]:
    """Answers to small products: every fifth has a number of its own, every seventh no format."""
    return [_usual_line(number) for number in range(rows)]


def _usual_line(number: int) -> dict[str, Any]:
    row = pair(number)
    text, further = row["completion"], {}
    if number % 5 == 0:
        text += " Holds 1.7 litres."
        further["findings"] = [finding(text, "1.7 litres", "number not in the prompt")]
    if number % 7 == 0:
        text = text.replace("# ", "")
        wrong = {"kind": "pattern", "message": "the answer does not match the pattern"}
        further["findings"] = [wrong | {"start": None, "end": None}]
        further["counts"] = {"format_rate": [0.0, 1.0], "stop_rate": [1.0, 1.0]}
    base = answer("Product description. " * 12, stopped=False)
    base["counts"]["format_rate"] = [0.0, 1.0]
    return {
        "file": "test.jsonl",
        "line": number + 1,
        "prompt": row["prompt"],
        "reference": row["completion"],
        "facts": row["prompt"],
        "sides": {"base": base, "tuned": answer(text, **further)},
    }


def save_evaluation(
    run: RunFolder, report: Mapping[str, Any], lines: list[dict[str, Any]] | None, key: str = KEY
) -> None:
    """Write an evaluation, and its answers; without any it is one of before, which kept none."""
    folder = run.evaluations
    (folder / "answers").mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in report.items() if lines is not None or name != "answers"}
    (folder / f"{key}.json").write_text(json.dumps(kept))
    if lines is not None:
        written = "".join(json.dumps(line, ensure_ascii=True) + "\n" for line in lines)
        (folder / "answers" / f"{key}.jsonl").write_text(written)


def save_run(
    folder: Path, name: str = "shop", *, model: str = "Qwen/Qwen2.5-0.5B-Instruct", **manifest: Any
) -> RunFolder:
    """A finished training of 60 steps without an evaluation; keyword arguments go into run.json."""
    run = RunFolder(folder / "runs" / name)
    run.data.mkdir(parents=True)
    recipe = {
        "name": name,
        "model": {"id": model},
        "method": {"mode": "lora", "rank": 16},
        "data": {"train": str(folder / "rows.jsonl"), "validation": 8},
        "training": {"epochs": 3, "learning_rate": 0.002},
        "output": str(run.path),
    }
    run.recipe.write_text(yaml.safe_dump(recipe, sort_keys=False))
    run.plan.write_text(json.dumps(plan()))
    run.contract.write_text(json.dumps({"base": "ab" * 16, "template": "cd" * 32}))
    run.manifest.write_text(json.dumps(run_json(folder) | manifest))
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in records()))
    run.speed.write_text("".join(json.dumps(line) + "\n" for line in speeds()))
    counts = {"train": SplitCounts(372, 55_272, 27_823), "test": SplitCounts(60, 8826, 4423)}
    save_prepared(prepared_data(rows_read=448, **counts), run.data)
    return run


def run_json(folder: Path) -> dict[str, Any]:
    """What a training of a LoRA on a CPU says of itself."""
    return {
        "state": "finished",
        "run_id": "ec0ff986" * 4,
        "recipe": str(folder / "shop.yaml"),
        "data": "5cb6bbdf603b88a9",
        "seed": 42,
        "hardware": {"name": "a machine", "memory_bytes": 25_276_502_016},
        "versions": {"ftcli": "0.1.0", "python": "3.11.7", "torch": "2.13.0"},
        "started": "2026-01-05T10:00:00+0000",
        "finished": "2026-01-05T10:08:51+0000",
        "memory": {
            "device": "cpu",
            "estimated_bytes": 1_607_000_000,
            "low_bytes": 1_527_000_000,
            "high_bytes": 1_800_000_000,
            "estimated_reserved_bytes": 1_768_000_000,
            "allocated_bytes": None,
            "reserved_bytes": None,
            "resident_bytes": 1_822_000_000,
        },
        "result": {
            "state": "finished",
            "steps": STEPS,
            "train_loss": 0.9,
            "eval_loss": 0.91,
            "first_eval_loss": 2.31,
            "best_step": STEPS,
            "tokens_per_second": 82.0,
            "trained_parameters": 4_884_480,
            "total_parameters": 134_515_008,
            "peak_memory_bytes": 2_438_991_872,
            "saved_bytes": 19_593_064,
            "seconds": 531.2,
        },
        "weights": {"adapter_model.safetensors": "3b" * 32},
    }


def plan() -> dict[str, Any]:
    """Two decisions and an estimate."""
    return {
        "precision": {"value": "bf16", "reason": "the card computes in it"},
        "micro_batch": {"value": 4, "reason": "keeps the cores busy"},
        "accumulation": 4,
        "estimate": {
            "breakdown": BREAKDOWN,
            "peak_bytes": 1_607_000_000,
            "reserved_bytes": 1_768_000_000,
            "residuals": {"low": 0.95, "high": 1.12},
            "peak_phase": "head and loss",
        },
    }


def records() -> list[dict[str, Any]]:
    """Losses that fall, with a peak of the gradient norm in the middle."""
    lines: list[dict[str, Any]] = [{"step": 0, "eval_loss": 2.31}]
    for step in range(1, STEPS + 1):
        lines.append(
            {
                "step": step,
                "loss": 0.85 + 1.5 * math.exp(-step / 15) + 0.05 * math.sin(step),
                "grad_norm": 30.0 if step == 31 else 0.5 + 0.2 * math.cos(step),
                "learning_rate": 0.002 * min(step / 4, (STEPS - step) / (STEPS - 4)),
            }
        )
        if step % 20 == 0:
            lines.append({"step": step, "eval_loss": 0.91 + 1.4 * math.exp(-step / 12)})
    return lines


def speeds() -> list[dict[str, Any]]:
    """Tokens and seconds of each step."""
    return [
        {"step": step, "tokens": 2000 + 10 * step, "seconds": 24.0 + step % 3}
        for step in range(1, STEPS + 1)
    ]


def hostile_run(folder: Path) -> RunFolder:
    """Hostile words in every place that a model, a row, a recipe or a file's name may fill."""
    run = save_run(folder, model="".join(HOSTILE[:2]))
    lines = []
    for number, words in enumerate(HOSTILE):
        marked = [finding(f"a {words} b", words, f"{words} not in the prompt")]
        row = {"file": words, "line": number, "prompt": words, "reference": words, "facts": "f"}
        sides = {"base": answer(words), "tuned": answer(f"a {words} b", findings=marked)}
        lines.append(row | {"sides": sides})
    lines.append(lines[0] | {"prompt": "<b>" * 333_333})
    label = {"label": HOSTILE[0], "unit": HOSTILE[1], "better": HOSTILE[3]}
    report = evaluation(rows=len(lines), data=HOSTILE[1])
    report["scores"] = report["scores"] | {"chrf": label}
    report["forgetting"]["text"] = report["forgetting"]["text"] | {"words": HOSTILE[0]}
    save_evaluation(run, report, lines)
    (run.data / "advice.json").write_text(json.dumps({"sentences": [*HOSTILE, 3, None]}))
    run.update_manifest(versions={HOSTILE[0]: HOSTILE[1]}, hardware={"name": HOSTILE[1]})
    return run
