"""The demo's tables are made of its manifests, and a bar that is missed is said to be missed."""

from pathlib import Path
from typing import Any

from benchmarks.common import at_least, envelope
from benchmarks.demo import _at_most, _tables


def variant(correct: int) -> dict[str, Any]:
    value = {"value": correct / 10, "low": 0.1, "high": 0.9, "count": 10}
    return {
        "weight_bytes": 3 * 2**20,
        "kv_bytes_per_token": 1024,
        "accuracy": value,
        "by_kind": {"instruction": value, "code": value},
        "kl": 0.5,
        "decode_tokens_per_second": 1234.5,
    }


def test_tables_show_every_variant_and_the_missed_bar() -> None:
    rows = [
        at_least("accuracy of kd over the teacher's", 0.7, 0.75),
        _at_most("points that nf4 loses", 1.5, 3.0, "points"),
    ]
    details = {"variants": {"teacher": variant(10), "kd": variant(7)}, "stage_seconds": {"train": 61.4, "serve": 2.0}}
    result = envelope(what="x", command="python -m benchmarks.demo", rows=rows, details=details)
    text = _tables(result, Path("docs/demo.md"))
    assert "| kd | 3.0 MiB | 1,024 B | 70.0% (10.0% to 90.0%) | 70.0% | 70.0% | 0.5000 | 1,234 |" in text
    assert "| accuracy of kd over the teacher's | at least 75.0% | 70.0% | **no** |" in text
    assert "| points that nf4 loses | at most 3.0 | 1.5 | yes |" in text
    assert "| all | 63 |" in text
    assert "| all |" not in _tables(result, Path("README.md"))


def test_bars_can_fail_on_both_sides() -> None:
    assert at_least("a", 0.75, 0.75).ok and not at_least("a", 0.7499, 0.75).ok
    assert _at_most("b", 0.15, 0.15).ok and not _at_most("b", 0.1501, 0.15).ok
