"""Keys and identities: what changes an answer changes the key, and nothing else does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from distill.recipe.generate import Sampling
from distill.recipe.teacher import EmbeddedTeacher, OpenAITeacher
from distill.teacher.requests import ChatRequest, KeyMaker, public_url, teacher_identity

REQUEST = ChatRequest(({"role": "user", "content": "2 + 2?"},), Sampling())


def test_every_field_that_changes_the_answer_changes_the_key() -> None:
    changed = [
        REQUEST,
        replace(REQUEST, sample=1),
        replace(REQUEST, sampling=Sampling(temperature=0.0)),
        replace(REQUEST, sampling=Sampling(top_p=0.5)),
        replace(REQUEST, sampling=Sampling(max_tokens=7)),
        replace(REQUEST, messages=({"role": "user", "content": "2 + 3?"},)),
        replace(REQUEST, messages=({"role": "system", "content": "2 + 2?"},)),
        replace(REQUEST, messages=({"role": "system", "content": ""}, *REQUEST.messages)),
    ]
    keys = {KeyMaker("a").key(request) for request in changed}
    assert len(keys) == len(changed)
    assert KeyMaker("b").key(REQUEST) not in keys


def test_who_asked_does_not_change_the_key() -> None:
    asked_elsewhere = replace(REQUEST, method="preference:judge", seed_row="17")
    assert KeyMaker("a").key(asked_elsewhere) == KeyMaker("a").key(REQUEST)


def test_keys_are_stable_over_versions() -> None:
    """A changed key asks (and pays for) everything again: this constant only changes on purpose."""
    expected = "d426df57b3ead270816ce6e87f6b431e48d878eadafa6eb8f446c3e893945b10"
    assert KeyMaker("openai:https://api.openai.com/v1:gpt-4o-mini").key(REQUEST) == expected


def test_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert teacher_identity(OpenAITeacher(model="m")) == "openai:https://api.openai.com/v1:m"
    monkeypatch.setenv("OPENAI_BASE_URL", "https://user:secret@gateway.example/v1/?token=secret")
    assert teacher_identity(OpenAITeacher(model="m")) == "openai:https://gateway.example/v1:m"
    assert teacher_identity(OpenAITeacher(model="m", id="mine")) == "id:mine"
    assert public_url("http://127.0.0.1:8000/v1/") == "http://127.0.0.1:8000/v1"


def test_an_embedded_teacher_is_its_weights_not_its_port_or_card(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "README.md").write_text("card")
    teacher = EmbeddedTeacher(model=str(tmp_path))
    first = teacher_identity(teacher, "http://127.0.0.1:1111/v1")
    (tmp_path / "README.md").write_text("another card")
    assert teacher_identity(teacher, "http://127.0.0.1:2222/v1") == first
    (tmp_path / "model.safetensors").write_bytes(b"Weights")
    assert teacher_identity(teacher, "http://127.0.0.1:1111/v1") != first
