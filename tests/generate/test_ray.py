"""Shards as Ray tasks, on a cluster of two workers on this machine. In need of the extra `ray`, and a minute."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from distill.errors import DistillError
from distill.recipe.schema import Recipe
from tests.generate.conftest import Project
from tests.generate.test_resume import GENERATE, IN_FLIGHT, ROWS, answer, job
from tests.teacher.mock import Body, MockTeacher, Reply

pytestmark = pytest.mark.slow
pytest.importorskip("ray")
TWO = {"kind": "ray", "shards": 2}


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def check(project: Project) -> None:
    rows = project.data("inst")
    assert [row["messages"][-1]["content"] for row in rows] == [f"answer to q{i}" for i in range(ROWS)]


def worker(project: Project, shard: str) -> int:
    """The process that holds a shard."""
    found = re.search(r"\d+", (project.path / "runs/test/shards" / shard / ".lock").read_text())
    assert found
    return int(found[0])


def test_two_workers_make_the_whole(project: Project) -> None:
    def late_until_both_send(body: Body, number: int) -> Reply:
        return replace(answer(body, number), delay=0.01 if mock.peak > IN_FLIGHT else 5.0)

    with MockTeacher(late_until_both_send) as mock:
        recipe = project.recipe(mock.base_url, job(project, executor=TWO), max_concurrency=IN_FLIGHT)
        handler = signal.getsignal(signal.SIGTERM)
        printed = project.run(recipe)
        assert signal.getsignal(signal.SIGTERM) is handler
        assert mock.peak > IN_FLIGHT  # more than one shard sends at once
        assert Counter(mock.prompts()) == Counter(f"q{i}" for i in range(ROWS))
        assert "generate inst 1/2: " in printed and "generate inst 2/2: " in printed
        mock.requests.clear()
        assert "done before" in project.run(recipe) and not mock.requests
    check(project)
    holders = {worker(project, shard) for shard in ("1-of-2", "2-of-2")}
    assert len(holders) == 2 and os.getpid() not in holders


def test_a_killed_driver_goes_on(project: Project) -> None:
    with MockTeacher(answer) as mock:
        recipe = project.recipe(mock.base_url, job(project, executor=TWO), max_concurrency=IN_FLIGHT)
        command = [sys.executable, "-c", GENERATE, recipe.model_dump_json()]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
            wait_for(lambda: mock.finished >= ROWS // 2)
            driver.send_signal(signal.SIGKILL)
        project.run(recipe)
        asked = Counter(mock.prompts())
    assert len(asked) == ROWS and sum(asked.values()) - ROWS <= 2 * IN_FLIGHT
    check(project)


def test_a_killed_worker_is_replaced(project: Project) -> None:
    with MockTeacher(answer) as mock:
        recipe = project.recipe(mock.base_url, job(project, executor=TWO), max_concurrency=IN_FLIGHT)

        def kill() -> None:
            wait_for(lambda: mock.finished >= ROWS // 4)
            os.kill(worker(project, "2-of-2"), signal.SIGKILL)

        thread = threading.Thread(target=kill)
        thread.start()
        project.run(recipe)
        thread.join()
        asked = Counter(mock.prompts())
    assert len(asked) == ROWS and sum(asked.values()) - ROWS <= IN_FLIGHT
    check(project)


def test_no_cluster_at_an_address_is_said(project: Project, tmp_path: Path) -> None:
    executor = {**TWO, "address": "127.0.0.1:9"}
    recipe: Recipe = project.recipe("http://127.0.0.1:9/v1", job(project, executor=executor))
    with pytest.raises(DistillError, match="no Ray cluster at '127.0.0.1:9'"):
        project.run(recipe)


def test_a_cluster_that_is_there_is_used_and_left_running(project: Project) -> None:
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    folder = tempfile.mkdtemp(prefix="ray")  # short: sockets are in it
    start = [*ray, "start", "--head", "--num-cpus=1", "--include-dashboard=false", f"--port={address.split(':')[1]}"]
    start += ["--object-store-memory=100000000", f"--temp-dir={folder}", "--block"]
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # read when Ray is imported
    environment = {**os.environ, **token, "RAY_USAGE_STATS_ENABLED": "0"}
    with subprocess.Popen(start, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) as head:
        try:
            wait_for(lambda: listens(address))
            with MockTeacher(answer) as mock:
                recipe = project.recipe(mock.base_url, job(project, executor={**TWO, "address": address}))
                command = [sys.executable, "-c", GENERATE, recipe.model_dump_json()]
                driver = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
                assert driver.returncode == 0, driver.stderr
                assert len(mock.requests) == ROWS
            assert "the cluster has room for 1 of 2 shards at once" in " ".join(driver.stdout.split())
            assert head.poll() is None and listens(address)
        finally:
            head.terminate()
            head.wait(30)
            shutil.rmtree(folder, ignore_errors=True)
    check(project)


def listens(address: str) -> bool:
    host, _, port = address.partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0
