"""JSON Schemas of answers: judged before any answer is, and never looked up elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftcli.errors import did_you_mean

if TYPE_CHECKING:
    from jsonschema import SchemaError
    from jsonschema.protocols import Validator
    from pydantic import JsonValue
    from referencing import Registry, Resource
    from referencing._core import Resolver

# Words of every draft that ask for nothing, and those that jsonschema reads beside another one.
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
    """What is wrong with a schema, and the keys that lead there."""

    message: str
    path: tuple[str, ...] = ()


def schema_validator(schema: Mapping[str, Any]) -> Validator:
    """What judges values by a schema, of the draft that its `$schema` names (or 2020-12).

    Raises SchemaFaultError for a draft that nobody knows, a schema that its draft does not allow,
    and a reference out of it: no address is ever opened.
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
    """What jsonschema says; of a type that there is none of, which ones there are."""
    written = error.instance if isinstance(error.instance, list) else [error.instance]
    wrong = [word for word in written if isinstance(word, str) and word not in TYPES]
    # How every draft's own schema says what may stand behind the word `type`.
    if "type" in list(error.path)[-2:] and error.validator in ("anyOf", "enum") and wrong:
        near = did_you_mean(wrong[0], TYPES)
        return f"no type of JSON: {_shown(wrong[0])}{near} (there is {', '.join(TYPES)})"
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
            f"no known draft: {_shown(named)}; leave it out for draft 2020-12", ("$schema",)
        )
    return kind


def _drafts() -> Registry[Any]:
    """The drafts themselves, as they come with jsonschema; it retrieves nothing."""
    from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]

    registry: Registry[Any] = REGISTRY
    return registry


def _require_own_references(schema: Mapping[str, Any], kind: type[Validator]) -> None:
    """Every `$ref` leads into the schema itself or to a draft, and no word is misspelt."""
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
            raise SchemaFaultError(f"{word} is no word of JSON Schema{near}")


def _require_resolved(key: str, reference: str, resolver: Resolver[Any]) -> None:
    from referencing.exceptions import Unresolvable

    try:
        resolver.lookup(reference)
    except (Unresolvable, ValueError) as error:
        raise SchemaFaultError(
            f"{key} {_shown(reference)} leads nowhere in this schema; nothing is ever fetched: put "
            "what it names under $defs"
        ) from error


def _require_end(validator: Validator) -> None:
    """A schema that refers to itself and to nothing else never ends."""
    values: tuple[JsonValue, ...] = (None, {}, [], "", 0)
    try:
        for value in values:
            validator.is_valid(value)
    except RecursionError as error:
        raise SchemaFaultError("a $ref leads back to itself without end") from error


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"
