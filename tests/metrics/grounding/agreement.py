"""How often the scorer agrees with answers labelled by hand.

Each line of a file has an answer, its facts (or the line of a public data set that has them), and
in `invented` the numbers, names, colours, materials and sizes that the facts do not give, in
`missing` the facts that the answer does not mention. Labelled before the scorer was written, by a
guide of five kinds of words: what is unsupported beyond them has no label.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ftcli.metrics.grounding.facts import facts_of, mentioned
from ftcli.metrics.grounding.vocabulary import Vocabulary

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
SHARED = ROOT.parent / "shared" / "data"
SHOP = ROOT / "recipes" / "data" / "shop" / "train.jsonl"
RETAIL = SHARED / "ecommerce_retail_demo" / "train.jsonl"
MEDICAL = SHARED / "summarise_medical_dialogue" / "train.jsonl"
# File of labels → the rows that the vocabulary is learnt from; none: it knows numbers alone.
LABELLED: dict[str, Path | None] = {
    "written": None,
    "more": None,
    "shop_answers": SHOP,
    "second_shop_answers": SHOP,
    "retail_answers": RETAIL,
    "second_retail_answers": RETAIL,
    "second_medical_answers": MEDICAL,
}


@dataclass(frozen=True)
class Agreement:
    """Counts over the answers of one file."""

    found: Counter[str]
    """Labels that a finding overlaps, by kind."""
    overlooked: Counter[str]
    numbers_labelled: int
    """Numbers marked that have a label."""
    numbers: int
    """Numbers marked."""
    missing_right: int
    missing_wrong: int
    missing_overlooked: int

    def recall(self, *kinds: str) -> float:
        hits = sum(self.found[kind] for kind in kinds)
        return hits / (hits + sum(self.overlooked[kind] for kind in kinds))


@cache
def pairs_in(path: Path) -> list[tuple[str, str]]:
    """Prompt and answer of each row of a JSON-lines file."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(row["prompt"], row["completion"]) for row in rows]


def cases(name: str) -> Iterator[dict[str, Any]]:
    rows = LABELLED[name]
    for line in (HERE / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        if "facts" not in case:
            assert rows is not None
            case["facts"] = pairs_in(rows)[case["line"] - 1][0]
        yield case


def agreement(name: str) -> Agreement:
    rows = LABELLED[name]
    vocabulary = Vocabulary.learn(pairs_in(rows) if rows else [], "english")
    found: Counter[str] = Counter()
    overlooked: Counter[str] = Counter()
    marked: Counter[bool] = Counter()
    missing: Counter[str] = Counter()
    for case in cases(name):
        answer, facts = case["answer"], case["facts"]
        findings = list(vocabulary.not_in(vocabulary.facts(facts), answer))
        spans = [(label["kind"], *_span(answer, label["text"])) for label in case["invented"]]
        for kind, start, end in spans:
            hit = any(f.start < end and start < f.end for f in findings)  # type: ignore[operator]
            (found if hit else overlooked)[kind] += 1
        for each in findings:
            if each.kind.startswith("number"):
                marked[any(each.start < end and start < each.end for _, start, end in spans)] += 1  # type: ignore[operator]
        if case.get("missing") is not None:
            left_out = [f for f in facts_of(facts) if not mentioned(f, answer, vocabulary)]
            seen, wanted = Counter(f.value for f in left_out), Counter(case["missing"])
            missing["right"] += (seen & wanted).total()
            missing["wrong"] += (seen - wanted).total()
            missing["overlooked"] += (wanted - seen).total()
    return Agreement(
        found,
        overlooked,
        marked[True],
        marked.total(),
        missing["right"],
        missing["wrong"],
        missing["overlooked"],
    )


def _span(answer: str, label: str) -> tuple[int, int]:
    start = answer.casefold().find(label.casefold())
    assert start >= 0, label
    return start, start + len(label)
