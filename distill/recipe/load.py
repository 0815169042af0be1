"""Read a recipe: YAML with positions, overrides, and every mistake at once as `file:line:col: key: problem`."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from distill.errors import RecipeError
from distill.recipe.schema import Recipe

Location = tuple[str | int, ...]


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe with `section.key=value` overrides. Raises RecipeError with all problems."""
    path = Path(path)
    document = _read(path)
    overridden = _apply_overrides(document, overrides)
    where = _Positions(str(path), document, overridden)
    try:
        text = json.dumps(document, default=str)
        recipe = Recipe.model_validate_json(text)
    except ValidationError as error:
        found = {_explain(item, where, document) for item in error.errors()}
        raise RecipeError(sorted(found, key=_by_place)) from None
    problems = [
        f"{where.of(location)}: {_dotted(location)}: {problem}{_suggest(_value_at(document, location), choices)}"
        for location, problem, choices in recipe.cross_problems()
    ]
    if problems:
        raise RecipeError(problems)
    return recipe


def _read(path: Path) -> CommentedMap:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], 1)
        raise RecipeError([f"{path}: no such file{_did_you_mean(near) or '; mend the path'}"]) from None
    except OSError as error:
        raise RecipeError([f"{path}: cannot be read: {error.strerror}; name a recipe's YAML file"]) from None
    except UnicodeDecodeError as error:
        raise RecipeError([f"{path}: not UTF-8 text: {error}; name a recipe's YAML file"]) from None
    try:
        document = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise RecipeError(
            [f"{path}{position}: not valid YAML: {(error.problem or 'unreadable').splitlines()[0]}"]
        ) from None
    except YAMLError as error:
        raise RecipeError([f"{path}: not valid YAML: {str(error).splitlines()[0]}"]) from None
    if not isinstance(document, CommentedMap):
        raise RecipeError([f"{path}:1:1: a recipe is a mapping of sections, not {type(document).__name__}"])
    return document


def _apply_overrides(document: CommentedMap, overrides: Sequence[str]) -> dict[Location, str]:
    """Set each `a.b.c=value` in the document; list entries are addressed by number or by their `name`."""
    overridden: dict[Location, str] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise RecipeError([f"<command line>: {override}: an override is section.key=value"])
        location: Location = ()
        node: Any = document
        parts = key.split(".")
        for depth, part in enumerate(parts):
            last = depth == len(parts) - 1
            step = _step(node, part, override)
            location += (step,)
            if last:
                try:
                    node[step] = YAML(typ="rt").load(value)
                except YAMLError:
                    raise RecipeError([f"<command line>: {override}: the value is not valid YAML"]) from None
            else:
                if isinstance(node, CommentedMap) and step not in node:
                    node[step] = CommentedMap()
                node = node[step]
        overridden[location] = override
    return overridden


def _step(node: Any, part: str, override: str) -> str | int:
    if isinstance(node, CommentedSeq):
        names = [item.get("name") if isinstance(item, CommentedMap) else None for item in node]
        if part in names:
            return names.index(part)
        if part.isdigit() and int(part) < len(node):
            return int(part)
        known = [str(name) for name in names if name]
        raise RecipeError([f"<command line>: {override}: no entry '{part}'; there are {', '.join(known) or len(node)}"])
    if isinstance(node, CommentedMap):
        return part
    raise RecipeError([f"<command line>: {override}: '{part}' is inside something that is not a section"])


@dataclass(frozen=True)
class _Positions:
    """Where in the file, or on the command line, a location of the document was written."""

    file: str
    document: CommentedMap
    overridden: dict[Location, str]

    def of(self, location: Location) -> str:
        for length in range(len(location), 0, -1):
            if location[:length] in self.overridden:
                return f"<command line> {self.overridden[location[:length]]}"
        node: Any = self.document
        line, column = 0, 0
        for part in location:
            try:
                if isinstance(node, CommentedMap):
                    line, column = node.lc.key(part)
                elif isinstance(node, CommentedSeq) and isinstance(part, int):
                    line, column = node.lc.item(part)
                node = node[part]
            except (KeyError, IndexError, TypeError):
                break
        return f"{self.file}:{line + 1}:{column + 1}"


def _by_place(problem: str) -> tuple[list[int], str]:
    """Order of reading: the numbers of `file:line:col`, then the text."""
    place = problem.split(": ", 1)[0].rsplit(":", 2)[1:]
    return [int(part) for part in place if part.isdigit()], problem


def _explain(error: Any, where: _Positions, document: CommentedMap) -> str:
    location = _without_tags(error["loc"], document)
    valid = _fields_at(error["loc"])
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        problem = "unknown key" + _suggest(location[-1], valid)
    elif kind == "missing":
        problem = "missing"
    elif kind in ("literal_error", "union_tag_invalid"):
        expected = str(context.get("expected") or context.get("expected_tags", ""))
        value = context.get("tag", _value_at(document, location))
        choices = tuple(part.strip().strip("'") for part in expected.replace(" or ", ", ").split(","))
        if kind == "union_tag_invalid":
            location = (
                *location,
                str(context.get("discriminator", "kind")).strip("'").removesuffix("()").removeprefix("_teacher_"),
            )
        problem = f"must be one of {', '.join(choices)}; got {value!r}" + _suggest(value, choices)
    elif kind == "union_tag_not_found":
        problem = f"needs the key {context.get('discriminator')}"
    elif kind == "value_error":  # of a whole section; where that is one of a union, its tag ends the location
        problem = str(context["error"])
        location = location if _value_at(document, location) is not None else location[:-1]
    else:
        message = error["msg"][0].lower() + error["msg"][1:]
        problem = f"{message.replace('input should', 'should')}; got {_short(error.get('input'))}"
    return f"{where.of(location)}: {_dotted(location)}: {problem}"


def _without_tags(location: Location, document: Any) -> Location:
    """Drop the union tags that pydantic puts between the keys."""
    node: Any = document
    kept: list[str | int] = []
    for position, part in enumerate(location):
        inside = (isinstance(node, list) and isinstance(part, int) and part < len(node)) or (
            isinstance(node, dict) and part in node
        )
        last = position == len(location) - 1
        if inside:
            node = node[part]
        elif not last or (part not in _fields_at(location) and not isinstance(node, dict)):
            continue
        kept.append(part)
    return tuple(kept)


def _fields_at(location: Location) -> tuple[str, ...]:
    """Names valid beside the last part of a pydantic error location (union tags included in it)."""
    schema = Recipe.model_json_schema()
    node: dict[str, Any] = schema
    for part in location[:-1]:
        node = _resolve(node, schema)
        variants = node.get("oneOf") or node.get("anyOf") or []
        if isinstance(part, int):
            node = next((v for v in [node, *map(lambda v: _resolve(v, schema), variants)] if "items" in v), {}).get(
                "items", {}
            )
        elif part in node.get("properties", {}):
            node = node["properties"][part]
        else:
            resolved = [_resolve(variant, schema) for variant in variants]
            tagged = [v for v in resolved if any(p.get("const") == part for p in v.get("properties", {}).values())]
            inner = [v for v in resolved if part in v.get("properties", {})]
            node = tagged[0] if tagged else inner[0]["properties"][part] if inner else {}
    node = _resolve(node, schema)
    names = dict(node.get("properties", {}))
    for variant in node.get("anyOf", []):
        names.update(_resolve(variant, schema).get("properties", {}))
    return tuple(names)


def _resolve(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    return node


def _value_at(document: Any, location: Location) -> Any:
    for part in location:
        try:
            document = document[part]
        except (KeyError, IndexError, TypeError):
            return None
    return document


def _suggest(value: object, choices: Sequence[str]) -> str:
    return _did_you_mean(difflib.get_close_matches(str(value), list(choices), 1, 0.6))


def _did_you_mean(near: Sequence[str]) -> str:
    return f"; did you mean '{near[0]}'?" if near else ""


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _dotted(location: Location) -> str:
    return ".".join(str(part) for part in location) or "recipe"
