"""What the scores of `eval.grounding` find, for docs/evaluation.md.

Changed words: for each held-out row of a data set one number, one name, one colour and one other
word that its prompt has is replaced by one of the same kind from another row; next to the share
that the scorer marks stands the share of the untouched answers in which it marks anything. Labelled
answers: its agreement with labels by hand (scripts/labelled_answers.py).

    python scripts/grounding.py --data ../shared/data --output docs/data/grounding.json
    python scripts/grounding.py --write            # docs/evaluation.md from the figures kept there
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import cast

from labelled_answers import LABELLED, agreement, overlaps

from ftcli.evaluation.scorers.vocabulary import Token, Vocabulary, tokens_in

ROOT = Path(__file__).parents[1]
SHOP = ROOT / "recipes" / "data" / "shop"
PAGE, KEPT = ROOT / "docs" / "evaluation.md", ROOT / "docs" / "data" / "grounding.json"
BEGIN, END = "<!-- begin: scripts/grounding.py -->", "<!-- end -->"
# Name in the table → folder of --data.
SETS = {
    "retail descriptions": "ecommerce_retail_demo",
    "catalogue JSON": "json_catalog_record",
    "SQL": "sql_wikisql_large",
    "medical summaries": "summarise_medical_dialogue",
}
HELD_OUT = 400
KINDS = ("number", "name", "colour", "other word")
COLOURS = set(
    re.findall(
        r"\w+",
        "amber beige black blue bronze brown burgundy charcoal copper coral cream crimson emerald "
        "gold gray green grey ivory khaki lavender lilac maroon mint mustard navy olive orange "
        "peach pink purple red silver tan teal turquoise white yellow",
    )
)
Pair = tuple[str, str]


def pairs_in(path: Path) -> list[Pair]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(row["prompt"], row["completion"]) for row in rows]


def kind_of(token: Token) -> str:
    if token.has_digits:
        return "number"
    if token.is_capitalised and not token.starts_sentence:
        return "name"
    return "colour" if token.text in COLOURS else "other word"


def supported(pair: Pair) -> list[Token]:
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


def measure(train: list[Pair], held_out: list[Pair]) -> tuple[dict[str, Counter[bool]], int]:
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


def figures(data: Path) -> list[dict[str, object]]:
    """A row for each data set."""
    found = []
    sets = {name: pairs_in(data / folder / "train.jsonl") for name, folder in SETS.items()}
    split = {}
    for name, pairs in sets.items():
        random.Random(0).shuffle(pairs)
        split[name] = (pairs[HELD_OUT:], pairs[:HELD_OUT])
    split["shop listings"] = (pairs_in(SHOP / "train.jsonl"), pairs_in(SHOP / "test.jsonl"))
    for name, (train, held_out) in split.items():
        marked, untouched = measure(train, held_out)
        row: dict[str, object] = {"set": name, "untouched": [untouched, len(held_out)]}
        for kind in KINDS:
            row[kind] = [marked[kind][True], marked[kind].total()]
        found.append(row)
    return found


def labelled() -> list[dict[str, object]]:
    """A row for each file of labels."""
    found = []
    for name in LABELLED:
        each = agreement(name)
        missing = each.missing
        found.append(
            {
                "file": name,
                "answers": each.answers,
                "numbers found": each.recall("number"),
                "numbers right": each.precision("number"),
                "names found": each.recall("brand"),
                "colours, materials found": each.recall("colour", "material"),
                "facts found": (missing["right"], missing["right"] + missing["overlooked"]),
                "facts right": (missing["right"], missing["right"] + missing["wrong"]),
            }
        )
    return found


def page(kept: dict[str, list[dict[str, object]]]) -> str:
    """Two tables in Markdown."""
    lines = ["| changed word, found | " + " | ".join(KINDS) + " | marked untouched |"]
    lines.append("| --- |" + " ---: |" * (len(KINDS) + 1))
    for row in kept["changed"]:
        cells = [_cell(row[kind]) for kind in (*KINDS, "untouched")]
        lines.append(f"| {row['set']} | {' | '.join(cells)} |")
    total = [_sum([row[kind] for row in kept["changed"]]) for kind in (*KINDS, "untouched")]
    lines.append(f"| all | {' | '.join(map(_cell, total))} |")
    columns = [name for name in kept["labelled"][0] if name not in ("file", "answers")]
    lines += ["", "| labelled answers | " + " | ".join(columns) + " |"]
    lines.append("| --- |" + " ---: |" * len(columns))
    for row in kept["labelled"]:
        name = str(row["file"]).replace("_", " ")
        cells = [_cell(row[column]) for column in columns]
        lines.append(f"| {name} ({row['answers']}) | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(pair: object) -> str:
    """`0.98 of 301`."""
    hits, of = cast(tuple[int, int], pair)
    return f"{hits / of:.2f} of {of}" if of else "–"


def _sum(pairs: list[object]) -> list[int]:
    both = [cast(tuple[int, int], pair) for pair in pairs]
    return [sum(hits for hits, _ in both), sum(of for _, of in both)]


def write_page(kept: dict[str, list[dict[str, object]]]) -> str:
    """docs/evaluation.md with its tables replaced."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{page(kept)}\n\n{END}{after}"


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    asked.add_argument("--data", type=Path, help="folder of the public data sets")
    asked.add_argument("--output", type=Path, default=KEPT)
    asked.add_argument("--write", action="store_true")
    options = asked.parse_args()
    if options.data is not None:
        kept = {"changed": figures(options.data), "labelled": labelled()}
        rows = (
            ",\n".join(f"  {json.dumps(row)}" for row in kept[name])
            for name in ("changed", "labelled")
        )
        changed, hand = rows
        options.output.write_text(f'{{"changed": [\n{changed}\n], "labelled": [\n{hand}\n]}}\n')
    kept = json.loads(options.output.read_text(encoding="utf-8"))
    sys.stdout.write(f"{page(kept)}\n")
    if options.write:
        PAGE.write_text(write_page(kept), encoding="utf-8")


if __name__ == "__main__":
    main()
