"""Run folders: done means a manifest with the same inputs; unfinished work is kept or cleared, not taken for whole."""

import json
import multiprocessing
from pathlib import Path

import pytest

from distill.errors import DistillError
from distill.recipe.schema import Evaluate, Recipe
from distill.recipe.teacher import Student
from distill.runs import Run, digest_of, file_digest, path_digest, write_atomically


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(Recipe(name="r", output_dir=str(tmp_path)))


def test_a_stage_is_done_only_with_a_manifest_of_the_same_inputs(run: Run) -> None:
    folder = run.stage("train", "sft")
    assert folder.path == run.path / "train-sft"
    folder.begin({"a": "1"})
    assert not folder.is_done({"a": "1"})
    (folder.path / "out.txt").write_text("x")
    manifest = folder.finish(run.recipe, {"a": "1"}, metrics={"loss": 1.5}, seed=3)
    assert folder.is_done({"a": "1"}) and not folder.is_done({"a": "2"})
    assert folder.require() == manifest
    assert manifest.outputs == {"out.txt": file_digest(folder.path / "out.txt")}


def test_begin_keeps_unfinished_work_of_the_same_inputs_and_clears_other(run: Run) -> None:
    folder = run.stage("generate", "rows")
    folder.begin({"a": "1"})
    part = folder.path / "part"
    part.write_text("x")
    folder.begin({"a": "1"})
    assert part.exists()
    folder.begin({"a": "2"})
    assert not part.exists()
    part.write_text("x")
    folder.finish(run.recipe, {"a": "2"}, metrics={})
    folder.begin({"a": "2"})  # asked to redo a finished stage: its old output must not survive
    assert not part.exists() and folder.manifest() is None


def test_a_missing_stage_names_the_verb_that_makes_it(run: Run) -> None:
    with pytest.raises(DistillError, match="run `distill train`"):
        run.stage("train", "sft").require()


def test_a_torn_manifest_is_an_error_with_a_remedy(run: Run) -> None:
    folder = run.stage("plan")
    folder.begin({})
    (folder.path / "manifest.json").write_text('{"stage": ')
    with pytest.raises(DistillError, match="is not a manifest"):
        folder.manifest()


def _hold(
    recipe: Recipe, ready: "multiprocessing.synchronize.Event", stop: "multiprocessing.synchronize.Event"
) -> None:
    with Run(recipe).lock():
        ready.set()
        stop.wait(30)


def test_a_second_process_is_refused_and_told_who_holds_the_run(run: Run) -> None:
    context = multiprocessing.get_context("spawn")
    ready, stop = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(run.recipe, ready, stop))
    process.start()
    try:
        assert ready.wait(30)
        with pytest.raises(DistillError, match=f"in use by process {process.pid}"), run.lock():
            pass
    finally:
        stop.set()
        process.join(30)
    with run.lock():
        assert (run.path / ".lock").exists()


def test_digests_depend_on_content_and_names(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    one = path_digest(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert path_digest(tmp_path) != one
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1}) != digest_of({"a": 2, "b": 1})


def test_atomic_writing_replaces_whole_files_and_leaves_no_rest(tmp_path: Path) -> None:
    target = tmp_path / "f.json"
    write_atomically(target, json.dumps([1]))
    write_atomically(target, json.dumps([2]))
    assert json.loads(target.read_text()) == [2]
    assert [p.name for p in tmp_path.iterdir()] == ["f.json"]


def test_random_weights_are_no_variant(tmp_path: Path) -> None:
    """A student from scratch has no model before its first entry, so serve and evaluate have none to load."""
    scratch = {"vocab_size": 512, "hidden_size": 8, "layers": 1, "heads": 1, "kv_heads": 1, "intermediate_size": 8}
    entry = {"name": "reads", "objective": "lm", "corpus": "plain", "steps": 1}
    document = {"name": "r", "output_dir": str(tmp_path), "train": [entry], "student": {"scratch": scratch}}
    recipe = Recipe.model_validate_json(json.dumps(document))
    assert list(Run(recipe).variants()) == ["teacher", "reads"]
    unknown = recipe.model_copy(update={"evaluate": Evaluate(variants=("student-base",))})
    assert [place for place, _, _ in unknown.cross_problems()] == [("evaluate", "variants", 0)]
    pretrained = recipe.model_copy(update={"student": Student(model="m")})
    assert list(Run(pretrained).variants()) == ["teacher", "student-base", "reads"]
