"""transformers with a static cache and torch.compile at batch 1, in a process of its own that may take a minute.

    python -m benchmarks.gpu_compiled MODEL [--new 128]

generate() compiles the decode step by itself where the cache is static, and captures it as a CUDA graph. Prints JSON:
generated tokens per second of wall time, the prompt of 128 tokens included, and the seconds of the warm-up, which is
the same call once before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

import torch
import transformers as hf

from benchmarks.gpu_models import MODELS, make_model


def compiled_speed(name: str, *, new: int, limit_seconds: float = 60.0) -> dict[str, float]:
    """What this module prints, of a child. TimeoutError where compiling takes too long."""
    command = [sys.executable, "-m", "benchmarks.gpu_compiled", name, "--new", str(new)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_seconds, check=True)
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"not compiled within {limit_seconds:.0f} s") from error
    except subprocess.CalledProcessError as error:
        raise RuntimeError(error.stderr[-300:]) from error
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--new", type=int, default=128)
    options = parser.parse_args()
    hf.logging.set_verbosity_error()
    model = make_model(options.model)
    ids = torch.arange(1000, 1128, device="cuda").unsqueeze(0)
    seconds = []
    for _ in range(3):  # a CUDA graph is recorded in the second run of what is compiled in the first
        torch.cuda.synchronize()
        started = time.perf_counter()
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=options.new,
            do_sample=False,
            pad_token_id=0,
            cache_implementation="static",
        )
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    print(json.dumps({"tokens/s": options.new / min(seconds[1:]), "warm-up seconds": seconds[0]}))


if __name__ == "__main__":
    main()
