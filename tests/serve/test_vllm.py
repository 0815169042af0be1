"""`distill serve --backend vllm` against a command of that name that records what it was given."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distill.errors import DistillError
from distill.recipe.schema import Serve
from distill.serve.target import resolve
from distill.serve.vllm import command

ROOT = Path(__file__).parents[2]
FAKE = """#!{python}
import json, os, sys
json.dump({{"argv": sys.argv[1:], "key": os.environ.get("VLLM_API_KEY"), "pid": os.getpid()}}, open({record!r}, "w"))
sys.exit(7)
"""


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """Where the fake writes; it stands in a folder `bin`."""
    fake = tmp_path / "bin" / "vllm"
    fake.parent.mkdir()
    fake.write_text(FAKE.format(python=sys.executable, record=str(tmp_path / "record.json")))
    fake.chmod(0o755)
    return tmp_path / "record.json"


def _run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", **environment}
    whole = [sys.executable, "-m", "distill", "serve", "--backend", "vllm", *arguments]
    return subprocess.run(whole, capture_output=True, text=True, cwd=ROOT, timeout=120, env=variables)


def test_the_command_is_vllms_own(record: Path, tmp_path: Path) -> None:
    done = _run(tmp_path, "some/model", "--port", "8123", "--max-batch", "64", "--kv-gib", "2.5", "--dtype", "bfloat16")
    assert done.returncode == 7, done.stderr  # we became the command: its exit code is ours
    written = json.loads(record.read_text())
    words = written["argv"]
    assert words[:2] == ["serve", "some/model"]
    assert dict(zip(words[2::2], words[3::2], strict=True)) == {
        "--host": "127.0.0.1",
        "--port": "8123",
        "--served-model-name": "some/model",
        "--generation-config": "vllm",
        "--max-num-seqs": "64",
        "--kv-cache-memory-bytes": str(5 << 29),
        "--dtype": "bfloat16",
    }
    assert written["key"] is None


def test_an_open_host_needs_a_key_which_is_not_on_the_command_line(record: Path, tmp_path: Path) -> None:
    done = _run(tmp_path, "some/model", "--host", "0.0.0.0")
    assert done.returncode == 1 and "API key" in done.stderr and not record.exists()
    arguments = ("some/model", "--host", "0.0.0.0", "--api-key-env", "MY_KEY")
    assert _run(tmp_path, *arguments, MY_KEY="canary-key", VLLM_API_KEY="other").returncode == 7
    written = json.loads(record.read_text())
    assert written["key"] == "canary-key" and "canary-key" not in " ".join(written["argv"])


def test_what_was_not_set_is_vllms_default() -> None:
    words = command("m", model_name="m", settings=Serve())
    assert words[2::2] == ["--host", "--port", "--served-model-name", "--generation-config"]
    words = command("m", model_name="m", settings=Serve(prefill_tokens=2048, max_batch=32, block_size=16))
    flags = dict(zip(words[2::2], words[3::2], strict=True))
    assert (flags["--max-num-batched-tokens"], flags["--max-num-seqs"], flags["--block-size"]) == ("2080", "32", "16")


def test_what_vllm_cannot_do_is_refused_by_name(tmp_path: Path) -> None:
    for settings, name in (
        (Serve(max_queue=8), "serve.max_queue"),
        (Serve(kv_dtype="int8"), "serve.kv_dtype"),
        (Serve(port=0), "--port"),
    ):
        with pytest.raises(DistillError) as caught:
            command("m", model_name="m", settings=settings)
        assert name in f"{caught.value} {caught.value.remedy}"
    assert "--device" in _run(tmp_path, "some/model", "--device", "cpu").stderr


def test_a_recipe_says_what_the_command_line_does_not(tmp_path: Path) -> None:
    plain = resolve("m", overrides=(), variant=None, model_name=None, flags={"port": 1, "host": None})
    assert (plain.path, plain.name, plain.settings) == ("m", "m", Serve(port=1))
    smoke, changes = str(ROOT / "recipes" / "smoke.yaml"), (f"output_dir={tmp_path}/runs", "serve.max_batch=9")
    teacher = resolve(smoke, overrides=changes, variant="teacher", model_name=None, flags={"kv_gib": 2.0})
    assert teacher.name == "teacher" and (teacher.settings.max_batch, teacher.settings.kv_gib) == (9, 2.0)
    assert {"max_batch", "kv_gib"} <= teacher.settings.model_fields_set
    with pytest.raises(DistillError, match="not made yet"):
        resolve(smoke, overrides=changes, variant=None, model_name=None, flags={})
    with pytest.raises(DistillError, match="go with a recipe"):
        resolve("m", overrides=(), variant="x", model_name=None, flags={})
    with pytest.raises(DistillError, match="is not set"):
        resolve("m", overrides=(), variant=None, model_name=None, flags={"api_key_env": "NO_SUCH_KEY"}).api_key()
