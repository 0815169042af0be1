"""The documents tell the truth about the tree: paths, links, verbs, recipe keys and their defaults."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from distill import cli
from distill.recipe import filters, generate, prompts, prune, quantize, schema, signals, teacher, train
from distill.recipe.base import Section
from distill.recipe.load import load_recipe

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "recipes" / "README.md",
    ROOT / "data" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
PATH = re.compile(r"(?<![\w/])(?:distill|recipes|tests|docs|data)/[\w./-]+\.(?:py|yaml|md|toml|jsonl|png)\b")
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)#\s]+)[^)]*\)")
CODE = re.compile(r"^```(?P<language>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:`|^ {4}|-m |bin/)distill (?P<verb>[a-z-]+)(?P<rest>[^`\n]*)", re.MULTILINE)
YOURS = ("data/prompts/",)  # files that the reader brings


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def code_blocks(language: str) -> Iterator[tuple[str, str]]:
    for document in DOCUMENTS:
        for block in CODE.finditer(document.read_text()):
            if block["language"] == language:
                yield name_of(document), block["body"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_paths_and_links_exist(document: Path) -> None:
    text = document.read_text()
    missing = [path for path in PATH.findall(text) if not path.startswith(YOURS) and not (ROOT / path).exists()]
    links = [match["target"] for match in LINK.finditer(text) if "://" not in match["target"]]
    missing += [target for target in links if not (document.parent / target).exists()]
    assert not missing, f"{name_of(document)} names what is not there: {', '.join(sorted(set(missing)))}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_commands_have_real_verbs_and_flags(document: Path) -> None:
    verbs = {command.name or command.callback.__name__: command for command in cli.app.registered_commands}  # type: ignore[union-attr]
    source = (ROOT / "distill" / "cli.py").read_text()
    for match in COMMAND.finditer(document.read_text()):
        command = f"{name_of(document)}: `{match[0].strip(' `')}`"
        assert match["verb"] in verbs, f"{command} has no such verb"
        for flag in re.findall(r"--([a-z][a-z-]*)", match["rest"].partition("#")[0]):
            known = f'"--{flag}"' in source or re.search(rf"^    {flag.replace('-', '_')}: Annotated", source, re.M)
            assert known, f"{command}: no flag --{flag}"


def test_the_map_names_every_module_and_no_other() -> None:
    named, folder = set(), None
    for line in (ROOT / "docs" / "map.md").read_text().splitlines():
        if heading := re.match(r"#+ `(distill/[\w/]*)`", line):
            folder = heading[1]
        elif (row := re.match(r"\| `(\w+\.py)` \| .", line)) and folder:
            named.add(folder + row[1])
    files = (ROOT / "distill").rglob("*.py")
    there = {name_of(path) for path in files if path.name != "__init__.py"}
    assert named == there, f"not named: {sorted(there - named)}; not there: {sorted(named - there)}"


def test_recipe_snippets_are_valid(tmp_path: Path) -> None:
    """Whole recipes load; parts of one hold only valid sections."""
    checked = 0
    for document, body in code_blocks("yaml"):
        sections = YAML(typ="safe").load(body)
        if not isinstance(sections, dict) or not set(sections) <= set(schema.Recipe.model_fields):
            continue
        checked += 1
        if "name" in sections:
            (tmp_path / "snippet.yaml").write_text(body)
            load_recipe(tmp_path / "snippet.yaml")
        else:
            whole = {"name": "snippet", **sections}
            assert schema.Recipe.model_validate(whole, strict=False), document
    assert checked >= 5


def models() -> list[type[Section]]:
    """Every section of a recipe, the common parts of several among them."""
    return [
        value
        for module in (schema, teacher, prune, generate, prompts, filters, train, signals, quantize)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Section) and value.__module__ == module.__name__
    ]


def bounds(node: dict[str, Any]) -> str:
    """The range of a number."""
    if "minimum" in node and "maximum" in node:
        return f" from {node['minimum']:g} to {node['maximum']:g}"
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    found = [f" {sign} {node[key]:g}" for key, sign in signs.items() if key in node]
    return " and".join(found)


def kind_of(node: dict[str, Any]) -> str:
    """What a JSON Schema node admits, as the reference page says it."""
    if "$ref" in node:
        return "section"
    if "const" in node:
        return f"`{node['const']}`"
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    if variants := node.get("anyOf") or node.get("oneOf"):
        kinds = [kind_of(variant) for variant in variants]
        return " or ".join(dict.fromkeys(kinds))
    if node.get("type") == "array":
        return f"list of {kind_of(node['items'])}" + (", not empty" if node.get("minItems") else "")
    return str(node["type"]) + bounds(node)


def default_of(node: dict[str, Any], required: bool) -> str:
    """A key's default, as YAML writes it."""
    value = node.get("default")
    if required:
        return "required"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    if isinstance(value, dict):
        return f"`kind: {value['kind']}`" if "kind" in value else "its defaults"
    return str(value)


def reference_rows(model: type[Section]) -> list[str]:
    """The first three cells of each key's row in docs/recipes.md: the keys that the model itself declares."""
    document = model.model_json_schema()
    required = document.get("required", [])
    return [
        f"| `{name}` | {kind_of(node)} | {default_of(node, name in required)} | "
        for name, node in document["properties"].items()
        if name in model.__annotations__
    ]


@pytest.mark.parametrize("model", models(), ids=lambda model: model.__name__)
def test_the_recipe_reference_has_every_key(model: type[Section]) -> None:
    """Under the heading `... (Model)` stand exactly the model's keys with what they admit and their defaults."""
    text = (ROOT / "docs" / "recipes.md").read_text()
    part = re.search(rf"^#+ .*\(`{model.__name__}`\)$(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert part, f"docs/recipes.md has no heading for {model.__name__}"
    rows = [line for line in part[1].splitlines() if line.startswith("| `")]
    expected = reference_rows(model)
    assert len(rows) == len(expected), "\n".join(expected)
    for row, start in zip(rows, expected, strict=True):
        assert row.startswith(start) and len(row) > len(start) + 2, f"expected: {start}... |\n     got: {row}"


def test_every_dependency_says_why_it_is_there() -> None:
    project = (ROOT / "pyproject.toml").read_text().partition("dependencies = [")[2].partition("]")[0]
    names = re.findall(r'"([\w.-]+)', project)
    text = (ROOT / "docs" / "dependencies.md").read_text()
    rows = re.findall(r"^\| ([\w., -]+?) \| ", text, re.MULTILINE)
    listed = [name for row in rows for name in row.split(", ")]
    assert sorted(names) == sorted(name for name in listed if name != "package")
