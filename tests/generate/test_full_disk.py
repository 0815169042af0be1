"""A disk that fills up in the middle of a job: the user is told, nothing that was acknowledged is lost."""

from __future__ import annotations

import os
import resource
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from distill.errors import EXIT_FAILURE
from distill.records import read_parquet
from tests.generate.conftest import Project
from tests.teacher.mock import Body, MockTeacher, Reply, completion

ROWS = 200
IN_FLIGHT = 8
ROOM_BYTES = 512 << 10  # for a job whose ledger alone takes 900 kB
Room = Callable[[int], None]


def answer(body: Body, number: int) -> Reply:
    """4 kB that do not compress."""
    return completion(f"answer to {body['messages'][-1]['content']}: {os.urandom(2048).hex()}", delay=0.002)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, Room]]:
    """A real, small file system, and a function that gives it another size."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM_BYTES}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting needs root and its capabilities")
    try:
        yield folder, lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)  # type: ignore[func-returns-value]
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def generate(path: Path, most_bytes: int | None = None) -> subprocess.CompletedProcess[str]:
    """The verb in a process of its own, whose files may grow to so many bytes."""

    def limit() -> None:
        if most_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    command = [sys.executable, "-m", "distill", "generate", str(path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, preexec_fn=limit)


def check(project: Project, output: Path, squeeze: Callable[[Path], subprocess.CompletedProcess[str]]) -> None:
    """Run out of room, look at what is kept, make room, go on to the end."""
    with MockTeacher(answer) as mock:
        job = {"name": "inst", "kind": "instruction", "prompts": project.prompts([f"q{n}" for n in range(ROWS)])}
        recipe = project.recipe(mock.base_url, job, max_concurrency=IN_FLIGHT)
        path = project.path / "recipe.yaml"
        path.write_text(recipe.model_copy(update={"output_dir": str(output)}).model_dump_json(exclude_defaults=True))
        full = squeeze(path)
        assert full.returncode == EXIT_FAILURE, full
        assert "Traceback" not in full.stderr and "make room on" in full.stderr
        asked = len(mock.requests)
        with closing(sqlite3.connect(output / "test/ledger.sqlite")) as ledger:
            kept = {row[0] for row in ledger.execute("SELECT text FROM answers")}
        assert 0 < len(kept) < ROWS and asked - len(kept) <= 2 * IN_FLIGHT
        done = generate(path)
        assert done.returncode == 0, done
        again = Counter(mock.prompts())
        assert len(again) == ROWS and sum(again.values()) == asked + ROWS - len(kept)
    rows = read_parquet(output / "test/generate-inst/data.parquet")
    texts = [row["messages"][-1]["content"] for row in rows]
    assert [text.split(":")[0] for text in texts] == [f"answer to q{n}" for n in range(ROWS)]
    assert kept <= set(texts)


def test_a_full_file_system(project: Project, small_disk: tuple[Path, Room]) -> None:
    folder, resize = small_disk

    def squeeze(path: Path) -> subprocess.CompletedProcess[str]:
        done = generate(path)
        resize(64 << 20)
        return done

    check(project, folder / "runs", squeeze)


def test_files_that_may_not_grow(project: Project) -> None:
    check(project, project.path / "runs", lambda path: generate(path, ROOM_BYTES))
