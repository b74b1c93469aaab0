"""`eval.format` of a recipe: the form that every answer must have."""

from __future__ import annotations

import warnings
from typing import Annotated, Literal

from pydantic import Field, JsonValue, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ftcli.config.answer_schema import SchemaFaultError, schema_validator
from ftcli.config.section import CountFromZero, PathKind, PositiveCount, Section, require_regex

# Where an answer's tables come from when no file holds them.
PROMPT = "prompt"
TABLE_NAME = "data"
# Those of sqlglot that people ask queries for (sqlglot.dialects).
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
    """How few and how many of something an answer may have."""

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
    """What may be asked of every answer, whatever its type."""

    sections: list[str] = []
    """Lines that have to stand in the answer in this order; each begins with the text given."""
    words: Limits | None = None
    """Length in words: what white space parts."""
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
        """Whether sections or a length are asked for."""
        return bool(self.sections) or self.words is not None or self.characters is not None


class TextFormat(AnyForm):
    """Any text with these sections and of this length."""

    type: Literal["text"]

    @model_validator(mode="after")
    def text_asks_for_something(self) -> TextFormat:
        if not self.asks_more:
            raise ValueError("type text asks for nothing; give sections, words or characters")
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
    # `schema` is a method of pydantic's first version, which nothing here calls.
    warnings.filterwarnings("ignore", message='Field name "schema"')

    class JsonFormat(AnyForm):
        """The whole answer is one JSON object, or what the schema allows."""

        type: Literal["json"]
        keys: list[str] = []
        """With type json: exactly these keys, in any order; empty: any object."""
        schema: SchemaOrFile = None  # type: ignore[assignment]
        """With type json: a JSON Schema, as a file or written out, of draft 2020-12 or that of its
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
                raise ValueError("keys and schema both say what an answer holds; give one of them")
            repeated = sorted({key for key in self.keys if self.keys.count(key) > 1})
            if repeated:
                raise ValueError(f"keys has {repeated[0]} twice")
            return self


class SqlFormat(AnyForm):
    """The whole answer is one SQL query."""

    type: Literal["sql"]
    dialect: Dialect = "sqlite"
    """With type sql: how the query is spelt."""
    table: Annotated[str | None, PathKind("file", words=(PROMPT,), code="answer_table")] = None
    """With type sql: rows to run the queries on, as csv, jsonl, json, parquet or an SQLite file; or
    the word prompt: the CREATE TABLE of each prompt, with rows made for it."""
    table_name: str = TABLE_NAME
    """With type sql: what queries call the table of a file; an SQLite file has names of its own."""

    @model_validator(mode="after")
    def table_is_of_sqlite(self) -> SqlFormat:
        if self.table is not None and self.dialect != "sqlite":
            raise ValueError(
                f"table runs the queries in SQLite, and dialect is {self.dialect}; leave one of "
                "them out"
            )
        if self.table in (None, PROMPT) and self.table_name != TABLE_NAME:
            raise ValueError("table_name names the rows of a file, and table names no file")
        return self


AnswerFormat = Annotated[
    RegexFormat | JsonFormat | TextFormat | SqlFormat, Field(discriminator="type")
]
