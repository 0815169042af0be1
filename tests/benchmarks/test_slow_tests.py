"""What is committed of a run of the slow tests is what pytest reported, in a run of four tests that end differently."""

import json
from pathlib import Path

import pytest

from benchmarks.slow_tests import main

TESTS = """
import pytest

def test_right(): pass

def test_wrong(): assert 1 == 2, "never"

@pytest.mark.skip(reason="no such machine")
def test_elsewhere(): pass

@pytest.fixture
def broken(): raise OSError("no room")

def test_broken(broken): pass
"""


def test_every_outcome_is_counted_and_named(tmp_path: Path) -> None:
    (tmp_path / "test_four.py").write_text(TESTS)
    path = tmp_path / "result.json"
    assert main([str(tmp_path / "test_four.py"), "--markers", "not slow", "--json", str(path)]) == 1
    result = json.loads(path.read_text())
    counts = {row["name"]: (row["value"], row["ok"]) for row in result["rows"] if row["unit"] == "tests"}
    assert counts == {"passed": (1, True), "failed": (1, False), "error": (1, False), "skipped": (1, None)}
    found = {test["name"].partition("::")[2]: (test["outcome"], test["reason"]) for test in result["details"]["tests"]}
    assert found["test_right"] == ("passed", "")
    assert found["test_wrong"] == ("failed", "AssertionError: never")
    assert found["test_elsewhere"] == ("skipped", "no such machine")
    assert found["test_broken"][0] == "error" and "no room" in found["test_broken"][1]


def test_a_run_without_tests_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "test_none.py").write_text("def test_fast(): pass\n")
    assert main([str(tmp_path / "test_none.py"), "--markers", "slow"]) == 1


def test_a_run_that_was_interrupted_is_no_result(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    (tmp_path / "test_stopped.py").write_text("def test_right(): pass\n\ndef test_stopped(): raise KeyboardInterrupt\n")
    with pytest.raises(RuntimeError, match="pytest ended with 2"):
        main([str(tmp_path / "test_stopped.py"), "--markers", "not slow", "--json", str(path)])
    assert not path.exists()
