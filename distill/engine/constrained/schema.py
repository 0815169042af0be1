"""JSON schemas that output can be held to: whatever would not be enforced is refused by name.

xgrammar passes over keywords that it does not know, and over combinations of those it does. What is too large to
compile in no time is refused as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from distill.errors import EngineError

MAX_SCHEMA_CHARACTERS = 16_384
_MAX_DEPTH = 16
_MAX_COUNT = 1000  # of minItems, maxLength and the like
_NOTES = {"title", "description", "default", "examples", "$schema", "$comment", "deprecated", "readOnly", "writeOnly"}
_NOTES |= {"$defs", "definitions"}  # reached by reference
_ALONE = ("$ref", "anyOf", "allOf", "enum", "const")  # nothing beside them is enforced
_BY_TYPE = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "boolean": set(),
    "null": set(),
}
_COUNTS = {"minItems", "maxItems", "minLength", "maxLength"}
# what stands between the quotes is the pattern's as it is: it must not be able to write a quote, a backslash or a line
_WIDE_PATTERN = re.compile(r"""\[\^|["\\.\x00-\x1f]""")
_SAFE_ESCAPES = re.compile(r"\\[dw.+*?()\[\]{}|^$/-]")


def check_schema(text: str) -> None:
    """Raise EngineError, with the place in the schema, unless all of it will be enforced."""
    if len(text) > MAX_SCHEMA_CHARACTERS:
        raise EngineError(f"the schema has {len(text)} characters; at most {MAX_SCHEMA_CHARACTERS} are compiled")
    schema = json.loads(text)
    definitions = [schema.get(name, {}) for name in ("$defs", "definitions")] if isinstance(schema, dict) else []
    for part in [schema, *(d for group in definitions if isinstance(group, dict) for d in group.values())]:
        _check(part, "#", 0)


def _check(schema: Any, where: str, depth: int) -> None:
    if schema is True:
        return
    if not isinstance(schema, dict):
        raise EngineError(f"{where} is not a schema: an object is expected")
    if depth > _MAX_DEPTH:
        raise EngineError(f"the schema is more than {_MAX_DEPTH} levels deep at {where}")
    rules = [name for name in schema if name not in _NOTES]
    alone = [name for name in rules if name in _ALONE]
    others = [name for name in rules if name not in alone and name != "type"]
    types = _types(schema, where)
    if alone and (len(alone) > 1 or others or ("type" in rules and alone[0] not in ("enum", "const"))):
        raise EngineError(
            f"{where}: '{alone[0]}' is not enforced together with {', '.join((*alone[1:], *others, 'type'))}"
        )
    for name in others:
        owners = [kind for kind, known in _BY_TYPE.items() if name in known]
        if not owners:
            raise EngineError(f"{where}: '{name}' cannot be enforced")
        if not any(kind in types for kind in owners):
            raise EngineError(f'{where}: \'{name}\' is enforced only with "type": "{owners[0]}"')
    _check_values(schema, types, where)
    _check_object(schema, where)
    _check_string(schema, where)
    for part, at in _parts(schema, where):
        _check(part, at, depth + 1)


def _types(schema: Mapping[str, Any], where: str) -> list[str]:
    value = schema.get("type", [])
    types = [value] if isinstance(value, str) else value
    if not isinstance(types, list) or not all(isinstance(t, str) and t in _BY_TYPE for t in types):
        raise EngineError(f"{where}: 'type' must be of {', '.join(_BY_TYPE)}")
    return types


def _check_values(schema: Mapping[str, Any], types: list[str], where: str) -> None:
    """Values of enum and const against the type; counts against the largest."""
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    if not isinstance(values, list):
        raise EngineError(f"{where}: 'enum' must be a list")
    for value in values:
        if types and not any(_is_a(value, kind) for kind in types):
            raise EngineError(f"{where}: {json.dumps(value)} is not of type {' or '.join(types)}")
    for name in _COUNTS & schema.keys():
        count = schema[name]
        if type(count) is not int or not 0 <= count <= _MAX_COUNT:
            raise EngineError(f"{where}: '{name}' must be an integer from 0 to {_MAX_COUNT}")


def _check_object(schema: Mapping[str, Any], where: str) -> None:
    """Names that are required must have a schema."""
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict):
        raise EngineError(f"{where}: 'properties' must be an object")
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise EngineError(f"{where}: 'required' must be a list of strings")
    missing = [name for name in required if name not in properties]
    if missing:
        raise EngineError(f"{where}: '{missing[0]}' is required and not among the properties")


def _check_string(schema: Mapping[str, Any], where: str) -> None:
    given = [name for name in ("pattern", "format") if name in schema]
    bounds = [name for name in ("minLength", "maxLength") if name in schema]
    if len(given) > 1 or (given and bounds):
        raise EngineError(f"{where}: '{given[0]}' is not enforced together with {', '.join((*given[1:], *bounds))}")
    if "pattern" in schema:
        pattern = schema["pattern"]
        if not isinstance(pattern, str):
            raise EngineError(f"{where}: 'pattern' must be a string")
        if not pattern.startswith("^") or not pattern.endswith("$") or pattern.endswith("\\$"):
            raise EngineError(f"{where}: 'pattern' is enforced on whole strings only: begin it with ^, end it with $")
        wide = _WIDE_PATTERN.search(_SAFE_ESCAPES.sub("", pattern))
        if wide:
            raise EngineError(f"{where}: 'pattern' with {wide[0]!r} could write what ends a JSON string")


def _parts(schema: Mapping[str, Any], where: str) -> Iterator[tuple[Any, str]]:
    """The schemas inside this one, and where they stand."""
    for name, part in schema.get("properties", {}).items():
        yield part, f"{where}/properties/{name}"
    for name in ("items", "additionalProperties"):
        if name in schema and schema[name] is not False:
            yield schema[name], f"{where}/{name}"
    for name in ("anyOf", "allOf", "prefixItems"):
        parts = schema.get(name, [])
        if not isinstance(parts, list) or (name == "allOf" and len(parts) > 1):
            raise EngineError(f"{where}: '{name}' must be a list{' of one' if name == 'allOf' else ''}")
        yield from ((part, f"{where}/{name}/{index}") for index, part in enumerate(parts))
    reference = schema.get("$ref", "#")
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise EngineError(f"{where}: '$ref' must point into the schema, as in #/$defs/name")


def _is_a(value: Any, kind: str) -> bool:
    if isinstance(value, bool) or value is None:
        return kind == ("null" if value is None else "boolean")
    if isinstance(value, int | float):
        return kind == "number" or (kind == "integer" and float(value).is_integer())
    return kind == ("string" if isinstance(value, str) else "array" if isinstance(value, list) else "object")
