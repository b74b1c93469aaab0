"""The scores of an evaluation computed anew from its answers, and compared with those of ftcli.

    python scripts/check_scores.py runs/shop
    python scripts/check_scores.py runs/shop --model models/SmolLM2-135M-Instruct --rows 5

Nothing of ftcli is imported: sums, differences, intervals and verdicts follow their published
definitions. What each row counts for a score of its text (marked *) is ftcli's own.
With --model, losses and greedy answers of the base are drawn anew too, by transformers alone, one
row at a time in fp32. Exit 1 where something differs by more than it may.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from check_intervals import (
    Interval,
    Resampled,
    newcombe,
    resampled_difference,
    resampled_ratio,
    wilson,
)

Counted = tuple[float, float]
"""What one answer adds to the numerator and to the denominator of a score."""
# Both sides sum the same doubles, perhaps in another order.
EXACT = 1e-9
TOLERANCES = {"chrf": 1e-6}
# Fewer rows that count for both sides get no verdict (docs/evaluation.md).
FEWEST_ROWS = 10
OF_ANOTHER = "a score that is not computed here"


@dataclass(frozen=True)
class Check:
    """One figure, by ftcli and by this script."""

    what: str
    ftcli: str
    own: str
    difference: float | None
    ok: bool


@dataclass(frozen=True)
class Column:
    """What each row adds to one score of one side."""

    pairs: tuple[Counted, ...]
    is_own: bool = True
    """Computed here; otherwise taken from ftcli, so that only sums and intervals are checked."""

    @property
    def are_hits(self) -> bool:
        return all(pair in ((0, 0), (0, 1), (1, 1)) for pair in self.pairs)

    @property
    def value(self) -> float:
        return math.fsum(top for top, _ in self.pairs) / math.fsum(b for _, b in self.pairs)

    def parts(self, kept: Sequence[int]) -> tuple[list[float], list[float]]:
        return [self.pairs[row][0] for row in kept], [self.pairs[row][1] for row in kept]

    def counting(self) -> list[int]:
        return [row for row, (_, bottom) in enumerate(self.pairs) if bottom > 0]


Side = dict[str, Column]


@dataclass(frozen=True)
class Evaluation:
    """What ftcli has written of one evaluation."""

    report: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    recipe: Mapping[str, Any]

    @property
    def sides(self) -> list[str]:
        return list(self.rows[0]["sides"])


def main(arguments: Sequence[str] | None = None) -> int:
    asked = _arguments(arguments)
    evaluation = _read(asked.run, asked.key)
    sides = {name: _columns(evaluation, name) for name in evaluation.sides}
    not_checked: dict[str, str] = {}
    tables = {
        name: list(_side_checks(evaluation, name, columns, not_checked))
        for name, columns in sides.items()
    }
    for name, columns in sides.items():
        if name != "tuned":
            pair = f"tuned_vs_{name}"
            tables[pair] = list(_difference_checks(evaluation, pair, columns, sides["tuned"]))
    if "forgetting" in evaluation.report:
        tables["forgetting"] = list(_forgetting_checks(evaluation.report["forgetting"]))
        not_checked["forgetting"] = "its rows are not in the answers: its arithmetic alone"
    if asked.model is not None:
        from check_model import model_checks

        tables["base, by transformers alone"] = [
            Check(*found)
            for found in model_checks(asked.model, asked.run, evaluation, asked.rows, not_checked)
        ]
    else:
        not_checked["losses and answers"] = "as the models gave them to ftcli; see --model"
    return _tell(tables, not_checked)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument("--key", help="which evaluation: a name in RUN/eval; else the newest")
    parser.add_argument("--model", type=Path, help="folder of the base model")
    parser.add_argument("--rows", type=int, default=5, help="rows that --model is asked")
    return parser.parse_args(arguments)


def _read(run: Path, key: str | None) -> Evaluation:
    files = list((run / "eval").glob(f"{key or '*'}.json"))
    if not files:
        sys.exit(f"{run / 'eval'} holds no evaluation {key or ''}; run ftcli eval {run}")
    file = max(files, key=lambda each: each.stat().st_mtime)
    report = json.loads(file.read_text(encoding="utf-8"))
    answers = (run / "eval" / report["answers"]).read_text(encoding="utf-8")
    recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    print(f"{file}: {report['rows']} rows")
    return Evaluation(report, [json.loads(line) for line in answers.splitlines()], recipe)


def _columns(evaluation: Evaluation, side: str) -> Side:
    """Every score that can be computed, row by row."""
    found = [row["sides"][side] for row in evaluation.rows]
    counts: list[dict[str, Counted]] = [
        {"loss": (each["loss"], float(each["loss_tokens"]))} for each in found
    ]
    if all("text" in each for each in found):
        for answer, own in zip(found, counts, strict=True):
            own["stop_rate"] = (float(answer["stopped"]), 1.0)
            own["answer_tokens"] = (float(answer["tokens"]), 1.0)
    names = dict.fromkeys(name for row in counts for name in row)
    columns = {n: Column(tuple(row.get(n, (0.0, 0.0)) for row in counts)) for n in names}
    return {name: column for name, column in columns.items() if column.counting()}


def _side_checks(
    evaluation: Evaluation,
    side: str,
    columns: Side,
    not_checked: dict[str, str],
) -> Iterator[Check]:
    """Values and intervals; adds to the columns what only ftcli has counted."""
    said = evaluation.report[side]
    found = [row["sides"][side] for row in evaluation.rows]
    for name in evaluation.report["scores"]:
        if name in columns or name not in said or name == "perplexity":
            continue
        not_checked[f"{name} *"] = OF_ANOTHER
        pairs = tuple(tuple(each["counts"][name]) for each in found)
        columns[name] = Column(pairs, is_own=False)
    for name, column in columns.items():
        yield from _score_checks(name, column, said)
        if column.is_own and "counts" in found[0]:
            yield from _row_checks(name, column, evaluation.rows, side)
    if "prompt_tokens" in said:
        mean = sum(each["prompt_tokens"] for each in found) / len(found)
        yield _value("prompt_tokens", said["prompt_tokens"], mean, EXACT)
        not_checked["tokens_per_second"] = "a time"


def _score_checks(name: str, column: Column, said: Mapping[str, Any]) -> Iterator[Check]:
    shown = name if column.is_own else f"{name} *"
    yield _value(shown, said.get(name), column.value, TOLERANCES.get(name, EXACT))
    interval, sample = _interval(column)
    yield _interval_check(shown, said.get(f"{name}_interval"), interval, sample)
    if name == "loss":
        yield _value("perplexity", said.get("perplexity"), math.exp(column.value), EXACT)
        low, high = interval
        logs = [math.log(end) for end in said.get("perplexity_interval", ())]
        check = _interval_check("perplexity", logs, interval, sample)
        shown_ends = (
            _ends(said.get("perplexity_interval")),
            _ends((math.exp(low), math.exp(high))),
        )
        yield replace(check, ftcli=shown_ends[0], own=shown_ends[1])


def _interval(column: Column) -> tuple[Interval, Resampled | None]:
    kept = column.counting()
    tops, bottoms = column.parts(kept)
    if column.are_hits:
        return wilson(sum(tops), len(kept)), None
    sample = resampled_ratio(tops, bottoms)
    return sample.interval, sample


def _row_checks(
    name: str, column: Column, rows: Sequence[Mapping[str, Any]], side: str
) -> Iterator[Check]:
    """The first row that ftcli counts in another way; a sum may hide it."""
    for row, own in zip(rows, column.pairs, strict=True):
        top, bottom = row["sides"][side]["counts"].get(name, (0.0, 0.0))
        off = max(abs(top - own[0]), abs(bottom - own[1]))
        if not off <= TOLERANCES.get(name, EXACT) * max(1.0, abs(own[0])):
            what = f"{name} of {Path(row['file']).name}:{row['line']}"
            yield Check(what, f"{top:g} of {bottom:g}", f"{own[0]:g} of {own[1]:g}", off, False)
            return


def _difference_checks(
    evaluation: Evaluation, pair: str, first: Side, tuned: Side
) -> Iterator[Check]:
    """Tuned less the other side, over the rows that count for either."""
    said = evaluation.report["differences"].get(pair, {})
    for name in tuned:
        if name not in first:
            continue
        ours, theirs = first[name], tuned[name]
        kept = sorted({*ours.counting(), *theirs.counting()})
        own = theirs.value - ours.value
        shown = name if ours.is_own and theirs.is_own else f"{name} *"
        found = said.get(name, {})
        yield _value(shown, found.get("difference"), own, TOLERANCES.get(name, EXACT))
        all_count = len(kept) == len(ours.counting()) == len(theirs.counting())
        by_hits = ours.are_hits and theirs.are_hits and all_count
        (hits, bottoms), (other_hits, other_bottoms) = theirs.parts(kept), ours.parts(kept)
        sample = None
        if by_hits:
            interval = newcombe(other_hits, hits)
        else:
            sample = resampled_difference((hits, bottoms), (other_hits, other_bottoms))
            interval = sample.interval
        yield _interval_check(shown, found.get("interval"), interval, sample)
        better = evaluation.report["scores"][name]["better"]
        counting = (sum(b > 0 for b in each) for each in (bottoms, other_bottoms))
        has_verdict = min(counting) >= FEWEST_ROWS
        yield _verdict(shown, found, interval if has_verdict else None, better)


def _verdict(
    name: str, found: Mapping[str, Any], interval: Interval | None, better: str | None
) -> Check:
    """Shown where the interval does not hold 0; level where an end is as near to it as chance."""
    words = ("changed", "no change shown") if better is None else ("", "no difference shown")
    low, high = interval or (0.0, 0.0)
    own = words[1]
    if interval is not None and not low <= 0 <= high:
        own = words[0] or ("better" if (low > 0) == (better == "higher") else "worse")
    close = min(abs(low), abs(high)) < 0.05 * (high - low)
    said = str(found.get("verdict"))
    return Check(f"{name}, verdict", said, own, None, said == own or (close and bool(interval)))


def _forgetting_checks(found: Mapping[str, Any]) -> Iterator[Check]:
    for name, each in found.items():
        if "change" in each:
            own = each["after"] / each["before"] - 1
            yield _value(f"{name}, change", each["change"], own, EXACT)
        else:
            own = each["after"] - each["before"]
            yield _value(f"{name}, difference", each["difference"], own, EXACT)


def _value(what: str, said: float | None, own: float, tolerance: float) -> Check:
    if said is None:
        return Check(what, "missing", f"{own:.6g}", None, False)
    off = abs(said - own)
    return Check(what, f"{said:.6g}", f"{own:.6g}", off, off <= tolerance * max(1.0, abs(own)))


def _interval_check(
    name: str, said: Sequence[float] | None, own: Interval, sample: Resampled | None
) -> Check:
    what = f"{name}, interval"
    if not said:
        return Check(what, "missing", _ends(own), None, False)
    off = max(abs(a - b) for a, b in zip(said, own, strict=True))
    ok = off <= EXACT if sample is None else sample.agrees(said)
    return Check(what, _ends(said), _ends(own), off, ok)


def _ends(interval: Sequence[float] | None) -> str:
    return "missing" if not interval else f"{interval[0]:.4g} … {interval[1]:.4g}"


def _tell(tables: Mapping[str, Sequence[Check]], not_checked: Mapping[str, str]) -> int:
    wrong = []
    for title, checks in tables.items():
        width = max([len(check.what) for check in checks] + [len(title)])
        print(f"\n{title:{width}}  {'ftcli':>21}  {'independent':>21}  {'difference':>10}  ok")
        for check in checks:
            off = "" if check.difference is None else f"{check.difference:.1e}"
            end = "yes" if check.ok else "NO"
            print(f"{check.what:{width}}  {check.ftcli:>21}  {check.own:>21}  {off:>10}  {end}")
        wrong += [f"{title}: {check.what}" for check in checks if not check.ok]
    print("\nnot checked here:")
    for what, why in not_checked.items():
        print(f"  {what}: {why}")
    if any(what.endswith("*") for what in not_checked):
        print("  (* what each row counts is taken from ftcli; its sum and intervals are checked)")
    total = sum(map(len, tables.values()))
    print(f"\n{total - len(wrong)} of {total} agree" + "".join(f"\ndiffers: {w}" for w in wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
