"""The chunked loss head against plain formulas: values by hand, gradients by autograd in float64."""

from __future__ import annotations

import itertools
import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from distill.objectives import chunk
from distill.objectives.divergences import (
    CROSS_ENTROPY,
    DivergenceName,
    Objective,
    common_vocabulary,
    distillation_loss,
    forward_kl,
    jsd,
    reverse_kl,
    skew_forward_kl,
    skew_reverse_kl,
    tvd,
)
from distill.objectives.head import Head, LossSums, head_loss, head_loss_reference

P = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64)
Q = torch.tensor([[0.25, 0.25, 0.5]], dtype=torch.float64)
OBJECTIVES = [
    Objective(divergence, beta, temperature, ce_weight)
    for (divergence, beta), temperature, ce_weight in itertools.product(
        [
            ("forward_kl", 0.5),
            ("reverse_kl", 0.5),
            ("jsd", 0.5),
            ("jsd", 0.1),
            ("skew_forward_kl", 0.5),
            ("skew_reverse_kl", 0.5),
            ("tvd", 0.5),
        ],
        (1.0, 2.5),
        (0.0, 0.3),
    )
] + [CROSS_ENTROPY]


def test_divergences_by_hand() -> None:
    # 0.5 log 2 + 0 + 0.25 log 0.5 = 0.25 log 2, and the same the other way round by symmetry of the numbers.
    assert forward_kl(Q.log(), P.log()).item() == pytest.approx(0.25 * math.log(2))
    assert reverse_kl(Q.log(), P.log()).item() == pytest.approx(0.25 * math.log(2))
    # M = (0.375, 0.25, 0.375): JSD = 0.5 (0.5 log(4/3) + 0.25 log(2/3)) * 2.
    by_hand = 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3)
    assert jsd(Q.log(), P.log(), beta=0.5).item() == pytest.approx(by_hand)


def test_forward_and_reverse_kl_are_not_mixed_up() -> None:
    p, q = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    assert forward_kl(q, p).item() == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2), abs=1e-6)
    assert reverse_kl(q, p).item() == pytest.approx(0.5 * math.log(1 / 1.8) + 0.5 * math.log(5), abs=1e-6)


def test_divergence_of_equal_distributions_is_zero() -> None:
    logits = torch.randn(5, 11, dtype=torch.float64)
    shifted = logits + 3.0  # the softmax does not see a constant
    for value in (
        forward_kl(logits, shifted, 2.0),
        reverse_kl(logits, shifted, 2.0),
        jsd(logits, shifted, 0.3, 2.0),
        skew_forward_kl(logits, shifted, 0.3, 2.0),
        skew_reverse_kl(logits, shifted, 0.3, 2.0),
        tvd(logits, shifted, 2.0),
    ):
        torch.testing.assert_close(value, torch.zeros_like(value), atol=1e-12, rtol=0)


def test_skew_divergences_and_total_variation_by_hand() -> None:
    """At skew 1/2, M = (3/8, 1/4, 3/8) as in the JSD; the numbers are symmetric in P and Q."""
    by_hand = 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3)
    assert skew_forward_kl(Q.log(), P.log(), 0.5).item() == pytest.approx(by_hand)
    assert skew_reverse_kl(Q.log(), P.log(), 0.5).item() == pytest.approx(by_hand)
    # (0.25 + 0 + 0.25) / 2
    assert tvd(Q.log(), P.log()).item() == pytest.approx(0.25)
    # P = (0.9, 0.1), Q = (0.5, 0.5), skew 0.1: M = (0.54, 0.46) forward, (0.86, 0.14) reverse.
    p, q = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    forward = 0.9 * math.log(0.9 / 0.54) + 0.1 * math.log(0.1 / 0.46)
    reverse = 0.5 * math.log(0.5 / 0.86) + 0.5 * math.log(0.5 / 0.14)
    assert skew_forward_kl(q, p, 0.1).item() == pytest.approx(forward, abs=1e-6)
    assert skew_reverse_kl(q, p, 0.1).item() == pytest.approx(reverse, abs=1e-6)


def test_skew_divergences_are_bounded_and_tend_to_the_kls() -> None:
    student, teacher = (20.0 * torch.randn(2, 4, 9, dtype=torch.float64)).unbind()
    for skewed, plain in ((skew_forward_kl, forward_kl), (skew_reverse_kl, reverse_kl)):
        assert (skewed(student, teacher, 0.1) <= -math.log(0.1) + 1e-12).all()
        near = skewed(student / 20, teacher / 20, 1e-7)
        torch.testing.assert_close(near, plain(student / 20, teacher / 20), rtol=1e-5, atol=1e-5)
    assert (tvd(student, teacher) <= 1.0 + 1e-12).all()


def test_jsd_tends_to_the_kls_at_its_ends() -> None:
    """JSD_beta / beta -> KL(P || Q) as beta -> 0, and / (1 - beta) -> KL(Q || P) as beta -> 1 (GKD, 2306.13649)."""
    student, teacher = torch.randn(2, 4, 9, dtype=torch.float64).unbind()
    small = 1e-6
    torch.testing.assert_close(jsd(student, teacher, small) / small, forward_kl(student, teacher), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        jsd(student, teacher, 1 - small) / small, reverse_kl(student, teacher), rtol=1e-4, atol=1e-6
    )


def test_jsd_is_trls() -> None:
    """The same convention and value as TRL's generalised JSD."""
    from trl.experimental.gkd import GKDTrainer

    student, teacher = torch.randn(2, 3, 7, 13).unbind()
    ours = jsd(student.flatten(0, 1), teacher.flatten(0, 1), 0.3, 1.0).mean()
    theirs = GKDTrainer.generalized_jsd_loss(student, teacher, beta=0.3, temperature=1.0, reduction="none")
    torch.testing.assert_close(ours, theirs.sum(-1).mean())


def test_temperature_squared_keeps_the_gradient() -> None:
    """At large T the gradient of T^2 KL tends to (z_student - z_teacher) / V for centred logits (1503.02531, eq. 4)."""
    teacher = torch.randn(1, 6, dtype=torch.float64)
    student = torch.randn(1, 6, dtype=torch.float64, requires_grad=True)
    sums = distillation_loss(student, teacher, torch.tensor([0]), Objective("forward_kl", temperature=1e4))
    (gradient,) = torch.autograd.grad(sums.loss, student)
    centred = (student - student.mean()) - (teacher - teacher.mean())
    torch.testing.assert_close(gradient, (centred / 6).detach(), rtol=1e-3, atol=1e-5)


def make(
    dtype: torch.dtype, *, tokens: int = 23, student_rows: int = 19, teacher_rows: int = 19, transform: bool = False
) -> tuple[Tensor, Head, Tensor, Head, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    extra = {"scale": 0.7, "softcap": 3.0} if transform else {}
    student = Head(draw(student_rows, 6).requires_grad_(), draw(student_rows).requires_grad_(), **extra)
    teacher = Head(draw(teacher_rows, 10), None, **extra)
    labels = torch.randint(0, student_rows, (tokens,), generator=generator)
    labels[torch.rand(tokens, generator=generator) < 0.4] = -100
    weights = torch.rand(tokens, generator=generator, dtype=torch.float64).to(dtype)
    return draw(tokens, 6).requires_grad_(), student, draw(tokens, 10), teacher, labels, weights


def gradients(sums: LossSums, hidden: Tensor, head: Head) -> tuple[Tensor, ...]:
    assert head.bias is not None
    return torch.autograd.grad(sums.loss * 1.7, (hidden, head.weight, head.bias))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@pytest.mark.parametrize("rows", [(19, 19), (19, 14), (14, 19)], ids=["same", "teacher-short", "student-short"])
def test_head_equals_autograd_in_float64(objective: Objective, rows: tuple[int, int]) -> None:
    for chunk_tokens, transform, weighted in itertools.product((4, 100), (False, True), (False, True)):
        hidden, student, teacher_hidden, teacher, labels, weights = make(
            torch.float64, student_rows=rows[0], teacher_rows=rows[1], transform=transform
        )
        arguments = (hidden, student, teacher_hidden, teacher, labels, objective, weights if weighted else None)
        ours, reference = head_loss(*arguments, chunk_tokens=chunk_tokens), head_loss_reference(*arguments)
        for name in vars(reference):
            torch.testing.assert_close(getattr(ours, name), getattr(reference, name), rtol=1e-10, atol=1e-10, msg=name)
        for ours_gradient, expected in zip(
            gradients(ours, hidden, student), gradients(reference, hidden, student), strict=True
        ):
            torch.testing.assert_close(ours_gradient, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head_in_lower_precision_is_near_float64(dtype: torch.dtype) -> None:
    exact = make(torch.float64)
    low = make(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    for objective in OBJECTIVES:
        expected = head_loss_reference(*exact[:5], objective)
        ours = head_loss(*low[:5], objective, chunk_tokens=7)
        assert ours.loss.dtype == torch.float32
        assert ours.loss.item() == pytest.approx(expected.loss.item(), rel=tolerance)
        wanted = gradients(expected, exact[0], exact[1])[1]
        got = gradients(ours, low[0], low[1])[1]
        assert got.dtype == dtype
        assert (got.double() - wanted).norm() < tolerance * wanted.norm()


def test_autocast_projects_in_bfloat16_and_returns_float32_gradients() -> None:
    hidden, student, teacher_hidden, teacher, labels, _ = make(torch.float32)
    arguments = (hidden, student, teacher_hidden, teacher, labels, Objective())
    with torch.autocast("cpu", torch.bfloat16):
        ours = head_loss(*arguments, chunk_tokens=5)
    reference = head_loss_reference(*arguments)
    assert ours.loss.item() != reference.loss.item()
    assert ours.loss.item() == pytest.approx(reference.loss.item(), rel=2e-2)
    assert all(gradient.dtype == torch.float32 for gradient in gradients(ours, hidden, student))


def test_sums_under_autocast_are_float32() -> None:
    """1,001 tokens are not the 1,000 that bfloat16 rounds them to, nor is the scale of the gradient rounded."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(rows, 8, generator=generator) for rows in (1001, 50))
    hidden.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        sums = head_loss(
            hidden, Head(weight), hidden.detach(), Head(weight + 0.1), torch.arange(1001) % 50, Objective()
        )
    assert {value.dtype for value in vars(sums).values()} == {torch.float32} and sums.weight.item() == 1001
    (by_sum,) = torch.autograd.grad(sums.loss / 1001, hidden)
    with torch.autocast("cpu", torch.bfloat16):
        again = head_loss(
            hidden, Head(weight), hidden.detach(), Head(weight + 0.1), torch.arange(1001) % 50, Objective()
        )
    (whole,) = torch.autograd.grad(again.loss, hidden)
    torch.testing.assert_close(by_sum * 1001, whole, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("divergence", get_args(DivergenceName))
def test_far_apart_distributions_stay_finite(divergence: DivergenceName) -> None:
    """Probabilities that are 0 in float32 on one side or on both."""
    exact, low = make(torch.float64), make(torch.float32)
    for _, head, _, other, _, _ in (exact, low):
        head.weight.data.mul_(60.0)
        other.weight.mul_(60.0)
    ours = head_loss(*low[:5], Objective(divergence))
    expected = head_loss_reference(*exact[:5], Objective(divergence))
    assert ours.loss.item() == pytest.approx(expected.loss.item(), rel=1e-4)
    assert all(gradient.isfinite().all() for gradient in gradients(ours, *low[:2]))


def test_blocks_smaller_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU works through a chunk in blocks; the last one is smaller."""
    monkeypatch.setattr(chunk, "_BLOCK_VALUES", 3 * 19)
    arguments = make(torch.float64)
    ours = head_loss(*arguments[:5], Objective("jsd"), arguments[5], chunk_tokens=8)
    expected = head_loss_reference(*arguments[:5], Objective("jsd"), arguments[5])
    torch.testing.assert_close(ours.agreement, expected.agreement)
    for got, wanted in zip(gradients(ours, *arguments[:2]), gradients(expected, *arguments[:2]), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10)


def test_equal_logits_share_the_first_place() -> None:
    """The student's tokens 0 and 2 are equally likely; the teacher's likeliest is 2, the label 0."""
    student, teacher = torch.tensor([[3.0, 1.0, 3.0]]), torch.tensor([[0.0, 1.0, 2.0]])
    identity = torch.eye(3)
    for sums in (
        distillation_loss(student, teacher, torch.tensor([0]), Objective()),
        head_loss(student, Head(identity), teacher, Head(identity), torch.tensor([0]), Objective()),
    ):
        assert sums.agreement.item() == sums.accuracy.item() == 1.0
    other = head_loss(student, Head(identity), teacher, Head(identity), torch.tensor([1]), Objective())
    assert other.accuracy.item() == 0.0


def test_the_backward_pass_runs_once() -> None:
    """It scales the gradients where they are; a second one would scale them twice."""
    hidden, student, teacher_hidden, teacher, labels, _ = make(torch.float64)
    sums = head_loss(hidden, student, teacher_hidden, teacher, labels, Objective())
    sums.loss.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="runs once"):
        sums.loss.backward()


def test_many_chunks_of_a_bfloat16_head_are_summed_in_float32() -> None:
    """Up to four chunks share the rounding of the result; beyond, sums in 16 bits would lose what is added."""
    exact = make(torch.float64, tokens=600)
    low = make(torch.bfloat16, tokens=600)
    wanted = gradients(head_loss_reference(*exact[:5], Objective()), *exact[:2])[1]

    def error(chunk_tokens: int) -> float:
        got = gradients(head_loss(*low[:5], Objective(), chunk_tokens=chunk_tokens), *low[:2])[1]
        return ((got.double() - wanted).norm() / wanted.norm()).item()

    once, few, many = error(600), error(150), error(4)
    assert few < 1.5 * once and many < 1.5 * once


def test_a_fully_masked_batch_costs_nothing_and_has_zero_gradients() -> None:
    hidden, student, teacher_hidden, teacher, labels, _ = make(torch.float32)
    sums = head_loss(hidden, student, teacher_hidden, teacher, torch.full_like(labels, -100), Objective())
    assert sums.loss.item() == 0.0 and sums.weight.item() == 0.0
    assert all(gradient.abs().sum() == 0 for gradient in gradients(sums, hidden, student))


def test_padding_rows_of_the_teacher_get_no_mass() -> None:
    """A teacher with padding rows (even likely ones) teaches what the same teacher without them teaches."""
    hidden, student, teacher_hidden, teacher, labels, _ = make(torch.float64, student_rows=14, teacher_rows=14)
    padded = Head(torch.cat([teacher.weight, 5.0 * torch.randn(5, 10, dtype=torch.float64)]))
    plain = head_loss(hidden, student, teacher_hidden, teacher, labels, Objective())
    with_padding = head_loss(hidden, student, teacher_hidden, padded, labels, Objective())
    torch.testing.assert_close(plain.loss, with_padding.loss)
    student_logits, teacher_logits = common_vocabulary(torch.zeros(1, 3), torch.zeros(1, 5))
    assert student_logits.shape == teacher_logits.shape == (1, 3)


def test_rows_that_the_teacher_lacks_get_no_gradient_from_the_divergence() -> None:
    hidden, student, teacher_hidden, teacher, labels, _ = make(torch.float64, student_rows=19, teacher_rows=14)
    sums = head_loss(hidden, student, teacher_hidden, teacher, labels, Objective("reverse_kl"))
    weight_gradient = gradients(sums, hidden, student)[1]
    assert weight_gradient[14:].abs().max() == 0 and weight_gradient[:14].abs().max() > 0


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden, student, teacher_hidden, teacher, labels, _ = make(torch.float64)
    frozen = Head(student.weight.detach())
    sums = head_loss(hidden, frozen, teacher_hidden, teacher, labels, Objective())
    sums.loss.backward()
    assert hidden.grad is not None and hidden.grad.abs().sum() > 0


def test_only_chunks_of_logits_exist() -> None:
    """No tensor of the size of the batch's logits is ever made."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.numel())
            return out

    hidden, student, teacher_hidden, teacher, labels, _ = make(torch.float32, tokens=400, student_rows=50)
    with Watch():
        sums = head_loss(hidden, student, teacher_hidden, teacher, labels, Objective("jsd"), chunk_tokens=16)
        sums.loss.backward()
    assert 16 * 50 <= largest < 400 * 20
