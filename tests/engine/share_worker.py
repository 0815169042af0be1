"""One process of two that share models: the first generates, and each writes down what it holds. Run by torchrun."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from distill.engine.parallel import Team
from distill.engine.runner import Engine, EngineConfig
from distill.engine.types import SamplingParams
from distill.model.load import load_model

CONFIG = EngineConfig(max_batch=4, block_size=4, num_blocks=16, prefill_tokens=7)
PROMPTS = [[5 + (3 * i + j) % 90 for j in range(n)] for i, n in enumerate((3, 12, 20, 7, 20))]
PROMPTS.append(PROMPTS[2][:16] + [9, 8])  # begins like another one
PARAMS = [
    SamplingParams(max_tokens=24, temperature=t, seed=i, ignore_eos=True, prompt_logprobs=s)
    for i, (t, s) in enumerate([(0.0, None), (0.0, 0), (1.0, None), (0.0, None), (0.0, None), (0.0, 1)])
]


def main(folder: Path) -> None:
    """Each model under `models/`; what a process found goes to `<model>.<rank>.json`."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    for model in sorted((folder / "models").iterdir()):
        engine = Engine(load_model(model, dtype="float32", num_shards=size), None, CONFIG, team=Team())
        assert engine.cache is not None
        held: dict[str, object] = {
            "bytes_per_token": engine.cache.bytes_per_token,
            "kv_heads": engine.cache.keys[0].shape[1],
        }
        if rank:
            engine.follow()
        else:
            done = engine.generate(PROMPTS, PARAMS)
            engine.dismiss()
            held["tokens"] = [c.token_ids for c in done]
            held["scores"] = [[t.logprob for t in c.prompt_logprobs or () if t is not None] for c in done]
            held["preemptions"] = engine.stats.preemptions
        (folder / f"{model.name}.{rank}.json").write_text(json.dumps(held))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
