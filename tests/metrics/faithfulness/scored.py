"""How often the judge and the labels agree: `python -m tests.metrics.faithfulness.scored FILE`."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftcli.metrics.faithfulness.scorer import FaithfulnessJudge
from ftcli.metrics.scorer import Finding, Question
from ftcli.recipe.faithfulness import Faithfulness

HERE = Path(__file__).parent
# Where the rows of the public retail set are; their facts are not kept here.
SHARED = HERE.parents[3] / "shared" / "data"
# Variable that names the rows, and where they lie without it.
RETAIL = ("FTCLI_RETAIL_ROWS", SHARED / "ecommerce_retail_demo")
MEDICAL = ("FTCLI_MEDICAL_ROWS", SHARED / "summarise_medical_dialogue")
NOT_IN_THE_PROMPT = " not in the prompt"
# Words that are a colour and a material; sizes in digits are numbers too (GUIDE.md, section 1).
MIXED = ({"colour", "material"}, {"number", "size"})


@dataclass
class Tally:
    """Right, invented by the judge, and overlooked; with the cases that show it."""

    right: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    overlooked: Counter[str] = field(default_factory=Counter)
    shown: list[str] = field(default_factory=list)

    def precision(self, kind: str | None = None) -> float:
        return _share(self.right, self.wrong, kind)

    def recall(self, kind: str | None = None) -> float:
        return _share(self.right, self.overlooked, kind)


def _count(counted: Counter[str], kind: str | None) -> int:
    return counted.total() if kind is None else counted[kind]


def _share(right: Counter[str], not_right: Counter[str], kind: str | None) -> float:
    bottom = _count(right, kind) + _count(not_right, kind)
    return _count(right, kind) / bottom if bottom else 1.0


@dataclass
class Scores:
    invented: Tally = field(default_factory=Tally)
    missing: Tally = field(default_factory=Tally)
    banned: Tally = field(default_factory=Tally)


def rows_of(file: Path) -> Path | None:
    """The public rows whose lines a file of labels names; none where they are not here."""
    variable, folder = MEDICAL if "medical" in file.name else RETAIL
    path = Path(os.environ.get(variable, folder))
    path = path / "train.jsonl" if path.is_dir() else path
    return path if path.is_file() else None


def cases(file: Path) -> Iterator[dict[str, Any]]:
    """Labelled cases, each with its facts."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]
    if any("facts" not in row for row in rows):
        path = rows_of(file)
        assert path is not None, f"name the rows by {RETAIL[0]} or {MEDICAL[0]}"
        prompts = [_prompt(json.loads(line)) for line in path.open(encoding="utf-8")]
        # Lines are counted from 1.
        rows = [{**row, "facts": prompts[row["line"] - 1]} for row in rows]
        for row in rows:
            for value in row["missing"] or ():
                assert value in row["facts"], f"line {row['line']} has other facts than its labels"
    yield from rows


def _prompt(row: Mapping[str, Any]) -> str:
    if "messages" in row:
        users = [turn["content"] for turn in row["messages"] if turn["role"] == "user"]
        return str(users[-1])
    prompt = row["prompt"]
    return str(prompt if isinstance(prompt, str) else prompt[-1]["content"])


def score(file: Path) -> Scores:
    """Compare what the judge finds with the labels of a file."""
    scores = Scores()
    for number, case in enumerate(cases(file)):
        banned = case.get("banned_claims") or []
        judge = FaithfulnessJudge(Faithfulness(), banned)
        answer, facts = case["answer"], case["facts"]
        findings = judge.score(answer, Question(facts, "", facts)).findings
        name = str(case.get("id", number))
        invented = [each for each in findings if each.kind.endswith(NOT_IN_THE_PROMPT)]
        _score_invented(scores.invented, name, case, invented)
        if case.get("missing") is not None:
            _score_missing(scores.missing, name, case, findings)
        _score_banned(scores.banned, name, case, [f for f in findings if f.kind == "banned claim"])
    return scores


def _score_invented(tally: Tally, name: str, case: Mapping[str, Any], found: list[Finding]) -> None:
    answer = case["answer"]
    disputed = [_text(each) for each in case.get("disputed") or ()]
    hit: set[int] = set()
    seen: set[tuple[str, str]] = set()
    for finding in found:
        assert finding.start is not None
        words = answer[finding.start : finding.end]
        kind = finding.kind.removesuffix(NOT_IN_THE_PROMPT)
        if (kind, words.lower()) in seen:
            continue
        seen.add((kind, words.lower()))
        agreeing = [
            index
            for index, label in enumerate(case["invented"])
            if _same_kind(kind, label["kind"]) and _overlaps(answer, label["text"], finding)
        ]
        hit.update(agreeing)
        if agreeing:
            continue
        if not any(_overlaps(answer, each, finding) for each in disputed):
            tally.wrong[kind] += 1
            tally.shown.append(f"{name}: + {kind} {words!r}   in {_around(answer, finding)}")
    for index, label in enumerate(case["invented"]):
        if index in hit:
            tally.right[label["kind"]] += 1
        elif not any(label["text"] in each or each in label["text"] for each in disputed):
            tally.overlooked[label["kind"]] += 1
            tally.shown.append(f"{name}: - {label['kind']} {label['text']!r}")


def _text(disputed: Any) -> str:
    return str(disputed["text"] if isinstance(disputed, dict) else disputed)


def _around(answer: str, finding: Finding) -> str:
    assert finding.start is not None and finding.end is not None
    return repr(answer[max(0, finding.start - 40) : finding.end + 30])


def _same_kind(one: str, other: str) -> bool:
    return one == other or any({one, other} == mixed for mixed in MIXED)


def _overlaps(answer: str, label: str, finding: Finding) -> bool:
    """Whether the finding overlaps any place of the label's text."""
    assert finding.start is not None and finding.end is not None
    # The same wording twice is one label, whatever its capitals.
    answer, label = answer.lower(), label.lower()
    start = answer.find(label)
    while start >= 0:
        end = start + len(label)
        whole = len(label) > 1 or not _inside_word(answer, start, end)
        if whole and finding.start < end and start < finding.end:
            return True
        start = answer.find(label, start + 1)
    return False


def _inside_word(answer: str, start: int, end: int) -> bool:
    return answer[start - 1 : start].isalnum() or answer[end : end + 1].isalnum()


def _score_missing(
    tally: Tally, name: str, case: Mapping[str, Any], findings: tuple[Finding, ...]
) -> None:
    found = Counter(
        each.message.partition(": ")[2] for each in findings if each.kind == "not mentioned"
    )
    labelled = Counter(case["missing"])
    disputed = case.get("disputed_missing") or ()
    tally.right["fact"] += (found & labelled).total()
    for value in (found - labelled).elements():
        if value not in disputed:
            tally.wrong["fact"] += 1
            tally.shown.append(f"{name}: + missing {value!r}")
    for value in (labelled - found).elements():
        if value not in disputed:
            tally.overlooked["fact"] += 1
            tally.shown.append(f"{name}: - missing {value!r}")


def _score_banned(tally: Tally, name: str, case: Mapping[str, Any], found: list[Finding]) -> None:
    labels = list(case.get("banned") or ())
    for finding in found:
        hits = [each for each in labels if _overlaps(case["answer"], each["text"], finding)]
        if hits:
            labels.remove(hits[0])
            tally.right["banned"] += 1
        else:
            tally.wrong["banned"] += 1
            tally.shown.append(f"{name}: + banned {_around(case['answer'], finding)}")
    for label in labels:
        tally.overlooked["banned"] += 1
        tally.shown.append(f"{name}: - banned {label['text']!r}")


def figures(scores: Scores) -> list[str]:
    """A line for every part and kind."""
    lines = []
    for what, tally in vars(scores).items():
        for kind in [None, *sorted({*tally.right, *tally.wrong, *tally.overlooked})]:
            counts = (_count(each, kind) for each in (tally.right, tally.wrong, tally.overlooked))
            right, wrong, overlooked = counts
            lines.append(
                f"{what:9} {kind or 'all':9} precision {tally.precision(kind):.3f}"
                f"  recall {tally.recall(kind):.3f}  right {right}, + {wrong}, - {overlooked}"
            )
    return lines


def main() -> None:
    for name in sys.argv[1:]:
        scores = score(Path(name))
        lines = figures(scores)
        if not os.environ.get("FTCLI_FIGURES_ONLY"):
            lines += [line for tally in vars(scores).values() for line in tally.shown]
        sys.stdout.write("\n  ".join([name, *lines]) + "\n")


if __name__ == "__main__":
    main()
