"""Sparse targets against dense divergences: the nearest teacher, gradients, samples without bias, no collapse."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from distill.errors import DistillError
from distill.objectives.divergences import IGNORED, Objective, divergence
from distill.objectives.head import Head, head_loss
from distill.objectives.sparse import SparseTargets, sparse_chunk_loss
from distill.objectives.sparse_head import sparse_head_loss

DIVERGENCES = ["forward_kl", "reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl", "tvd"]


def targets_of(logits_NR: Tensor, k: int, temperature: float = 1.0) -> SparseTargets:
    """The k likeliest of each token and the mass of the others."""
    log_p = torch.log_softmax(logits_NR / temperature, -1)
    top, ids = log_p.topk(k, -1)
    rest = log_p.scatter(-1, ids, -torch.inf).logsumexp(-1)
    offsets = torch.arange(len(log_p) + 1) * k
    return SparseTargets(logits_NR.shape[-1], offsets, ids.flatten(), top.flatten(), log_tail_N=rest)


def completed(student_CR: Tensor, targets: SparseTargets, temperature: float, own: bool) -> Tensor:
    """The nearest teacher by its definition: lambda by bisection, token by token."""
    q = torch.softmax(student_CR / temperature, -1)
    found = torch.zeros_like(q)
    for token in range(len(targets)):
        part = targets.part(token, token + 1)
        kept = torch.zeros(q.shape[-1], dtype=torch.bool)
        kept[part.ids_E] = True
        found[token, part.ids_E] = part.logprobs_E.exp()
        assert part.log_tail_N is not None
        mass, tail = part.log_tail_N.exp().item(), q[token][~kept]
        cap = part.logprobs_E.exp().min().item() if own and len(part.ids_E) else 1.0
        low, high = 0.0, 1e12
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if (middle * tail).clamp(max=cap).sum() < mass else (low, middle)
        found[token][~kept] = (high * tail).clamp(max=cap)
    return found


def some_logits(tokens: int = 7, rows: int = 23, spread: float = 2.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = spread * torch.randn(2, tokens, rows, dtype=torch.float64, generator=generator)
    return drawn[0], drawn[1]


def test_two_of_three_by_hand() -> None:
    """P = (0.6, 0.3 | 0.1), Q = (0.5, 0.3, 0.2): the tail is one row, so nothing is lost."""
    targets = targets_of(torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64).log(), 2)
    student = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()
    sums, gradient = sparse_chunk_loss(student, targets, torch.tensor([0]), None, Objective(), 4)
    assert sums[0].item() == pytest.approx(0.6 * math.log(1.2) + 0.1 * math.log(0.5))
    torch.testing.assert_close(gradient, torch.tensor([[-0.1, 0.0, 0.1]], dtype=torch.float64))


@pytest.mark.parametrize(("name", "temperature", "own"), list(itertools.product(DIVERGENCES, (1.0, 2.5), (0, 23))))
def test_value_and_gradient_are_those_at_the_nearest_teacher(name: str, temperature: float, own: int) -> None:
    objective = Objective(name, 0.3, temperature, ce_weight=0.2)  # type: ignore[arg-type]
    student, teacher = some_logits()
    targets = targets_of(teacher, 5, temperature)
    labels = torch.arange(7)
    sums, gradient = sparse_chunk_loss(student, targets, labels, None, objective, own)
    leaf = student.clone().requires_grad_()
    nearest = completed(student, targets, temperature, own > 0)
    distance = divergence(leaf, temperature * nearest.log(), objective)
    ce = torch.nn.functional.cross_entropy(leaf, labels, reduction="none")
    loss = (objective.divergence_scale * distance + objective.ce_weight * ce).sum()
    (expected,) = torch.autograd.grad(loss, leaf)
    torch.testing.assert_close(sums[0], loss.detach(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_more_is_known_the_closer_from_below(name: str) -> None:
    """bucket <= capped bucket <= full divergence, and all rows kept is the full one."""
    objective = Objective(name)  # type: ignore[arg-type]
    student, teacher = some_logits(tokens=40, spread=3.0)
    labels = torch.zeros(40, dtype=torch.long)
    full = divergence(student, teacher, objective).sum()
    bucket, capped, all_kept = (
        sparse_chunk_loss(student, targets_of(teacher, k), labels, None, objective, own)[0][1]
        for k, own in ((4, 0), (4, 23), (22, 0))
    )
    assert 0 < bucket < capped < full
    torch.testing.assert_close(all_kept, full)


@pytest.mark.parametrize("name", [name for name in DIVERGENCES if name != "tvd"])  # tvd has a kink there
def test_a_student_that_agrees_with_what_is_stored_feels_nothing(name: str) -> None:
    _, teacher = some_logits()
    labels = torch.zeros(7, dtype=torch.long)
    sums, gradient = sparse_chunk_loss(teacher, targets_of(teacher, 5), labels, None, Objective(name), 16)  # type: ignore[arg-type]
    assert sums[0].item() == pytest.approx(0, abs=1e-9) and gradient.abs().max() < 1e-9
    nothing = SparseTargets(23, torch.zeros(8, dtype=torch.long), labels[:0], teacher[0, :0], torch.zeros(7).double())
    sums, gradient = sparse_chunk_loss(teacher, nothing, labels, None, Objective(name), 16)  # type: ignore[arg-type]
    assert sums[0].item() == pytest.approx(0, abs=1e-9) and gradient.abs().max() < 1e-9


def follow(step: float, steps: int, slope: object, student: Tensor) -> Tensor:
    for _ in range(steps):
        student = student - step * slope(student)  # type: ignore[operator]
    return student


def test_naive_top_k_reverse_kl_collapses_and_ours_does_not() -> None:
    """Cut top-k reverse KL, sum over the kept ids of Q log(Q/P), falls without end when the student leaves them.

    The failure is discussed for sparse signals in 2503.16870 and for truncated distributions in DistillKit's options
    for missing probabilities. Started on the teacher's own distribution, the naive form drives its mass out of what the
    teacher knows; ours stays where the divergence is 0.
    """
    _, teacher = some_logits(tokens=4, rows=50, spread=1.5)
    targets = targets_of(teacher, 8)
    ids, labels = targets.ids_E.view(4, 8), torch.zeros(4, dtype=torch.long)

    def naive(student: Tensor) -> Tensor:
        leaf = student.clone().requires_grad_()
        log_q = torch.log_softmax(leaf, -1).gather(-1, ids)
        loss = (log_q.exp() * (log_q - targets.logprobs_E.view(4, 8))).sum()
        return torch.autograd.grad(loss, leaf)[0]

    def ours(student: Tensor) -> Tensor:
        return sparse_chunk_loss(student, targets, labels, None, Objective("reverse_kl"), 16)[1]

    def kept_mass(student: Tensor) -> Tensor:
        return torch.softmax(student, -1).gather(-1, ids).sum(-1)

    start = teacher + 0.3 * torch.randn(4, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    true = kept_mass(teacher)
    collapsed, sound = follow(0.5, 600, naive, start), follow(0.5, 600, ours, start)
    assert (kept_mass(collapsed) < 0.75 * true).all(), "the naive form gave up what the teacher knows"
    torch.testing.assert_close(kept_mass(sound), true, rtol=1e-3, atol=1e-3)
    reverse = Objective("reverse_kl")
    assert (divergence(sound, teacher, reverse) < 0.1 * divergence(collapsed, teacher, reverse)).all()


def test_a_spike_in_the_tail_is_felt_only_with_the_students_own_tokens() -> None:
    """One bucket cannot see where in the tail the student's mass is; the cap can."""
    teacher = torch.tensor([[5.0, 4.0, 1.0, 0.9, *[0.0] * 40]], dtype=torch.float64)
    log_p = torch.log_softmax(teacher, -1)
    targets = targets_of(teacher, 4)
    q = log_p.exp().clone()
    spike = q[0, 4:].sum() - 39e-9
    q[0, 4:] = 1e-9
    q[0, 10] = spike
    student, label = q.log(), torch.tensor([0])
    values = [sparse_chunk_loss(student, targets, label, None, Objective("reverse_kl"), own)[0][1] for own in (0, 8)]
    assert values[0].item() == pytest.approx(0, abs=1e-6) and values[1] > 0.1


@pytest.mark.parametrize("name", ["forward_kl", "jsd"])
def test_gradients_stay_bounded_where_little_is_left_of_the_tail(name: str) -> None:
    """In float32, sixteen of the student's tail tokens hold all of its tail's mass but 1e-9: the rest, as a difference,
    would be nothing or negative, and its share of the teacher's mass divided by it. |gradient| sums to 2 at most."""
    torch.manual_seed(0)
    teacher = torch.randn(64, 200) * 3
    targets = targets_of(teacher, 100)
    tail = torch.ones(64, 200).scatter_(-1, targets.ids_E.view(64, 100), 0.0) * torch.rand(64, 200)
    own = tail.topk(16, -1).indices
    student = torch.randn(64, 200).scatter(-1, tail.topk(100, -1).indices, -22.0)
    student.scatter_(-1, own, torch.randn(64, 16) + 1.0)
    labels = torch.zeros(64, dtype=torch.long)
    _, gradient = sparse_chunk_loss(student.clone(), targets, labels, None, Objective(name), 16)  # type: ignore[arg-type]
    assert gradient.abs().sum(-1).max() <= 2.0 + 1e-4


def test_samples_are_unbiased() -> None:
    """Over many draws the mean value and gradient are those of the full forward KL."""
    student, teacher = some_logits(tokens=2, rows=11)
    draws = 40_000
    p = torch.softmax(teacher, -1)
    picked = torch.multinomial(p, draws, replacement=True, generator=torch.Generator().manual_seed(3))
    entropy = -(p * p.log()).sum(-1)
    groups = picked.view(2, 8, draws // 8)  # eight estimates of 5,000 draws
    values, gradients = [], []
    for group in range(8):
        counts = torch.stack([torch.bincount(row, minlength=11) for row in groups[:, group]]).double()
        some = counts > 0
        offsets = torch.cat([torch.zeros(1, dtype=torch.long), some.sum(-1).cumsum(0)])
        weights = counts[some] / (draws // 8)
        targets = SparseTargets(11, offsets, some.nonzero()[:, 1], weights.log(), entropy_N=entropy)
        sums, gradient = sparse_chunk_loss(student, targets, torch.zeros(2, dtype=torch.long), None, Objective(), 0)
        values.append(sums[1])
        gradients.append(gradient)
    full = divergence(student, teacher, Objective()).sum()
    expected = torch.softmax(student, -1) - p
    assert torch.stack(values).mean() == pytest.approx(full.item(), rel=0.02)
    torch.testing.assert_close(torch.stack(gradients).mean(0), expected, atol=0.01, rtol=0)
    with pytest.raises(DistillError, match="reverse_kl not at all"):
        sparse_head_loss(
            torch.zeros(2, 3), Head(torch.zeros(11, 3)), targets, torch.tensor([0, 1]), Objective("reverse_kl")
        )


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("rows", [(19, 14), (14, 19), (19, 19)], ids=["teacher-short", "student-short", "same"])
def test_the_head_with_all_rows_kept_is_the_dense_head(name: str, rows: tuple[int, int]) -> None:
    """Also with vocabularies of different size, over ragged labels, weights, and chunks that do not come out even."""
    generator = torch.Generator().manual_seed(7)
    hidden = torch.randn(23, 6, dtype=torch.float64, generator=generator).requires_grad_()
    weight = torch.randn(rows[0], 6, dtype=torch.float64, generator=generator).requires_grad_()
    bias = torch.randn(rows[0], dtype=torch.float64, generator=generator).requires_grad_()
    student = Head(weight, bias, scale=0.7, softcap=3.0)
    teacher_hidden = torch.randn(23, 5, dtype=torch.float64, generator=generator)
    teacher = Head(torch.randn(rows[1], 5, dtype=torch.float64, generator=generator))
    labels = torch.randint(0, min(rows), (23,), generator=generator)
    labels[::3] = IGNORED
    weights = torch.rand(23, dtype=torch.float64, generator=generator)
    objective = Objective(name, 0.3, 1.5, 0.25)  # type: ignore[arg-type]
    common = min(rows)
    targets = targets_of(teacher.logits(teacher_hidden)[labels != IGNORED, :common], common - 1, 1.5)
    dense = head_loss(hidden, student, teacher_hidden, teacher, labels, objective, weights, chunk_tokens=4)
    sparse = sparse_head_loss(hidden, student, targets, labels, objective, weights, chunk_tokens=4)
    for ours, theirs in zip(vars(sparse).values(), vars(dense).values(), strict=True):
        torch.testing.assert_close(ours, theirs)
    leaves = (hidden, weight, bias)
    for ours, theirs in zip(
        torch.autograd.grad(sparse.loss, leaves), torch.autograd.grad(dense.loss, leaves), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_fully_masked_batch_is_zero() -> None:
    hidden = torch.randn(4, 6, requires_grad=True)
    nothing = SparseTargets(9, torch.zeros(1, dtype=torch.long), torch.zeros(0).long(), torch.zeros(0), torch.zeros(0))
    sums = sparse_head_loss(hidden, Head(torch.randn(9, 6)), nothing, torch.full((4,), IGNORED), Objective())
    sums.loss.backward()
    assert sums.loss == 0 and hidden.grad is not None and not hidden.grad.any()
