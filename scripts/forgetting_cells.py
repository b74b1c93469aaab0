"""One cell of scripts/forgetting.py: its recipe, `ftcli train`, and what ftcli measures of it."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ftcli.console import Terminal
from ftcli.data.example import Example, Message
from ftcli.data.reading import read_examples
from ftcli.disk import sha256_file, write_json
from ftcli.metrics.intervals import ratio_interval, share_interval
from ftcli.metrics.likelihood import Scored, forgetting
from ftcli.recipe import Data
from ftcli.stages.opening import OpenRun, open_run

# Goes up when the same recipe would be measured otherwise.
VERSION = 1
# Longer texts would be most of what is measured.
MOST_CHARACTERS = 8000
ANSWER_TOKENS = 160

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One training; `hold` is strength × the sum of its learning rates, which says how far a weight
    is drawn back whatever the rate and the steps."""

    name: str
    mode: str = "full"
    replay: float = 0.0
    hold: float = 0.0
    rate: float | None = None
    """Its own learning rate; none: that of the full fine-tuning."""


# General text, in two parts that share no passage


@dataclass(frozen=True)
class General:
    """What is replayed, and what is measured: passages from the ends of the same files."""

    replayed: Path
    measured: tuple[str, ...]
    digest: str


def split_general(asked: argparse.Namespace) -> General:
    """The last passages of each file are measured, in equal parts of its tokens; the others may be
    replayed. Passages of one article stand together, so that few are cut in two."""
    from ftcli.engine.model import load_tokenizer
    from ftcli.engine.rendering import Renderer

    renderer = Renderer(load_tokenizer(str(asked.model)))
    share = asked.measured_tokens / len(asked.general)
    replayed: list[str] = []
    measured: list[str] = []
    for file in asked.general:
        passages, tokens = _passages(file), 0.0
        while passages and tokens < share:
            measured.append(passages.pop())
            tokens += len(renderer.text_prompt_ids(measured[-1])) - 1
        replayed += passages
    replayed = [text for text in replayed if text not in set(measured)]
    if not replayed:
        sys.exit(f"all general text is measured: give more than {asked.measured_tokens} tokens")
    path = asked.work / "replayed.jsonl"
    asked.work.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in replayed), "utf-8")
    digest = hashlib.sha256("\n\n".join(measured).encode()).hexdigest()[:16]
    return General(path.absolute(), tuple(measured), digest)


def _passages(file: Path) -> list[str]:
    rows = read_examples(str(file.absolute()), Data(train=str(file)), file.parent)
    texts = (row.text for row in rows if isinstance(row, Example) and row.text is not None)
    return list(dict.fromkeys(text for text in texts if len(text) <= MOST_CHARACTERS))


# One cell: trained by the command, measured by ftcli's functions


def measured(
    cell: Cell, asked: argparse.Namespace, rate: float, steps: int, general: General
) -> dict[str, Any]:
    """What a cell came to; kept, so that it is done once."""
    recipe = _recipe(cell, asked, rate, steps, general)
    values = {"recipe": recipe, "measured": general.digest, "passages": len(general.measured)}
    values |= {"data": sha256_file(asked.data), "replayed": sha256_file(general.replayed)}
    values |= {"answers": asked.answers, "version": VERSION}
    mark = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
    folder = asked.work / "cells" / mark
    kept = folder / "measured.json"
    if kept.is_file():
        found: dict[str, Any] = json.loads(kept.read_text("utf-8"))
        return found
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{cell.name}: {recipe['training']}", file=sys.stderr, flush=True)
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe, indent=2), "utf-8")
    trained = _train(path)
    opened = open_run(Path(trained["run_dir"]))
    found = _measure(opened, asked, general) | {
        "name": cell.name,
        "method": cell.mode,
        "learning_rate": rate,
        "steps": trained["steps"],
        "replay": cell.replay,
        "hold": recipe["training"].get("hold", {}).get("strength", 0.0),
        "validation_loss": trained["eval_loss"],
        "best_step": trained["best_step"],
        "seconds": trained["seconds"],
        "peak_memory_bytes": trained["peak_memory_bytes"],
        **_rows_of_an_epoch(opened),
    }
    write_json(kept, found)
    _drop_weights(opened)
    return found


def _recipe(
    cell: Cell, asked: argparse.Namespace, rate: float, steps: int, general: General
) -> dict[str, Any]:
    data: dict[str, Any] = {
        "train": str(asked.data.absolute()),
        "validation": asked.validation,
        "test": asked.test,
        "max_length": asked.max_length,
    }
    training: dict[str, Any] = {
        "max_steps": round(steps / (1 - cell.replay)),
        "learning_rate": rate,
        "scheduler": "cosine",
        "warmup_ratio": 0.03,
        "batch_size": asked.batch_size,
        "eval_steps": max(1, steps // 4),
        "keep_checkpoints": 1,
    }
    if cell.replay:
        data["replay"] = {"source": str(general.replayed), "share": cell.replay}
    if cell.hold:
        # A cosine's learning rates add up to half of what constant ones would.
        training["hold"] = {"strength": float(f"{2 * cell.hold / (rate * steps):.3g}")}
    method = {"mode": cell.mode} | ({"rank": 16, "alpha": 32} if cell.mode == "lora" else {})
    return {
        "name": "cell",
        "model": {"id": str(asked.model.absolute())},
        "method": method,
        "data": data,
        "training": training,
        "generation": {"max_new_tokens": ANSWER_TOKENS},
    }


def _train(recipe: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "ftcli", "train", str(recipe), "--json"]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if found.returncode:
        sys.exit(f"{' '.join(command)} ended with {found.returncode}")
    report: dict[str, Any] = json.loads(found.stdout)
    return report


def _rows_of_an_epoch(opened: OpenRun) -> dict[str, int]:
    found = opened.prepared.replay
    replayed = (found.rows, found.trained_tokens) if found is not None else (0, 0)
    return {
        "task_rows": opened.prepared.train.rows,
        "trained_tokens": opened.prepared.train.trained_tokens,
        "replay_rows": replayed[0],
        "replay_trained_tokens": replayed[1],
    }


def _drop_weights(opened: OpenRun) -> None:
    """A full model and its checkpoints are 2 GB; what was measured is kept."""
    shutil.rmtree(opened.run.checkpoints, ignore_errors=True)
    shutil.rmtree(opened.run.model, ignore_errors=True)


def _measure(opened: OpenRun, asked: argparse.Namespace, general: General) -> dict[str, Any]:
    """The tuned model beside the base, which is measured once for all that hold it alike."""
    from ftcli.engine.trained import load_base_model, load_tuned_model

    base_file = asked.work / f"base-{_base_mark(opened, asked, general)}.json"
    if not base_file.is_file():
        write_json(base_file, _side(load_base_model, "base", opened, asked, general))
    base = json.loads(base_file.read_text("utf-8"))
    tuned = _side(load_tuned_model, "tuned", opened, asked, general)
    before, after = (scored(side["general"]) for side in (base, tuned))
    rows = scored(tuned["rows"])
    return {
        "general": {**asdict(forgetting(before, after)), "tokens": sum(before.tokens)},
        "test_loss": rows.loss,
        "test_loss_interval": ratio_interval(rows.losses, rows.tokens),
        "stop_rate": tuned["stops"] / tuned["answers"],
        "stop_rate_interval": share_interval(tuned["stops"], tuned["answers"]),
        "base": {
            "test_loss": scored(base["rows"]).loss,
            "stop_rate": base["stops"] / base["answers"],
        },
        "rows": tuned["rows"],
    }


def _base_mark(opened: OpenRun, asked: argparse.Namespace, general: General) -> str:
    parts = [opened.run.base_fingerprint(), opened.run.planned("precision"), general.digest]
    parts += [str(len(general.measured)), str(asked.answers), sha256_file(asked.data)]
    parts += [str(getattr(asked, name)) for name in ("validation", "test", "max_length")]
    return hashlib.sha256(json.dumps([*parts, VERSION]).encode()).hexdigest()[:16]


def _side(
    load: Callable[..., Any],
    label: str,
    opened: OpenRun,
    asked: argparse.Namespace,
    general: General,
) -> dict[str, Any]:
    """Losses row by row, and how many of the first rows are answered to their end."""
    from ftcli.engine.inference import answer_prompts, score_rows
    from ftcli.engine.plain_text import passage_rows
    from ftcli.engine.rows import read_split
    from ftcli.engine.trained import prompts_of

    rows: Sequence[Row] = read_split(opened.run.data, "test").to_pylist()
    model = load(opened.loaded, opened.run, opened.prepared)
    passages = passage_rows(model.contract.renderer, general.measured)
    side: dict[str, Any] = {}
    for name, texts in (("rows", rows), ("general", passages)):
        with Terminal().meter(f"{label}: {name}", len(texts)) as meter:
            losses, tokens = score_rows(model, texts, meter.update)
        side[name] = {"losses": losses, "tokens": tokens}
    asked_rows = [[Message(*turn) for turn in json.loads(row["messages"])[:-1]] for row in rows]
    prompts = prompts_of(model, asked_rows[: asked.answers])
    with Terminal().meter(f"{label}: answers", len(prompts)) as meter:
        answers = answer_prompts(model, prompts, opened.loaded.recipe.generation, meter.update)
    return {**side, "stops": sum(a.stopped for a in answers), "answers": len(answers)}


def scored(side: Mapping[str, Sequence[Any]]) -> Scored:
    return Scored(tuple(side["losses"]), tuple(side["tokens"]))
