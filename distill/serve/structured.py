"""What an answer has to be: `response_format` as OpenAI has it, and `structured_outputs` as vLLM does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distill.engine.constrained.grammar import Constraint, schema_constraint
from distill.errors import EngineError
from distill.serve.fields import ApiError, Fields, refuse_others, wrong

FORMATS = ("text", "json_object", "json_schema")


@dataclass(frozen=True)
class Structure:
    """A constraint, and the field that asks for it."""

    field: str
    constraint: Constraint


def take_structure(fields: Fields) -> Structure | None:
    """Both fields of a body; at most one of them may ask for something."""
    form = _response_format(fields.any("response_format"))
    own = _structured_outputs(fields.any("structured_outputs"))
    if form is not None and own is not None:
        raise ApiError(400, "'structured_outputs' and 'response_format' exclude each other", param="structured_outputs")
    return form or own


def _response_format(value: Any) -> Structure | None:
    if value is None:
        return None
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in FORMATS:
        raise wrong("response_format", value, f"an object with a type of {', '.join(FORMATS)}")
    refuse_others("response_format", value, ("type", "json_schema") if kind == "json_schema" else ("type",))
    if kind != "json_schema":
        return Structure("response_format", Constraint("json_object")) if kind == "json_object" else None
    named = value.get("json_schema")
    if not isinstance(named, dict) or not isinstance(named.get("name"), str):
        raise wrong("response_format.json_schema", named, "an object with name and schema")
    refuse_others("response_format.json_schema", named, ("name", "description", "schema", "strict"))
    if named.get("schema") is None:
        raise wrong("response_format.json_schema.schema", None, "a JSON schema")
    return _schema("response_format.json_schema.schema", named["schema"])


def _structured_outputs(value: Any) -> Structure | None:
    """`json` (a schema, or one as text), `regex`, or `json_object`."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise wrong("structured_outputs", value, "an object with one of json, regex, json_object")
    refuse_others("structured_outputs", value, ("json", "regex", "json_object"))
    given: Mapping[str, Any] = {name: item for name, item in value.items() if item is not None and item is not False}
    if len(given) != 1:
        raise wrong("structured_outputs", sorted(given), "one of json, regex, json_object")
    ((name, item),) = given.items()
    where = f"structured_outputs.{name}"
    if name == "json_object":
        if item is not True:
            raise wrong(where, item, "true or false")
        return Structure(where, Constraint("json_object"))
    if name == "regex":
        if not isinstance(item, str):
            raise wrong(where, item, "a string")
        return Structure(where, Constraint("regex", item))
    try:
        return _schema(where, json.loads(item) if isinstance(item, str) else item)
    except (ValueError, RecursionError):
        raise wrong(where, item, "a JSON schema") from None


def _schema(where: str, value: object) -> Structure:
    try:
        return Structure(where, schema_constraint(value))
    except EngineError as error:
        raise ApiError(400, f"'{where}': {error}", param=where) from None
