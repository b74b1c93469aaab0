"""JSON answers: syntax, keys or JSON Schema, and fields compared with the reference."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ftcli.config.answer_format import SchemaFaultError, schema_validator
from ftcli.config.recipe import JsonFormat
from ftcli.console import shown_path
from ftcli.errors import DataError
from ftcli.evaluation.scorers.scorer import ExampleResult, Finding, Question, ScoreKind

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

MAX_LEVELS = 100
MAX_DIFFERENCES = 5
# With more fields, the keys themselves are data.
MAX_FIELDS = 40
# The field name of a value that is not an object.
WHOLE = "(whole)"


@dataclass(frozen=True)
class JsonScorer:
    """The whole answer must be one JSON value: an object with these keys, or as the schema says."""

    keys: tuple[str, ...]
    validator: Validator | None
    names: dict[str, None] = field(default_factory=dict)
    """Fields of the references scored so far, in their order."""

    @property
    def kinds(self) -> Mapping[str, ScoreKind]:
        labels = {"json_valid": "valid JSON"}
        if self.keys or self.validator is not None:
            labels["json_conforming"] = "conforms"
        labels |= {"field_accuracy": "fields right", "field_f1": "field F1"}
        labels |= {f"field_f1.{name}": f"field F1, {name}" for name in self.names}
        return {name: ScoreKind(label, "share", "higher") for name, label in labels.items()}

    def score(self, answer: str, question: Question) -> ExampleResult:
        found: dict[str, object] = {}
        try:
            value = read_json(answer)
            found, findings = dict(fields_of(value)), list(self._faults(value))
            valid = True
        except (ValueError, RecursionError) as error:
            findings, valid = [_not_json(answer, error)], False
        counts = {"format_rate": (float(not findings), 1.0), "json_valid": (float(valid), 1.0)}
        if self.keys or self.validator is not None:
            counts["json_conforming"] = counts["format_rate"]
        try:
            wanted = dict(fields_of(read_json(question.reference)))
        except (ValueError, RecursionError) as error:
            why = f"the reference is not JSON ({error}): fields are not counted"
            return ExampleResult(counts, (*findings, Finding("reference", why)))
        new = [name for name in wanted if name not in self.names]
        self.names.update(dict.fromkeys(new[: MAX_FIELDS - len(self.names)]))
        differences = islice(_differences(found, wanted), MAX_DIFFERENCES)
        return ExampleResult(counts | compare_fields(found, wanted), (*findings, *differences))

    def _faults(self, value: Any) -> Iterator[Finding]:
        if self.validator is not None:
            try:
                error = next(self.validator.iter_errors(value), None)
            # jsonschema raises them for values like 1e999.
            except (RecursionError, ArithmeticError, ValueError, TypeError) as reason:
                yield Finding("schema", f"cannot be validated: {reason}")
                return
            if error is not None:
                path = ".".join(map(str, error.absolute_path))
                yield Finding("schema", f"{path}: {error.message}" if path else error.message)
        elif not isinstance(value, dict):
            yield Finding("not an object", "expected an object")
        elif self.keys:
            missing = [key for key in self.keys if key not in value]
            yield from (Finding("missing key", f"{key} is missing") for key in missing)
            if set(value) - set(self.keys):
                others = ", ".join(key for key in value if key not in self.keys)
                yield Finding("other key", f"unexpected: {others}")


def json_scorer(wanted: JsonFormat) -> JsonScorer:
    """Raises DataError (`answer_schema`) for the file of a schema."""
    if wanted.schema is None or isinstance(wanted.schema, dict):
        validator = schema_validator(wanted.schema) if wanted.schema is not None else None
        return JsonScorer(tuple(wanted.keys), validator)
    path, line = Path(wanted.schema), None
    try:
        schema = read_json(path.read_text(encoding="utf-8-sig"))
        if isinstance(schema, dict):
            return JsonScorer((), schema_validator(schema))
        message = "expected an object: a JSON Schema"
    except OSError as error:
        message = f"eval.format.schema: cannot be read: {error.strerror}"
    except (ValueError, RecursionError) as error:
        message, line = f"not JSON: {error}", getattr(error, "lineno", None)
    except SchemaFaultError as fault:
        message = ": ".join(
            [".".join(fault.path), fault.message] if fault.path else [fault.message]
        )
    raise DataError("answer_schema", message, file=shown_path(path), line=line)


def read_json(text: str) -> Any:
    """Parse JSON; ValueError for NaN, a repeated key, or more than 100 levels.

    1.0 becomes 1: JSON does not distinguish them.
    """

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        if repeated:
            raise ValueError(f"key {repeated[0]} twice in one object")
        return dict(pairs)

    def refuse(word: str) -> NoReturn:
        raise ValueError(f"{word} is not JSON")

    def number(digits: str) -> float:
        value = float(digits)
        return int(value) if value.is_integer() else value

    value = json.loads(text, object_pairs_hook=unique, parse_constant=refuse, parse_float=number)
    if _deeper_than(MAX_LEVELS, value):
        raise ValueError(f"more than {MAX_LEVELS} levels deep")
    return value


def _deeper_than(levels: int, value: object) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_deeper_than(levels - 1, each) for each in inner)


def _not_json(answer: str, error: Exception) -> Finding:
    if answer.lstrip().startswith("```"):
        return Finding("not JSON", "in a code fence: a JSON parser fails on it")
    if isinstance(error, json.JSONDecodeError):
        place = (error.pos, error.pos + 1) if error.pos < len(answer) else ()
        message = f"{error.msg} at character {error.pos + 1}" if answer.strip() else "empty"
        return Finding("not JSON", message, *place)
    return Finding("not JSON", str(error))


def fields_of(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Dotted name and value of each field: `size.w` of {"size": {"w": 1}}; a list is one field."""
    if isinstance(value, dict) and (value or not path):
        for key, inner in value.items():
            yield from fields_of(inner, f"{path}.{key}" if path else key)
    else:
        yield path or WHOLE, value


def compare_fields(
    found: Mapping[str, object], wanted: Mapping[str, object]
) -> dict[str, tuple[float, float]]:
    """Field scores from the fields of an answer and of its reference.

    `field_accuracy`: equal fields ÷ fields of either. `field_f1`, in total and of each field:
    2 · hits ÷ (items found + items wanted); a list has an item per element, null and {} none.
    """
    names = {**wanted, **found}
    equal = [n for n in wanted if n in found and _key(found[n]) == _key(wanted[n])]
    counts = {"field_accuracy": (float(len(equal)), float(len(names))), "field_f1": (0.0, 0.0)}
    for name in names:
        have, want = _items(found.get(name)), _items(wanted.get(name))
        numerator, denominator = 2.0 * (have & want).total(), float(have.total() + want.total())
        counts[f"field_f1.{name}"] = numerator, denominator
        total = counts["field_f1"]
        counts["field_f1"] = total[0] + numerator, total[1] + denominator
    return counts


def _items(value: object) -> Counter[str]:
    if value is None or value == {}:
        return Counter()
    return Counter(_key(item) for item in (value if isinstance(value, list) else [value]))


def _key(value: object) -> str:
    """Equal text for equal values; true is not 1."""
    return json.dumps(value, sort_keys=True)


def _differences(found: Mapping[str, object], wanted: Mapping[str, object]) -> Iterator[Finding]:
    for name in wanted:
        if name in found and _key(found[name]) != _key(wanted[name]):
            ours, theirs = (json.dumps(f[name], ensure_ascii=False)[:100] for f in (found, wanted))
            yield Finding("other value", f"{name}: {ours}, in the reference {theirs}")
