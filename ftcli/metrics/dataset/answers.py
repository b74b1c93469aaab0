"""The form that answers share: which one, how many have it, and the `eval.format` that sees it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ftcli.metrics.dataset.instruction import shared_beginning
from ftcli.metrics.dataset.lines import SECTION, escaped, headings, line_form

Kind = Literal["labels", "json", "sql", "lines", "sections", "opening", "length", "free text"]
# In these a form is fixed; an opening or a length alone is a habit.
FIXED: tuple[Kind, ...] = ("labels", "json", "sql", "lines", "sections")
NEARLY_ALL, MOST = 0.9, 0.5
MOST_LABELS, LONGEST_LABEL = 30, 60
ROWS_PER_LABEL = 5
NAMED_LABELS = 3
# sqlglot takes about a millisecond for a query.
PARSED_QUERIES = 300
QUERY = re.compile(
    r"\s*(SELECT|WITH\s+\w+\s+AS|INSERT\s+INTO|UPDATE\s+\S+\s+SET|DELETE\s+FROM|"
    r"CREATE\s+(TABLE|VIEW|INDEX))\b",
    re.IGNORECASE,
)
SHORTEST_BAND = 5


@dataclass(frozen=True)
class Opening:
    """The word with which most answers begin."""

    words: str
    share: float


@dataclass(frozen=True)
class AnswerForm:
    """What answers have in common, and which share of those looked at."""

    kind: Kind
    share: float
    """0 for free text."""
    detail: str
    wanted: Mapping[str, Any] | None
    """The value of `eval.format` that measures it; none: no such format."""
    opening: Opening | None = None

    @property
    def is_fixed(self) -> bool:
        return self.kind in FIXED and self.share >= NEARLY_ALL


FREE = AnswerForm("free text", 0.0, "free text", None)


def answer_form(answers: Sequence[str]) -> AnswerForm:
    """The first form that nearly all answers have, else the one that most of them have."""
    stripped = [answer.strip() for answer in answers]
    if not stripped:
        return FREE
    opening = _first_word(stripped)
    found: list[AnswerForm] = []
    for look in LOOKS:
        form = look(stripped)
        if form is not None and form.share >= NEARLY_ALL:
            return _with(form, opening)
        if form is not None and form.share >= MOST and form.kind in FIXED:
            found.append(form)
    best = max(found, key=lambda form: form.share, default=FREE)
    return _with(best, opening)


def _with(form: AnswerForm, opening: Opening) -> AnswerForm:
    return AnswerForm(form.kind, form.share, form.detail, form.wanted, opening)


def _labels(answers: Sequence[str]) -> AnswerForm | None:
    """Few different answers, each of them short and often given."""
    counts = Counter(answers)
    often = max(2, len(answers) // 200)
    labels = [text for text, count in counts.most_common(MOST_LABELS) if count >= often]
    if len(labels) < 2 or len(labels) * ROWS_PER_LABEL > len(answers):
        return None
    if any(len(label) > LONGEST_LABEL or "\n" in label for label in labels):
        return None
    share = sum(counts[label] for label in labels) / len(answers)
    shown = ", ".join(
        f"{label} {counts[label] / len(answers):.0%}" for label in labels[:NAMED_LABELS]
    )
    more = ", …" if len(labels) > NAMED_LABELS else ""
    pattern = "|".join(escaped(label) for label in labels)
    detail = f"one of {len(labels)} labels ({shown}{more})"
    return AnswerForm("labels", share, detail, {"type": "regex", "pattern": pattern})


def _json(answers: Sequence[str]) -> AnswerForm | None:
    """Objects with the same keys, or objects, or JSON of another kind."""
    values = [value for value in map(_json_value, answers) if value is not None]
    keys = Counter(tuple(sorted(value)) for value in values if isinstance(value, dict))
    if not values:
        return None
    rows, objects = len(answers), sum(keys.values())
    same, count = keys.most_common(1)[0] if keys else ((), 0)
    if same and count >= max(MOST * rows, NEARLY_ALL * objects):
        first = next(v for v in values if isinstance(v, dict) and tuple(sorted(v)) == same)
        names = list(first)  # in the order in which the answers write them
        detail = f"a JSON object with the keys {', '.join(names)}"
        return AnswerForm("json", count / rows, detail, {"type": "json", "keys": names})
    if objects >= MOST * rows:
        detail = f"a JSON object ({len(keys)} different sets of keys)"
        return AnswerForm("json", objects / rows, detail, {"type": "json"})
    return AnswerForm("json", len(values) / rows, "JSON, most of it no object", None)


def _json_value(answer: str) -> Any:
    """An object or a list; none: it is neither."""
    if answer[:1] not in ("{", "["):
        return None
    try:
        return json.loads(answer)
    except (ValueError, RecursionError):
        return None


def _sql(answers: Sequence[str]) -> AnswerForm | None:
    step = -(-len(answers) // PARSED_QUERIES)
    looked_at = answers[::step]
    likely = [answer for answer in looked_at if QUERY.match(answer)]
    if len(likely) < MOST * len(looked_at):
        return None
    parsed = sum(map(_is_query, likely))
    return AnswerForm("sql", parsed / len(looked_at), "SQL", {"type": "sql"})


def _is_query(answer: str) -> bool:
    import sqlglot
    from sqlglot.errors import SqlglotError

    try:
        return sqlglot.parse_one(answer, dialect="sqlite") is not None
    except (SqlglotError, RecursionError, ValueError):
        return False


def _lines(answers: Sequence[str]) -> AnswerForm | None:
    found = line_form(answers, NEARLY_ALL)
    if found is None:
        return None
    wanted = {"type": "regex", "pattern": found.pattern}
    return AnswerForm("lines", found.share, f"lines {found.detail}", wanted)


def _sections(answers: Sequence[str]) -> AnswerForm | None:
    """The same headings in the same order, whatever stands below them."""
    names = headings(answers, NEARLY_ALL)
    if len(names) < 2:
        return None
    share = sum(_has_sections(answer, names) for answer in answers) / len(answers)
    detail = f"the sections {', '.join(names)}"
    return AnswerForm("sections", share, detail, {"type": "text", "sections": names})


def _has_sections(answer: str, names: Sequence[str]) -> bool:
    found = [mark.group(1) for mark in SECTION.finditer(answer) if mark.group(1) in names]
    return list(dict.fromkeys(found)) == list(names)


def _opening(answers: Sequence[str]) -> AnswerForm | None:
    words = shared_beginning(answers, NEARLY_ALL).strip()
    if not words:
        return None
    share = sum(answer.startswith(words) for answer in answers) / len(answers)
    pattern = rf"{escaped(words)}[\s\S]*"
    return AnswerForm(
        "opening",
        share,
        f"alike in beginning with “{words}”",
        {"type": "regex", "pattern": pattern},
    )


def _length(answers: Sequence[str]) -> AnswerForm | None:
    """A band of lengths that holds nine of ten answers and ends at twice its beginning."""
    counts = sorted(len(answer.split()) for answer in answers)
    low, high = counts[len(counts) // 20], counts[-1 - len(counts) // 20]
    if low < SHORTEST_BAND or high > 2 * low:
        return None
    share = sum(low <= count <= high for count in counts) / len(counts)
    wanted = {"type": "text", "words": {"min": low, "max": high}}
    return AnswerForm("length", share, f"{low}–{high} words long", wanted)


def _first_word(answers: Sequence[str]) -> Opening:
    words = Counter(answer.split(maxsplit=1)[0] for answer in answers if answer)
    word, count = words.most_common(1)[0] if words else ("", 0)
    return Opening(word, count / len(answers))


LOOKS: tuple[Callable[[Sequence[str]], AnswerForm | None], ...] = (
    _labels,
    _json,
    _sql,
    _lines,
    _sections,
    _opening,
    _length,
)
