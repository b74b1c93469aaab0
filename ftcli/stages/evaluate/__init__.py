"""`ftcli eval`: base and tuned on the same held-out rows."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcli.console import Reporter
from ftcli.data.example import Message
from ftcli.disk import sha256_file, write_json
from ftcli.errors import DataError
from ftcli.metrics.form import form_check
from ftcli.metrics.intervals import Interval, mean_interval, ratio_interval, share_interval
from ftcli.metrics.likelihood import Scored
from ftcli.metrics.text import chrf, exact_match, rouge_l
from ftcli.prepared import Split, damaged_files
from ftcli.stages.opening import OpenRun, open_run, require_as_trained

if TYPE_CHECKING:
    from ftcli.engine.inference import Answer, Model

SAMPLES = 3
# Goes up when the same rows and weights would give other scores.
VERSION = 1
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class EvalResult:
    """Scores of both sides; `stored` when an earlier evaluation of the same was found."""

    run_dir: Path
    report: dict[str, Any]
    stored: bool
    scored: Mapping[str, Scored]
    """Losses of each side, row by row."""

    def as_json(self) -> dict[str, Any]:
        return {"run_dir": str(self.run_dir), **self.report}


@dataclass(frozen=True)
class _Side:
    """What one model did with the rows."""

    losses: list[float]
    tokens: list[int]
    answers: list[Answer]

    @property
    def scored(self) -> Scored:
        return Scored(tuple(self.losses), tuple(self.tokens))


def evaluate_run(
    path: Path,
    overrides: Sequence[str],
    *,
    data: Path | None,
    limit: int | None,
    with_base: bool,
    reporter: Reporter,
) -> EvalResult:
    """Evaluate a finished run; raises FtcliError. The same question is answered once."""
    opened = open_run(path, overrides)
    split = _held_out(opened, data)
    key = _key(opened, data, split, limit, with_base)
    stored = opened.run.evaluations / f"{key}.json"
    row_by_row = opened.run.evaluations / "rows" / f"{key}.json"
    if stored.is_file() and row_by_row.is_file():
        require_as_trained(opened, with_base=with_base)
        report = json.loads(stored.read_text(encoding="utf-8"))
        return EvalResult(opened.run.path, report, stored=True, scored=_read_scored(row_by_row))
    rows = _rows(opened, data, split, limit, reporter)
    if not rows:
        raise DataError("data_empty", "holds no row to evaluate on", file=str(data or split))
    sides = _sides(opened, rows, with_base, reporter)
    report = _report(opened, rows, split, data, sides)
    scored = {name: side.scored for name, side in sides.items()}
    write_json(row_by_row, {name: asdict(losses) for name, losses in scored.items()})
    write_json(stored, report)
    return EvalResult(opened.run.path, report, stored=False, scored=scored)


def _held_out(opened: OpenRun, data: Path | None) -> Split:
    """The test rows, or else the validation rows (which have chosen the checkpoint)."""
    if data is not None or opened.prepared.test.rows:
        return "test"
    if opened.prepared.validation.rows:
        return "validation"
    raise DataError(
        "data_empty",
        "the run held no rows out (data.test: 0, data.validation: 0); name some with --data FILE",
    )


def _key(
    opened: OpenRun, data: Path | None, split: Split, limit: int | None, with_base: bool
) -> str:
    """16 hex digits of everything the scores depend on."""
    recipe = opened.loaded.recipe
    parts = {
        "weights": opened.run.read_manifest()["weights"],
        "data": sha256_file(data) if data and data.is_file() else opened.prepared.fingerprint,
        "split": split if data is None else "file",
        "limit": limit,
        "base": with_base,
        "generation": recipe.generation.model_dump(),
        "eval": recipe.eval.model_dump(),
        "keys": recipe.data.model_dump(mode="json"),
        "model": recipe.model.model_dump(),
        "file": str(data),
        "version": VERSION,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _rows(
    opened: OpenRun, data: Path | None, split: Split, limit: int | None, reporter: Reporter
) -> Rows:
    from ftcli.engine.encode import encode_file
    from ftcli.engine.rows import read_split

    if data is None:
        _require_whole(opened, split)
        rows: Rows = read_split(opened.run.data, split).to_pylist()
    else:
        source = str(data.absolute())
        rows = encode_file(source, opened.loaded, opened.run, opened.prepared, reporter)
    for row in rows:
        row["messages"] = [Message(*turn) for turn in json.loads(row["messages"])]
    return rows[:limit]


def _require_whole(opened: OpenRun, split: Split) -> None:
    """Raise DataError (`data_damaged`) where the held-out rows are not those that were prepared."""
    for file, what in damaged_files(opened.prepared, opened.run.data, [split]).items():
        raise DataError(
            "data_damaged",
            f"{what}, so that it proves nothing; put it back, or run ftcli prepare with the recipe "
            "of this run, which writes it again while data and model are as they were",
            file=str(file),
        )


def _report(
    opened: OpenRun,
    rows: Rows,
    split: Split,
    data: Path | None,
    sides: dict[str, _Side],
) -> dict[str, Any]:
    check = None
    if (wanted := opened.loaded.recipe.eval.format) is not None:
        check = form_check(wanted)
    references = [row["messages"][-1].content if row["messages"] else "" for row in rows]
    scores = {name: _scores(side, references, check) for name, side in sides.items()}
    return {
        "rows": len(rows),
        "data": str(data) if data else split,
        "rows_chose_checkpoint": data is None and split == "validation",
        **scores,
        "samples": _samples(rows, references, sides),
    }


def _sides(opened: OpenRun, rows: Rows, with_base: bool, reporter: Reporter) -> dict[str, _Side]:
    """One model after the other, the base first where it is wanted."""
    from ftcli.engine.device import memory_in_words
    from ftcli.engine.trained import load_base_model, load_tuned_model

    sides: dict[str, _Side] = {}
    loaders = {"base": load_base_model} if with_base else {}
    with memory_in_words("stop what else runs on it"):
        for name, load in {**loaders, "tuned": load_tuned_model}.items():
            model = load(opened.loaded, opened.run, opened.prepared)
            sides[name] = _run_side(name, model, opened, rows, reporter)
            del model
    return sides


def _read_scored(file: Path) -> dict[str, Scored]:
    sides = json.loads(file.read_text(encoding="utf-8"))
    return {name: Scored(tuple(s["losses"]), tuple(s["tokens"])) for name, s in sides.items()}


def _run_side(name: str, model: Model, opened: OpenRun, rows: Rows, reporter: Reporter) -> _Side:
    from ftcli.engine.inference import answer_prompts, score_rows
    from ftcli.engine.trained import prompts_of

    generating = bool(rows[0]["messages"])
    with reporter.meter(f"{name}: loss", len(rows)) as meter:
        losses, tokens = score_rows(model, rows, meter.update)
    if not generating:
        return _Side(losses, tokens, [])
    prompts = prompts_of(model, [row["messages"][:-1] for row in rows])
    with reporter.meter(f"{name}: answers", len(rows)) as meter:
        answers = answer_prompts(model, prompts, opened.loaded.recipe.generation, meter.update)
    return _Side(losses, tokens, answers)


def _scores(
    side: _Side, references: list[str], check: Callable[[str], bool] | None
) -> dict[str, Any]:
    loss = sum(side.losses) / sum(side.tokens)
    low, high = ratio_interval(side.losses, side.tokens)
    scores: dict[str, Any] = {}
    _put(scores, "loss", loss, (low, high))
    _put(scores, "perplexity", math.exp(loss), (math.exp(low), math.exp(high)))
    if not side.answers:
        return scores
    texts = [answer.text for answer in side.answers]
    _put_share(scores, "stop_rate", [answer.stopped for answer in side.answers])
    for name, measure in (("rouge_l", rouge_l), ("chrf", chrf)):
        values = measure(texts, references)
        _put(scores, name, sum(values) / len(values), mean_interval(values))
    _put_share(scores, "exact_match", [bool(v) for v in exact_match(texts, references)])
    if check is not None:
        _put_share(scores, "format_rate", [check(text) for text in texts])
    scores["answer_tokens"] = sum(answer.tokens for answer in side.answers) / len(texts)
    return scores


def _put(scores: dict[str, Any], name: str, value: float, interval: Interval) -> None:
    scores[name] = value
    scores[f"{name}_interval"] = list(interval)


def _put_share(scores: dict[str, Any], name: str, hits: Sequence[bool]) -> None:
    _put(scores, name, sum(hits) / len(hits), share_interval(sum(hits), len(hits)))


def _samples(rows: Rows, references: list[str], sides: dict[str, _Side]) -> list[dict[str, Any]]:
    """The first rows side by side."""
    samples = []
    for index, row in enumerate(rows[:SAMPLES]):
        if not row["messages"]:
            continue
        answers = {
            name: asdict(side.answers[index]) for name, side in sides.items() if side.answers
        }
        samples.append(
            {
                "prompt": row["messages"][-2].content,
                "reference": references[index],
                **answers,
                "file": row["file"],
                "line": row["line"],
            }
        )
    return samples
