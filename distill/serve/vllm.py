"""`distill serve --backend vllm`: the same checkpoint behind the same address, by vLLM's own command."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from distill.errors import DistillError
from distill.recipe.schema import Serve
from distill.serve.address import refuse_open_host

# keys of the serve section -> vLLM's flags; only what was set is passed, the rest is vLLM's own default
_FLAGS = {"max_batch": "--max-num-seqs", "block_size": "--block-size", "dtype": "--dtype"}
_OURS_ALONE = {
    "max_queue": "it queues without a bound",
    "kv_dtype": "the 8-bit formats of its KV cache are others",
    "draft": "its own speculative decoding has flags of its own",
    "draft_tokens": "its own speculative decoding has flags of its own",
}
_KEY_VARIABLE = "VLLM_API_KEY"  # of vLLM; unlike a flag, it does not show in the list of processes


def command(path: str, *, model_name: str, settings: Serve) -> list[str]:
    """vLLM's command line. What it cannot do is refused by name; sampling defaults are OpenAI's, as with our engine."""
    given = set(settings.model_fields_set)
    for key, why in _OURS_ALONE.items():
        if key in given:
            raise DistillError(f"serve.{key} cannot go to vLLM: {why}", remedy=f"leave serve.{key} out")
    if settings.port == 0:
        raise DistillError("vLLM picks no free port", remedy="give --port a number above 0")
    words = ["serve", path, "--host", settings.host, "--port", str(settings.port), "--served-model-name", model_name]
    words += ["--generation-config", "vllm"]
    if "prefill_tokens" in given:  # vLLM's budget of a step holds the decoded tokens as well, one a sequence
        words += ["--max-num-batched-tokens", str(settings.prefill_tokens + settings.max_batch)]
        given.add("max_batch")
    values = settings.model_dump()
    for key, flag in _FLAGS.items():
        if key in given:
            words += [flag, str(values[key])]
    if "kv_gib" in given:
        words += ["--kv-cache-memory-bytes", str(int(settings.kv_gib * (1 << 30)))]
    return words


def find_executable() -> str:
    """vLLM's command: on the PATH, or beside this interpreter."""
    beside = Path(sys.executable).with_name("vllm")
    found = shutil.which("vllm") or (str(beside) if os.access(beside, os.X_OK) else None)
    if found is None:
        raise DistillError("there is no vllm command", remedy="pip install 'distill[vllm]' on a machine with a GPU")
    return found


def exec_vllm(
    path: str, *, model_name: str, settings: Serve, api_key: str | None, environment: Mapping[str, str]
) -> NoReturn:
    """Become vLLM. The key goes by the environment; a host that others can reach needs one, as with our server."""
    refuse_open_host(settings.host, api_key)
    words = command(path, model_name=model_name, settings=settings)
    executable = find_executable()
    inherited = {name: value for name, value in environment.items() if name != _KEY_VARIABLE}
    changed = {**inherited, _KEY_VARIABLE: api_key} if api_key is not None else inherited
    os.execve(executable, [executable, *words], changed)
