"""`eval.format` of a recipe: the form that every answer must have.

A JSON Schema is checked when the recipe is loaded; references stay within it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, JsonValue, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ftcli.config.section import CountFromZero, PathKind, PositiveCount, Section, require_regex
from ftcli.errors import did_you_mean

if TYPE_CHECKING:
    from jsonschema import SchemaError
    from jsonschema.protocols import Validator
    from pydantic import JsonValue
    from referencing import Registry, Resource
    from referencing._core import Resolver


# Keywords of all drafts that jsonschema does not validate, or only together with another one.
ANNOTATIONS = {
    *("$schema", "$id", "id", "$anchor", "$dynamicAnchor", "$recursiveAnchor", "$defs"),
    *("definitions", "$comment", "$vocabulary", "title", "description", "default", "examples"),
    *("deprecated", "readOnly", "writeOnly", "then", "else", "minContains", "maxContains"),
    *("contentMediaType", "contentEncoding", "contentSchema"),
}
DEFAULT_DRAFT = "https://json-schema.org/draft/2020-12/schema"
MOST_SHOWN = 200
TYPES = ("string", "number", "integer", "boolean", "array", "object", "null")


@dataclass
class SchemaFaultError(Exception):
    """An error in a schema, and the keys that lead to it."""

    message: str
    path: tuple[str, ...] = ()


def schema_validator(schema: Mapping[str, Any]) -> Validator:
    """A validator for a schema, of the draft in its `$schema` (or 2020-12).

    Raises SchemaFaultError for an unknown draft, an invalid schema, and a reference out of it: no
    address is ever opened.
    """
    from jsonschema import SchemaError

    kind = _draft_of(schema)
    try:
        kind.check_schema(dict(schema))
    except SchemaError as error:
        path = tuple(str(part) for part in error.path)
        raise SchemaFaultError(_in_words(error), path) from error
    except (RecursionError, OverflowError) as error:
        raise SchemaFaultError(f"cannot be read as a schema: {error}") from error
    _require_own_references(schema, kind)
    validator = kind(dict(schema), registry=_drafts())
    _require_end(validator)
    return validator


def _in_words(error: SchemaError) -> str:
    """jsonschema's message; for an unknown type, the list of types."""
    written = error.instance if isinstance(error.instance, list) else [error.instance]
    wrong = [word for word in written if isinstance(word, str) and word not in TYPES]
    # Where the schema of every draft lists the values of `type`.
    if "type" in list(error.path)[-2:] and error.validator in ("anyOf", "enum") and wrong:
        near = did_you_mean(wrong[0], TYPES)
        return f"unknown type {_shown(wrong[0])}{near} (there is {', '.join(TYPES)})"
    quotes = '; in YAML the type is "null", in quotes' if error.instance is None else ""
    return f"{_shown(error.message)}{quotes}"


def _draft_of(schema: Mapping[str, Any]) -> type[Validator]:
    from jsonschema import Draft202012Validator
    from jsonschema.validators import validator_for

    named = schema.get("$schema", DEFAULT_DRAFT)
    kind: type[Validator] = Draft202012Validator
    if isinstance(named, str):
        kind = validator_for({"$schema": named}, default=Draft202012Validator)
    # An unknown name gets the default.
    if kind is Draft202012Validator and named != DEFAULT_DRAFT:
        raise SchemaFaultError(
            f"unknown draft: {_shown(named)}; leave it out for draft 2020-12", ("$schema",)
        )
    return kind


def _drafts() -> Registry[Any]:
    """The drafts that come with jsonschema; the registry retrieves nothing."""
    from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]

    registry: Registry[Any] = REGISTRY
    return registry


def _require_own_references(schema: Mapping[str, Any], kind: type[Validator]) -> None:
    """Every `$ref` leads into the schema or to a draft, and no keyword is misspelt."""
    from referencing.jsonschema import DRAFT202012, specification_with

    address = str(kind.META_SCHEMA.get("$schema", ""))
    specification = specification_with(address, default=DRAFT202012)
    root = specification.create_resource(dict(schema))
    resolver = _drafts().resolver_with_root(root)
    known = {*kind.VALIDATORS, *ANNOTATIONS}
    for words, here in _schemas_in(root, resolver):
        _require_known(words, known)
        for key in ("$ref", "$dynamicRef", "$recursiveRef"):
            if isinstance(words.get(key), str):
                _require_resolved(key, words[key], here)


def _schemas_in(
    resource: Resource[Any], resolver: Resolver[Any]
) -> Iterator[tuple[Mapping[str, Any], Resolver[Any]]]:
    if isinstance(resource.contents, dict):
        yield resource.contents, resolver
    for inner in resource.subresources():
        yield from _schemas_in(inner, resolver.in_subresource(inner))


def _require_known(words: Mapping[str, Any], known: set[str]) -> None:
    for word in words:
        near = did_you_mean(word, known)
        if word not in known and near and not word.startswith(("x-", "$")):
            raise SchemaFaultError(f"{word} is not a keyword of JSON Schema{near}")


def _require_resolved(key: str, reference: str, resolver: Resolver[Any]) -> None:
    from referencing.exceptions import Unresolvable

    try:
        resolver.lookup(reference)
    except (Unresolvable, ValueError) as error:
        raise SchemaFaultError(
            f"{key} {_shown(reference)} leads nowhere in this schema, and nothing is fetched; put "
            "its target under $defs"
        ) from error


def _require_end(validator: Validator) -> None:
    """Raise for a schema that refers to itself without end."""
    values: tuple[JsonValue, ...] = (None, {}, [], "", 0)
    try:
        for value in values:
            validator.is_valid(value)
    except RecursionError as error:
        raise SchemaFaultError("a $ref leads back to itself without end") from error


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


# `table`: take the tables from each prompt instead of a file.
PROMPT = "prompt"
TABLE_NAME = "data"
# A choice of sqlglot's dialects (sqlglot.dialects).
Dialect = Literal[
    "athena",
    "bigquery",
    "clickhouse",
    "databricks",
    "duckdb",
    "hive",
    "mysql",
    "oracle",
    "postgres",
    "presto",
    "redshift",
    "snowflake",
    "spark",
    "sqlite",
    "trino",
    "tsql",
]


class Limits(Section):
    """Lower and upper limit of a number."""

    min: CountFromZero | None = None
    """At least this many."""
    max: PositiveCount | None = None
    """At most this many."""

    @model_validator(mode="after")
    def limits_leave_room(self) -> Limits:
        if self.min is None and self.max is None:
            raise ValueError("gives neither min nor max")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class AnyForm(Section):
    """Requirements for answers of any type."""

    sections: list[str] = []
    """Lines that the answer must have in this order; each begins with the given text."""
    words: Limits | None = None
    """Length in words, as separated by white space."""
    characters: Limits | None = None
    """Length in characters, without white space at either end."""

    @field_validator("sections")
    @classmethod
    def sections_are_lines(cls, value: list[str]) -> list[str]:
        for section in value:
            if not section.strip() or len(section.splitlines()) > 1:
                raise ValueError(f"a section is one line that is not empty, found {section[:60]!r}")
        return value

    @property
    def asks_more(self) -> bool:
        """Whether it requires sections or a length."""
        return bool(self.sections) or self.words is not None or self.characters is not None


class TextFormat(AnyForm):
    """Any text with these sections and of this length."""

    type: Literal["text"]

    @model_validator(mode="after")
    def text_asks_for_something(self) -> TextFormat:
        if not self.asks_more:
            raise ValueError("type text alone requires nothing; give sections, words or characters")
        return self


class RegexFormat(AnyForm):
    """The whole answer matches a regular expression."""

    type: Literal["regex"]
    pattern: str
    """With type regex: Python's expression; `^` and `$` are implied, `.` stays within a line."""

    @field_validator("pattern")
    @classmethod
    def pattern_compiles(cls, value: str) -> str:
        require_regex(value)
        return value


SchemaOrFile = Annotated[str | dict[str, JsonValue] | None, PathKind("file", code="answer_schema")]

with warnings.catch_warnings():
    # `schema` is a method of pydantic 1, which nothing here calls.
    warnings.filterwarnings("ignore", message='Field name "schema"')

    class JsonFormat(AnyForm):
        """The whole answer is one JSON object, or a value that the schema allows."""

        type: Literal["json"]
        keys: list[str] = []
        """With type json: exactly these keys, in any order; empty: any object."""
        schema: SchemaOrFile = None  # type: ignore[assignment]
        """With type json: a JSON Schema, as a file or inline, of draft 2020-12 or the one in its
        `$schema`."""

        @field_validator("schema")
        @classmethod
        def schema_is_one(
            cls, value: str | dict[str, JsonValue] | None
        ) -> str | dict[str, JsonValue] | None:
            if isinstance(value, dict):
                try:
                    schema_validator(value)
                except SchemaFaultError as fault:
                    context = {"message": fault.message, "at": fault.path}
                    raise PydanticCustomError("value_at", "{message}", context) from fault
            return value

        @model_validator(mode="after")
        def keys_or_schema(self) -> JsonFormat:
            if self.keys and self.schema is not None:
                raise ValueError("keys and schema both describe the answer; give one of them")
            repeated = sorted({key for key in self.keys if self.keys.count(key) > 1})
            if repeated:
                raise ValueError(f"keys has {repeated[0]} twice")
            return self


class SqlFormat(AnyForm):
    """The whole answer is one SQL query."""

    type: Literal["sql"]
    dialect: Dialect = "sqlite"
    """With type sql: the dialect of the queries."""
    table: Annotated[str | None, PathKind("file", words=(PROMPT,), code="answer_table")] = None
    """With type sql: rows to run the queries on, as csv, jsonl, json, parquet or an SQLite file; or
    the word prompt: the CREATE TABLE of each prompt, with generated rows."""
    table_name: str = TABLE_NAME
    """With type sql: name of a file's table in the queries; an SQLite file has its own names."""

    @model_validator(mode="after")
    def table_is_of_sqlite(self) -> SqlFormat:
        if self.table is not None and self.dialect != "sqlite":
            raise ValueError(
                f"table runs the queries in SQLite, and dialect is {self.dialect}; leave one of "
                "them out"
            )
        if self.table in (None, PROMPT) and self.table_name != TABLE_NAME:
            raise ValueError("table_name is for the rows of a file, and table is not a file")
        return self


AnswerFormat = Annotated[
    RegexFormat | JsonFormat | TextFormat | SqlFormat, Field(discriminator="type")
]
