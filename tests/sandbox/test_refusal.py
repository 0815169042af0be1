"""Without a working bubblewrap the sandbox refuses and says what to do; `none` has to be asked for by name."""

import shutil

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
