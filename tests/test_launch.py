"""`python -m distill.launch` ends as what it launched: codes, signals, and as long as saving takes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORKER = """
import os, pathlib, signal, sys, time
rank, folder = int(os.environ.get("RANK", "0")), pathlib.Path(sys.argv[1])
if sys.argv[2] == "fail":
    time.sleep(0.5 * (1 - rank))  # rank 1 fails first
    sys.exit(2 + rank)
def save(number, frame):
    time.sleep(float(sys.argv[2]))
    (folder / f"saved-{rank}").write_text(str(number))
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, save), signal.signal(signal.SIGINT, save)
(folder / f"ready-{rank}").touch()
time.sleep(300)
"""


def launch(folder: Path, argument: str, processes: int) -> subprocess.Popen[str]:
    (folder / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "distill.launch", "--config_file", str(ROOT / "accelerate_config.yaml")]
    command += ["--num_processes", str(processes), "--main_process_port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*command, str(folder / "worker.py"), str(folder), argument], env=environment, text=True, stderr=subprocess.PIPE
    )


def ends_after(process: subprocess.Popen[str], folder: Path, processes: int, number: int) -> tuple[int, str]:
    while process.poll() is None and len(list(folder.glob("ready-*"))) < processes:
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    return process.returncode, err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_passed_on_once_and_is_the_exit_code(tmp_path: Path, number: int, code: int) -> None:
    ended, err = ends_after(launch(tmp_path, "0.2", 2), tmp_path, 2, number)
    assert ended == code, err
    assert [(tmp_path / f"saved-{rank}").read_text() for rank in (0, 1)] == [str(int(number))] * 2
    assert "Traceback" not in err


@pytest.mark.slow
def test_saving_may_take_longer_than_torch_would_wait(tmp_path: Path) -> None:
    ended, err = ends_after(launch(tmp_path, "33", 2), tmp_path, 2, signal.SIGTERM)
    assert ended == 143 and len(list(tmp_path.glob("saved-*"))) == 2, err


@pytest.mark.slow
def test_one_process_is_passed_sigterm_and_its_code(tmp_path: Path) -> None:
    ended, err = ends_after(launch(tmp_path, "0.2", 1), tmp_path, 1, signal.SIGTERM)
    assert ended == 143 and (tmp_path / "saved-0").exists(), err


@pytest.mark.slow
def test_the_code_is_that_of_the_first_failure(tmp_path: Path) -> None:
    process = launch(tmp_path, "fail", 2)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 3 and "Traceback" not in err
