"""The loss head's kernel against the plain formulas: compiled on a GPU, elsewhere by Triton's interpreter.

TRITON_INTERPRET=1 python -m pytest tests/kernels
"""

from __future__ import annotations

import itertools
import os
from typing import get_args

import pytest
import torch
from torch import Tensor

from distill.objectives.divergences import CROSS_ENTROPY, DivergenceName, LossSums, Objective
from distill.objectives.head import Head, head_loss, head_loss_reference
from distill.objectives.mixture import MixedHead

ON_GPU = torch.cuda.is_available()
if not ON_GPU and os.environ.get("TRITON_INTERPRET") != "1":  # Triton reads it when it is first imported
    pytest.skip("needs a GPU, or Triton and TRITON_INTERPRET=1", allow_module_level=True)
pytest.importorskip("triton", reason="the kernels need Triton")
from distill.kernels import loss  # noqa: E402

DEVICE = "cuda" if ON_GPU else "cpu"
OBJECTIVES = [
    Objective(divergence, 0.3, temperature, ce_weight, 0.2)
    for divergence, (temperature, ce_weight) in itertools.product(
        get_args(DivergenceName), ((1.0, 0.0), (1.0, 0.3), (2.5, 0.3))
    )
] + [CROSS_ENTROPY]


def make(
    dtype: torch.dtype,
    *,
    tokens: int = 23,
    rows: tuple[int, int] = (37, 37),
    transform: bool = False,
    spread: float = 1,
) -> tuple[Tensor, Head, Tensor, Head, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)

    extra = {"scale": 0.7, "softcap": 3.0} if transform else {}
    student = Head((spread * draw(rows[0], 6)).requires_grad_(), draw(rows[0]).requires_grad_(), **extra)
    teacher = Head(spread * draw(rows[1], 10), None, **extra)
    labels = torch.randint(0, rows[0], (tokens,), generator=generator)
    labels[torch.rand(tokens, generator=generator) < 0.4] = -100
    return draw(tokens, 6).requires_grad_(), student, draw(tokens, 10), teacher, labels.to(DEVICE), draw(tokens).abs()


def gradients(sums: LossSums, hidden: Tensor, head: Head) -> tuple[Tensor, ...]:
    assert head.bias is not None
    return torch.autograd.grad(sums.loss * 1.7, (hidden, head.weight, head.bias))


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles a row, the last one in part outside."""
    if not ON_GPU:
        monkeypatch.setattr(loss, "LAUNCH", loss.Launch(tile=16))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@pytest.mark.parametrize("rows", [(37, 37), (37, 30), (30, 37)], ids=["same", "teacher-short", "student-short"])
def test_kernel_equals_autograd(objective: Objective, rows: tuple[int, int]) -> None:
    """In float32 on ragged masks, with and without softcap, scale and weights, in chunks that do not divide."""
    for transform, weighted in ((False, True), (True, False)):
        arguments = make(torch.float32, rows=rows, transform=transform)
        hidden, student = arguments[:2]
        weights = arguments[5] if weighted else None
        ours = head_loss(*arguments[:5], objective, weights, chunk_tokens=9, form="triton")
        expected = head_loss_reference(*arguments[:5], objective, weights)
        for name in vars(expected):
            torch.testing.assert_close(getattr(ours, name), getattr(expected, name), rtol=2e-5, atol=2e-5, msg=name)
        for got, wanted in zip(gradients(ours, hidden, student), gradients(expected, hidden, student), strict=True):
            torch.testing.assert_close(got, wanted, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("divergence", get_args(DivergenceName))
def test_far_apart_distributions_stay_finite(divergence: DivergenceName) -> None:
    """Probabilities that are 0 in float32 on one side or on both."""
    arguments = make(torch.float32, spread=60.0)
    ours = head_loss(*arguments[:5], Objective(divergence), form="triton")
    expected = head_loss_reference(*make(torch.float64, spread=60.0)[:5], Objective(divergence))
    assert ours.loss.item() == pytest.approx(expected.loss.item(), rel=1e-4)
    assert all(gradient.isfinite().all() for gradient in gradients(ours, *arguments[:2]))


def test_bfloat16_logits_are_near_float64() -> None:
    for objective in OBJECTIVES[1::3]:
        low, exact = make(torch.bfloat16, tokens=11), make(torch.float64, tokens=11)
        ours = head_loss(*low[:5], objective, chunk_tokens=5, form="triton")
        expected = head_loss_reference(*exact[:5], objective)
        assert ours.loss.dtype == torch.float32
        assert ours.loss.item() == pytest.approx(expected.loss.item(), rel=3e-2)
        got, wanted = gradients(ours, *low[:2]), gradients(expected, *exact[:2])
        for a, b in zip(got, wanted, strict=True):
            assert a.dtype == torch.bfloat16 and (a.double() - b).norm() < 3e-2 * b.norm(), objective


def test_a_fully_masked_batch_and_a_frozen_head() -> None:
    hidden, student, teacher_hidden, teacher, labels, _ = make(torch.float32)
    nothing = torch.full_like(labels, -100)
    sums = head_loss(hidden, student, teacher_hidden, teacher, nothing, Objective("jsd"), form="triton")
    assert sums.loss.item() == 0.0 and all(g.abs().sum() == 0 for g in gradients(sums, hidden, student))
    frozen = Head(student.weight.detach())
    head_loss(hidden, frozen, teacher_hidden, teacher, labels, Objective("jsd"), form="triton").loss.backward()
    assert hidden.grad is not None and hidden.grad.abs().sum() > 0


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA GPU")
@pytest.mark.parametrize("divergence", get_args(DivergenceName))
@pytest.mark.parametrize("rows", [(151_936, 152_064), (128_256, 128_256)], ids=["padded", "same"])
def test_vocabularies_of_real_models(divergence: DivergenceName, rows: tuple[int, int]) -> None:
    """bfloat16 and autocast, several chunks, a head that is frozen and one that is not."""
    torch.manual_seed(0)
    hidden = torch.randn(700, 256, device="cuda", dtype=torch.bfloat16).requires_grad_()
    teacher_hidden = torch.randn(700, 512, device="cuda", dtype=torch.bfloat16)
    student = Head((torch.randn(rows[0], 256, device="cuda", dtype=torch.bfloat16) / 8).requires_grad_())
    teacher = Head(torch.randn(rows[1], 512, device="cuda", dtype=torch.bfloat16) / 12)
    labels = torch.randint(0, rows[0], (700,), device="cuda")
    labels[::3] = -100
    objective = Objective(divergence, temperature=2.0, ce_weight=0.2)
    exact = Head(student.weight.detach().float().requires_grad_()), Head(teacher.weight.float())
    exact_hidden = hidden.detach().float().requires_grad_()
    expected = head_loss_reference(exact_hidden, exact[0], teacher_hidden.float(), exact[1], labels, objective)
    wanted = torch.autograd.grad(expected.loss, (exact_hidden, exact[0].weight))
    for weights, source in ((student, hidden), (exact[0], exact_hidden)):
        with torch.autocast("cuda", torch.bfloat16):
            ours = head_loss(
                source, weights, teacher_hidden, teacher, labels, objective, chunk_tokens=256, form="triton"
            )
        assert ours.loss.item() == pytest.approx(expected.loss.item(), rel=2e-2)
        for got, want in zip(torch.autograd.grad(ours.loss, (source, weights.weight)), wanted, strict=True):
            assert (got.float() - want).norm() < 3e-2 * want.norm()


@pytest.mark.parametrize("divergence", ["forward_kl", "jsd", "tvd"])
def test_a_mixture_of_teachers(divergence: DivergenceName) -> None:
    """The head of several teachers hands the kernel T log P of their mixture."""
    hidden, student, states, teacher, labels, _ = make(torch.float32)
    other = make(torch.float32, rows=(37, 40), transform=True)
    objective = Objective(divergence, temperature=1.5, ce_weight=0.3)
    mixed = MixedHead((teacher, other[3]), (0.3, 0.7), 1.5)
    told = torch.cat([states, other[2]], -1)
    ours = head_loss(hidden, student, told, mixed, labels, objective, chunk_tokens=9, form="triton")
    expected = head_loss_reference(hidden, student, told, mixed, labels, objective)
    assert ours.loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    for got, wanted in zip(gradients(ours, hidden, student), gradients(expected, hidden, student), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)
