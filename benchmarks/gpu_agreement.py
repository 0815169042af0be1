"""How often greedy 16-bit tokens are those of transformers, and how often either's are those of float32."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence

import torch
import transformers as hf

from distill.engine.runner import Engine
from distill.engine.types import SamplingParams

_PROMPT = 64
_NEW = 16
_BATCH = 256


def agreement(engine: Engine, model: hf.PreTrainedModel, count: int, exact: int) -> dict[str, dict[str, float]]:
    """Of `count` prompts: the share whose first token, and whose all tokens are the same, and the mean length of the
    common beginning. Both round in 16 bits, each in its own places; how far either then is from the tokens of the same
    weights in float32 (the first `exact` prompts) says what is noise."""
    rng = random.Random(2)
    prompts = [[rng.randrange(1000, 150_000) for _ in range(_PROMPT)] for _ in range(count)]
    found = engine.generate(prompts, SamplingParams(max_tokens=_NEW, ignore_eos=True))
    ours, theirs = [completion.token_ids for completion in found], _generate(model, prompts)
    result = {"engine and transformers": _compare(ours, theirs)}
    wide = copy.deepcopy(model).float()
    truth = _generate(wide, prompts[:exact])
    del wide
    result["engine and float32"] = _compare(ours[:exact], truth)
    result["transformers and float32"] = _compare(theirs[:exact], truth)
    return result


def _generate(model: hf.PreTrainedModel, prompts: list[list[int]]) -> list[tuple[int, ...]]:
    rows: list[tuple[int, ...]] = []
    for start in range(0, len(prompts), _BATCH):
        ids = torch.tensor(prompts[start : start + _BATCH], device="cuda")
        mask = torch.ones_like(ids)
        out = model.generate(ids, attention_mask=mask, max_new_tokens=_NEW, do_sample=False, pad_token_id=0)
        rows += [tuple(row[_PROMPT:].tolist()) for row in out]
    return rows


def _compare(ours: Sequence[tuple[int, ...]], theirs: Sequence[tuple[int, ...]]) -> dict[str, float]:
    common = [
        next((i for i, (a, b) in enumerate(zip(x, y, strict=True)) if a != b), _NEW)
        for x, y in zip(ours, theirs, strict=True)
    ]
    count = len(common)
    return {
        "prompts": count,
        "first token": sum(n > 0 for n in common) / count,
        f"all {_NEW} tokens": sum(n == _NEW for n in common) / count,
        "mean common tokens": sum(common) / count,
    }
