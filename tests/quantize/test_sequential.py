"""Whole models: folds that change nothing, and quantized models that are better than plain rounding."""

from __future__ import annotations

import copy
from typing import Literal

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from distill.model.linears import decoder_layers, linears_of
from distill.model.scales import output_error
from distill.quantize.calibrate import capture, input_groups
from distill.quantize.fold import Heads, Producer, divide, find_producer
from distill.quantize.sequential import Gptq, Nearest, WeightSettings, quantize_model

from .tiny import configs, probe_ids, tiny_model, token_batches

FOLDS = {
    "llama": {"q_proj": "norm", "o_proj": "linear", "gate_proj": "norm", "down_proj": "linear"},
    "mistral": {"q_proj": "norm", "o_proj": "linear", "gate_proj": "norm", "down_proj": "linear"},
    "qwen2": {"q_proj": "norm", "o_proj": "linear", "gate_proj": "norm", "down_proj": "linear"},
    "qwen3": {"q_proj": "norm", "o_proj": "linear", "gate_proj": "norm", "down_proj": "linear"},
    "gemma2": {"q_proj": "offset_norm", "o_proj": "linear", "gate_proj": "offset_norm", "down_proj": "linear"},
    "phi3": {"qkv_proj": "norm", "o_proj": "linear", "gate_up_proj": "norm", "down_proj": "linear"},
    "opt": {"q_proj": "norm", "out_proj": "linear", "fc1": "norm", "fc2": "linear"},
    # GELU is not homogeneous, and heads are interleaved inside query_key_value: nothing to fold there
    "gpt_neox": {"query_key_value": "norm", "dense": None, "dense_h_to_4h": "norm", "dense_4h_to_h": None},
}


@pytest.mark.parametrize("architecture", sorted(configs()))
def test_folding_random_scales_keeps_the_model_function(architecture: str) -> None:
    model = tiny_model(architecture)
    with torch.no_grad():
        before = model(probe_ids()).logits
    _, layers = decoder_layers(model)
    inputs, extras = capture(model, layers, token_batches(4))
    layer, generator = layers[0], torch.Generator().manual_seed(0)
    earlier: list[str] = []
    found: dict[str, str | None] = {}
    for group in input_groups(layer, inputs, extras[0]):
        producer = find_producer(layer, group, earlier, inputs, extras[0], Heads.of(model))
        earlier += group.linears
        for name in group.linears:
            found[name.rpartition(".")[2]] = producer.kind if producer else None
        if producer is not None:
            scales = torch.rand(producer.stop - producer.start, generator=generator) * 3 + 0.2
            divisors = divide(layer.get_submodule(producer.name), producer, scales)
            for name in group.linears:
                with torch.no_grad():
                    linears_of(layer)[name].weight.mul_(producer.spread(divisors))
    assert {name: found[name] for name in FOLDS[architecture]} == FOLDS[architecture]
    with torch.no_grad():
        after = model(probe_ids()).logits
    assert torch.allclose(before, after, atol=1e-3 * float(before.abs().max()))


def test_grouped_query_heads_share_their_scales() -> None:
    model = tiny_model()
    _, layers = decoder_layers(model)
    inputs, extras = capture(model, layers, token_batches(4))
    group = next(g for g in input_groups(layers[0], inputs, extras[0]) if "self_attn.o_proj" in g.linears)
    earlier = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
    producer = find_producer(layers[0], group, earlier, inputs, extras[0], Heads.of(model))
    assert producer is not None and producer.name == "self_attn.v_proj"
    assert (producer.repeats, producer.stop) == (2, 32)
    spread = producer.spread(torch.arange(32.0))
    assert torch.equal(spread[:16], spread[16:32]) and torch.equal(spread[32:48], spread[48:])
    assert torch.equal(producer.tie(spread), torch.arange(32.0))


def test_probing_leaves_the_weights_alone() -> None:
    model = tiny_model("opt")
    before = copy.deepcopy(model.state_dict())
    _, layers = decoder_layers(model)
    inputs, extras = capture(model, layers, token_batches(4))
    earlier: list[str] = []
    for group in input_groups(layers[0], inputs, extras[0]):
        find_producer(layers[0], group, earlier, inputs, extras[0], Heads.of(model))
        earlier += group.linears
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


METHODS = {
    "nearest": WeightSettings(Nearest(), group_size=32),
    "gptq": WeightSettings(Gptq(), group_size=32),
    "gptq act order": WeightSettings(Gptq(act_order=True), group_size=32, symmetric=False),
    "awq": WeightSettings(Nearest(clip=True), group_size=32, symmetric=False, scaling_points=20),
}


def distance(model: nn.Module, reference: nn.Module) -> float:
    with torch.no_grad():
        ours, theirs = model(probe_ids()).logits, reference(probe_ids()).logits
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("method", ["gptq", "gptq act order", "awq"])
def test_beats_plain_rounding_in_every_kind_of_linear(method: str) -> None:
    model = tiny_model()
    settings = METHODS[method]
    result = quantize_model(model, token_batches(64), settings)
    plain = tiny_model()
    quantize_model(plain, token_batches(64), WeightSettings(Nearest(), group_size=32, symmetric=settings.symmetric))
    assert distance(model, tiny_model()) < 0.9 * distance(plain, tiny_model())
    by_kind: dict[str, list[tuple[float, float]]] = {}
    for report in result.reports:
        errors = (report.output_error, report.rtn_output_error)
        by_kind.setdefault(report.name.rpartition(".")[2], []).append(errors)
    assert len(by_kind) == 7
    for kind, errors in by_kind.items():
        assert sum(ours for ours, _ in errors) < sum(plain for _, plain in errors), kind


@pytest.mark.parametrize("architecture", sorted(configs()))
def test_eight_bits_are_nearly_lossless_everywhere(architecture: str) -> None:
    model = tiny_model(architecture)
    result = quantize_model(model, token_batches(), WeightSettings(Gptq(), bits=8, group_size=32))
    assert len(result.linears) == 2 * len(linears_of(decoder_layers(model)[1][0]))
    assert max(report.output_error for report in result.reports) < 0.01
    assert distance(model, tiny_model(architecture)) < 0.05


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_model_holds_what_the_codes_say(method: str) -> None:
    model = tiny_model(dtype=torch.bfloat16)
    result = quantize_model(model, token_batches(), METHODS[method])
    for name, linear in result.linears.items():
        assert torch.equal(model.get_submodule(name).weight, linear.weight()), name
        assert linear.scales.dtype == torch.bfloat16 and linear.codes.dtype == torch.int8


def grams_of(model: PreTrainedModel, names: list[str]) -> dict[str, torch.Tensor]:
    """Gram matrix of every linear's inputs, from plain unpadded passes of the whole model."""
    grams = {name: torch.zeros(1) for name in names}

    def add(name: str, inputs: torch.Tensor) -> None:
        flat = inputs.reshape(-1, inputs.shape[-1])
        grams[name] = grams[name] + flat.T @ flat

    for name in names:
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, n=name: add(n, args[0]))
    with torch.no_grad():
        for batch in token_batches():
            for row, mask in zip(batch.input_ids, batch.mask, strict=True):
                model(row[mask][None], use_cache=False)
    return grams


# v_proj and up_proj are left out: their rows took up the scales of o_proj and down_proj
NORM_OF = {"q_proj": "input_layernorm", "k_proj": "input_layernorm", "gate_proj": "post_attention_layernorm"}


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_reported_errors_are_those_on_the_quantized_models_own_inputs(method: str) -> None:
    """Linears are quantized in the order in which they run, so each saw the inputs that it has in the end."""
    original, model = tiny_model(), tiny_model()
    result = quantize_model(model, token_batches(), METHODS[method])
    grams = grams_of(model, [report.name for report in result.reports])
    checked = 0
    for report in result.reports:
        before = original.get_submodule(report.name).weight.detach()
        layer, linear = report.name.rsplit(".", 2)[0], report.name.rpartition(".")[2]
        if method == "awq":
            norm = NORM_OF.get(linear)
            if norm is None:
                continue
            path = f"{layer}.{norm}"
            before = before * (original.get_submodule(path).weight / model.get_submodule(path).weight).detach()
        expected = output_error(before, model.get_submodule(report.name).weight.detach(), grams[report.name])
        assert report.output_error == pytest.approx(expected, rel=1e-2), report.name
        checked += 1
    assert checked == (14 if method == "gptq" else 6)


@pytest.mark.parametrize("kind", ["norm", "offset_norm"])
def test_a_norms_rounding_is_made_up_for(kind: Literal["norm", "offset_norm"]) -> None:
    norm = nn.Module()
    norm.weight = nn.Parameter(torch.rand(32, generator=torch.Generator().manual_seed(0)).bfloat16())
    offset = 1.0 if kind == "offset_norm" else 0.0
    before = norm.weight.detach().float() + offset
    scales = torch.rand(32, generator=torch.Generator().manual_seed(1)) + 0.3
    divisors = divide(norm, Producer("norm", kind, 0, 32), scales)
    assert torch.allclose((norm.weight.float() + offset) * divisors, before, rtol=1e-6)
    assert not torch.equal(divisors, scales) and torch.allclose(divisors, scales, rtol=0.02)
