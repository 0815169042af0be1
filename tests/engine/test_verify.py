"""Speculative sampling changes no distribution: chi-square tests with fixed seeds against exact probabilities."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
import transformers as hf

from distill.engine import sampler
from distill.engine.runner import Engine, EngineConfig
from distill.engine.sequence import Sequence
from distill.engine.speculative.speculation import Draft
from distill.engine.speculative.verify import DRAFT_STREAM, Proposal, verify
from distill.engine.types import SamplingParams

P = torch.tensor([0.40, 0.30, 0.15, 0.10, 0.05])
Q = torch.tensor([0.10, 0.20, 0.10, 0.35, 0.25])
PLAIN = SamplingParams(temperature=1.0)


def chi_square(observed: torch.Tensor, expected: torch.Tensor) -> float:
    """Standard deviations that the statistic lies above its mean, after Wilson and Hilferty's cube root; cells that
    expect fewer than 5 are pooled. What cannot happen must not have happened."""
    assert int(observed[expected == 0].sum()) == 0
    few = expected < 5
    seen = torch.cat([observed[~few], observed[few].sum()[None]]) if few.any() else observed
    mean = torch.cat([expected[~few], expected[few].sum()[None]]) if few.any() else expected
    seen, mean = seen[mean > 0].double(), mean[mean > 0].double()
    freedom = len(mean) - 1
    statistic = float(((seen - mean) ** 2 / mean).sum())
    spread = 2 / (9 * freedom)
    return float(((statistic / freedom) ** (1 / 3) - (1 - spread)) / spread**0.5)


def _sequence(seed: int, params: SamplingParams, output: list[int]) -> Sequence:
    return Sequence("x", [0, *output], 1, params, seed, 99, frozenset())


def _filtered(probs: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """One distribution [V] at the temperature and through the filters, by their definitions."""
    scaled = probs.double() ** (1 / params.temperature)
    scaled /= scaled.sum()
    order = scaled.argsort(descending=True)
    kept = torch.zeros_like(scaled, dtype=torch.bool)
    pool = order[: params.top_k or len(order)]
    total, mass = scaled[pool].sum(), 0.0
    for token in pool.tolist():
        if mass < params.top_p * total:
            kept[token] = True
        mass += float(scaled[token])
    kept &= scaled >= params.min_p * scaled.max()
    scaled[~kept] = 0
    return scaled / scaled.sum()


def _runs(draws: int, params: SamplingParams, guesses: int) -> list[list[int]]:
    """What verification makes of guesses that were drawn from Q, everywhere, where the target says P, everywhere."""
    columns: list[torch.Tensor] = []
    rows: list[torch.Tensor] = []
    sequences = [_sequence(seed, params, []) for seed in range(draws)]
    for _ in range(guesses):
        probs = sampler.distribution(Q.log().expand(draws, -1), sequences)
        rows.append(probs / probs.sum(-1, keepdim=True))
        columns.append(sampler.draw(probs, [sampler.child_seed(s.seed, DRAFT_STREAM) for s in sequences], sequences))
        for sequence, token in zip(sequences, columns[-1].tolist(), strict=True):
            sequence.token_ids.append(token)
    proposals = [Proposal(s.output_ids, [row[i] for row in rows]) for i, s in enumerate(sequences)]
    logits = P.log().expand(draws * (guesses + 1), -1).clone()
    return [verdict.tokens for verdict in verify(logits, sequences, proposals)]


@pytest.mark.parametrize(
    "params",
    [
        PLAIN,
        SamplingParams(temperature=0.6),
        SamplingParams(temperature=1.5, top_k=3),
        SamplingParams(temperature=1.0, top_p=0.75),
        SamplingParams(temperature=1.0, min_p=0.3),
    ],
    ids=["plain", "cold", "top-k", "top-p", "min-p"],
)
def test_each_place_of_a_run_is_distributed_as_the_target_says(params: SamplingParams) -> None:
    exact, drafted = _filtered(P, params), _filtered(Q, params)
    runs = _runs(4000, params, 3)
    for place in range(4):
        found = [run[place] for run in runs if len(run) > place]
        observed = torch.bincount(torch.tensor(found), minlength=5)
        assert chi_square(observed, exact * len(found)) < 3.5, f"place {place}"
        if place == 0:
            assert chi_square(observed, drafted.clamp_min(1e-9) * len(found)) > 10  # the test would see the draft's own
    # a guess stands with probability sum of min(p, q)
    overlap = float(torch.minimum(exact, drafted).sum())
    accepted = sum(len(run) > 1 for run in runs) / len(runs)
    assert accepted == pytest.approx(overlap, abs=4 * (overlap * (1 - overlap) / len(runs)) ** 0.5 + 1e-9)


def test_the_rule_by_hand() -> None:
    """p = q: every guess stands. Disjoint: none does, and the token is drawn from p."""
    same = torch.tensor([0.5, 0.5, 0.0])
    sequences = [_sequence(seed, PLAIN, [seed % 2]) for seed in range(40)]
    verdicts = verify(same.log().expand(80, -1).clone(), sequences, [Proposal(s.output_ids, [same]) for s in sequences])
    assert all(v.num_accepted == 1 and v.tokens[0] == s.output_ids[0] for v, s in zip(verdicts, sequences, strict=True))
    other = torch.tensor([0.0, 0.0, 1.0])
    sequences = [_sequence(seed, PLAIN, [2]) for seed in range(40)]
    verdicts = verify(same.log().expand(80, -1).clone(), sequences, [Proposal([2], [other]) for _ in sequences])
    assert all(v.num_accepted == 0 for v in verdicts) and {v.tokens[0] for v in verdicts} == {0, 1}
    greedy = replace(PLAIN, temperature=0.0)
    logits = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    for guess, expected in (([1, 2], [1, 2, 0]), ([1, 1], [1, 2]), ([0, 2], [1])):
        (verdict,) = verify(logits.clone(), [_sequence(0, greedy, guess)], [Proposal(guess)])
        assert verdict.tokens == expected and verdict.num_accepted == len(expected) - 1


def _tiny(seed: int) -> hf.PreTrainedModel:
    """A Llama over six tokens whose distributions are uneven."""
    torch.manual_seed(seed)
    config = hf.LlamaConfig(
        vocab_size=6,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return hf.LlamaForCausalLM(config).float().eval()


@torch.inference_mode()
def _exact(model: hf.PreTrainedModel, prompt: list[int], length: int, params: SamplingParams) -> torch.Tensor:
    """The probability of every continuation of that length, [6 ** length], by the chain rule."""
    texts = list(itertools.product(range(6), repeat=length))
    ids = torch.tensor([[*prompt, *text] for text in texts])
    probs = model(input_ids=ids).logits[:, len(prompt) - 1 : -1].softmax(-1)
    cache: dict[tuple[int, ...], torch.Tensor] = {}
    found = []
    for row, text in zip(probs, texts, strict=True):
        value = 1.0
        for place, token in enumerate(text):
            before = text[:place]
            if before not in cache:
                cache[before] = _filtered(row[place], params)
            value *= float(cache[before][token])
        found.append(value)
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize(
    "params", [PLAIN, SamplingParams(temperature=0.7, top_p=0.9, top_k=5, min_p=0.02)], ids=["plain", "filtered"]
)
def test_texts_of_the_engine_are_distributed_as_the_model_says(params: SamplingParams) -> None:
    """All texts of four tokens: one by prefill, then runs of at most three, through caches, batches and rejections."""
    target, guesser, prompt, draws = _tiny(0), _tiny(1), [3, 1, 4], 4000
    engine = Engine(target, None, EngineConfig(block_size=4, max_batch=200), draft=Draft(guesser, None, 2))
    each = [replace(params, max_tokens=4, seed=seed) for seed in range(draws)]
    texts = [c.token_ids for c in engine.generate([prompt] * draws, each)]
    index = torch.tensor([int("".join(map(str, text)), 6) for text in texts])
    observed = torch.bincount(index, minlength=6**4)
    expected = _exact(target, prompt, 4, params) * draws
    assert float(expected.sum()) == pytest.approx(draws)
    assert chi_square(observed, expected) < 3.5
    assert 0.2 < engine.stats.acceptance_rate < 0.9
    # and the test would have seen the draft's own distribution
    assert chi_square(observed, _exact(guesser, prompt, 4, params).clamp_min(1e-12) * draws) > 10
