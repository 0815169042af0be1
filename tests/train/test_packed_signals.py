"""Stored distributions read back: each form by hand, many rows at once, and on a GPU without waiting for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.objectives.sparse import SparseTargets
from distill.teacher.forms import Sparse, encode_sampled
from distill.teacher.stored import About, Fingerprint, Record
from distill.teacher.tail_draws import encode_with_draws
from distill.teacher.top_k_form import encode_top_k
from distill.train.packed_signals import Packed, lay
from distill.train.set_bytes import _ranked
from tests.teacher.stored_rows import some_top_k

STEP, DRAWS = 0.0625, 50


def about(form: str, rows: int, *, step_nats: float = STEP, draws: int = 0) -> About:
    return About(form, Fingerprint(rows, "", "", ""), step_nats=step_nats, draws=draws)  # type: ignore[arg-type]


def laid(parts: Sequence[bytes], tokens: Sequence[int], of: About, *, tail_draws: bool = False) -> Packed:
    records = [Record(0, count, 0, packed) for count, packed in zip(tokens, parts, strict=True)]
    return lay(records, of, tail_draws=tail_draws)


def top_k_back(packed: bytes, tokens: int, rows: int, step_nats: float) -> SparseTargets:
    return laid([packed], [tokens], about("top_k", rows, step_nats=step_nats)).targets()


@pytest.mark.parametrize(("tokens", "k", "rows"), [(5, 6, 50), (3, 50, 50), (40, 1, 151_936), (9, 255, 151_936)])
@pytest.mark.parametrize("step_nats", [0.0625, 0.5])
def test_top_k_comes_back_within_its_steps_and_sums_to_one(tokens: int, k: int, rows: int, step_nats: float) -> None:
    found = some_top_k(tokens, k, rows)
    back = top_k_back(encode_top_k(found, rows, step_nats), tokens, rows, step_nats)
    order = np.lexsort((found.ids_E, np.repeat(np.arange(tokens), k)))
    np.testing.assert_array_equal(back.ids_E, found.ids_E[order])
    np.testing.assert_array_equal(back.offsets.diff(), found.counts_T)
    assert back.log_tail_N is not None and found.log_tail_T is not None
    np.testing.assert_allclose(back.log_tail_N, np.maximum(found.log_tail_T, -40), atol=1e-3)
    given, told = found.logprobs_E[order].reshape(tokens, k), back.logprobs_E.numpy().reshape(tokens, k)
    # Rounded by half a step (the likeliest perhaps by one and a half), then shifted to the mass that is left.
    off = (told - given) - np.median(told - given, -1, keepdims=True)
    assert np.abs(off).max() <= 2.01 * step_nats and np.abs(off).mean() < 0.6 * step_nats
    np.testing.assert_allclose(np.exp(told).sum(-1) + back.log_tail_N.exp().numpy(), 1.0, atol=1e-6)
    best = told == told.max(-1, keepdims=True)
    assert (best.sum(-1) == 1).all() and (np.argmax(told, -1) == np.argmax(given, -1)).all()


def test_top_k_by_hand() -> None:
    """Ids 2 and 9 of 16 rows: low bits 010, 001; high ones 0, 1 at places 0 and 2 of 3; levels 4, 0 in unary."""
    found = Sparse(np.array([2]), np.array([2, 9]), np.log(np.array([0.7, 0.7 / np.e**2], "f4")), np.zeros(1, "f4"))
    packed = encode_top_k(found, 16, 0.5)
    assert packed == bytes([2, 0, 0, 0, 0b001010, 0b101, 0b110000])  # count, tail, no low bits of levels, ...
    assert top_k_back(packed, 1, 16, 0.5).ids_E.tolist() == [2, 9]


def test_a_token_without_entries_has_all_its_mass_in_the_tail() -> None:
    found = Sparse(np.array([0, 1]), np.array([7]), np.zeros(1, np.float32), log_tail_T=np.array([0.0, -40.0], "f4"))
    back = top_k_back(encode_top_k(found, 10, STEP), 2, 10, STEP)
    assert back.log_tail_N is not None and back.log_tail_N[0] == 0 and back.offsets.tolist() == [0, 0, 1]
    assert back.logprobs_E[0].item() == pytest.approx(0, abs=1e-6) and back.ids_E.tolist() == [7]
    nothing = Sparse(np.zeros(2, int), np.zeros(0, int), np.zeros(0, np.float32), log_tail_T=np.zeros(2, "f4"))
    assert top_k_back(encode_top_k(nothing, 10, 0.5), 2, 10, 0.5).offsets.tolist() == [0, 0, 0]


def test_samples_come_back_exactly() -> None:
    weights = np.log(np.array([30, 20, 50, 1, 49]) / 50).astype(np.float32)
    found = Sparse(np.array([2, 1, 2]), np.array([4, 9, 0, 3, 2]), weights, entropy_T=np.array([0.5, 0, 1.25], "f4"))
    back = laid([encode_sampled(found, 10, 50)], [3], about("sampled", 10, draws=50)).targets()
    np.testing.assert_array_equal(back.ids_E, [4, 9, 0, 2, 3])
    np.testing.assert_allclose(back.logprobs_E.exp() * 50, [30, 20, 50, 49, 1], rtol=1e-6)
    assert back.entropy_N is not None
    np.testing.assert_allclose(back.entropy_N, [0.5, 0, 1.25], atol=0.5 * math.log(10) / 255 + 1e-6)


def test_draws_from_the_tail_come_back_as_a_whole_distribution() -> None:
    """Two tokens: a tail of 0.2 of which 3 of 4 draws fell on 5; no tail, from which nothing is drawn."""
    top = Sparse(np.array([2, 1]), np.array([7, 1, 4]), np.log(np.array([0.3, 0.5, 1.0], "f4")),
                 log_tail_T=np.log(np.array([0.2, 1e-30], "f4")))  # fmt: skip
    drawn = Sparse(np.array([2, 0]), np.array([5, 0]), np.log(np.array([0.75, 0.25], "f4")),
                   entropy_T=np.array([1.2, 0.0], "f4"))  # fmt: skip
    packed, of = encode_with_draws(top, drawn, 10, step_nats=0.01, draws=4), about("top_k", 10, step_nats=0.01, draws=4)
    back = laid([packed], [2], of, tail_draws=True).targets()
    assert back.offsets.tolist() == [0, 4, 5] and back.ids_E.tolist() == [1, 7, 0, 5, 4]
    np.testing.assert_allclose(back.logprobs_E.exp(), [0.5, 0.3, 0.05, 0.15, 1.0], rtol=0.01)
    assert back.entropy_N is not None
    np.testing.assert_allclose(back.entropy_N, [1.2, 0.0], atol=0.5 * math.log(10) / 255 + 1e-6)
    alone = laid([packed], [2], of).targets()
    np.testing.assert_array_equal(alone.ids_E, [1, 7, 4])
    assert alone.log_tail_N is not None
    np.testing.assert_allclose(alone.log_tail_N[0].exp(), 0.2, rtol=1e-3)


def many_rows(rows: int) -> list[tuple[int, Sparse, Sparse]]:
    """Rows of 0 to 40 tokens with 0 to 255 entries each: (tokens, top k, samples)."""
    rng = np.random.default_rng(0)
    found = []
    for tokens in (3, 0, 40, 1, 7):
        counts = rng.integers(0, 256, tokens)
        counts[rng.random(tokens) < 0.2] = 0
        ids = [rng.choice(rows, count, replace=False) for count in counts]
        ids_E = np.concatenate([*ids, np.zeros(0, int)])
        top = rng.normal(-8, 2, len(ids_E)).astype(np.float32)
        tails = rng.uniform(-20, -0.01, tokens).astype(np.float32)
        weights = np.log(rng.integers(1, DRAWS, len(ids_E)) / DRAWS).astype(np.float32)
        entropies = rng.uniform(0, 3, tokens).astype(np.float32)
        found.append((tokens, Sparse(counts, ids_E, top, tails), Sparse(counts, ids_E, weights, entropy_T=entropies)))
    return found


def of_forms(rows: int) -> dict[str, tuple[list[bytes], list[int], About, bool]]:
    """Every form of `many_rows`."""
    made = many_rows(rows)
    tokens = [count for count, _, _ in made]
    both = [encode_with_draws(top, drawn, rows, step_nats=STEP, draws=DRAWS) for _, top, drawn in made]
    return {
        "top k": ([encode_top_k(top, rows, STEP) for _, top, _ in made], tokens, about("top_k", rows), False),
        "sampled": (
            [encode_sampled(drawn, rows, DRAWS) for _, _, drawn in made],
            tokens,
            about("sampled", rows, draws=DRAWS),
            False,
        ),
        "draws": (both, tokens, about("top_k", rows, draws=DRAWS), True),
        "draws left out": (both, tokens, about("top_k", rows, draws=DRAWS), False),
    }


def tensors(targets: SparseTargets) -> dict[str, Tensor]:
    values = {field.name: getattr(targets, field.name) for field in fields(targets)}
    return {name: value.cpu() for name, value in values.items() if isinstance(value, Tensor)}


@pytest.mark.parametrize("form", ["top k", "sampled", "draws", "draws left out"])
@pytest.mark.parametrize("rows", [300, 151_936])
def test_rows_together_are_the_rows_one_by_one(form: str, rows: int) -> None:
    parts, tokens, of, tail_draws = of_forms(rows)[form]
    together = tensors(laid(parts, tokens, of, tail_draws=tail_draws).targets())
    alone = [
        tensors(laid([part], [count], of, tail_draws=tail_draws).targets())
        for part, count in zip(parts, tokens, strict=True)
    ]
    assert len(together["offsets"]) == sum(tokens) + 1 and len(together["ids_E"]) > 500
    torch.testing.assert_close(together.pop("offsets").diff(), torch.cat([one.pop("offsets").diff() for one in alone]))
    for name, value in together.items():
        torch.testing.assert_close(value, torch.cat([one[name] for one in alone]), rtol=0, atol=0)


def test_ranks_are_the_places_of_set_bits() -> None:
    """What a GPU does in place of `nonzero`."""
    bits = (torch.rand(1000, generator=torch.Generator().manual_seed(0)) < 0.3).to(torch.uint8)
    expected = bits.nonzero().squeeze(-1)
    torch.testing.assert_close(_ranked(bits, len(expected)).long(), expected, rtol=0, atol=0)
    assert len(_ranked(bits[:0], 0)) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("form", ["top k", "sampled", "draws", "draws left out"])
def test_a_gpu_reads_what_a_cpu_reads_and_is_not_waited_for(form: str) -> None:
    parts, tokens, of, tail_draws = of_forms(151_936)[form]
    packed = laid(parts, tokens, of, tail_draws=tail_draws)
    expected = tensors(packed.targets())
    pinned = packed.map(Tensor.pin_memory)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = pinned.map(lambda values: values.to("cuda", non_blocking=True)).targets()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.ids_E.is_cuda
    for name, value in tensors(found).items():
        torch.testing.assert_close(value, expected[name], rtol=2e-6, atol=2e-6)
