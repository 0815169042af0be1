"""A finished dataset goes to the hub when the recipe asks, once, with a token from the environment alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.generate.conftest import Project
from tests.generate.fake_hub import FakeHub
from tests.teacher.mock import MockTeacher, completion, error

TOKEN = "hf_secret-of-the-test"


def job(project: Project, **push: Any) -> dict[str, Any]:
    prompts = project.prompts(["a", "b", "c"])
    return {"name": "inst", "kind": "instruction", "prompts": prompts, "push": {"repo": "me/rows", **push}}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    with FakeHub(TOKEN) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def test_data_and_card_are_pushed_once(project: Project, hub: FakeHub) -> None:
    with MockTeacher() as mock:
        recipe = project.recipe(mock.base_url, job(project))
        printed = project.run(recipe)
        assert f"pushed: {hub.url}/datasets/me/rows/commit/1" in printed
        made = hub.repos["me/rows"]  # huggingface_hub 2 says `visibility` for what was `private`
        assert made["type"] == "dataset" and (made.get("visibility") == "private" or made.get("private") is True)
        assert set(hub.files["me/rows"]) == {"README.md", "data.parquet"}
        folder = project.path / "runs" / "test" / "generate-inst"
        assert hub.files["me/rows"]["data.parquet"] == (folder / "data.parquet").read_bytes()
        assert hub.commits == ["Dataset of generate-inst, written by distill"]
        assert "was pushed before" in project.run(recipe) and len(hub.commits) == 1
        other = project.recipe(mock.base_url, job(project, rejected=True, private=False))
        assert "pushed: " in project.run(other)
        assert len(mock.requests) == 3  # where a dataset goes does not decide what is in it
    assert "rejected.parquet" in hub.files["me/rows"]
    kept = [path for path in (project.path / "runs").rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in path.read_bytes() for path in kept)


def test_a_changed_dataset_is_pushed_again(project: Project, hub: FakeHub) -> None:
    with MockTeacher() as mock:
        project.run(project.recipe(mock.base_url, job(project)))
        more = {**job(project), "prompts": project.prompts(["a", "b", "c", "d"])}
        project.run(project.recipe(mock.base_url, more))
    assert len(hub.commits) == 2


def test_without_a_token_nothing_is_asked(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with MockTeacher() as mock:
        problem = project.run_badly(project.recipe(mock.base_url, job(project)))
        assert "HF_TOKEN is not set" in str(problem) and not mock.requests


def test_a_refused_push_keeps_the_dataset_and_is_repeated(
    project: Project, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with MockTeacher() as mock:
        recipe = project.recipe(mock.base_url, job(project))
        problem = project.run_badly(recipe)
        assert "cannot push generate-inst to me/rows" in str(problem) and "hf_wrong" not in str(problem)
        assert project.manifest("inst")["metrics"]["rows"] == 3
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        assert "pushed: " in project.run(recipe) and len(mock.requests) == 3


def test_nobody_at_the_endpoint(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with MockTeacher() as mock:
        problem = project.run_badly(project.recipe(mock.base_url, job(project)))
    assert "cannot push" in str(problem) and TOKEN not in str(problem)


def test_a_partial_dataset_is_pushed_and_still_called_partial(project: Project, hub: FakeHub) -> None:
    with MockTeacher(lambda body, n: error(400, "no") if n == 0 else completion(str(n))) as mock:
        problem = project.run_badly(project.recipe(mock.base_url, job(project), max_concurrency=1))
    assert problem.exit_code == 3 and len(hub.commits) == 1


def test_no_network_library_is_touched_without_push(project: Project, tmp_path: Path) -> None:
    plain = {key: value for key, value in job(project).items() if key != "push"}
    with MockTeacher() as mock:
        assert "pushed" not in project.run(project.recipe(mock.base_url, plain))
    assert not (project.path / "runs" / "test" / "generate-inst" / "pushed.json").exists()
