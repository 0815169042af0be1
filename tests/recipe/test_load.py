"""Recipes: every mistake at once, each with its place, and overrides through the same validation."""

from pathlib import Path

import pytest

from distill.errors import RecipeError
from distill.recipe.load import load_recipe
from distill.recipe.schema import Recipe

GOOD = """\
name: tiny
student: {model: some/model}
generate:
  - name: rows
    kind: instruction
    prompts: {source: tasks, count: 10}
train:
  - name: sft
    objective: sft
    data: [rows]
    learning_rate: 1e-5
  - name: kd
    objective: kd
    data: [rows]
quantize:
  - {name: q, method: gptq}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    return path


def problems(tmp_path: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, text), overrides)
    return [problem.removeprefix(str(tmp_path) + "/") for problem in caught.value.problems]


def test_a_number_written_1e_5_is_a_number(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    assert recipe.train[0].learning_rate == 1e-5


def test_every_mistake_is_named_with_its_place_and_the_nearest_valid_name(tmp_path: Path) -> None:
    text = GOOD.replace("learning_rate: 1e-5", "learning_rat: 1e-5").replace("count: 10", "count: ten")
    text = text.replace("objective: kd", "objective: kdd")
    assert problems(tmp_path, text) == [
        "r.yaml:6:30: generate.0.prompts.count: should be a valid integer; got 'ten'",
        "r.yaml:11:5: train.0.learning_rat: unknown key; did you mean 'learning_rate'?",
        "r.yaml:13:5: train.1.objective: must be one of sft, kd, on_policy, dpo, simpo, kto, lm; got 'kdd'; "
        "did you mean 'kd'?",
    ]


def test_references_between_sections_are_checked(tmp_path: Path) -> None:
    text = GOOD.replace("data: [rows]", "data: [row]", 1).replace("method: gptq", "method: gptq, of: sfy")
    assert problems(tmp_path, text) == [
        "r.yaml:10:12: train.0.data.0: no generate job 'row' (a path ends in .parquet); did you mean 'rows'?",
        "r.yaml:16:29: quantize.0.of: no train entry 'sfy'; did you mean 'sft'?",
    ]


def test_kd_without_teacher_weights_is_refused(tmp_path: Path) -> None:
    text = GOOD.replace("student:", "teacher: {model: gpt}\nstudent:")
    assert "teacher.weights" in problems(tmp_path, text)[0]


def test_an_adapter_on_the_head_is_refused(tmp_path: Path) -> None:
    """The loss reads the head as a plain matrix, so its adapter would be saved as it was made."""
    text = GOOD.replace("learning_rate: 1e-5", "lora: {target_modules: [q_proj, lm_head]}")
    (problem,) = problems(tmp_path, text)
    assert problem.startswith("r.yaml:11:37: train.0.lora.target_modules.1: the loss head reads lm_head as a plain")
    load_recipe(write(tmp_path, text.replace(", lm_head", "")))


@pytest.mark.parametrize(
    ("student", "expected"),
    [
        ("{model: m, heads: 4}", "student.heads: what goes is measured: add student.prune"),
        ("{model: m, heads: 4, kv_heads: 3, prune: {}}", "student.heads: must be a multiple of kv_heads 3"),
        ("{model: m, prune: {}}", "student.prune: nothing is to be measured"),
        ("{model: m, kv_heads: 2, prune: {kv_pooling: mean}}", "student.prune: nothing is to be measured"),
        (
            "{model: m, layers: 2, prune: {calibration: {data: row}}}",
            "student.prune.calibration.data: no generate job 'row'; did you mean 'rows'?",
        ),
        ("{}", "student: needs either 'model' or 'scratch'"),
    ],
)
def test_a_student_that_cannot_be_made_is_refused(tmp_path: Path, student: str, expected: str) -> None:
    (problem,) = problems(tmp_path, GOOD.replace("{model: some/model}", student))
    assert expected in problem


def test_a_student_is_measured_on_the_first_rows_of_the_training(tmp_path: Path) -> None:
    text = GOOD.replace("{model: some/model}", "{model: m, layers: 2, prune: {}}")
    assert load_recipe(write(tmp_path, text)).calibration_of_student() == "rows"
    untrained = text[: text.index("train:")]
    assert "student.prune.calibration.data: no rows to measure the model on" in problems(tmp_path, untrained)[0]


def test_names_are_unique_across_what_becomes_a_variant(tmp_path: Path) -> None:
    assert "already the name of" in problems(tmp_path, GOOD.replace("{name: q,", "{name: kd,"))[0]


def test_an_override_is_validated_and_named(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD), ["train.sft.learning_rate=3e-4", "train.1.epochs=2", "plan.gpu=L4"])
    assert (recipe.train[0].learning_rate, recipe.train[1].epochs, recipe.plan.gpu) == (3e-4, 2.0, "L4")  # type: ignore[union-attr]
    found = problems(tmp_path, GOOD, "train.sft.learning_rate=fast")
    assert found == [
        "<command line> train.sft.learning_rate=fast: train.0.learning_rate: should be a valid number; got 'fast'"
    ]
    assert "no entry 'nope'" in problems(tmp_path, GOOD, "train.nope.epochs=1")[0]
    assert "section.key=value" in problems(tmp_path, GOOD, "epochs")[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: [", "r.yaml:1:8: not valid YAML"),
        ("- a\n", "a recipe is a mapping"),
        ("name: a\nname: b\n", "r.yaml:2:1: not valid YAML: found duplicate key"),
        ("name: Bad Name\n", "r.yaml:1:1: name: "),
        ("teacher: {kind: emedded}\nname: a\n", "teacher.kind: must be one of openai, azure, embedded; got 'emedded'"),
        ("name: a\nstudent: {}\n", "needs either 'model' or 'scratch'"),
        (
            "name: a\ngenerate: [{name: j, kind: preference, prompts: {source: file, path: x}, feedback: {}}]\n",
            "r.yaml:2:12: generate.0: 'feedback' belongs to rank: feedback, this job has rank: judge",
        ),
    ],
)
def test_broken_documents_give_one_clear_line(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in problems(tmp_path, text)[0]


def test_a_missing_file_is_named_with_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    with pytest.raises(RecipeError, match=r"no such file; did you mean 'r.yaml'"):
        load_recipe(tmp_path / "s.yaml")


def test_a_recipe_is_frozen(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    with pytest.raises(ValueError, match="frozen"):
        recipe.name = "other"  # type: ignore[misc]


def test_the_schema_covers_every_section() -> None:
    schema = Recipe.model_json_schema()
    assert {"teacher", "student", "generate", "train", "quantize", "serve", "evaluate"} <= set(schema["properties"])
    assert all(definition.get("additionalProperties") is False for definition in schema["$defs"].values())
