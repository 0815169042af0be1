"""Imports point down: cli -> stages -> services -> base; no stage imports a stage; base and cli import no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "distill"
STAGES = {"generate", "train", "quantize", "serve", "evaluate", "plan", "report"}
SERVICES = {"teacher", "engine", "kernels", "model", "objectives", "judge", "text", "sandbox", "tasks"}
BASE = {"recipe", "records", "runs", "track", "errors", "quiet"}
LEVEL = dict.fromkeys(BASE, 0) | dict.fromkeys(SERVICES, 1) | dict.fromkeys(STAGES, 2)
LEVEL |= {"cli": 3, "launch": 3, "__main__": 4}
FILES = sorted(PACKAGE.rglob("*.py"))
HEAVY = {"torch", "transformers", "trl", "datasets", "peft", "accelerate", "bitsandbytes"}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Parts of distill that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if node.module == "distill"
                else [node.module or ""]
            )
        found |= {name.split(".")[1] for name in names if name.startswith("distill.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    here = part_of(path)
    if here == "__init__":
        assert not imported(path)
        return
    assert here in LEVEL, f"{here} has no level"
    for target in imported(path) - {here}:
        assert LEVEL[target] <= LEVEL[here], f"{path}: {here} imports {target}, which is above it"
        assert not (here in STAGES and target in STAGES), f"{path}: stage {here} imports stage {target}"


def test_services_have_no_import_cycle() -> None:
    edges = {part: set[str]() for part in SERVICES | BASE}
    for path in FILES:
        if part_of(path) in edges:
            edges[part_of(path)] |= imported(path) & set(edges) - {part_of(path)}
    while leaves := {part for part, targets in edges.items() if not targets}:
        edges = {part: targets - leaves for part, targets in edges.items() if part not in leaves}
    assert not edges, f"cycle among {edges}"


@pytest.mark.parametrize(
    "module",
    ["distill.cli", "distill.recipe.load", "distill.runs", "distill.records", "distill.plan.stage", "distill.track"],
)
def test_base_and_command_line_import_no_torch(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {sorted(HEAVY)!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
