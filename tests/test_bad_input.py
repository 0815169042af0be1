"""Bad input through the command line: one clear line that says what and what to do, an exit code, no traceback,
nothing half-written taken for whole, and a second run that goes on once the matter is mended."""

from __future__ import annotations

import random
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from distill.cli import main
from distill.records import INSTRUCTION, write_parquet
from tests.teacher.mock import Body, MockTeacher, Reply, completion

ROOT = Path(__file__).parents[1]
TEACHER, STUDENT = ROOT / "data/teacher", ROOT / "data/student-base"
KEY_VARIABLE = "BAD_INPUT_TEST_KEY"


@dataclass(frozen=True)
class Said:
    """What a run of the command line left on the terminal."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line of an error; fails where there are more, or none, or a traceback, or no remedy."""
        assert self.code == 1, self
        lines = self.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), self.err
        assert " -> " in lines[0], f"no remedy: {lines[0]}"
        assert "Traceback" not in self.out
        return lines[0]


Cli = Callable[..., Said]


@pytest.fixture
def distill(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """The command line in this process, as `python -m distill` runs it."""
    terminate = signal.getsignal(signal.SIGTERM)

    def call(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["distill", *map(str, arguments)])
        capsys.readouterr()
        code: Any = 0
        try:
            main()
        except SystemExit as done:
            code = done.code or 0
        out, err = capsys.readouterr()
        return Said(code, out, err)

    yield call
    signal.signal(signal.SIGTERM, terminate)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A teacher that is not there, 40 prompts, and two steps of training on what it would answer."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    path = tmp_path / "bad.yaml"
    path.write_text(
        f"""name: bad
output_dir: {tmp_path}/runs
teacher:
  model: mock
  id: the-mock
  base_url: http://127.0.0.1:{port}/v1
  api_key_env: {KEY_VARIABLE}
  max_concurrency: 2
  max_attempts: 2
  deadline_seconds: 5
student: {{model: {STUDENT}, dtype: float32}}
generate:
- {{name: rows, kind: instruction, prompts: {{source: tasks, count: 40}}}}
train:
- {{name: sft, objective: sft, data: [rows], max_steps: 2, batch_size: 2, micro_batch_size: 2, save_steps: 1}}
quantize:
- {{name: nf4, method: nf4}}
"""
    )
    return path


def manifest(recipe: Path, stage: str) -> Path:
    return recipe.parent / "runs/bad" / stage / "manifest.json"


def write_rows(path: Path, count: int = 8) -> Path:
    chat = [{"role": "user", "content": "What is 1 + 1?"}, {"role": "assistant", "content": "2"}]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_parquet(path, [{"messages": chat}] * count, INSTRUCTION)
    return path


@contextmanager
def room_for(file_bytes: int) -> Iterator[None]:
    """No file may grow past so many bytes: to whoever writes it, the disk is full (and no root is needed)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# recipes


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("max_steps: 2", "max_step: 2", ":15:45: train.0.max_step: unknown key; did you mean 'max_steps'?"),
        ("max_steps: 2", "max_steps: two", "train.0.max_steps: should be a valid integer"),
        ("count: 40", "count: [1]", "generate.0.prompts.count: should be a valid integer"),
        ("method: nf4", "method: nf5", "must be one of nf4, int8, gptq, awq, qat; got 'nf5'; did you mean 'nf4'?"),
        ("data: [rows]", "data: [row]", "no generate job 'row' (a path ends in .parquet); did you mean 'rows'?"),
        ("name: bad", "name: [", "not valid YAML"),
        ("http://", "htp://", "teacher.base_url: string should match pattern"),
    ],
)
def test_a_mistake_in_a_recipe(distill: Cli, recipe: Path, old: str, new: str, says: str) -> None:
    text = recipe.read_text()
    assert text.count(old) == 1
    recipe.write_text(text.replace(old, new))
    for verb in ("check", "run"):
        said = distill(verb, recipe)
        assert (said.code, said.out) == (2, "")
        (line,) = said.err.splitlines()
        assert line.startswith(f"{recipe}:") and says in line
    assert not (recipe.parent / "runs").exists()


def test_a_recipe_that_is_not_there_or_no_text(distill: Cli, recipe: Path, tmp_path: Path) -> None:
    said = distill("run", tmp_path / "bda.yaml")
    assert (said.code, said.err) == (2, f"{tmp_path}/bda.yaml: no such file; did you mean 'bad.yaml'?\n")
    said = distill("plan", tmp_path)
    assert said.code == 2 and "Is a directory; name a recipe's YAML file" in said.err
    said = distill("run", recipe, "train.sft.max_steps=zero")
    assert said.code == 2 and said.err.startswith("<command line> train.sft.max_steps=zero: train.0.max_steps: ")


# files


def test_missing_and_corrupt_files_of_prompts(distill: Cli, recipe: Path, tmp_path: Path) -> None:
    torn = write_rows(tmp_path / "torn.parquet")
    torn.write_bytes(torn.read_bytes()[:-20])
    text = tmp_path / "text.jsonl"
    text.write_text('{"prompt": \n')
    for name, says in {
        "nowhere.jsonl": "no prompts at",
        "torn.parquet": "is not a readable Parquet file",
        "text.jsonl": "text.jsonl:1: not JSON",
    }.items():
        said = distill("generate", recipe, f"generate.rows.prompts={{source: file, path: {tmp_path / name}}}")
        assert says in said.line and name in said.line
        assert not manifest(recipe, "generate-rows").exists()


def test_missing_and_corrupt_datasets_and_students(distill: Cli, recipe: Path, tmp_path: Path) -> None:
    assert "generate-rows is not finished" in distill("train", recipe).line
    assert "train-sft is not finished" in distill("quantize", recipe).line
    nowhere = tmp_path / "nowhere.parquet"
    assert f"no dataset at {nowhere}" in distill("train", recipe, f"train.sft.data=[{nowhere}]").line
    torn = write_rows(tmp_path / "torn.parquet")
    whole = torn.read_bytes()
    torn.write_bytes(whole[: len(whole) // 2])
    said = distill("train", recipe, f"train.sft.data=[{torn}]")
    assert f"{torn} is not a readable Parquet file" in said.line
    assert not manifest(recipe, "train-sft").exists()
    torn.write_bytes(whole)
    assert distill("train", recipe, f"train.sft.data=[{torn}]").code == 0
    assert manifest(recipe, "train-sft").exists()
    said = distill("train", recipe, f"student.model={tmp_path}/nobody")
    assert f"no model folder {tmp_path}/nobody" in said.line


def test_checkpoints_without_tokenizer_or_torn(distill: Cli, recipe: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.parquet")
    model = tmp_path / "model"
    shutil.copytree(STUDENT, model)
    train = ("train", recipe, f"student.model={model}", f"train.sft.data=[{data}]")

    (model / "tokenizer.json").unlink()
    for verb in (("serve", model, "--port", 0), train):
        assert f"{model} has no tokenizer" in distill(*verb).line
    shutil.copy(STUDENT / "tokenizer.json", model)

    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    for verb in (("serve", model, "--port", 0), train):
        line = distill(*verb).line
        assert str(weights) in line and "copy or make the checkpoint again" in line
    assert not manifest(recipe, "train-student-base").exists() and not manifest(recipe, "train-sft").exists()
    weights.unlink()
    assert f"{model} has no safetensors weights" in distill("serve", model, "--port", 0).line
    (model / "config.json").write_text("{")
    shutil.copy(STUDENT / "model.safetensors", model)
    line = distill("serve", model, "--port", 0).line
    assert f"{model}/config.json" in line and "not a valid JSON file" in line

    shutil.copy(STUDENT / "config.json", model)
    assert distill(*train).code == 0
    assert manifest(recipe, "train-sft").exists()


def test_a_folder_that_cannot_be_made(distill: Cli, recipe: Path) -> None:
    for verb in ("plan", "generate"):
        line = distill(verb, recipe, f"output_dir={recipe}").line
        assert str(recipe) in line and "Not a directory" in line


def test_verbs_that_have_nothing_to_do_say_so(distill: Cli, recipe: Path) -> None:
    assert "nothing to quantize" in distill("quantize", recipe, "quantize=[]").line
    assert "nothing to generate" in distill("generate", recipe, "generate=[]", "train=[]", "quantize=[]").line
    assert "no evaluate section" in distill("evaluate", recipe).line
    assert "makes no model to serve" in distill("serve", recipe, "train=[]", "quantize=[]").line
    assert "nf4 is not made yet" in distill("serve", recipe).line
    assert "no variant 'nf5'" in distill("serve", recipe, "--variant", "nf5").line


# the teacher


def test_an_unreachable_teacher(distill: Cli, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "k")
    line = distill("generate", recipe).line
    assert "cannot reach the teacher at http://127.0.0.1:" in line and "check teacher.base_url" in line
    assert not manifest(recipe, "generate-rows").exists()
    with MockTeacher() as mock:
        assert distill("generate", recipe, f"teacher.base_url={mock.base_url}").code == 0
    assert manifest(recipe, "generate-rows").exists()


def test_an_embedded_teacher_without_a_model(distill: Cli, recipe: Path, tmp_path: Path) -> None:
    line = distill("generate", recipe, f"teacher={{kind: embedded, model: {tmp_path}/nobody}}").line
    assert f"no model folder {tmp_path}/nobody" in line


def test_a_wrong_key(distill: Cli, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with MockTeacher(key="the-right-key") as mock:
        url = f"teacher.base_url={mock.base_url}"
        for wrong, says in (("a-wrong-key", "is set, but not to a key that is valid there"), ("", "is not set")):
            monkeypatch.setenv(KEY_VARIABLE, wrong)
            line = distill("generate", recipe, url).line
            assert "refuses the key (401)" in line and f"{KEY_VARIABLE} {says}" in line
            assert "a-wrong-key" not in line
            assert not manifest(recipe, "generate-rows").exists()
        monkeypatch.setenv(KEY_VARIABLE, "the-right-key")
        assert distill("generate", recipe, url).code == 0
        assert len(mock.requests) == 40
    assert manifest(recipe, "generate-rows").exists()


# a full disk


def long_answer(body: Body, number: int) -> Reply:
    """8,000 hex digits that do not compress, different for every prompt."""
    return completion(random.Random(str(body["messages"])).randbytes(4000).hex())


def test_a_full_disk_under_the_ledger_and_the_dataset(distill: Cli, recipe: Path) -> None:
    with MockTeacher(long_answer) as mock:
        url = f"teacher.base_url={mock.base_url}"
        with room_for(150_000):  # the ledger's log holds some answers, not all
            line = distill("generate", recipe, url).line
        assert "ledger.sqlite" in line and "make room" in line
        ledger = recipe.parent / "runs/bad/ledger.sqlite"
        kept, asked = count_answers(ledger), len(mock.requests)
        assert 0 < kept < 40
        assert not manifest(recipe, "generate-rows").exists()

        assert distill("generate", recipe, url).code == 0
        assert count_answers(ledger) == 40
        assert len(mock.requests) == asked + 40 - kept  # what was kept is not asked again
        data = recipe.parent / "runs/bad/generate-rows/data.parquet"
        whole = data.read_bytes()

        shutil.rmtree(data.parent)
        with room_for(60_000):  # all answers are in the ledger; its shared memory needs 32 KiB
            line = distill("generate", recipe, url).line
        assert "data.parquet" in line and "make room" in line
        assert {path.name for path in data.parent.iterdir()} == {"inputs.json", "metrics.jsonl"}
        assert distill("generate", recipe, url).code == 0
        assert len(mock.requests) == asked + 40 - kept
    assert data.read_bytes() == whole


def count_answers(ledger: Path) -> int:
    with sqlite3.connect(ledger) as connection:
        return int(connection.execute("SELECT COUNT(*) FROM answers").fetchone()[0])


def test_a_full_disk_under_a_manifest(distill: Cli, recipe: Path) -> None:
    with room_for(500):  # room for the inputs, not for the manifest
        line = distill("plan", recipe).line
    assert "the disk is full" in line and str(recipe.parent / "runs/bad") in line
    assert [path.name for path in manifest(recipe, "plan").parent.iterdir()] == ["inputs.json"]
    assert distill("plan", recipe).code == 0
    assert manifest(recipe, "plan").exists()


def test_a_full_disk_under_checkpoints(distill: Cli, recipe: Path, tmp_path: Path) -> None:
    train = ("train", recipe, f"train.sft.data=[{write_rows(tmp_path / 'rows.parquet')}]")
    with room_for(1 << 20):  # less than the weights
        assert "the disk is full" in distill(*train).line
    assert not manifest(recipe, "train-student-base").exists()
    with room_for(20 << 20):  # the weights fit, AdamW's moments do not
        line = distill(*train).line
    assert "checkpoint" in line and "make room" in line
    assert manifest(recipe, "train-student-base").exists() and not manifest(recipe, "train-sft").exists()
    said = distill(*train)
    assert said.code == 0 and "cut off while being written" in said.out
    assert manifest(recipe, "train-sft").exists()
    with room_for(1 << 20):
        line = distill("quantize", *train[1:]).line
    assert "make room" in line or "free disk space" in line
    assert not manifest(recipe, "quantize-nf4").exists()
    assert distill("quantize", *train[1:]).code == 0


# damage after the fact


def test_what_is_damaged_in_a_run_can_be_made_again(distill: Cli, recipe: Path) -> None:
    with MockTeacher() as mock:
        url = f"teacher.base_url={mock.base_url}"
        assert distill("generate", recipe, url).code == 0
        data = recipe.parent / "runs/bad/generate-rows/data.parquet"
        whole = data.read_bytes()
        data.write_bytes(b"junk")
        line = distill("train", recipe, url).line
        assert f"{data} is not a readable Parquet file" in line and "remove it" in line
        data.unlink()
        said = distill("generate", recipe, url)
        assert said.code == 0 and "0 requests sent, 40 from the ledger" in said.out
        assert data.read_bytes() == whole and len(mock.requests) == 40

        manifest(recipe, "generate-rows").write_text('{"stage": ')
        line = distill("generate", recipe, url).line
        assert "manifest.json is not a manifest" in line and f"remove {data.parent}" in line
        shutil.rmtree(data.parent)
        assert distill("generate", recipe, url).code == 0

        ledger = recipe.parent / "runs/bad/ledger.sqlite"
        shutil.rmtree(data.parent)
        ledger.write_bytes(b"no database" * 1000)
        line = distill("generate", recipe, url).line
        assert f"{ledger} is not a readable ledger" in line and "move it away" in line


# ports and signals


def test_a_port_in_use(distill: Cli) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = distill("serve", TEACHER, "--port", port).line
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in line and "--port 0" in line


def test_a_run_in_use(distill: Cli, recipe: Path) -> None:
    from distill.recipe.load import load_recipe
    from distill.runs import Run

    with Run(load_recipe(recipe)).lock():
        assert "runs/bad is in use by process" in distill("generate", recipe).line


def interrupted(arguments: list[str], ready: Callable[[], bool]) -> Said:
    """A process that gets Ctrl-C as soon as it is ready."""
    command = [sys.executable, "-m", "distill", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not ready() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    return Said(process.returncode, out, err)


def test_ctrl_c_is_one_line_and_the_next_run_goes_on(
    distill: Cli, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "k")

    def hang_from_the_tenth(body: Body, number: int) -> Reply:
        return Reply(hang=True) if number >= 10 else completion("an answer")

    with MockTeacher(hang_from_the_tenth) as mock:
        url = f"teacher.base_url={mock.base_url}"
        said = interrupted(["generate", str(recipe), url], lambda: len(mock.requests) == 12)
        assert (said.code, said.err) == (130, "interrupted; the same command goes on where it was\n")
        assert not manifest(recipe, "generate-rows").exists()
        mock.respond = lambda body, number: completion("an answer")
        said = distill("generate", recipe, url)
        assert said.code == 0 and "30 requests sent, 10 from the ledger" in said.out


def test_ctrl_c_stops_a_server(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    said = interrupted(["serve", str(TEACHER), "--port", "0", "--ready-file", str(ready)], ready.exists)
    assert said.code == 0 and said.out == ""
    first, last = said.err.splitlines()
    assert first.startswith("serving on http://127.0.0.1:") and last == "stopped"
