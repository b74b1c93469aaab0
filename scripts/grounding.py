"""What the scores of `eval.grounding` find: one supported word of a held-out answer is changed.

For each of the last rows of a data set one number, one name and one other word that the prompt has
is replaced by one of the same kind from another row. Printed: the share that the scorer marks, and
next to it the share of the untouched answers in which it marks anything. With --write the table
goes into docs/evaluation.md, together with the agreement with answers labelled by hand.

    python scripts/grounding.py --data shared/data [--write]
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

from ftcli.metrics.grounding.vocabulary import Token, Vocabulary, tokens_in

ROOT = Path(__file__).parents[1]
SHOP = ROOT / "recipes" / "data" / "shop"
# Name in the table → folder of --data.
SETS = {
    "retail descriptions": "ecommerce_retail_demo",
    "catalogue JSON": "json_catalog_record",
    "SQL": "sql_wikisql_large",
    "medical summaries": "summarise_medical_dialogue",
}
HELD_OUT = 400
KINDS = ("number", "name", "colour", "other word")
COLOURS = (
    "amber beige black blue bronze brown burgundy charcoal copper coral cream crimson emerald gold "
    "gray green grey ivory khaki lavender lilac maroon mint mustard navy olive orange peach pink "
    "purple red silver tan teal turquoise white yellow"
).split()
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
            for _ in range(50):
                new = draw.choice(others[kind]) if others[kind] else token.text
                if kind == "number":
                    new = re.sub(r"\d", lambda _: str(draw.randint(1, 9)), token.text)
                if new.casefold() not in prompt.casefold():
                    break
            else:
                continue
            changed = answer[: token.start] + new + answer[token.end :]
            end = token.start + len(new)
            findings = vocabulary.not_in(facts, changed)
            marked[kind][any(f.start < end and token.start < f.end for f in findings)] += 1  # type: ignore[operator]
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


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    asked.add_argument("--data", type=Path, required=True)
    asked.add_argument("--output", type=Path, help="JSON file of the figures")
    options = asked.parse_args()
    found = figures(options.data)
    text = json.dumps(found, indent=1)
    if options.output is not None:
        options.output.write_text(f"{text}\n", encoding="utf-8")
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    main()
