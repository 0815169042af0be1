"""The whole plan of a recipe: what it writes, what it says where it cannot know, and that it stays light."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from distill.plan import stage
from distill.recipe.generate import InstructionJob, SelfInstructPrompts
from distill.recipe.quantize import Gptq
from distill.recipe.schema import Plan, Recipe
from distill.recipe.teacher import OpenAITeacher, Price, Student
from distill.recipe.train import SftEntry
from distill.runs import Run


def _recipe(folder: Path, student: str = "mistralai/Mistral-7B-v0.1", price: Price | None = None) -> Recipe:
    prompts = SelfInstructPrompts(source="self_instruct", count=100, path="absent.jsonl")
    return Recipe(
        name="look-ahead",
        output_dir=str(folder),
        teacher=OpenAITeacher(model="some-model", weights="meta-llama/Llama-2-13b-hf", price=price),
        student=Student(model=student, dtype="bfloat16"),
        generate=(InstructionJob(name="rows", kind="instruction", prompts=prompts),),
        train=(SftEntry(name="sft", objective="sft", data=("rows",)),),
        quantize=(Gptq(name="gptq", method="gptq"),),
        plan=Plan(gpu="A100-40GB"),
    )


def _run(recipe: Recipe) -> tuple[dict[str, object], str]:
    console = Console(file=io.StringIO(), width=200)
    plan = stage.run(recipe, Run(recipe), console=console)
    return plan, console.file.getvalue()  # type: ignore[attr-defined]


def test_plan_of_a_recipe_with_known_models(tmp_path: Path) -> None:
    plan, said = _run(_recipe(tmp_path, price=Price(input=1.0, output=1.0)))
    manifest = json.loads((tmp_path / "look-ahead" / "plan" / "manifest.json").read_text())
    assert manifest["metrics"] == json.loads(json.dumps(plan))
    served = {row["name"]: row for row in manifest["metrics"]["serve"]}
    assert list(served) == ["teacher", "student", "gptq"]
    assert served["teacher"]["max_batch"] == 4
    assert served["teacher"]["kv_per_sequence"] == 3.125 * 2**30
    assert served["student"]["kv_bytes_per_token"] == 131_072
    assert served["gptq"]["weights"] < 0.35 * served["student"]["weights"]
    assert manifest["metrics"]["train"][0]["steps"] == 4
    assert "3.12 GiB" in said and "never" in said
    assert "price unknown" not in said


def test_unknown_price_and_sizes_are_said_and_never_zero(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, student="nobody/no-such-model", price=Price())
    plan, said = _run(recipe)
    assert plan["generate"][0]["dollars"] is None  # type: ignore[index]
    assert "price unknown" in said and "$" not in said
    assert "the sizes of nobody/no-such-model are unknown" in said
    assert [row["name"] for row in plan["serve"]] == ["teacher"]  # type: ignore[attr-defined]


def test_budget_below_the_estimate_is_noted(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, price=Price(input=1000.0, output=1000.0))
    teacher = recipe.teacher.model_copy(update={"budget_usd": 0.5})
    _, said = _run(recipe.model_copy(update={"teacher": teacher}))
    assert "exceeds teacher.budget_usd" in said


def test_gpus_are_listed() -> None:
    console = Console(file=io.StringIO(), width=160)
    stage.print_gpus(console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "H100-80GB" in text and "3,350 GB/s" in text


def test_plan_and_doctor_import_no_torch() -> None:
    code = "import sys, distill.plan.stage, distill.plan.doctor; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
