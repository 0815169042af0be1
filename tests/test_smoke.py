"""The whole path in one command, on the smoke recipe: once, again with nothing to do, and killed in the middle."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from distill.recipe.load import load_recipe
from distill.runs import Manifest, StageFolder
from distill.teacher.ledger import Ledger

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes/smoke.yaml"
SECOND_RUN_SECONDS = 15
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
TRAINED = ("student-base", "sft", "kd", "dpo")
QUANTIZED = ("nf4", "int8", "gptq", "awq")
STAGES = [
    "plan",
    *(f"generate-{name}" for name in ("instruct", "code", "prefer")),
    *(f"train-{name}" for name in TRAINED),
    *(f"quantize-{name}" for name in QUANTIZED),
    *(f"{stage}-{name}" for stage in ("serve", "evaluate") for name in ("teacher", *TRAINED, *QUANTIZED)),
    "evaluate",
    "report",
]
REQUESTS = 24 + 12 + 8 * 4
NOTHING_ELSE = re.compile(r"^(|.* ─+|.*: done before.*|done in \d+ s; report: .*)$")


def start(*overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "distill", "run", str(RECIPE), *overrides]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | ONE_THREAD
    )


def complete(*overrides: str) -> str:
    """Standard output of a run that ends well and says nothing on standard error."""
    process = start(*overrides)
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    assert err == "", "third parties speak on the user's terminal"
    return out


def manifest(run: Path, name: str) -> Manifest:
    stage, _, variant = name.partition("-")
    return StageFolder(run / name, stage, variant or None).require()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a finished run, and what it printed."""
    folder = tmp_path_factory.mktemp("smoke")
    out = complete(f"output_dir={folder}")
    return folder / "smoke", out


def test_the_whole_path_in_one_command(finished: tuple[Path, str]) -> None:
    run, out = finished
    for name in STAGES:
        assert manifest(run, name).outputs or name in ("plan", "evaluate") or name.startswith("serve-"), name
    assert sorted(path.parent.name for path in run.glob("*/manifest.json")) == sorted(STAGES)
    assert not list(run.rglob("*.tmp")) and not list(run.rglob("*.partial"))
    assert out.splitlines()[-1].endswith(f"report: {run / 'report.html'}")
    assert "\n\n" not in out, "empty lines between results"
    with Ledger(run / "ledger.sqlite") as ledger:
        assert ledger.count() == REQUESTS
    teacher = manifest(run, "evaluate-teacher").metrics
    assert teacher["accuracy"]["value"] > 0.8 and teacher["kl"] < 1e-6
    assert manifest(run, "evaluate-kd").metrics["kl"] < manifest(run, "evaluate-student-base").metrics["kl"]


def test_the_report_is_one_file(finished: tuple[Path, str]) -> None:
    page = (finished[0] / "report.html").read_text()
    assert "<svg" in page
    loaded = re.findall(r"<(?:script|link|img|iframe|source|object|embed)\b[^>]*(?:src|href|data)\s*=\s*[^\s>]+", page)
    assert all("data:" in tag for tag in loaded), loaded
    assert not re.search(r"<script[^>]*\ssrc|@import|url\(\s*['\"]?(?!data:|#)", page)
    for variant in ("teacher", *TRAINED, *QUANTIZED):
        assert variant in page


def test_a_second_run_does_nothing(finished: tuple[Path, str]) -> None:
    run, _ = finished
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    started = time.monotonic()
    out = complete(f"output_dir={run.parent}")
    assert time.monotonic() - started < SECOND_RUN_SECONDS
    stages = out[out.index("\ngenerate ─") :]
    assert [line for line in stages.splitlines() if not NOTHING_ELSE.match(line)] == []
    after = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    # the plan costs nothing and is printed every time
    changed = {
        str(path.relative_to(run)) for path in before.keys() | after.keys() if before.get(path) != after.get(path)
    }
    assert changed <= {"plan/inputs.json", "plan/manifest.json", ".lock"}


def test_what_was_taken_away_is_made_again(finished: tuple[Path, str]) -> None:
    run, _ = finished
    before = (run / "generate-code/data.parquet").read_bytes()
    kept = (run / "train-sft/manifest.json").stat().st_mtime_ns
    shutil.rmtree(run / "generate-code")
    (run / "quantize-nf4/model/model.safetensors").unlink()
    out = complete(f"output_dir={run.parent}")
    assert "12 prompts (0 dropped), 0 requests sent, 12 from the ledger" in out
    assert re.search(r"quantize-nf4: 13.51 -> ", out) and "quantize-gptq: done before" in out
    assert (run / "generate-code/data.parquet").read_bytes() == before
    assert (run / "train-sft/manifest.json").stat().st_mtime_ns == kept, "the same rows: nothing to train anew"


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(3))
def test_kill_in_the_middle_loses_nothing(tmp_path: Path, attempt: int) -> None:
    """kill -9 as a random stage begins; the rerun completes, and what was answered is not asked again."""
    from distill.serve.child import embedded_server

    victim = random.choice([name for name in STAGES if name != "plan"])
    print(f"killed at {victim}")
    with embedded_server(ROOT / "data/teacher", log_path=tmp_path / "server.log", model_name="t") as url:
        served = f"teacher={{kind: openai, model: t, base_url: '{url}', weights: data/teacher, max_concurrency: 4}}"
        process = start(f"output_dir={tmp_path}", served)
        begun = tmp_path / "smoke" / victim / "inputs.json"
        while not begun.exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(random.uniform(0, 1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        done = {path: path.stat().st_mtime_ns for path in (tmp_path / "smoke").glob("*/manifest.json")}
        complete(f"output_dir={tmp_path}", served)
        received = requests_received(url)
    run = tmp_path / "smoke"
    assert sorted(path.parent.name for path in run.glob("*/manifest.json")) == sorted(STAGES)
    assert not list(run.rglob("*.tmp")) and not list(run.rglob("*.partial"))
    for path, modified in done.items():
        assert path.parent.name == "plan" or path.stat().st_mtime_ns == modified, f"{path} was finished and is redone"
    with Ledger(run / "ledger.sqlite") as ledger:
        assert ledger.count() == REQUESTS
    in_flight = 4 if victim.startswith("generate-") else 0
    assert REQUESTS <= received <= REQUESTS + in_flight, victim


def requests_received(url: str) -> int:
    """Chat requests that the server answered, by its own count."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/metrics") as answer:
        text = answer.read().decode()
    found = re.findall(r'^distill_answers_total\{route="/v1/chat/completions",status="\d+"\} (\d+)', text, re.MULTILINE)
    assert found, text
    return sum(map(int, found))


def test_the_counts_above_are_the_recipe_s() -> None:
    recipe = load_recipe(RECIPE)
    counts = {job.name: job.prompts.count for job in recipe.generate}
    assert counts == {"instruct": 24, "code": 12, "prefer": 8}
