"""The form of answers by the definitions of docs/formats.md (for check_scores.py)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from check_json import NotJsonError, canonical, conforms, read_json, unknown_words
from check_sql import sql_rows
from check_text import Counted

LONGEST = 200_000
MOST_FIELDS = 40
Counts = dict[str, Counted]


class Form:
    """`eval.format` of a recipe, and what of it cannot be computed here."""

    def __init__(self, wanted: Mapping[str, Any], folder: Path) -> None:
        self.wanted = wanted
        self.folder = folder
        self.not_checked: dict[str, str] = {}
        """Score → why it is not computed here."""
        self.schema = self._schema()

    def _schema(self) -> Any:
        schema = self.wanted.get("schema")
        if isinstance(schema, str):
            schema = yaml.safe_load((self.folder / schema).read_text(encoding="utf-8-sig"))
        unknown = sorted(unknown_words(schema))
        if unknown:
            why = f"the schema's {', '.join(unknown)} is not known here"
            self.not_checked |= {"json_conforming": why, "format_rate": why}
        return schema

    def count(self, answers: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Counts]:
        """What each answer of one side adds to each score of its form."""
        found: list[Counts]
        kind = self.wanted["type"]
        if kind == "json":
            found = self._json(answers, [row["reference"] for row in rows])
        elif kind == "sql":
            found = sql_rows(answers, rows, self.wanted, self.folder, self.not_checked)
        else:
            found = [{"format_rate": (1.0, 1.0)} for _ in answers]
        for counts, answer in zip(found, answers, strict=True):
            self._add_text_parts(counts, answer)
            if len(answer) > LONGEST:
                counts.update({name: (0.0, bottom) for name, (_, bottom) in counts.items()})
        return [
            {name: pair for name, pair in counts.items() if name not in self.not_checked}
            for counts in found
        ]

    def _json(self, answers: Sequence[str], references: Sequence[str]) -> list[Counts]:
        records = [_read(reference) for reference in references]
        names: dict[str, None] = {}
        for record in records:
            names |= dict.fromkeys(".".join(path) or "(whole)" for path, _ in _fields(*record))
        single = list(names)[:MOST_FIELDS]
        found = []
        for answer, record in zip(answers, records, strict=True):
            read = _read(answer)
            right = bool(read) and self._is_right(read[0])
            counts = {"json_valid": _hit(bool(read)), "format_rate": _hit(right)}
            if self.wanted.get("keys") or self.schema is not None:
                counts["json_conforming"] = _hit(right)
            if record:
                counts |= _field_counts(dict(_fields(*read)), dict(_fields(*record)), single)
            found.append(counts)
        return found

    def _is_right(self, value: Any) -> bool:
        if self.schema is not None:
            return conforms(value, self.schema)
        keys = self.wanted.get("keys")
        return isinstance(value, dict) and (not keys or set(value) == set(keys))

    def _add_text_parts(self, counts: Counts, answer: str) -> None:
        wanted = self.wanted
        parts: list[bool] = []
        more = any(wanted.get(name) for name in ("sections", "words", "characters"))
        if wanted["type"] == "regex":
            parts.append(re.fullmatch(wanted["pattern"], answer.strip()) is not None)
            if more:
                counts["pattern_match"] = _hit(parts[-1])
        if wanted.get("sections"):
            found = sections_in_order(answer.split("\n"), wanted["sections"])
            counts["sections_present"] = (float(found), float(len(wanted["sections"])))
            parts.append(found == len(wanted["sections"]))
        if wanted.get("words") or wanted.get("characters"):
            lengths = {"words": len(answer.split()), "characters": len(answer.strip())}
            kept = all(_within(length, wanted.get(name)) for name, length in lengths.items())
            counts["length_kept"] = _hit(kept)
            parts.append(kept)
        if "format_rate" in counts:
            counts["format_rate"] = _hit(counts["format_rate"][0] and all(parts))


def sections_in_order(lines: Sequence[str], sections: Sequence[str]) -> int:
    """Most sections that begin lines in their own order, by the table of all prefixes of both."""
    above = [0] * (len(sections) + 1)
    for line in lines:
        row = [0]
        for place, section in enumerate(sections, 1):
            begun = above[place - 1] + 1 if _begins(line, section) else 0
            row.append(max(begun, above[place], row[-1]))
        above = row
    return above[-1]


def _begins(line: str, section: str) -> bool:
    after = line[len(section) :][:1]
    return line.startswith(section) and not (section[-1].isalnum() and after.isalnum())


def _within(length: int, limits: Mapping[str, int | None] | None) -> bool:
    low, high = (limits or {}).get("min"), (limits or {}).get("max")
    return (low is None or length >= low) and (high is None or length <= high)


def _hit(found: object) -> Counted:
    return (1.0 if found else 0.0), 1.0


Path_ = tuple[str, ...]


def _read(text: str) -> list[Any]:
    """The value of a text, alone in a list; nothing where it is no JSON."""
    try:
        return [read_json(text)]
    except NotJsonError:
        return []


def _fields(*values: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """What no object holds further apart, each by its path."""
    for value in values:
        if isinstance(value, dict) and (value or not path):
            for name, inner in value.items():
                yield from _fields(inner, path=(*path, name))
        else:
            yield path, value


def _field_counts(
    found: Mapping[Path_, Any], wanted: Mapping[Path_, Any], single: Sequence[str]
) -> Counts:
    paths = {*found, *wanted}
    both = [path for path in paths if path in found and path in wanted]
    same = sum(canonical(found[path]) == canonical(wanted[path]) for path in both)
    by_name: Counts = {}
    for path in paths:
        have, want = _items(found.get(path)), _items(wanted.get(path))
        hits = sum((have & want).values())
        top, bottom = by_name.get(".".join(path) or "(whole)", (0.0, 0.0))
        bottom += have.total() + want.total()
        by_name[".".join(path) or "(whole)"] = top + 2.0 * hits, bottom
    counts: Counts = {
        "field_accuracy": (float(same), float(len(paths))),
        "field_f1": (
            sum(top for top, _ in by_name.values()),
            sum(bottom for _, bottom in by_name.values()),
        ),
    }
    return counts | {f"field_f1.{name}": by_name[name] for name in single if name in by_name}


def _items(value: Any) -> Counter[Any]:
    if value is None or value in ([], {}):
        return Counter()
    return Counter(map(canonical, value if isinstance(value, list) else [value]))
