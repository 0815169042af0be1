"""Without a working bubblewrap the sandbox refuses and says what to do; `none` has to be asked for by name."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from distill.errors import DistillError
from distill.sandbox.run import check_available, run_many
from distill.sandbox.types import Job, SandboxError

GOOD = "def f(x):\n    return x + 1"
TESTS = ("assert f(1) == 2",)


def test_refusal_without_bubblewrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SandboxError, match="bubblewrap") as refusal:
        check_available("bubblewrap")
    assert isinstance(refusal.value, DistillError)
    assert "apt-get install bubblewrap" in str(refusal.value) and "isolation: none" in str(refusal.value)
    with pytest.raises(SandboxError):
        run_many([Job(GOOD, TESTS, "f")], workers=2)
    check_available("none")


def test_refusal_when_bubblewrap_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/false")
    with pytest.raises(SandboxError, match="does not start here"):
        check_available("bubblewrap")


RECIPE = """
name: refused
teacher: {base_url: "http://127.0.0.1:9/v1", model: none}
generate:
  - {name: code, kind: code, prompts: {source: tasks, kinds: [code], count: 3}}
"""


@pytest.mark.parametrize("missing", ["bubblewrap", "user namespaces"])
def test_the_command_line_says_it_in_one_line(missing: str, tmp_path: Path) -> None:
    """Before the teacher is asked, with an exit code; the second inside a bubblewrap that forbids namespaces."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    outer = ["bwrap", "--unshare-user", "--disable-userns", "--dev-bind", "/", "/"]
    run = subprocess.run(
        [*(outer if missing == "user namespaces" else ()), sys.executable, "-m", "distill", "generate", "recipe.yaml"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "1000", **({"PATH": "/nowhere"} if missing == "bubblewrap" else {})},
        timeout=300,
    )
    assert run.returncode == 1
    [line] = run.stderr.splitlines()
    assert line.startswith("error: bubblewrap") and "`isolation: none` by name" in line
