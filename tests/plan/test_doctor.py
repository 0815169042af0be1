"""What the doctor finds: a teacher that answers, refuses, or is not there; missing folders; a sandbox that fails."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from rich.console import Console

from distill.plan import doctor
from distill.plan.endpoint import check_teacher
from distill.plan.finding import Finding, failed, fine
from distill.recipe.generate import CodeJob, TaskPrompts
from distill.recipe.schema import Recipe
from distill.recipe.teacher import AzureTeacher, EmbeddedTeacher, OpenAITeacher, Student
from distill.sandbox.types import SandboxError

KEY = "sk-canary-123"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/moved/models":
            self.send_response(302)
            self.send_header("Location", "/v1/models")
            self.end_headers()
            return
        right = self.path == "/v1/models" and self.headers["Authorization"] == f"Bearer {KEY}"
        azure = self.path in ("/openai/v1/models", "/openai/models?api-version=2024-10-21")
        right = right or (azure and KEY in (self.headers["api-key"], (self.headers["Authorization"] or "")[7:]))
        body = json.dumps({"data": [{"id": "teacher-1"}]}).encode()
        self.send_response(200 if right else 401 if azure or self.path == "/v1/models" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    http = HTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    http.server_close()
    thread.join()


def _teacher(url: str, model: str = "teacher-1") -> OpenAITeacher:
    return OpenAITeacher(model=model, base_url=url, api_key_env="MY_KEY")


def test_teacher_that_answers(server: str) -> None:
    found = check_teacher(_teacher(f"{server}/v1"), {"MY_KEY": KEY})
    assert found.status == "ok" and "MY_KEY is set" in found.detail
    assert KEY not in found.detail


def test_wrong_or_missing_key_is_refused_and_never_shown(server: str) -> None:
    for environment in ({}, {"MY_KEY": "sk-wrong"}):
        found = check_teacher(_teacher(f"{server}/v1"), environment)
        assert found.status == "fail" and "401" in found.detail and "MY_KEY" in (found.remedy or "")
        assert "sk-wrong" not in found.detail + (found.remedy or "")


def test_other_answers(server: str) -> None:
    assert "does not list" in check_teacher(_teacher(f"{server}/v1", "other"), {"MY_KEY": KEY}).detail
    assert check_teacher(_teacher(f"{server}/v2"), {"MY_KEY": KEY}).status == "warn"
    assert "302" in check_teacher(_teacher(f"{server}/moved"), {"MY_KEY": KEY}).detail
    with pytest.raises(ValueError, match="base_url"):
        _teacher("localhost:8000")
    gone = check_teacher(_teacher("http://127.0.0.1:9"), {})
    assert gone.status == "fail" and "cannot be reached" in gone.detail


def test_base_url_may_come_from_the_environment(server: str) -> None:
    teacher = OpenAITeacher(model="teacher-1")
    assert check_teacher(teacher, {"OPENAI_BASE_URL": f"{server}/v1/", "OPENAI_API_KEY": KEY}).status == "ok"


def test_embedded_teacher_needs_its_folder(tmp_path: Path) -> None:
    teacher = EmbeddedTeacher(model=str(tmp_path))
    assert check_teacher(teacher, {}).status == "fail"
    (tmp_path / "config.json").write_text("{}")
    assert check_teacher(teacher, {}).status == "ok"


def _findings(recipe: Recipe | None, monkeypatch: pytest.MonkeyPatch) -> dict[str, Finding]:
    monkeypatch.setattr(doctor, "_ask_torch", lambda: doctor._Torch("2.0", None, 1, [], True))
    return {finding.name: finding for finding in doctor.find(recipe)}


def _no_sandbox(_isolation: str) -> None:
    raise SandboxError("bwrap: No permissions to create new namespace", remedy="allow user namespaces")


def test_sandbox_is_required_only_where_code_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "check_available", _no_sandbox)
    job = CodeJob(name="c", kind="code", prompts=TaskPrompts(source="tasks", kinds=("code",), count=1))
    recipe = Recipe(name="r", output_dir=str(tmp_path), teacher=EmbeddedTeacher(model=str(tmp_path)), generate=(job,))
    found = _findings(recipe, monkeypatch)["bubblewrap"]
    assert found.status == "fail" and "No permissions" in found.detail and found.remedy == "allow user namespaces"
    unsafe = recipe.model_copy(update={"generate": (job.model_copy(update={"isolation": "none"}),)})
    assert _findings(unsafe, monkeypatch)["bubblewrap"].status == "warn"
    assert _findings(None, monkeypatch)["bubblewrap"].status == "warn"


def test_model_folders_are_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    recipe = Recipe(
        name="r",
        output_dir=str(tmp_path),
        teacher=EmbeddedTeacher(model=str(tmp_path)),
        student=Student(model=str(tmp_path / "absent")),
    )
    found = _findings(recipe, monkeypatch)
    assert "tokenizer.json, *.safetensors" in found["teacher weights"].detail
    assert found["student"].status == "fail"
    hub = recipe.model_copy(update={"student": Student(model="owner/name")})
    assert _findings(hub, monkeypatch)["student"].status == "ok"


def test_broken_torch_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_ASK_TORCH", "raise ImportError('libcudart.so is missing')")
    findings = list(doctor._torch())
    assert len(findings) == 1 and "libcudart.so is missing" in findings[0].detail


def test_examine_fails_iff_something_required_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), width=100)
    monkeypatch.setattr(doctor, "find", lambda recipe: iter([fine("a", "well")]))
    assert doctor.examine(None, console=console)
    monkeypatch.setattr(doctor, "find", lambda recipe: iter([fine("a", "well"), failed("b", "[ill]", "mend it")]))
    assert not doctor.examine(None, console=console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[ill]" in text and "-> mend it" in text


@pytest.mark.parametrize("version", [None, "2024-10-21"])
def test_an_azure_teacher_is_asked_with_its_own_header(server: str, version: str | None) -> None:
    teacher = AzureTeacher(kind="azure", model="mine", base_url=server, api_version=version)
    found = check_teacher(teacher, {"AZURE_OPENAI_API_KEY": KEY})
    assert found.status == "ok" and KEY not in found.detail  # it lists models, not deployments
    assert "refuses the key" in check_teacher(teacher, {"AZURE_OPENAI_API_KEY": "other"}).detail
    assert check_teacher(teacher, {}).status == "fail"
    entra = teacher.model_copy(update={"auth": "entra"})
    assert check_teacher(entra, {"AZURE_OPENAI_AD_TOKEN": KEY}).status == "ok"
    assert "not asked" in check_teacher(entra, {}).detail
