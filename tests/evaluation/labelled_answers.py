"""How often the scorer agrees with answers labelled by hand, and finds words that were changed.

Each line of a file has an answer, its facts (or the line of a public data set that has them), and
in `invented` the numbers, names, colours, materials and sizes that the facts do not give, in
`missing` the facts that the answer does not mention. Labelled before the scorer was written, by a
guide of five kinds of words: what is unsupported beyond them has no label.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from ftcli.evaluation.scorers.facts import facts_of, mentioned
from ftcli.evaluation.scorers.scorer import Finding
from ftcli.evaluation.scorers.vocabulary import Token, Vocabulary, tokens_in

ROOT = Path(__file__).parents[2]
LABELS = Path(__file__).with_name("grounding")
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

    answers: int
    found: Counter[str]
    """Labels that a finding overlaps, by kind."""
    overlooked: Counter[str]
    marked_right: Counter[str]
    """Numbers, names and terms marked that have a label of any kind."""
    marked: Counter[str]
    missing: Counter[str]
    """Facts not mentioned: `right`, `wrong`, `overlooked`."""

    def recall(self, *kinds: str) -> tuple[int, int]:
        """Labels found, of how many."""
        hits = sum(self.found[kind] for kind in kinds)
        return hits, hits + sum(self.overlooked[kind] for kind in kinds)

    def precision(self, *kinds: str) -> tuple[int, int]:
        """Marks that have a label, of how many."""
        return sum(self.marked_right[k] for k in kinds), sum(self.marked[k] for k in kinds)


@cache
def pairs_in(path: Path) -> list[tuple[str, str]]:
    """Prompt and answer of each row of a JSON-lines file."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(row["prompt"], row["completion"]) for row in rows]


def cases(name: str) -> Iterator[dict[str, Any]]:
    rows = LABELLED[name]
    for line in (LABELS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        if "facts" not in case:
            assert rows is not None
            case["facts"] = pairs_in(rows)[case["line"] - 1][0]
        yield case


def agreement(name: str) -> Agreement:
    """Raises FileNotFoundError where the public rows that the labels name are absent."""
    rows = LABELLED[name]
    vocabulary = Vocabulary.learn(pairs_in(rows) if rows else [], "english")
    total = Agreement(0, *(Counter() for _ in range(5)))
    answers = 0
    for case in cases(name):
        answers += 1
        answer, facts = case["answer"], case["facts"]
        findings = list(vocabulary.not_in(vocabulary.facts(facts), answer))
        labels = [(label["kind"], _spans(answer, label["text"])) for label in case["invented"]]
        spans = [span for _, places in labels for span in places]
        for kind, places in labels:
            hit = any(overlaps(finding, *span) for finding in findings for span in places)
            (total.found if hit else total.overlooked)[kind] += 1
        for finding in findings:
            kind = finding.kind.partition(" ")[0]
            total.marked[kind] += 1
            total.marked_right[kind] += any(overlaps(finding, *span) for span in spans)
        if case.get("missing") is not None:
            left_out = [f for f in facts_of(facts) if not mentioned(f, answer, vocabulary)]
            seen, wanted = Counter(f.value for f in left_out), Counter(case["missing"])
            total.missing["right"] += (seen & wanted).total()
            total.missing["wrong"] += (seen - wanted).total()
            total.missing["overlooked"] += (wanted - seen).total()
    return replace(total, answers=answers)


def overlaps(finding: Finding, start: int, end: int) -> bool:
    """Whether a finding touches these characters."""
    assert finding.start is not None and finding.end is not None
    return finding.start < end and start < finding.end


def _spans(answer: str, label: str) -> list[tuple[int, int]]:
    """Every place of a label's words: the same words twice have one label."""
    found = re.finditer(re.escape(label.casefold()), answer.casefold())
    return [(each.start(), each.end()) for each in found]


# Changed words


def kind_of(token: Token) -> str:
    if token.has_digits:
        return "number"
    return "name" if token.is_capitalised and not token.starts_sentence else "other word"


def supported(pair: tuple[str, str]) -> list[Token]:
    """Tokens of the answer that its prompt has, letter by letter."""
    prompt, answer = pair
    tokens = [token for token in tokens_in(answer) if len(token.text) > 2 or token.has_digits]
    return [t for t in tokens if re.search(rf"(?i)\b{re.escape(t.text)}\b", prompt)]


def another(kind: str, token: Token, prompt: str, draw: random.Random, others: list[str]) -> str:
    """A word of the same kind that the prompt does not have; empty where none is found."""
    for _ in range(50):
        if kind == "number":
            new = re.sub(r"\d", lambda _: str(draw.randint(1, 9)), token.text)
        else:
            new = draw.choice(others or [token.text])
        if new.casefold() not in prompt.casefold():
            return new
    return ""


def changed_words(
    train: list[tuple[str, str]], held_out: list[tuple[str, str]]
) -> tuple[dict[str, Counter[bool]], int]:
    """Kind → how often a changed word was marked, and how many untouched answers are."""
    vocabulary = Vocabulary.learn(train, "english")
    draw = random.Random(1)
    others: dict[str, list[str]] = defaultdict(list)
    for pair in train:
        for token in supported(pair):
            others[kind_of(token)].append(token.text)
    marked: dict[str, Counter[bool]] = defaultdict(Counter)
    untouched = 0
    for prompt, answer in held_out:
        facts = vocabulary.facts(prompt)
        untouched += any(vocabulary.not_in(facts, answer))
        by_kind: dict[str, list[Token]] = defaultdict(list)
        for token in supported((prompt, answer)):
            by_kind[kind_of(token)].append(token)
        for kind, tokens in sorted(by_kind.items()):
            token = draw.choice(tokens)
            if new := another(kind, token, prompt, draw, others[kind]):
                changed = answer[: token.start] + new + answer[token.end :]
                span = token.start, token.start + len(new)
                findings = vocabulary.not_in(facts, changed)
                marked[kind][any(overlaps(finding, *span) for finding in findings)] += 1
    return marked, untouched
