"""The serve stage: each variant answers one chat through the engine, and is measured."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from distill.recipe.schema import Recipe
from distill.runs import Run, StageFolder, digest_of, path_digest

_OF_A_SERVER = {"host", "port", "api_key_env", "draft", "draft_tokens"}  # keys that no measurement depends on
_GPU_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")


def run(recipe: Recipe, run: Run, *, console: Console) -> None:
    """Smoke-test and measure every variant that is not done, each in `serve-<variant>/`."""
    device = _device_name()
    for name, path in run.variants().items():
        folder = run.stage("serve", name)
        inputs = {
            "model": path_digest(path),
            "serve": digest_of(recipe.serve.model_dump(mode="json", exclude=_OF_A_SERVER)),
            "device": device,
        }
        if folder.is_done(inputs):
            console.print(f"serve {name}: done before, {_line(folder)}")
            continue
        from distill.serve.measure import measure_checkpoint  # torch and transformers, only where there is work

        folder.begin(inputs)
        student = recipe.student
        trust = name != "teacher" and student is not None and student.trust_remote_code
        metrics = measure_checkpoint(path, recipe.serve, trust_remote_code=trust)
        folder.finish(recipe, inputs, metrics=metrics)
        console.print(f"serve {name}: {_line(folder)}")


def _device_name() -> str:
    """The accelerator's name or "cpu"; torch, which takes seconds to import, is asked only where there is a driver."""
    if not any(Path(driver).exists() for driver in _GPU_DRIVERS):
        return "cpu"
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _line(folder: StageFolder) -> str:
    """A finished variant in a few words."""
    metrics = folder.require().metrics
    return (
        f"prefill {metrics['prefill_tokens_per_second']:,.0f} and decode {metrics['decode_tokens_per_second']:,.0f}"
        f" tokens/s at batch {metrics['batch']}, {metrics['weight_bytes'] / 2**20:.1f} MiB of weights,"
        f" {metrics['kv_bytes_per_token']:,} KV bytes a token"
    )
