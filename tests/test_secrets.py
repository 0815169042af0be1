"""No secret in any file: a canary key goes through a whole run with a teacher that needs it, W&B offline included."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from tests.teacher.mock import Body, MockTeacher, Reply, completion, error

ROOT = Path(__file__).parents[1]
CANARY = "sk-canary-5f1d2c7be0a94e63"
OTHER_CANARIES = {"WANDB_API_KEY": "c0ffee" * 6 + "abcd", "HF_TOKEN": "hf_canaryCanaryCanaryCanary"}


def answer(body: Body, number: int) -> Reply:
    """Answers; but the fifth request is refused with the key in the provider's words."""
    if number == 5:
        return error(400, f"this request with key {CANARY} breaks our policy")
    return completion(f"The answer is {number}.")


def test_no_file_of_a_run_holds_a_key(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    recipe = tmp_path / "canary.yaml"
    with MockTeacher(answer, key=CANARY) as mock:
        recipe.write_text(
            f"""name: canary
output_dir: {tmp_path}/runs
teacher: {{model: mock, base_url: '{mock.base_url}', api_key_env: CANARY_KEY, max_concurrency: 4}}
student: {{model: data/student-base, dtype: float32}}
generate:
- {{name: rows, kind: instruction, prompts: {{source: tasks, count: 16}}}}
train:
- {{name: sft, objective: sft, data: [rows], max_steps: 2, batch_size: 4, micro_batch_size: 4, logging_steps: 1}}
serve: {{max_batch: 2, kv_gib: 0.1}}
track: {{wandb: offline}}
"""
        )
        environment = os.environ | OTHER_CANARIES | {"CANARY_KEY": CANARY, "HOME": str(home)}
        command = [sys.executable, "-m", "distill", "run", str(recipe)]
        said = ""
        for code in (3, 0):  # the refused request is told of once; it is not asked again
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
            assert done.returncode == code, done.stderr
            said += done.stdout + done.stderr
    assert mock.keys == [f"Bearer {CANARY}"] * 16

    run = tmp_path / "runs/canary"
    files = [path for path in [*run.rglob("*"), *home.rglob("*")] if path.is_file()]
    assert {"report.html", "ledger.sqlite", "manifest.json", "model.safetensors", "metrics.jsonl"} <= {
        path.name for path in files
    }
    assert [path for path in files if path.suffix == ".wandb"], "W&B wrote nothing"
    secrets = [secret.encode() for secret in (CANARY, *OTHER_CANARIES.values())]
    for path in files:
        found = path.read_bytes()
        assert not any(secret in found for secret in secrets), f"a key is in {path}"
    assert not any(secret in said.encode() for secret in secrets)
    assert b"breaks our policy" in (run / "ledger.sqlite").read_bytes(), "the refusal is recorded, without the key"


@pytest.mark.parametrize("auth", ["key", "entra"])
def test_no_file_of_a_run_on_azure_holds_its_key_or_token(auth: str, tmp_path: Path) -> None:
    """The provider repeats what it was sent; transport, ledger, log, manifest, card and W&B's files are searched."""
    sent = {"key": ("api-key", CANARY), "entra": ("authorization", f"Bearer {CANARY}")}[auth]
    recipe = tmp_path / "canary.yaml"
    with MockTeacher(answer, key=CANARY) as mock:
        root = mock.base_url.removesuffix("/v1")
        recipe.write_text(
            f"""name: canary
output_dir: {tmp_path}/runs
teacher: {{kind: azure, model: mock, base_url: '{root}', api_version: 2024-10-21, auth: {auth}}}
generate:
- {{name: rows, kind: instruction, prompts: {{source: tasks, count: 16}}}}
track: {{wandb: offline}}
"""
        )
        environment = os.environ | OTHER_CANARIES | {"AZURE_OPENAI_API_KEY": CANARY, "HOME": str(tmp_path)}
        environment |= {"AZURE_OPENAI_AD_TOKEN": CANARY}
        command = [sys.executable, "-m", "distill", "generate", str(recipe)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
        assert done.returncode == 3, done.stderr  # one request is refused
    assert [headers[sent[0]] for headers in mock.headers] == [sent[1]] * 16
    assert set(mock.targets) == {"/openai/deployments/mock/chat/completions?api-version=2024-10-21"}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"ledger.sqlite", "manifest.json", "README.md", "metrics.jsonl"} <= {path.name for path in files}
    for path in files:
        assert CANARY.encode() not in path.read_bytes(), f"a secret is in {path}"
    assert CANARY not in done.stdout + done.stderr


def test_the_search_would_find_one(tmp_path: Path) -> None:
    """W&B's log is not compressed, so that bytes are enough to search in."""
    assert CANARY.encode() not in zlib.compress(CANARY.encode() * 3)
    (tmp_path / "x").write_bytes(b"\x00" + CANARY.encode())
    assert CANARY.encode() in (tmp_path / "x").read_bytes()
