"""Layers that are trained fused against transformers' own: compiled on a GPU, elsewhere by Triton's interpreter
(TRITON_INTERPRET=1 python -m pytest tests/kernels)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

ON_GPU = torch.cuda.is_available()
if not ON_GPU and os.environ.get("TRITON_INTERPRET") != "1":  # Triton reads it when it is first imported
    pytest.skip("needs a GPU, or Triton and TRITON_INTERPRET=1", allow_module_level=True)
pytest.importorskip("triton", reason="the kernels need Triton")
from distill.kernels.layers import add_norm, gate, rotate  # noqa: E402
from distill.train.fused import FusedLayers  # noqa: E402

DEVICE = torch.device("cuda" if ON_GPU else "cpu")


def drawn(*shape: int, seed: int = 0, grad: bool = True) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed + len(shape)))
    return values.to(DEVICE).requires_grad_(grad)


def alike(ours: Callable[..., Any], theirs: Callable[..., Any], *inputs: Tensor) -> None:
    """The same outputs, and the same gradients of a sum that weighs every output differently."""
    found = []
    for function in (ours, theirs):
        mine = [value.detach().clone().requires_grad_(value.requires_grad) for value in inputs]
        outputs = function(*mine)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        loss = sum((out * drawn(*out.shape, seed=7 + place, grad=False)).sum() for place, out in enumerate(outputs))
        assert isinstance(loss, Tensor)
        loss.backward()
        found.append([*outputs, *(value.grad for value in mine if value.requires_grad)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("width", [24, 384])
@pytest.mark.parametrize("rows", [1, 70])
def test_add_norm(width: int, rows: int) -> None:
    def plain(x: Tensor, delta: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        norm = LlamaRMSNorm(width, 1e-5).to(DEVICE)
        return x + delta, torch.func.functional_call(norm, {"weight": weight}, (x + delta,))

    inputs = drawn(rows, width), drawn(rows, width, seed=1), drawn(width, seed=2)
    alike(lambda x, delta, weight: add_norm(x, delta, weight, 1e-5, torch.float32), plain, *inputs)
    alike(
        lambda x, weight: add_norm(x, None, weight, 1e-5, torch.float32),
        lambda x, weight: (x, plain(x, torch.zeros_like(x), weight)[1]),
        inputs[0],
        inputs[2],
    )


def test_more_rows_than_programs_share_the_weight_s_gradient() -> None:
    x, weight = drawn(1200, 16), drawn(16, seed=1)
    alike(
        lambda x, weight: add_norm(x, None, weight, 1e-5, torch.float32)[1],
        lambda x, weight: torch.nn.functional.rms_norm(x, (16,), weight, 1e-5),
        x,
        weight,
    )


@pytest.mark.parametrize("heads,kv_heads,dim", [(6, 2, 16), (3, 3, 12), (5, 1, 64)])
def test_rotate(heads: int, kv_heads: int, dim: int) -> None:
    tokens = 9
    angles = drawn(tokens, dim // 2, grad=False).repeat(1, 2)

    def plain(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = qkv.view(tokens, -1, dim).split([heads, kv_heads, kv_heads], 1)
        query, key = apply_rotary_pos_emb(query, key, angles.cos(), angles.sin(), unsqueeze_dim=1)
        return query, key, value

    qkv = drawn(tokens, (heads + 2 * kv_heads) * dim)
    alike(lambda qkv: rotate(qkv, angles.cos(), angles.sin(), heads, kv_heads), plain, qkv)


def test_gate() -> None:
    def plain(gate_up: Tensor) -> Tensor:
        left, right = gate_up.chunk(2, -1)
        return torch.nn.functional.silu(left) * right

    alike(gate, plain, drawn(5, 2 * 1100))


def llama(**changes: Any) -> LlamaForCausalLM:
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **heads, "initializer_range": 0.3, **changes}))


def qwen2() -> Qwen2ForCausalLM:
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, num_attention_heads=4, num_key_value_heads=4, initializer_range=0.3))
    for layer in model.model.layers:  # biases are zero at first
        torch.nn.init.normal_(layer.self_attn.k_proj.bias)
    return model


@pytest.mark.parametrize("make", [llama, qwen2])
def test_a_model_of_fused_layers_is_the_same(make: Callable[[], LlamaForCausalLM]) -> None:
    torch.manual_seed(0)
    model = make().to(DEVICE)
    layers = FusedLayers(model)
    assert len(layers) == 2
    ids = torch.randint(0, 50, (3, 20), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    positions = torch.arange(20, device=DEVICE).repeat(3, 1)
    found = []
    for fused in (False, True):
        model.zero_grad()
        if fused:
            with layers.active():
                hidden = model.base_model(input_ids=ids, position_ids=positions).last_hidden_state
        else:
            hidden = model.base_model(input_ids=ids, position_ids=positions).last_hidden_state
        (hidden * drawn(*hidden.shape, grad=False)).sum().backward()
        found.append({"hidden": hidden, **{name: weight.grad for name, weight in model.named_parameters()}})
    for name, value in found[0].items():
        if value is not None:  # the head has no part in this
            assert (found[1][name] - value).norm() < 2e-5 * value.norm(), name


def test_layers_of_another_build_stay_as_they_are() -> None:
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = Qwen3Config(**sizes, num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    assert len(FusedLayers(Qwen3ForCausalLM(config))) == 0  # their heads have norms
    model = llama()
    model.model.layers[0].mlp.up_proj.register_forward_hook(lambda *_: None)
    assert len(FusedLayers(model)) == 1
