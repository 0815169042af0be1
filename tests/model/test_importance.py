"""Measured importance against slow references: loops over rows and tokens, and models from which parts are removed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from distill.errors import CheckpointError
from distill.model.depth import block_importance, losses_without
from distill.model.importance import measure
from distill.model.structure import without
from tests.model import tiny
from tests.quantize.tiny import tiny_model


def outputs_of(model: Any, module: Any, ids: torch.Tensor) -> torch.Tensor:
    """What a module gives for a row, (T, ...)."""
    seen: list[torch.Tensor] = []
    hook = module.register_forward_hook(lambda _, args, out: seen.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        model(ids)
    hook.remove()
    return seen[0][0]


def inputs_of(model: Any, module: Any, ids: torch.Tensor) -> torch.Tensor:
    """What a module reads for a row, (T, ...)."""
    seen: list[torch.Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(ids)
    hook.remove()
    return seen[0][0]


def change_without(model: Any, module: Any, zero: Callable[[], None], ids: torch.Tensor) -> float:
    """Mean over a row's tokens of the change (norm) in what `module` adds, when `zero` removes one part's weights."""
    before = outputs_of(model, module, ids)
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        zero()
    after = outputs_of(model, module, ids)
    model.load_state_dict(saved)
    return float((before - after).norm(dim=-1).mean())


@pytest.mark.parametrize("kind", ["llama", "qwen3"])  # with biases, and with norms of the queries
def test_contribution_is_what_removing_the_part_changes(kind: str) -> None:
    """Every head and some neurons removed in turn: root mean square over rows of the mean change of the block."""
    model, batches = tiny.model(kind, layers=2, kv_heads=2), tiny.batches(4)
    importance = measure(model, batches, "contribution")
    rows = tiny.unpadded(batches)
    for number, layer in enumerate(model.model.layers):
        for head in range(4):
            zero = lambda w=layer.self_attn.o_proj.weight, h=head: w[:, 6 * h : 6 * h + 6].zero_()  # noqa: E731
            changes = torch.tensor([change_without(model, layer.self_attn, zero, ids) for ids in rows])
            assert importance.heads_LH[number, head] == pytest.approx(float(changes.square().mean().sqrt()), rel=1e-4)
        for neuron in (0, 7, 19):
            zero = lambda w=layer.mlp.down_proj.weight, n=neuron: w[:, n].zero_()  # noqa: E731
            changes = torch.tensor([change_without(model, layer.mlp, zero, ids) for ids in rows])
            expected = float(changes.square().mean().sqrt())
            assert importance.neurons_LF[number, neuron] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_activation_scores_are_minitrons(kind: str) -> None:
    """Mean over the tokens of each row, then root mean square over the rows, one row and one part at a time."""
    model, batches = tiny.model(kind, layers=2, kv_heads=2), tiny.batches(4)
    importance = measure(model, batches)
    rows = tiny.unpadded(batches)

    def over_rows(value: Callable[[torch.Tensor], torch.Tensor]) -> float:
        means = [float(value(ids).mean()) for ids in rows]
        return float((sum(mean**2 for mean in means) / len(means)) ** 0.5)

    layer = model.model.layers[1]
    for head in range(4):
        part = slice(6 * head, 6 * head + 6)
        expected = over_rows(lambda ids, p=part: inputs_of(model, layer.self_attn.o_proj, ids)[:, p].norm(dim=-1))
        assert importance.heads_LH[1, head] == pytest.approx(expected, rel=1e-5)
    for neuron in (3, 11):
        expected = over_rows(lambda ids, n=neuron: inputs_of(model, layer.mlp.down_proj, ids)[:, n].abs())
        assert importance.neurons_LF[1, neuron] == pytest.approx(expected, rel=1e-5)
    norms = [model.model.norm]
    for each in model.model.layers:
        norms += [each.input_layernorm, each.post_attention_layernorm]
    expected = sum(over_rows(lambda ids, n=norm: outputs_of(model, n, ids)[:, 5].abs()) for norm in norms)
    assert importance.channels_D[5] == pytest.approx(expected, rel=1e-5)
    tokens = torch.cat([inputs_of(model, model.model.norm, ids) for ids in rows])
    torch.testing.assert_close(
        importance.energy["model.norm.weight"], tokens.square().mean(0).double(), rtol=1e-4, atol=1e-6
    )


def test_energies_are_means_over_tokens() -> None:
    model, batches = tiny.model("qwen3", layers=1, kv_heads=2), tiny.batches(4)
    importance, attention = measure(model, batches), model.model.layers[0].self_attn
    rows = tiny.unpadded(batches)
    queries = torch.cat([outputs_of(model, attention.q_norm, ids) for ids in rows])
    torch.testing.assert_close(importance.queries_LH[0], queries.square().sum(-1).mean(0).double(), rtol=1e-5, atol=0)
    heads = torch.cat([inputs_of(model, attention.o_proj, ids) for ids in rows]).unflatten(-1, (4, 6))
    weight = attention.o_proj.weight.detach()
    effects = [(heads[:, h] @ weight[:, 6 * h : 6 * h + 6].T).square().sum(-1).mean() for h in range(4)]
    torch.testing.assert_close(importance.effects_LH[0], torch.stack(effects).double(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_block_importance_is_one_minus_the_cosine_of_input_and_output(kind: str) -> None:
    model, batches = tiny.model(kind), tiny.batches()
    cosines: list[list[float]] = [[], [], []]
    for ids in tiny.unpadded(batches):
        for index, layer in enumerate(model.model.layers):
            before, after = inputs_of(model, layer, ids), outputs_of(model, layer, ids)
            cosines[index] += F.cosine_similarity(before.double(), after.double(), dim=-1).tolist()
    expected = torch.tensor([1 - sum(values) / len(values) for values in cosines], dtype=torch.float64)
    torch.testing.assert_close(block_importance(model, batches), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_losses_without_a_layer_are_those_of_a_model_that_has_not_got_it(kind: str) -> None:
    """Against a model built without the layer, its loss by transformers, one row after the other."""
    model, batches = tiny.model(kind), tiny.batches()
    whole, losses = losses_without(model, batches, range(3))

    def loss_of(other: Any) -> float:
        sums, count = 0.0, 0
        for ids in tiny.unpadded(batches):
            with torch.no_grad():
                sums += float(other(ids, labels=ids).loss) * (ids.shape[1] - 1)
            count += ids.shape[1] - 1
        return sums / count

    assert whole == pytest.approx(loss_of(model), rel=1e-5)
    for gone in range(3):
        smaller = tiny.model(kind, layers=2)
        stays = [index for index in range(3) if index != gone]
        for new, old in enumerate(stays):
            smaller.model.layers[new].load_state_dict(model.model.layers[old].state_dict())
        types = model.config.to_dict().get("layer_types")
        if types is not None:
            for new, old in enumerate(stays):
                smaller.config.layer_types[new] = types[old]
                smaller.model.layers[new].self_attn.sliding_window = model.model.layers[old].self_attn.sliding_window
        for name in ("embed_tokens", "norm"):
            getattr(smaller.model, name).load_state_dict(getattr(model.model, name).state_dict())
        assert float(losses[gone]) == pytest.approx(loss_of(smaller), rel=1e-5), gone
    torch.testing.assert_close(losses_without(model, batches, [1])[1], losses[1:2], rtol=0, atol=0)  # put back whole


def test_layers_that_are_left_out_are_not_measured() -> None:
    model, batches = tiny.model(), tiny.batches()
    with without(model, [1]):
        importance = measure(model, batches)
        assert abs(float(block_importance(model, batches)[1])) < 1e-6
    assert importance.heads_LH.shape == (2, 4) and len(importance.energy) == 5
    assert measure(model, batches).heads_LH.shape == (3, 4)


@pytest.mark.parametrize("kind", ["gemma2", "phi3", "opt", "gpt_neox"])
def test_other_structures_are_refused_by_name(kind: str) -> None:
    with pytest.raises(CheckpointError, match=rf"\({kind}\) cannot be measured or cut in width"):
        measure(tiny_model(kind), tiny.batches())
