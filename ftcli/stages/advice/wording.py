"""What the statistics mean: fine-tune or not, and what to look at first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from ftcli.prepared import IDEAL_ROWS, TOO_FEW_ROWS

Verdict = Literal["prompt", "fine-tune", "fine-tune if called often"]
Found = Mapping[str, Any]

# Prompting is good enough from this share of right or well-formed answers on: of all calls, so that
# the lower ends of the intervals have to reach it.
PROMPTING_DOES = 0.8
# Twins below this share are no news.
TWINS_WORTH_SAYING = 0.02
# An instruction that takes up less than this of the rows costs little.
INSTRUCTION_WORTH_SAYING, INSTRUCTION_TOKENS = 0.2, 20
OPENING_WORTH_SAYING = 0.2
# What answers of a kind do, where its detail is longer than a terminal is wide.
SHORT = {
    "json": "are JSON objects of one kind",
    "sql": "are SQL",
    "lines": "have the same kinds of lines",
    "sections": "have the same sections",
    "labels": "are one of a few labels",
}
LONGEST_FORMAT = 160  # characters; a longer one stands in advice.json alone


@dataclass(frozen=True)
class Advice:
    """The verdict and, the most important first, the sentences that explain it."""

    verdict: Verdict
    sentences: tuple[str, ...]


def advise_on(found: Found, probe: Found | None, *, format_is_set: bool) -> Advice:
    """`format_is_set`: the recipe names an eval.format already."""
    verdict, first = _verdict(found, probe)
    others = [
        *_held_out_twins(found["near_duplicates"]),
        *([] if format_is_set else _format(found["format"])),
        *_contradictions(found["same_prompt_different_answers"]),
        *_twins(found["near_duplicates"]),
        *_disagreeing(found["near_duplicates"], found["format"]),
        *_instruction(found["instruction"]),
        *_opening(found["format"]),
        *_next(found["rows"], probe),
    ]
    return Advice(verdict, (first, *others))


def size_in_words(rows: int) -> str:
    """Whether this many examples are worth a fine-tuning (MISSION: when to fine-tune)."""
    low, high = IDEAL_ROWS
    if rows < TOO_FEW_ROWS:
        return f"{rows} rows are few: under {TOO_FEW_ROWS}, a good prompt usually does better."
    if rows < low:
        return f"{rows} rows are enough for a fixed format; {low}–{high:,} is the good range."
    if rows <= high:
        return f"Good size for fine-tuning ({low}–{high:,} rows is the good range)."
    return f"{rows:,} rows are plenty; beyond {high:,}, cleaner rows help more than further ones."


def _verdict(found: Found, probe: Found | None) -> tuple[Verdict, str]:
    rows, form = found["rows"], found["format"]
    size = size_in_words(rows)
    if probe is not None:
        return _probed(probe, rows, size)
    if rows < TOO_FEW_ROWS:
        return "prompt", size
    if form is None:
        return "fine-tune", size
    if form["fixed"]:
        return "fine-tune", f"{size} {_habit(form)}."
    return "fine-tune", f"{size} These answers have none." if rows < IDEAL_ROWS[0] else size


def _habit(form: Found) -> str:
    """`All answers are SQL`, `92% of the answers are 37–59 words long`."""
    share, short = form["share"], SHORT.get(form["kind"], f"are {form['detail']}")
    return f"{'All' if share == 1 else f'{share:.0%} of the'} answers {short}"


def _probed(probe: Found, rows: int, size: str) -> tuple[Verdict, str]:
    """The base's own score, with examples in its prompt, on a few rows."""
    side, shots = probe["few_shot"], probe["shots"]
    reached = []
    for name, label in probe["decided_by"].items():
        low, high = side[f"{name}_interval"]
        reached.append(f"{side[name]:.0%} {label} ({low * 100:.0f}–{high:.0%})")
    told = f"{' and '.join(reached)} on {probe['rows']} rows"
    names = probe["decided_by"]
    if all(side[f"{name}_interval"][0] >= PROMPTING_DOES for name in names):
        text = f"Prompting already reaches {told}: fine-tune only if you call it often."
        return "fine-tune if called often", text
    if all(side[name] >= PROMPTING_DOES for name in names):
        told += f": too few to show that it reaches {PROMPTING_DOES:.0%}"
    verdict: Verdict = "prompt" if rows < TOO_FEW_ROWS else "fine-tune"
    examples = _number(shots, "example", "examples")
    return verdict, f"Prompting with {examples} reaches {told}. {size}"


def _held_out_twins(found: Found | None) -> Iterator[str]:
    held_out = found["held_out"] if found else None
    if held_out and held_out["rows"]:
        shown = held_out["pairs_shown"][0]
        yield (
            f"{held_out['rows']} of {held_out['rows_looked_at']:,} held-out rows nearly equal a "
            f"training row ({_short(shown[1])} and {_short(shown[0])}): the score will flatter; "
            "take one of each out."
        )


def _format(found: Found | None) -> Iterator[str]:
    """The block that measures what the answers have in common."""
    if not found or found["eval_format"] is None:
        return
    has = "To measure that form" if found["fixed"] else f"{_habit(found)}; to measure that"
    block = yaml_line({"eval": {"format": found["eval_format"]}})
    if len(block) > LONGEST_FORMAT:
        block = "take the eval_format of advice.json"
    yield f"{has}: {block}"


def yaml_line(value: Mapping[str, Any]) -> str:
    """A block of a recipe in one line, to be pasted."""
    text: str = yaml.safe_dump(
        value, default_flow_style=True, width=10_000, sort_keys=False, allow_unicode=True
    )
    return text.strip().removeprefix("{").removesuffix("}")


def _contradictions(found: Found | None) -> Iterator[str]:
    if found and found["prompts"]:
        shown = " and ".join(map(_short, found["shown"][0][:2]))
        prompts = _number(found["prompts"], "prompt has", "prompts have")
        yield (
            f"{prompts} several answers ({found['rows']} rows, such as {shown}): where one alone "
            "is right, mend the others."
        )


def _twins(found: Found | None) -> Iterator[str]:
    if not found:
        return
    if found["share"] >= TWINS_WORTH_SAYING:
        shown, looked_at = found["pairs_shown"][0], found["rows_looked_at"]
        yield (
            f"{found['share']:.0%} of {looked_at:,} training rows nearly equal another "
            f"({_short(shown[0])} and {_short(shown[1])}): they teach little that is new."
        )


def _disagreeing(found: Found | None, form: Found | None) -> Iterator[str]:
    """Labels that contradict each other, where the prompts are not quite the same."""
    if found and form and found["disagreeing"] and form["kind"] == "labels":
        pairs = _number(found["disagreeing"], "row has", "rows have")
        yield f"{pairs} another label than a nearly equal row: look whether both are right."


def _instruction(found: Found | None) -> Iterator[str]:
    if not found or found["tokens"] < INSTRUCTION_TOKENS:
        return
    if found["share_of_rows"] >= INSTRUCTION_WORTH_SAYING:
        yield (
            f"The same {found['tokens']} tokens begin every prompt "
            f"({found['share_of_prompts']:.0%} of it): a tuned model needs few of them; leave them "
            "out of rows and calls."
        )


def _opening(found: Found | None) -> Iterator[str]:
    if not found or found["fixed"] or not found["opening"]:
        return
    words, share = found["opening"]["words"], found["opening"]["share"]
    if share >= OPENING_WORTH_SAYING and found["kind"] != "opening":
        yield f"{share:.0%} of the answers begin with “{words}”, and so will the tuned model's."


def _next(rows: int, probe: Found | None) -> Iterator[str]:
    if rows < TOO_FEW_ROWS and probe is None:
        yield "What prompting reaches on them: the same command with --probe"


def _short(origin: str) -> str:
    """A row's file without its folders, and its line."""
    return origin.rpartition("/")[2]


def _number(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"
