"""Gram matrices against ones computed from all inputs at once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from distill.errors import DistillError
from distill.model.linears import decoder_layers
from distill.quantize.calibrate import (
    advance,
    capture,
    input_groups,
    input_statistics,
    linears_of,
)

from .tiny import configs, tiny_model, token_batches


@pytest.mark.parametrize("architecture", sorted(configs()))
def test_gram_matrices_are_those_of_an_unpadded_pass(architecture: str) -> None:
    model, batches = tiny_model(architecture), token_batches(8)
    name, layers = decoder_layers(model)
    inputs, extras = capture(model, layers, batches)
    ours = {}
    for index, layer in enumerate(layers):
        for group in input_groups(layer, inputs, extras[index]):
            for linear in group.linears:
                module = linears_of(layer)[linear]
                ours[f"{name}.{index}.{linear}"] = input_statistics(layer, module, inputs, extras[index])
        advance(layer, inputs, extras[index])

    seen: dict[str, list[torch.Tensor]] = {key: [] for key in ours}
    for key in seen:
        model.get_submodule(key).register_forward_pre_hook(
            lambda _, args, k=key: seen[k].append(args[0].reshape(-1, args[0].shape[-1]))
        )
    with torch.no_grad():
        for batch in batches:
            for row, mask in zip(batch.input_ids, batch.mask, strict=True):
                model(row[mask][None], use_cache=False)
    for key, statistics in ours.items():
        inputs_TI = torch.cat(seen[key])
        gram = inputs_TI.T @ inputs_TI / len(inputs_TI)
        assert torch.allclose(statistics.gram, gram, atol=1e-4 * float(gram.abs().max())), key
        assert torch.allclose(statistics.mean_abs, inputs_TI.abs().mean(0), rtol=1e-3, atol=1e-4), key


def test_linears_are_grouped_by_the_tensor_they_read() -> None:
    model = tiny_model()
    _, layers = decoder_layers(model)
    inputs, extras = capture(model, layers, token_batches(4))
    groups = input_groups(layers[0], inputs, extras[0])
    assert [(set(group.linears), group.norm) for group in groups] == [
        ({"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}, "input_layernorm"),
        ({"self_attn.o_proj"}, None),
        ({"mlp.gate_proj", "mlp.up_proj"}, "post_attention_layernorm"),
        ({"mlp.down_proj"}, None),
    ]


def test_unknown_structures_are_refused_by_name() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(2))
            self.config = SimpleNamespace(get_text_config=lambda decoder: SimpleNamespace(num_hidden_layers=2))

    with pytest.raises(DistillError, match="Odd: 0 lists of 2 decoder layers"):
        decoder_layers(Odd())  # type: ignore[arg-type]
