"""Folders of finished runs as a training and an evaluation leave them, for tests of the report."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ftcli.config.recipe import Recipe
from ftcli.data.dataset import SplitCounts, save_dataset
from ftcli.evaluation.advice.advice import Advice, advice_file
from ftcli.memory.hardware import Hardware
from ftcli.models.architectures.find import find_architecture
from ftcli.runs.folder import RunFolder
from ftcli.runs.results import (
    Answer,
    AnsweredRow,
    Call,
    Difference,
    EvalResult,
    Finding,
    Score,
    ScoreRow,
    Verdict,
)
from ftcli.runs.training_records import (
    HardwareRecord,
    MemoryFigures,
    RunRecord,
    TrainingResult,
)
from ftcli.training.plan.decide import make_plan
from ftcli.training.plan.plan import Plan, RowStatistics
from tests.conftest import pair, prepared_data

STEPS = 60
KEY = "0123456789abcdef"
HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "{{ run.recipe }}{% for x in y %}{# #}",
    "</style><style>*{display:none}</style>",
    "\x00\x07\x1b[31m null and bell",
    "\u202eright to left\u202c שלום",
    '" onmouseover="alert(1)" x="',
    "'&amp;'<!-- --><![CDATA[ ]]>",
    "https://user:password@example.com/x",
    "javascript:alert(1)",
    "\ufffe\uffff\x85",
)


def score(value: float, low: float | None = None, high: float | None = None) -> Score:
    """A score of 120 rows, by default with an interval of five points."""
    ends = (value - 0.05 if low is None else low, value + 0.05 if high is None else high)
    return Score(value=value, interval=ends, n=120)


def difference(value: float, verdict: Verdict | None, error: float = 0.02) -> Difference:
    """A difference of 120 rows."""
    interval = (value - 1.96 * error, value + 1.96 * error)
    ways = None if verdict is None else 100, None if verdict is None else 4
    return Difference(
        value=value,
        interval=interval,
        n=120,
        rows_better=ways[0],
        rows_worse=ways[1],
        p_value=0.001,
        verdict=verdict,
    )


def row(
    name: str, base: float, tuned: Score, verdict: Verdict | None = "better", **changes: Any
) -> ScoreRow:
    """A proportion (higher is better) of base and tuned, with changes."""
    values: dict[str, Any] = {
        "name": name,
        "label": name.replace("_", " "),
        "unit": "share",
        "better": "higher",
        "base": score(base),
        "tuned": tuned,
        "tuned_vs_base": difference(tuned.value - base, verdict),
    }
    return ScoreRow(**values | changes)


FORMAT = row("format_rate", 0.02, score(0.97, 0.92, 0.99), label="format valid")
STOPS = row("stop_rate", 0.35, score(1.0, 0.97, 1.0), label="finished (EOS)")
ROWS = (
    FORMAT,
    STOPS,
    row(
        "not_in_prompt",
        0.4,
        score(0.16),
        None,
        label="terms not in the prompt",
        better=None,
        your_answers=score(0.05),
    ),
    row("loss", 2.31, score(0.88), unit="value", better="lower"),
    row("answer_tokens", 101.0, score(72.0), None, unit="value", better=None, shown=False),
)
GENERAL = (
    row(
        "general_text",
        2.65,
        score(2.67),
        "not significant",
        label="general text perplexity",
        unit="perplexity",
        better="lower",
    ),
)


def evaluation(**changes: Any) -> EvalResult:
    """An evaluation of 120 rows, better in format and EOS, without a score of correctness; with
    changes."""
    call = Call(prompt_tokens=68.0, answer_tokens=72.0, tokens_per_second=82.0)
    values: dict[str, Any] = {
        "key": KEY,
        "finished": "2026-01-05T11:00:00+0000",
        "rows": 120,
        "data": "test",
        "rows_trained_on": 0,
        "rows_in_validation": 0,
        "scores": ROWS,
        "forgetting": GENERAL,
        "calls": {"base": call, "tuned": call},
        "samples": (),
        "answers": f"answers/{changes.get('key', KEY)}.jsonl",
        "eval_config": {},
        "replay": "builtin",
    }
    return EvalResult(**values | changes)


def of_truth(tuned: Score) -> dict[str, Any]:
    """Changes of `evaluation` for a measured correctness."""
    right = row("execution_match", 0.0, tuned, label="same result")
    return {"scores": (right, *ROWS), "truth_measured_by": ("execution_match",)}


def prompted(verdict: Verdict) -> tuple[ScoreRow, ...]:
    """The scores, also of the base with a prompt and of the format's difference from it."""
    against = {"prompted": score(0.5), "tuned_vs_prompted": difference(0.47, verdict)}
    return FORMAT.model_copy(update=against), *ROWS[1:]


def answer(text: str, *, stopped: bool = True, **changes: Any) -> Answer:
    """An answer with a valid format, unless changed."""
    values: dict[str, Any] = {
        "text": text,
        "tokens": max(1, len(text) // 4),
        "stopped": stopped,
        "loss": 1.0,
        "loss_tokens": 2,
        "prompt_tokens": 68,
        "counts": {"format_rate": (1.0, 1.0), "not_in_prompt": (0.0, 1.0)},
    }
    return Answer(**values | changes)


def finding(text: str, words: str, kind: str = "number not in the prompt") -> Finding:
    """A finding at these words of a text."""
    start = text.index(words)
    message = f"“{words}” is not in the facts"
    return Finding(kind=kind, message=message, start=start, end=start + len(words))


def usual_lines(rows: int) -> list[AnsweredRow]:
    """Products: every fifth answer has an unsupported number, every seventh an invalid format."""
    return [_usual_line(number) for number in range(rows)]


def _usual_line(number: int) -> AnsweredRow:
    row = pair(number)
    text, counts = row["completion"], {"format_rate": (1.0, 1.0), "not_in_prompt": (0.0, 1.0)}
    findings: tuple[Finding, ...] = ()
    if number % 5 == 0:
        text += " Holds 1.7 litres."
        findings = (finding(text, "1.7 litres"),)
        counts["not_in_prompt"] = (1.0, 1.0)
    if number % 7 == 0:
        findings += (Finding(kind="pattern", message="the answer does not match the pattern"),)
        counts["format_rate"] = (0.0, 1.0)
    base = answer("Product description. " * 12, stopped=False, counts={"format_rate": (0.0, 1.0)})
    return AnsweredRow(
        number=number + 1,
        file="test.jsonl",
        line=number + 1,
        prompt=row["prompt"],
        reference=row["completion"],
        sides={"base": base, "tuned": answer(text, counts=counts, findings=findings)},
    )


def save_evaluation(
    run: RunFolder, result: EvalResult, lines: Sequence[AnsweredRow] | None = None
) -> None:
    """Write an evaluation and its answers (default: usual ones of all rows)."""
    result.write(run.evaluation(result.key))
    answers = run.evaluations / result.answers
    answers.parent.mkdir(exist_ok=True)
    lines = usual_lines(result.rows) if lines is None else lines
    answers.write_text("".join(f"{line.model_dump_json()}\n" for line in lines), encoding="utf-8")


def save_run(folder: Path, name: str = "shop", *, model: str = "Qwen/Qwen2.5-0.5B-Instruct",
             **record: Any) -> RunFolder:  # fmt: skip
    """A finished training of 60 steps without an evaluation; keyword arguments change run.json."""
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
    plan_record().write(run.plan)
    run.prompt_manifest.write_text(json.dumps({"base": "ab" * 16, "template": "cd" * 32}))
    run_record(folder).model_copy(update=record).write(run.manifest)
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in records()))
    run.speed.write_text("".join(json.dumps(line) + "\n" for line in speeds()))
    counts = {"train": SplitCounts(372, 55_272, 27_823), "test": SplitCounts(60, 8826, 4423)}
    save_dataset(prepared_data(rows_read=448, **counts), run.data)
    return run


def run_record(folder: Path) -> RunRecord:
    """The record of a LoRA on a CPU."""
    return RunRecord(
        state="finished",
        run_id="ec0ff986" * 4,
        recipe=str(folder / "shop.yaml"),
        data="5cb6bbdf603b88a9",
        seed=42,
        hardware=HardwareRecord(name="a machine", memory_bytes=25_276_502_016),
        versions={"ftcli": "0.1.0", "python": "3.11.7", "torch": "2.13.0"},
        started="2026-01-05T10:00:00+0000",
        finished="2026-01-05T10:08:51+0000",
        memory=MemoryFigures(
            device="cpu",
            estimated_bytes=1_607_000_000,
            low_bytes=1_527_000_000,
            high_bytes=1_800_000_000,
            estimated_reserved_bytes=1_768_000_000,
            resident_bytes=1_822_000_000,
            model="smollm2-135m",
            choices={},
        ),
        result=TrainingResult(
            steps=STEPS,
            eval_loss=0.91,
            first_eval_loss=2.31,
            best_step=STEPS,
            tokens_per_second=82.0,
            trainable_parameters=4_884_480,
            total_parameters=134_515_008,
            peak_memory_bytes=2_438_991_872,
            saved_bytes=19_593_064,
            seconds=531.2,
        ),
        weights={"adapter_model.safetensors": "3b" * 32},
    )


@cache
def plan_record() -> Plan:
    """The record of a LoRA on a CPU."""
    recipe = Recipe.model_validate(
        {
            "name": "shop",
            "model": {"id": "smollm2-135m"},
            "method": {"mode": "lora"},
            "data": {"train": "rows.jsonl"},
            "training": {"max_steps": STEPS, "learning_rate": 0.002},
        }
    )
    architecture, size = find_architecture("smollm2-135m"), 25_276_502_016
    hardware = Hardware("cpu", "a machine", size, size, None, True, 2)
    return make_plan(recipe, architecture, RowStatistics(372, 55_272, 321, 0.5, 8_000), hardware)


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
    """Hostile text in every field that a model, a row, a recipe or a file name fills."""
    machine = HardwareRecord(name=HOSTILE[1])
    run = save_run(folder, model=HOSTILE[1], versions={HOSTILE[0]: HOSTILE[1]}, hardware=machine)
    lines = []
    for number, words in enumerate(HOSTILE):
        marked = finding(f"a {words} b", words, f"{words} not in the prompt")
        sides = {"base": answer(words), "tuned": answer(f"a {words} b", findings=(marked,))}
        row = AnsweredRow(
            number=number + 1, file=words, line=1, prompt=words, reference=words, facts=words,
            sides=sides,
        )  # fmt: skip
        lines.append(row)
    long = {"number": len(lines) + 1, "prompt": "<b>" * 333_333}
    lines.append(lines[0].model_copy(update=long))
    labelled = FORMAT.model_copy(update={"label": HOSTILE[0]})
    result = evaluation(
        rows=len(lines), data=HOSTILE[1], scores=(labelled, *ROWS[1:]), notes=HOSTILE[:2],
        samples=tuple(lines[:5]), flags=HOSTILE[:2], instruction=HOSTILE[0],
    )  # fmt: skip
    save_evaluation(run, result, lines)
    advice = Advice(fingerprint="0123abcd", rows=372, sentences=HOSTILE)
    advice.write(advice_file(run.data))
    return run
