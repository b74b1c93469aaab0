"""How often `table: prompt` tells right queries from wrong ones (docs/formats.md).

Takes references from a file of prompts with CREATE TABLE and queries, changes each in ways that
keep its meaning and in ways that do not (query_changes.py), and asks the judge of each.

    python scripts/sql_match_error.py recipes/data/question-sql.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from pathlib import Path

from query_changes import right_ones, wrong_ones

from ftcli.metrics.format import format_scorer
from ftcli.metrics.scorer import Question, Scorer
from ftcli.recipe import SqlFormat

# The same rows are drawn each time.
SEED = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, help="jsonl of prompt and completion")
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--show", type=int, default=0, help="show so many verdicts that are wrong")
    asked = parser.parse_args()
    lines = asked.file.read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    chosen = random.Random(SEED).sample(rows, min(asked.rows, len(rows)))
    judge = format_scorer(SqlFormat(type="sql", table="prompt"), Path())
    print(
        report(*measure(judge, [(row["prompt"], row["completion"]) for row in chosen]), asked.show)
    )


Tally = dict[tuple[str, str], list[tuple[bool, str, str]]]


def measure(judge: Scorer, rows: list[tuple[str, str]]) -> tuple[int, int, Tally]:
    """Rows, rows that could be tested, and each changed query with its verdict."""
    tested = 0
    tally: Tally = defaultdict(list)
    for prompt, reference in rows:
        question = Question(prompt, reference, prompt)
        tested += judge.score(reference, question).counts["execution_tested"][0] == 1
        for kind, changes in (("right", right_ones), ("wrong", wrong_ones)):
            for name, query in changes(reference, prompt):
                counts = judge.score(query, question).counts
                if "execution_match" in counts:
                    said = counts["execution_match"][0] == 1
                    tally[kind, name].append((said, query, reference))
    return len(rows), tested, tally


def report(rows: int, tested: int, tally: Tally, shown: int) -> str:
    """The table of docs/formats.md, and some of the verdicts that are wrong."""
    lines = [f"{tested} of {rows} references tested", "", "| change | queries | as it should |"]
    lines.append("| --- | --- | --- |")
    for kind in ("right", "wrong"):
        total: list[bool] = []
        for (of, name), verdicts in sorted(tally.items()):
            if of == kind:
                good = [said == (kind == "right") for said, _, _ in verdicts]
                total += good
                lines.append(f"| {kind}: {name} | {len(good)} | {sum(good) / len(good):.1%} |")
        word = "accepted" if kind == "right" else "caught"
        share = f"{sum(total) / len(total):.1%}" if total else "–"
        lines.append(f"| **all {kind} ones, {word}** | {len(total)} | {share} |")
    bad = [
        f"{kind}: {name}\n    {reference}\n    {query}"
        for (kind, name), verdicts in sorted(tally.items())
        for said, query, reference in verdicts
        if said != (kind == "right")
    ]
    return "\n".join([*lines, *random.Random(SEED).sample(bad, min(shown, len(bad)))])


if __name__ == "__main__":
    main()
