"""The common form of answers, how many have it, and the `eval.format` that measures it."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from os.path import commonprefix
from typing import Any, Literal

from pydantic import ValidationError

from ftcli.config.recipe import AnswerFormat, Evaluation
from ftcli.evaluation.scorers.sql_answers import read_query

Kind = Literal["labels", "json", "sql", "lines", "sections", "opening", "length", "free text"]
# Fixed forms; a common opening or length alone is not one.
FIXED: tuple[Kind, ...] = ("labels", "json", "sql", "lines", "sections")
NEARLY_ALL, MAJORITY = 0.9, 0.5
# Proportion of texts with a common beginning; the others may be mistakes.
COMMON = 0.95
MAX_LABELS, MAX_LABEL_CHARACTERS, ROWS_PER_LABEL, NAMED_LABELS = 30, 60, 5, 3
PARSED_QUERIES = 300  # each takes a few milliseconds
QUERY = re.compile(r"(SELECT|WITH)\b", re.IGNORECASE)
MIN_BAND_WORDS = 5
# The start of a line: heading marks, a bullet, a number, a label.
MARK = re.compile(r"(#{1,6}|[-*•]|\d{1,2}[.)])(?= )|([^\W\d_][\w &/-]{0,39}:)(?=\s|$)")
SECTION = re.compile(r"^(#{1,6} [^\n]{1,60}|[^\W\d_][\w &/-]{0,39}:)(?=\s|$)", re.MULTILINE)
TEXT, BLANK, NUMBERED = "text", "", "1."
REPEATED = (TEXT, NUMBERED, "-", "*", "•")
MAX_LINES, MAX_RUNS = 30, 12
SPECIAL = re.compile(r"[\\.^$*+?{}\[\]|()]")

Run = tuple[str, int]
"""A kind of line, and how many follow each other (0: any number)."""


@dataclass(frozen=True)
class AnswerForm:
    """A form of answers."""

    kind: Kind
    share: float
    """Proportion of the answers with it; 0 for free text."""
    detail: str
    eval_format: Mapping[str, Any] | None
    """The `eval.format` that measures it; None: no block does."""
    fixed: bool = False


def answer_form(answers: Sequence[str]) -> AnswerForm:
    """The first form that nearly all answers have, else the most common one."""
    stripped = [answer.strip() for answer in answers]
    best = AnswerForm("free text", 0.0, "free text", None)
    for find in FORMS if stripped else ():
        form = find(stripped)
        if form is not None and form.share >= NEARLY_ALL:
            return replace(form, fixed=form.kind in FIXED)
        if form is not None and form.kind in FIXED and form.share >= max(MAJORITY, best.share):
            best = form
    return best


def read_format(wanted: Mapping[str, Any] | None) -> AnswerFormat | None:
    """The value of `eval.format`; None: the schema refuses it."""
    try:
        return Evaluation.model_validate({"format": wanted}).format
    except ValidationError:
        return None


def common_beginning(texts: Sequence[str], share: float = COMMON) -> str:
    """The longest beginning, of whole lines or words, of at least this share of the texts.

    Empty if it is the whole of most texts: then it is the question, not an instruction.
    """
    # In sorted order, texts with a common beginning are neighbours.
    ordered, apart = sorted(texts), math.ceil(share * len(texts)) - 1
    pairs = zip(ordered, ordered[max(apart, 0) :], strict=False)
    found = max(map(commonprefix, pairs), key=len, default="")
    if sum(text.strip() == found.strip() for text in texts) > len(texts) / 2:
        return ""
    # The rest of a line may be the key of a row's first field, the rest of a word chance.
    whole = re.match(r"[\s\S]*\n|[\s\S]*\s\Z|[\s\S]*(?=\s)", found)
    return whole.group() if whole else ""


def _labels(answers: Sequence[str]) -> AnswerForm | None:
    """Few different answers, all short and frequent."""
    counts, rows = Counter(answers), len(answers)
    often = max(2, rows // 200)
    labels = [text for text, count in counts.most_common(MAX_LABELS) if count >= often]
    too_long = any(len(label) > MAX_LABEL_CHARACTERS or "\n" in label for label in labels)
    if len(labels) < 2 or len(labels) * ROWS_PER_LABEL > rows or too_long:
        return None
    shown = [f"{label} {counts[label] / rows:.0%}" for label in labels[:NAMED_LABELS]]
    more = ["…"] if len(labels) > NAMED_LABELS else []
    detail = f"one of {len(labels)} labels ({', '.join(shown + more)})"
    share = sum(counts[label] for label in labels) / rows
    return AnswerForm("labels", share, detail, _regex("|".join(map(_escaped, labels))))


def _json(answers: Sequence[str]) -> AnswerForm | None:
    """Arrays, objects with the same keys, or any objects."""
    values, rows = [_json_value(answer) for answer in answers], len(answers)
    arrays = sum(isinstance(value, list) for value in values)
    if arrays >= MAJORITY * rows:
        wanted = {"type": "json", "schema": {"type": "array"}}
        return AnswerForm("json", arrays / rows, "a JSON array", wanted)
    found = [value for value in values if isinstance(value, dict)]
    if not found:
        return None
    kinds = Counter(frozenset(value) for value in found)
    keys, count = kinds.most_common(1)[0]
    if keys and count >= max(MAJORITY * rows, NEARLY_ALL * len(found)):
        names = list(next(value for value in found if value.keys() == keys))
        detail = f"a JSON object with the keys {', '.join(names)}"
        return AnswerForm("json", count / rows, detail, {"type": "json", "keys": names})
    detail = f"a JSON object ({len(kinds)} different sets of keys)"
    return AnswerForm("json", len(found) / rows, detail, {"type": "json"})


def _json_value(answer: str) -> Any:
    """An object or array; None: anything else."""
    try:
        return json.loads(answer) if answer.startswith(("{", "[")) else None
    except (ValueError, RecursionError):
        return None


def _sql(answers: Sequence[str]) -> AnswerForm | None:
    sample = answers[:: math.ceil(len(answers) / PARSED_QUERIES)]
    likely = [answer for answer in sample if QUERY.match(answer)]
    if len(likely) < MAJORITY * len(sample):
        return None
    queries = sum(read_query(answer, "sqlite").fault is None for answer in likely)
    return AnswerForm("sql", queries / len(sample), "SQL", {"type": "sql"})


def _lines(answers: Sequence[str]) -> AnswerForm | None:
    """The same kinds of lines in the same order; and their counts, if nearly all have them."""
    lines = [answer.split("\n", MAX_LINES) for answer in answers]
    marks = [{mark[2] for mark in map(MARK.match, each) if mark} for each in lines]
    counts = Counter(label for labels in marks for label in labels if label)
    common = {label for label, count in counts.items() if count > len(answers) / 2}
    runs = [tuple(_runs(each, common)) for each in lines]
    form, count = Counter(runs).most_common(1)[0]
    if count < NEARLY_ALL * len(answers):
        loose = (tuple((kind, 0 if kind in REPEATED else n) for kind, n in each) for each in runs)
        form, count = Counter(loose).most_common(1)[0]
    if all(kind in (TEXT, BLANK) for kind, _ in form) or len(form) > MAX_RUNS:
        return None
    shown = [kind if kind == TEXT else f"“{kind} …”" for kind, _ in form if kind != BLANK]
    pattern = r"\n".join(map(_run_pattern, form))
    return AnswerForm("lines", count / len(answers), f"lines {', '.join(shown)}", _regex(pattern))


def _runs(lines: Sequence[str], labels: set[str]) -> list[Run]:
    def kind(line: str) -> str:
        mark = MARK.match(line)
        if mark is None or (mark[2] and mark[2] not in labels):
            return TEXT if line.strip() else BLANK
        return NUMBERED if mark[0][0].isdigit() else mark[0]

    return [(each, len(list(same))) for each, same in groupby(map(kind, lines))]


def _run_pattern(run: Run) -> str:
    kind, count = run
    if kind == BLANK:
        return r"\n".join([r"[^\S\n]*"] * count)
    begin = {TEXT: "", NUMBERED: r"\d+[.)] "}.get(kind, _escaped(kind))
    if kind.endswith(":"):
        line = rf"{begin}[^\n]*"
    else:
        line = rf"{begin}{'' if kind in (TEXT, NUMBERED) else ' '}[^\n]+"
    return line if count == 1 else rf"{line}(?:\n{line}){f'{{{count - 1}}}' if count else '*'}"


def _sections(answers: Sequence[str]) -> AnswerForm | None:
    """The same headings or labels in the same order."""
    each = [dict.fromkeys(mark[1] for mark in SECTION.finditer(answer)) for answer in answers]
    counts = Counter(name for names in each for name in names)
    common = {name for name, count in counts.items() if count >= NEARLY_ALL * len(answers)}
    orders = Counter(tuple(name for name in names if name in common) for names in each)
    names, count = orders.most_common(1)[0]
    if len(names) < 2:
        return None
    detail, wanted = f"the sections {', '.join(names)}", {"type": "text", "sections": list(names)}
    return AnswerForm("sections", count / len(answers), detail, wanted)


def _opening(answers: Sequence[str]) -> AnswerForm | None:
    words = common_beginning(answers, NEARLY_ALL).strip()
    if not words:
        return None
    share = sum(answer.startswith(words) for answer in answers) / len(answers)
    pattern = rf"{_escaped(words)}[\s\S]*"
    return AnswerForm("opening", share, f"the opening “{words}”", _regex(pattern))


def _length(answers: Sequence[str]) -> AnswerForm | None:
    """A range of lengths of nine in ten answers, at most twice its minimum."""
    counts = sorted(len(answer.split()) for answer in answers)
    low, high = counts[len(counts) // 20], counts[-1 - len(counts) // 20]
    if low < MIN_BAND_WORDS or high > 2 * low:
        return None
    share = sum(low <= count <= high for count in counts) / len(counts)
    wanted = {"type": "text", "words": {"min": low, "max": high}}
    return AnswerForm("length", share, f"{low}–{high} words long", wanted)


def _regex(pattern: str) -> dict[str, str]:
    return {"type": "regex", "pattern": pattern}


def _escaped(text: str) -> str:
    """A regular expression for the text; re.escape also escapes spaces."""
    return SPECIAL.sub(r"\\\g<0>", text)


FORMS: tuple[Callable[[Sequence[str]], AnswerForm | None], ...] = (
    *(_labels, _json, _sql, _lines, _sections, _opening, _length),
)
