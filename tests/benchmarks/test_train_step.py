"""The benchmark of training steps runs on a CPU with tiny models; ratios and bars are those of its definition."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.own_process import NOT_DONE, in_own_process
from benchmarks.train_step import DISTILLATION, GKD, REAL, TINY, WAYS, Result, main, measure, rows_of, table


def result(seconds: float, peak: int, *, steps: int = 4, tokens: int = 1000) -> Result:
    return Result(seconds, [seconds / steps] * steps, steps, tokens, [], peak, 0, [])


@pytest.mark.parametrize("name", ["kd", "on_policy", "on_policy, replay"])
def test_ours_runs_on_a_cpu(name: str) -> None:
    found = measure(name, TINY, 1)
    rows = rows_of(TINY, 3 * TINY.batch)
    assert found.steps == 1 and found.seconds > 0 and found.losses[0] > 0 and found.peak_bytes > 0
    assert 0 < found.tokens < sum(len(prompt) + len(answer) for prompt, answer in rows)
    assert bool(found.answer_tokens) == (name != "kd")
    assert set(found.part_seconds) == {"rows", "teacher"} and sum(found.part_seconds.values()) < found.seconds
    assert min(found.part_seconds.values()) > 0


@pytest.mark.slow
def test_every_way_runs_and_is_written(tmp_path: Path) -> None:
    chosen = list(WAYS)
    main(["--quick", "--ways", *chosen, "--json", str(tmp_path / "r.json")])
    written = json.loads((tmp_path / "r.json").read_text())
    assert list(written["details"]["results"]) == chosen and written["details"]["failed"] == {}
    assert len(written["rows"]) == 2 * len(chosen)


def test_rates_and_memory_are_compared_with_the_peer() -> None:
    peers = {GKD: result(2.0, 2**31), DISTILLATION: result(8.0, 2**30)}
    rows = {
        row.name: row for row in table({"kd": result(1.0, 2**30), "on_policy": result(4.0, 2**31), **peers}, bars=True)
    }
    kd, own = rows["kd"], rows["on_policy"]
    assert (kd.value, kd.peer, kd.ratio, kd.bar, kd.ok) == (1000.0, 500.0, 2.0, 1.5, True)
    assert (own.value, own.peer, own.ratio, own.bar, own.ok) == (1.0, 0.5, 2.0, 3.0, False)
    assert rows["kd: peak memory"].ok is True and rows["on_policy: peak memory"].ok is False
    assert rows[DISTILLATION].peer is None


def test_a_peer_that_ended_no_step_gives_bounds() -> None:
    unfinished = Result(30.0, [], 0, 0, [], 0, 0, [])
    rows = {row.name: row for row in table({"on_policy": result(8.0, 2**30), DISTILLATION: unfinished}, bars=True)}
    ours = rows["on_policy (the peer's rate is an upper bound)"]
    assert (ours.value, ours.peer, ours.ratio, ours.ok) == (0.5, 1 / 30, 15.0, True)
    assert rows["on_policy: peak memory"].peer is None
    assert rows[f"{DISTILLATION}: a step takes more than"].value == 30.0
    rows = {row.name: row for row in table({"kd": result(8.0, 2**30), GKD: unfinished}, bars=True)}
    assert rows["kd"].ratio is None and rows["kd"].ok is None


def test_work_that_takes_too_long_is_ended_after_it_was_heard() -> None:
    def work(tell: Callable[[str], None]) -> int:
        tell("one")
        tell("two")
        time.sleep(60)
        return 3

    heard: list[str] = []
    assert str(in_own_process(work, heard.append, limit=1.0)).startswith(NOT_DONE)
    assert heard == ["one", "two"]
    assert in_own_process(lambda tell: 3, heard.append) == 3
    assert in_own_process(lambda tell: 1 // 0, heard.append) == "ZeroDivisionError: integer division or modulo by zero"


def test_rows_spread_in_length_and_never_hold_an_end_token() -> None:
    rows = rows_of(REAL, 300)
    lengths = sorted(len(prompt) + len(answer) for prompt, answer in rows)
    assert lengths[-1] == 1024 and lengths[30] < 250 and 350 < lengths[150] < 470
    assert min(min(answer) for _, answer in rows) > REAL.end_tokens
