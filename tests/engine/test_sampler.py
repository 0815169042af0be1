"""Sampling against hand-computed distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from distill.engine import sampler
from distill.engine.sequence import Sequence
from distill.engine.types import SamplingParams
from distill.errors import EngineError


def _sequence(params: SamplingParams, *, seed: int = 0, prompt: list[int] | None = None, output: int = 0) -> Sequence:
    prompt = prompt or [0]
    return Sequence(
        request_id="x",
        token_ids=prompt + [1] * output,
        num_prompt=len(prompt),
        params=params,
        seed=seed,
        max_length=99,
        stop_ids=frozenset({2}),
    )


def _frequencies(probs: list[float], params: SamplingParams, draws: int = 4000) -> list[float]:
    """Sample from one distribution under many seeds."""
    logits = torch.tensor(probs).log().expand(draws, -1).clone()
    tokens, _ = sampler.sample(logits, [_sequence(params, seed=seed) for seed in range(draws)])
    return (torch.bincount(torch.tensor(tokens), minlength=len(probs)) / draws).tolist()


@pytest.mark.parametrize(
    "fields,expected",
    [
        ({"temperature": 1.0}, [0.4, 0.3, 0.2, 0.1]),
        ({"temperature": 0.5}, [16 / 30, 9 / 30, 4 / 30, 1 / 30]),  # p^2, normalised
        ({"temperature": 1.0, "top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.7}, [4 / 7, 3 / 7, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.71}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({"temperature": 1.0, "top_k": 3, "top_p": 0.4}, [1, 0, 0, 0]),  # 0.4 / 0.9 > 0.4
        ({"temperature": 1.0, "top_k": 3, "top_p": 0.5}, [4 / 7, 3 / 7, 0, 0]),
        ({"temperature": 1.0, "min_p": 0.49}, [4 / 9, 3 / 9, 2 / 9, 0]),  # at least 0.49 of the best
        ({"temperature": 1.0, "top_p": 0.0001}, [1, 0, 0, 0]),
        ({"temperature": 0.0}, [1, 0, 0, 0]),
    ],
)
def test_distribution(fields: dict[str, float], expected: list[float]) -> None:
    found = _frequencies([0.4, 0.3, 0.2, 0.1], SamplingParams(**fields))  # type: ignore[arg-type]
    for frequency, probability in zip(found, expected, strict=True):
        assert frequency == pytest.approx(probability, abs=0.03)
        assert (frequency == 0) == (probability == 0)


def test_top_p_over_a_flat_vocabulary_sorts_it_all() -> None:
    vocab = 1000
    logits = torch.zeros(64, vocab)
    logits[:, :500] += 0.01  # half of the mass and a little more
    params = SamplingParams(temperature=1.0, top_p=0.5)
    tokens, _ = sampler.sample(logits, [_sequence(params, seed=seed) for seed in range(64)])
    assert max(tokens) < 500
    assert max(tokens) >= 128  # beyond the candidates looked at first


def test_rows_do_not_mix() -> None:
    """Each row's own parameters and seed decide, whatever stands beside it."""
    torch.manual_seed(0)
    logits = torch.randn(6, 50)
    params = [
        SamplingParams(temperature=1.0),
        SamplingParams(),
        SamplingParams(temperature=0.7, top_k=5),
        SamplingParams(temperature=1.3, top_p=0.9),
        SamplingParams(temperature=1.0, min_p=0.1, presence_penalty=1.0, logprobs=2),
        SamplingParams(temperature=1.0, min_tokens=3),
    ]
    sequences = [_sequence(p, seed=100 + i, output=i) for i, p in enumerate(params)]
    together, _ = sampler.sample(logits.clone(), sequences)
    alone = [sampler.sample(logits[i : i + 1].clone(), [sequences[i]])[0][0] for i in range(6)]
    assert together == alone
    order = [3, 0, 5, 1, 4, 2]
    shuffled, _ = sampler.sample(logits[order].clone(), [sequences[i] for i in order])
    assert shuffled == [together[i] for i in order]


def test_penalties_by_hand() -> None:
    logits = torch.tensor([[2.0, 1.9, -1.0, 0.5]])
    # token 1 is in the output twice, token 2 in the prompt
    params = SamplingParams(repetition_penalty=2.0, presence_penalty=0.25, frequency_penalty=0.5)
    sequence = _sequence(params, prompt=[2], output=2)
    row = logits[0].clone()
    sampler._penalise(row, sequence)
    assert row.tolist() == pytest.approx([2.0, 1.9 / 2 - 0.25 - 2 * 0.5, -2.0, 0.5])


def test_min_tokens_forbids_the_end() -> None:
    logits = torch.tensor([[0.0, 1.0, 9.0]])  # token 2 stops
    assert sampler.sample(logits.clone(), [_sequence(SamplingParams(min_tokens=2), output=1)])[0] == [1]
    assert sampler.sample(logits.clone(), [_sequence(SamplingParams(min_tokens=2), output=2)])[0] == [2]


def test_logprobs_are_of_the_model_itself() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    params = SamplingParams(temperature=0.3, presence_penalty=2.0, logprobs=2)
    tokens, reports = sampler.sample(logits, [_sequence(params, prompt=[0, 0], output=1)])
    report = reports[0]
    assert report is not None and report.token_id == tokens[0]
    assert [t for t, _ in report.top] == [0, 1]
    assert [p for _, p in report.top] == pytest.approx([math.log(0.5), math.log(0.25)])


def test_uniform_numbers() -> None:
    seeds, positions = np.meshgrid(np.arange(100, dtype=np.uint64), np.arange(100, dtype=np.uint64))
    values = sampler.uniforms(seeds.ravel(), positions.ravel())
    assert values.min() >= 0.0 and values.max() < 1.0
    assert len(np.unique(values)) == 10_000
    assert values.mean() == pytest.approx(0.5, abs=0.01)
    assert values.var() == pytest.approx(1 / 12, abs=0.005)
    grid = values.reshape(100, 100)
    assert abs(np.corrcoef(grid[0], grid[1])[0, 1]) < 0.3 and abs(np.corrcoef(grid[:, 0], grid[:, 1])[0, 1]) < 0.3


def test_child_seeds_differ() -> None:
    assert sampler.child_seed(5, 0) == 5
    assert len({sampler.child_seed(seed, index) for seed in range(20) for index in range(20)}) == 400


def test_score() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
    found = sampler.score(logits, [1, 0], 2)
    assert [item.logprob for item in found] == pytest.approx([math.log(0.5), math.log(0.75)])
    assert [[token for token, _ in item.top] for item in found][1] == [0, 1]
    assert len(sampler.score(logits, [1, 0], 0)[0].top) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": -0.1},
        {"top_p": 0.0},
        {"top_k": -1},
        {"min_p": 1.5},
        {"max_tokens": 0},
        {"stop": ("",)},
        {"prompt_logprobs": -1},
        {"logit_bias": ((1, 101.0),)},
    ],
)
def test_bad_parameters_are_named(fields: dict[str, object]) -> None:
    with pytest.raises(EngineError, match=next(iter(fields))):
        SamplingParams(**fields)  # type: ignore[arg-type]
