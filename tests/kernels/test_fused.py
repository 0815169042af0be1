"""The kernels between the matrix products against transformers' own modules: compiled on a GPU, elsewhere by Triton's
interpreter (TRITON_INTERPRET=1 python -m pytest tests/kernels)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel
from transformers.models.qwen3 import modeling_qwen3 as qwen3

from distill.engine.runner import Engine, EngineConfig
from distill.engine.types import SamplingParams
from tests.engine.models import tiny_model
from tests.engine.test_prefix import _tree

ON_GPU = torch.cuda.is_available()
if not ON_GPU and os.environ.get("TRITON_INTERPRET") != "1":  # Triton reads it when it is first imported
    pytest.skip("needs a GPU, or Triton and TRITON_INTERPRET=1", allow_module_level=True)
pytest.importorskip("triton", reason="the kernels need Triton")
from distill.kernels.fused import rms_norm, rotate_and_store, silu_mul  # noqa: E402
from distill.kernels.gemv import gated_gemv, gemv  # noqa: E402

DEVICE = "cuda" if ON_GPU else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def _close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal up to the last bit of the type, as sums are added up in another order; the interpreter cuts bfloat16 where
    the GPU rounds, at each of up to five steps."""
    assert found.dtype == expected.dtype
    bits = 2 if ON_GPU or found.dtype != torch.bfloat16 else 8
    tolerance = max(2e-6, bits * torch.finfo(found.dtype).eps)
    assert torch.allclose(found.float(), expected.float(), rtol=tolerance, atol=tolerance / 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [64, 896])
def test_rms_norm(dtype: torch.dtype, width: int) -> None:
    torch.manual_seed(0)
    norm = qwen3.Qwen3RMSNorm(width, eps=1e-5).to(DEVICE, dtype)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(5, 2 * width, dtype=dtype, device=DEVICE)[:, :width]
    _close(rms_norm(x, norm.weight, 1e-5), norm(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_mul(dtype: torch.dtype) -> None:
    """Gate and up as the two halves of one product, wider than one program."""
    torch.manual_seed(0)
    both = torch.randn(3, 2 * 1100, dtype=dtype, device=DEVICE) * 4
    gate, up = both.chunk(2, dim=-1)
    _close(silu_mul(gate, up), torch.nn.functional.silu(gate) * up)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("heads,kv_heads,dim", [(6, 2, 16), (4, 4, 24), (9, 1, 64)])
def test_rotate_and_store(dtype: torch.dtype, normed: bool, heads: int, kv_heads: int, dim: int) -> None:
    """Queries as apply_rotary_pos_emb makes them; keys and values where the slots say, and nowhere else."""
    torch.manual_seed(0)
    tokens, size = 5, 4
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * dim, dtype=dtype, device=DEVICE)
    angles = torch.randn(tokens, dim // 2, device=DEVICE).repeat(1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    q, k, v = (part.view(tokens, -1, dim) for part in qkv.split([heads * dim, kv_heads * dim, kv_heads * dim], -1))
    norms = None
    if normed:
        both = [qwen3.Qwen3RMSNorm(dim, eps=1e-5).to(DEVICE, dtype) for _ in range(2)]
        for norm in both:
            torch.nn.init.normal_(norm.weight)
        q, k, norms = both[0](q), both[1](k), (both[0].weight, both[1].weight, 1e-5)
    q, k = qwen3.apply_rotary_pos_emb(q[None], k[None], cos[None], sin[None], unsqueeze_dim=2)
    keys, values = (torch.zeros(6, kv_heads, size, dim, dtype=dtype, device=DEVICE) for _ in range(2))
    wanted_keys, wanted_values = keys.clone(), values.clone()
    slots = torch.tensor([9, -1, 0, 23, 10], device=DEVICE)
    found = rotate_and_store(qkv, cos, sin, slots, keys, values, query_heads=heads, norms=norms)
    for i, slot in enumerate(slots.tolist()):
        if slot >= 0:
            wanted_keys[slot // size, :, slot % size] = k[0, i]
            wanted_values[slot // size, :, slot % size] = v[i]
    _close(found, q[0])
    _close(keys, wanted_keys)
    assert torch.equal(values, wanted_values)
    places = torch.tensor([3, 0, 6, 2, 5], device=DEVICE)
    tables = [torch.zeros(7, dim, dtype=dtype, device=DEVICE).index_copy_(0, places, part) for part in (cos, sin)]
    by_table = rotate_and_store(qkv, *tables, slots, keys, values, query_heads=heads, norms=norms, positions=places)
    assert torch.equal(by_table, found)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", range(1, 5))
@pytest.mark.parametrize("width,outputs", [(96, 37), (1100, 6)])
def test_gemv(dtype: torch.dtype, rows: int, width: int, outputs: int) -> None:
    """With norm, bias and residual, and gated, against the modules' own sequence in float64."""
    torch.manual_seed(0)
    x, weight = (torch.randn(n, width, dtype=dtype, device=DEVICE) for n in (rows, 2 * outputs))
    bias, residual = (torch.randn(*n, 2 * outputs, dtype=dtype, device=DEVICE) for n in ((), (rows,)))
    norm = qwen3.Qwen3RMSNorm(width, eps=1e-5).to(DEVICE, dtype)
    torch.nn.init.normal_(norm.weight)
    wide, normed = weight.double(), norm(x).double()
    own = (norm.weight, 1e-5)
    plain = residual + (x.double() @ wide.T).to(dtype)
    found = gemv(x, weight, out=residual)
    assert found is residual
    scale = width**0.5 * torch.finfo(dtype).eps * 8
    assert torch.allclose(found.double(), plain.double(), atol=scale, rtol=0)
    expected = normed @ wide.T + bias.double()
    assert torch.allclose(gemv(x, weight, bias, norm=own).double(), expected, atol=scale, rtol=0)
    gate, up = (normed @ wide.T).chunk(2, -1)
    expected = torch.nn.functional.silu(gate) * up
    found = gated_gemv(x, weight, norm=own).double()
    assert torch.allclose(found, expected, atol=scale, rtol=32 * torch.finfo(dtype).eps)


FUSABLE = ("llama-gqa", "mistral", "qwen2", "qwen3", "qwen3-mixed")


@pytest.mark.parametrize("name", FUSABLE)
def test_fused_layers_write_what_transformers_writes(name: str) -> None:
    """Greedy text is that of generate(), and the model is left as it was: outside the engine, and in its checkpoint."""
    model = tiny_model(name).to(DEVICE)
    prompts = _tree(4, seed=6)
    expected = [_generate(model, prompt) for prompt in prompts]
    engine = Engine(model, None, EngineConfig(attention="triton", block_size=4, prefill_tokens=20))
    assert engine._fusion is not None and len(engine._fusion) == model.config.num_hidden_layers
    assert engine._fusion._angles is not None and engine._fusion._norm is not None
    assert [c.token_ids for c in engine.generate(prompts, SamplingParams(max_tokens=6))] == expected
    assert engine.stats.cached_tokens > 0
    assert [_generate(model, prompt) for prompt in prompts] == expected


def test_prompts_on_fixed_inputs_write_what_transformers_writes() -> None:
    """Those that come again, with tokens beside them that nobody needs."""
    model = tiny_model("qwen3").to(DEVICE)
    prompts = [[5, 6, 7, 8, 9], [9, 8, 7]]
    expected = [_generate(model, prompt) for prompt in prompts]
    engine = Engine(model, None, EngineConfig(attention="triton", block_size=4, prefix_cache=False, max_batch=3))
    for _ in range(3):
        assert [c.token_ids for c in engine.generate(prompts, SamplingParams(max_tokens=6))] == expected
    assert engine.graphs is not None and engine.graphs.prompts.num_captured == 1


@pytest.mark.parametrize("name", ["gemma2", "phi3", "mixtral", "gpt-neox", "opt"])
def test_other_layers_stay_as_they_are(name: str) -> None:
    assert Engine(tiny_model(name).to(DEVICE), None, EngineConfig(attention="triton"))._fusion is None


def test_layers_that_look_alike_are_found_out() -> None:
    """A layer made of the same parts that computes something else runs as it was written."""
    model = tiny_model("llama-gqa").to(DEVICE)
    for layer in model.model.layers:
        layer.self_attn.scaling *= 3
        layer.self_attn.register_forward_hook(lambda module, inputs, output: (2 * output[0], *output[1:]))
    with pytest.warns(UserWarning, match="runs unfused"):
        engine = Engine(model, None, EngineConfig(attention="triton", block_size=4))
    assert [c.token_ids for c in engine.generate([[5, 6, 7]], SamplingParams(max_tokens=6))] == [
        _generate(model, [5, 6, 7])
    ]


def test_weights_made_one_tensor_still_train_and_save(tmp_path: Path) -> None:
    """In-place updates reach the fused product, replaced weights too, and a checkpoint holds what it held."""
    model = tiny_model("qwen2").to(DEVICE)
    engine = Engine(model, None, EngineConfig(attention="triton", block_size=4, prefix_cache=False))
    prompt = [5, 6, 7, 8]
    for replaced in (False, True):
        with torch.no_grad():
            for p in model.parameters():
                noise = 0.1 * torch.randn_like(p)
                if replaced:
                    p.data = p.data + noise
                else:
                    p.add_(noise)
        (found,) = engine.generate([prompt], SamplingParams(max_tokens=6))
        assert found.token_ids == _generate(model, prompt)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_adapters_run_in_fused_layers() -> None:
    """Linear layers that are more than a product are called as they are."""
    peft = pytest.importorskip("peft")
    model = tiny_model("llama-gqa").to(DEVICE)
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "o_proj", "up_proj"], lora_alpha=64))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    base = model.get_base_model().eval()
    engine = Engine(base, None, EngineConfig(attention="triton", block_size=4))
    assert engine._fusion is not None
    (found,) = engine.generate([[5, 6, 7]], SamplingParams(max_tokens=6))
    assert found.token_ids == _generate(base, [5, 6, 7])


def _generate(model: PreTrainedModel, prompt: list[int]) -> tuple[int, ...]:
    ids = torch.tensor([prompt], device=DEVICE)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0)
    return tuple(out[0, len(prompt) :].tolist())
