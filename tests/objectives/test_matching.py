"""Hidden-state matching: values and gradients by hand in float64, and projections that belong to no model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distill.objectives.matching import Matching, matching_loss


def test_values_by_hand() -> None:
    ours = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    theirs = torch.tensor([[1.0, 0.0], [4.0, 3.0]], dtype=torch.float64)
    assert matching_loss(ours, theirs, "mse").item() == pytest.approx(4 / 2 + (1 + 1) / 2)
    assert matching_loss(ours, theirs, "cosine").item() == pytest.approx((1 - 1 / 5**0.5) + (1 - 24 / 25))
    assert matching_loss(3 * theirs, theirs, "cosine").item() == pytest.approx(0.0)
    assert matching_loss(ours[:0], theirs[:0], "mse").item() == 0.0


def matching_of(measure: str, student: int = 5, teacher: int = 7) -> Matching:
    pairs = ((1, 2), (3, 4))
    return Matching(pairs, student=student, teacher=teacher, measure=measure, weight=0.5, seed=3).double()  # type: ignore[arg-type]


def test_gradients_of_projections_and_states_by_their_formula() -> None:
    """d/dW = 2/K (W h - t) h^T and d/dh = 2/K W^T (W h - t), summed over the scored tokens, halved for two pairs."""
    torch.manual_seed(0)
    matching = matching_of("mse")
    student = tuple(torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True) for _ in range(4))
    teacher = tuple(torch.randn(2, 4, 7, dtype=torch.float64) for _ in range(2))
    scored = torch.tensor([[True, False, True, True], [False, False, True, False]])
    loss = matching(student, teacher, scored)
    loss.backward()
    total = 0.0
    for number, layer in enumerate((1, 3)):
        weight = matching.projections[number].weight
        error = student[layer][scored].detach() @ weight.detach().T - teacher[number][scored]
        total += (error.square().sum() / 7 / 2).item()
        torch.testing.assert_close(weight.grad, 2 / 7 * error.T @ student[layer][scored].detach() / 2)
        expected = torch.zeros(2, 4, 5, dtype=torch.float64)
        expected[scored] = 2 / 7 * error @ weight.detach() / 2
        torch.testing.assert_close(student[layer].grad, expected)
    assert loss.item() == pytest.approx(total, rel=1e-6)
    assert student[0].grad is None and student[2].grad is None


@pytest.mark.parametrize("measure", ["mse", "cosine"])
def test_gradients_by_finite_differences(measure: str) -> None:
    torch.manual_seed(1)
    theirs = torch.randn(3, 4, dtype=torch.float64)
    ours = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: matching_loss(x, theirs, measure), ours)  # type: ignore[arg-type]


def test_projections_start_as_the_seed_says_and_are_in_no_state_dict() -> None:
    first, same = matching_of("mse"), matching_of("mse")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters(), strict=True))
    assert torch.equal(matching_of("mse", 4, 4).projections[0].weight, torch.eye(4, dtype=torch.float64))
    model = nn.Sequential(nn.Linear(2, 2))
    model.add_module("matching", first)
    assert list(model.state_dict()) == ["0.weight", "0.bias"] and len(list(model.parameters())) == 4
    other = Matching(first.pairs, student=5, teacher=7, measure="mse", weight=0.5, seed=4).double()
    assert not torch.equal(other.projections[1].weight, first.projections[1].weight)
    other.load({name: weight.clone() for name, weight in first.weights().items()})
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
