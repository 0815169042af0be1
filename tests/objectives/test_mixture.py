"""Several teachers as one: their mixture against whole logits in float64, for every divergence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distill.objectives.divergences import IGNORED, Objective, divergence, forward_kl
from distill.objectives.head import Head, head_loss, head_loss_reference
from distill.objectives.mixture import MixedHead

DIVERGENCES = ["forward_kl", "reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl", "tvd"]


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def teachers(dtype: torch.dtype = torch.float64) -> tuple[list[Head], list[Tensor]]:
    """Of different widths, vocabularies, and ways to treat logits; states of 11 tokens."""
    heads = [
        Head(drawn(21, 5, seed=1, dtype=dtype)),
        Head(drawn(24, 7, seed=2, dtype=dtype), drawn(24, seed=3, dtype=dtype), 0.5, 4.0),
    ]
    return heads, [drawn(11, 5, seed=4, dtype=dtype), drawn(11, 7, seed=5, dtype=dtype)]


def mixture_of(heads: list[Head], states: list[Tensor], weights: tuple[float, ...], temperature: float) -> Tensor:
    """Probabilities over the rows that both have."""
    rows = min(head.weight.shape[0] for head in heads)
    parts = [
        torch.softmax(head.logits(own)[:, :rows] / temperature, -1) for head, own in zip(heads, states, strict=True)
    ]
    return sum((weight * part for weight, part in zip(weights, parts, strict=True)), torch.zeros(()))


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("chunk_tokens", [2, 100])
def test_the_divergence_to_the_mixture(name: str, chunk_tokens: int) -> None:
    """Values and gradients by autograd over whole logits; the student has rows that no teacher has."""
    objective = Objective(name, temperature=1.7, ce_weight=0.2)  # type: ignore[arg-type]
    heads, states = teachers()
    mixed = MixedHead(tuple(heads), (0.3, 0.7), 1.7)
    labels = torch.tensor([3, IGNORED, *range(5), IGNORED, 7, 19, 22])
    scored = labels != IGNORED
    found = []
    for whole in (True, False):
        hidden, weight = drawn(11, 6, seed=6).requires_grad_(), drawn(23, 6, seed=7).requires_grad_()
        if whole:
            logits = hidden @ weight.T
            p = mixture_of(heads, states, (0.3, 0.7), 1.7)
            distance = divergence(logits[scored, :21], 1.7 * p[scored].log(), objective).sum()
            ce = torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
            loss = 0.8 * 1.7**2 * distance + 0.2 * ce
        else:
            sums = head_loss(
                hidden, Head(weight), torch.cat(states, -1), mixed, labels, objective, chunk_tokens=chunk_tokens
            )
            loss, distance = sums.loss, sums.divergence
        loss.backward()
        found.append((loss.item(), distance.item(), hidden.grad, weight.grad))
    assert found[0][:2] == pytest.approx(found[1][:2], rel=1e-10)
    for expected, got in zip(found[0][2:], found[1][2:], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_the_reference_form_is_the_same() -> None:
    heads, states = teachers()
    mixed, labels = MixedHead(tuple(heads), (0.5, 0.5), 1.0), torch.arange(11)
    student = Head(drawn(21, 6, seed=7))
    sums, expected = (
        form(drawn(11, 6, seed=6), student, torch.cat(states, -1), mixed, labels, Objective("jsd"))
        for form in (head_loss, head_loss_reference)
    )
    for got, reference in zip(vars(sums).values(), vars(expected).values(), strict=True):
        torch.testing.assert_close(got, reference.to(got.dtype))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_two_equal_teachers_are_one(name: str) -> None:
    heads, states = teachers(torch.float32)
    labels = torch.arange(11)
    found = []
    for head, told in (
        (heads[1], states[1]),
        (MixedHead((heads[1], heads[1]), (0.2, 0.8), 2.0), states[1].repeat(1, 2)),
    ):
        hidden, weight = (drawn(*shape, seed=6, dtype=torch.float32).requires_grad_() for shape in ((11, 6), (24, 6)))
        sums = head_loss(hidden, Head(weight), told, head, labels, Objective(name, temperature=2.0))  # type: ignore[arg-type]
        sums.loss.backward()
        found.append([*vars(sums).values(), hidden.grad, weight.grad])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)


def test_forward_kl_has_the_gradient_of_the_weighted_sum() -> None:
    """And its value is less by sum_i w_i KL(P_i, P): the teachers' own disagreement, which no student can mend."""
    heads, states = teachers()
    rows, weights = 21, (0.3, 0.7)
    logits = [head.logits(own)[:, :rows] for head, own in zip(heads, states, strict=True)]
    p = mixture_of(heads, states, weights, 1.0)
    students = [drawn(11, rows, seed=8).requires_grad_() for _ in range(2)]
    mixed = forward_kl(students[0], p.log()).sum()
    parts = sum(
        (w * forward_kl(students[1], own).sum() for w, own in zip(weights, logits, strict=True)), torch.zeros(())
    )
    between = sum((w * forward_kl(p.log(), own).sum() for w, own in zip(weights, logits, strict=True)), torch.zeros(()))
    mixed.backward()
    parts.backward()
    torch.testing.assert_close(students[0].grad, students[1].grad)
    torch.testing.assert_close(mixed, parts - between)


def test_bfloat16_stays_near() -> None:
    """Matmuls in bfloat16 under autocast, the mixture in float32."""
    heads, states = teachers(torch.float32)
    mixed, student = MixedHead(tuple(heads), (0.3, 0.7), 1.0), Head(drawn(21, 6, seed=7, dtype=torch.float32))
    hidden, labels = drawn(11, 6, seed=6, dtype=torch.float32), torch.arange(11)
    exact = head_loss(hidden, student, torch.cat(states, -1), mixed, labels, Objective())
    with torch.autocast("cpu", torch.bfloat16):
        rough = head_loss(hidden, student, torch.cat(states, -1), mixed, labels, Objective())
    torch.testing.assert_close(rough.loss, exact.loss, rtol=0.05, atol=0.0)
