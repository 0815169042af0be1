"""The command line as a newcomer meets it: instant help, exit codes, one clear line instead of a traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def distill(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "distill", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


@pytest.fixture
def api_recipe(tmp_path: Path) -> Path:
    path = tmp_path / "api.yaml"
    path.write_text(
        "name: api\nteacher: {model: gpt-x, base_url: 'http://127.0.0.1:9/v1', api_key_env: CANARY_KEY}\n"
        f"output_dir: {tmp_path}/runs\n"
        "generate:\n- {name: rows, kind: instruction, prompts: {source: tasks, count: 10}}\n"
    )
    return path


def test_help_check_and_plan_answer_at_once_and_without_torch(api_recipe: Path) -> None:
    """In the processor's seconds, as other tests run beside; torch alone would take more than two."""
    for arguments in (["--help"], ["check", str(api_recipe)], ["plan", str(api_recipe)]):
        code = f"""
import sys
sys.argv = ["distill", *{arguments!r}]
from distill.cli import main
try:
    main()
except SystemExit as done:
    assert not done.code, done.code
print("HEAVY", [m for m in ("torch", "transformers", "datasets", "trl", "openai") if m in sys.modules])
"""
        seconds = []
        for _ in range(3):
            started = os.times()
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
            ended = os.times()
            user, system = ended.children_user, ended.children_system
            seconds.append(user + system - started.children_user - started.children_system)
        assert done.returncode == 0, done.stderr
        assert done.stdout.rstrip().endswith("HEAVY []")
        assert min(seconds) < (0.5 if len(arguments) == 1 else 1.5), (arguments, seconds)


def test_check_lists_all_mistakes_and_exits_2(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("nme: x\ntrain: 3\n")
    done = distill("check", str(bad), "recipes/demo.yaml")
    assert done.returncode == 2
    assert "recipes/demo.yaml: ok" in done.stdout
    assert f"{bad}:1:1: nme: unknown key; did you mean 'name'?" in done.stderr
    assert f"{bad}:2:1: train: " in done.stderr
    assert "Traceback" not in done.stderr


def test_the_schema_is_json() -> None:
    schema = json.loads(distill("check", "--schema").stdout)
    assert schema["title"] == "Recipe"


def test_a_bad_recipe_stops_every_verb_with_code_2(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: x\nsurprise: 1\n")
    for verb in ("plan", "generate", "train", "quantize", "evaluate", "report", "run", "serve"):
        done = distill(verb, str(bad))
        assert done.returncode == 2, (verb, done.stderr)
        assert "unknown key" in done.stderr and "Traceback" not in done.stderr


def test_python_m_and_the_console_script_are_the_same() -> None:
    script = Path(sys.executable).with_name("distill")
    ours = subprocess.run([script, "--help"], capture_output=True, text=True)
    assert ours.returncode == 0
    assert ours.stdout.splitlines()[2:] == distill("--help").stdout.splitlines()[2:]
