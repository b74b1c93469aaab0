"""The part of a form that is JSON: valid, conforming, and how much of the record is right."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcli.console import shown_path
from ftcli.data.json_rows import json_kind
from ftcli.errors import DataError
from ftcli.metrics.format.fields import FieldCounts, compare_fields
from ftcli.metrics.format.json_text import Step, place_of, place_of_key, read_json_text
from ftcli.metrics.format.part import Seen, hit, share, shown
from ftcli.metrics.scorer import Finding, Question, ScoreKind
from ftcli.recipe import JsonFormat
from ftcli.recipe.answer_schema import SchemaFaultError, schema_validator

if TYPE_CHECKING:
    from jsonschema import ValidationError
    from jsonschema.protocols import Validator

# Findings of one kind for one answer; the first say enough.
MOST_FINDINGS = 5
# Fields with a score of their own; records with more have keys that are data.
MOST_FIELDS = 40
# What jsonschema raises for a value that it cannot judge.
UNJUDGED = (RecursionError, ArithmeticError, ValueError, TypeError)


@dataclass(frozen=True)
class JsonPart:
    """The whole answer is one JSON value; an object with these keys, or what the schema allows."""

    keys: tuple[str, ...]
    validator: Validator | None
    names: dict[str, None] = field(default_factory=dict)
    """Fields of the references so far, in the order in which they came."""

    @property
    def kinds(self) -> Mapping[str, ScoreKind]:
        """The scores of single fields are there once a reference with them has been seen."""
        kinds = {"json_valid": share("valid JSON")}
        if self.keys or self.validator is not None:
            kinds["json_conforming"] = share("conforms")
        kinds |= {"field_accuracy": share("fields right"), "field_f1": share("field F1")}
        return kinds | {f"field_f1.{name}": share(f"field F1, {name}") for name in self.names}

    def look(self, answer: str, question: Question) -> Seen:
        read = read_json_text(answer)
        counts = {"json_valid": hit(read.fault is None)}
        faults = [read.fault] if read.fault else list(self._faults(answer, read.value))
        if self.keys or self.validator is not None:
            counts["json_conforming"] = hit(not faults)
        reference = read_json_text(question.reference)
        findings = tuple(faults)
        if reference.fault is not None:
            why = f"the reference itself is not JSON ({reference.fault.message})"
            findings += (Finding("reference", f"{why}: no field of this row is counted"),)
        else:
            fields = compare_fields(read.value, reference.value, answered=read.fault is None)
            counts |= self._field_counts(fields)
            findings += tuple(_differences(answer, fields))
        return Seen(not faults, counts, findings)

    def _field_counts(self, fields: FieldCounts) -> dict[str, tuple[float, float]]:
        for name in fields.wanted:
            if len(self.names) < MOST_FIELDS:
                self.names[name] = None
        # Which of them are scores is known at the end: a field that only an answer has counts where
        # some reference has it, whether that one came before or comes later.
        single = {f"field_f1.{name}": counts for name, counts in fields.items.items()}
        return {"field_accuracy": fields.accuracy, "field_f1": fields.micro, **single}

    def _faults(self, answer: str, value: object) -> Iterator[Finding]:
        if self.validator is not None:
            yield from _schema_faults(answer, value, self.validator)
        elif not isinstance(value, dict):
            message = f"{json_kind(value)}, where an object is asked for"
            yield Finding("not an object", shown(message), *(place_of(answer, ()) or ()))
        elif self.keys:
            for key in self.keys:
                if key not in value:
                    yield Finding("missing key", f"{shown(key)} is missing")
            for key in [key for key in value if key not in self.keys][:MOST_FINDINGS]:
                place = place_of_key(answer, (), key)
                yield Finding("other key", f"{shown(key)} is not asked for", *(place or ()))


def json_part(wanted: JsonFormat, base: Path) -> JsonPart:
    """Raises DataError (`answer_schema`) for a schema's file; it is relative to `base`."""
    match wanted.schema:
        case None:
            return JsonPart(tuple(wanted.keys), None)
        case str(name):
            return JsonPart((), _validator_of_file(base / name))
        case schema:
            return JsonPart((), schema_validator(schema))


def _validator_of_file(path: Path) -> Validator:
    try:
        if not path.is_file():
            raise _schema_error(path, "eval.format.schema names this file, and there is none")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise _schema_error(path, "not UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise _schema_error(path, f"cannot be read: {error.strerror}") from error
    read = read_json_text(text)
    if read.fault is not None:
        line = _line(text, read.fault.start or 0)
        raise _schema_error(path, f"not JSON: {read.fault.message}", line)
    if not isinstance(read.value, dict):
        raise _schema_error(path, f"a JSON Schema is an object, found {json_kind(read.value)}")
    try:
        return schema_validator(read.value)
    except SchemaFaultError as fault:
        place = place_of(text, [_step(part) for part in fault.path])
        keys = f"{'.'.join(fault.path)}: " if fault.path else ""
        message = f"{keys}{fault.message}"
        raise _schema_error(path, message, _line(text, place[0] if place else 0)) from fault


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _step(part: str) -> Step:
    return int(part) if part.isdecimal() else part


def _schema_error(path: Path, message: str, line: int | None = None) -> DataError:
    return DataError("answer_schema", message, file=shown_path(path), line=line)


def _schema_faults(answer: str, value: object, validator: Validator) -> Iterator[Finding]:
    instance: Any = value
    try:
        errors = list(islice(validator.iter_errors(instance), MOST_FINDINGS))
    except UNJUDGED as reason:
        yield Finding("schema", shown(f"cannot be held against the schema: {reason}"))
        return
    yield from (_schema_finding(answer, error) for error in errors)


def _schema_finding(answer: str, error: ValidationError) -> Finding:
    path = list(error.absolute_path)
    where = ".".join(str(part) for part in path)
    message = shown(error.message)
    place = place_of(answer, path) or ()
    return Finding("schema", f"{shown(where)}: {message}" if where else message, *place)


def _differences(answer: str, fields: FieldCounts) -> Iterator[Finding]:
    for path, found, wanted in fields.different[:MOST_FINDINGS]:
        message = f"{shown('.'.join(path))}: {_written(found)}, in the reference {_written(wanted)}"
        yield Finding("other value", message, *(place_of(answer, path) or ()))


def _written(value: object) -> str:
    return shown(json.dumps(value, ensure_ascii=False))
