"""Aligned pooling of key and value heads: exact where it can be, and the least error there is where it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from distill.model.alignment import measure_heads, pool_aligned
from distill.model.importance import measure
from distill.model.structure import structure_of
from distill.model.student import cut_down
from distill.recipe.prune import Prune
from distill.recipe.teacher import Student
from tests.model import tiny


def related(kind: str, heads: int) -> Any:
    """Every second KV head is the one before: keys by a complex factor in each plane, values by an invertible map."""
    model = tiny.model(kind, heads=heads)
    torch.manual_seed(5)
    with torch.no_grad():
        for layer in model.model.layers:
            attention = layer.self_attn
            for key in attention.k_proj.parameters():
                own = key.unflatten(0, (-1, 6))
                for head in range(0, 4, 2):
                    factor = torch.polar(torch.full((3,), 1.0 + head), torch.tensor([1.0, 2.0, -3.0]))
                    factor = factor.reshape(3, *[1] * (key.ndim - 1))
                    turned = torch.complex(own[head, :3], own[head, 3:]) * factor
                    same = kind == "qwen3"  # its norm of the keys stands between
                    own[head + 1] = own[head].clone() if same else torch.cat([turned.real, turned.imag])
            maps = torch.randn(2, 6, 6)
            for value in attention.v_proj.parameters():
                own = value.unflatten(0, (-1, 6))
                for pair in range(2):
                    own[2 * pair + 1] = torch.tensordot(maps[pair], own[2 * pair].clone(), 1)
    return model


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("heads", [4, 8])
def test_heads_that_are_turned_copies_of_each_other_pool_exactly(tmp_path: Path, kind: str, heads: int) -> None:
    model = related(kind, heads)
    if heads == 8:
        model = tiny.model(kind, heads=8, kv_heads=4)
        model.load_state_dict({**model.state_dict(), **_keys_and_values(related(kind, 4))})
    before = tiny.logits(model)
    student = Student(model="in memory", kv_heads=2, prune=Prune(kv_pooling="aligned"))
    made = cut_down(model, student, tiny.batches(), tmp_path)
    assert made.after.kv_heads == 2
    torch.testing.assert_close(tiny.logits(tmp_path), before, rtol=1e-3, atol=1e-3)


def _keys_and_values(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if "k_proj" in name or "v_proj" in name}


def test_no_other_pooling_errs_less(tmp_path: Path) -> None:
    """Against Eckart and Young: the least weighted error of rank one in each plane of the keys, and of rank d of the
    values behind their output weights, by singular values of the tokens themselves."""
    model, batches = tiny.model("llama", layers=1, heads=8), tiny.batches()
    structure, attention = structure_of(model), model.model.layers[0].self_attn
    importance, moments = measure(model, batches), measure_heads(model, batches, 2)
    inputs: list[torch.Tensor] = []
    hook = attention.k_proj.register_forward_pre_hook(lambda _, args: inputs.append(args[0][0]))
    for ids in tiny.unpadded(batches):
        with torch.no_grad():
            model(ids)
    hook.remove()
    tokens = torch.cat(inputs).double()
    state = {name: tensor.double() for name, tensor in model.state_dict().items()}
    new = pool_aligned(state, moments, importance.queries_LH, importance.effects_LH, structure, 2)
    prefix = "model.layers.0.self_attn."

    def project(source: Any, part: str) -> torch.Tensor:
        return tokens @ source[f"{prefix}{part}_proj.weight"].T + source[f"{prefix}{part}_proj.bias"]

    def planes(rows: torch.Tensor) -> torch.Tensor:
        halves = rows.unflatten(-1, (-1, 2, 3))
        return torch.complex(halves[..., 0, :], halves[..., 1, :])

    keys, pooled = planes(project(state, "k")), planes(project(new, "k"))  # (tokens, heads, planes)
    queries, turned = planes(project(state, "q")), planes(project(new, "q"))
    factors = (turned / queries).mean(0).conj()  # one key head a query head here is one of two
    weights = (queries.abs().square().mean(0) * importance.effects_LH[0][:, None]).unflatten(0, (4, 2)).sum(1)
    output = state[f"{prefix}o_proj.weight"].unflatten(1, (8, 6))
    output_new = new[f"{prefix}o_proj.weight"].unflatten(1, (8, 6))
    values, pooled_values = project(state, "v").unflatten(1, (4, 6)), project(new, "v").unflatten(1, (2, 6))
    for group in range(2):
        for plane in range(3):
            error, stacked = 0.0, []
            for head in (2 * group, 2 * group + 1):
                off = keys[:, head, plane] - factors[2 * head, plane] * pooled[:, group, plane]
                error += float(weights[head, plane] * off.abs().square().sum())
                stacked.append(weights[head, plane].sqrt() * keys[:, head, plane])
            least = float(torch.linalg.svdvals(torch.stack(stacked))[1:].square().sum())
            assert error == pytest.approx(least, rel=1e-3)
        error, behind = 0.0, []
        for query in range(4 * group, 4 * group + 4):
            effect = values[:, query // 2] @ output[:, query].T
            error += float((effect - pooled_values[:, group] @ output_new[:, query].T).square().sum())
            behind.append(effect)
        least = float(torch.linalg.svdvals(torch.cat(behind, 1))[6:].square().sum())
        assert error == pytest.approx(least, rel=1e-3)


def test_a_head_that_is_never_heard_does_not_count_and_breaks_nothing(tmp_path: Path) -> None:
    """Heads 1 and 3 write nothing to the stream: their keys and values are dropped for those of 0 and 2."""
    model = tiny.model("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.unflatten(1, (4, 6))[:, [1, 3]] = 0
    before = tiny.logits(model)
    cut_down(model, Student(model="in memory", kv_heads=2, prune=Prune()), tiny.batches(), tmp_path)
    torch.testing.assert_close(tiny.logits(tmp_path), before, rtol=1e-3, atol=1e-3)


def test_many_heads_lose_some_after_they_are_aligned(tmp_path: Path) -> None:
    """Multi-head attention too: pooled first, so that what its heads have in common is known of all of them."""
    student = Student(model="in memory", heads=4, kv_heads=2, hidden_size=24, prune=Prune())
    made = cut_down(tiny.model("qwen2", heads=8, kv_heads=8), student, tiny.batches(), tmp_path)
    assert (made.after.heads, made.after.kv_heads, made.after.hidden_size) == (4, 2, 24)
    assert tiny.logits(tmp_path).isfinite().all()
