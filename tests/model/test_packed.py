"""Packed models are loaded without dense weights and say what the dense ones say."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from distill.kernels.w4a16 import PackedLinear
from distill.model.calibration import pad_batches
from distill.model.load import load_model
from distill.model.packed import count_parameters
from distill.quantize.export import save_packed
from distill.quantize.sequential import Nearest, WeightSettings, quantize_model

IDS = torch.arange(24).view(2, 12) + 3


def _llama(intermediate: int = 128) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=intermediate,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=True,
        initializer_range=0.3,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def _quantized(folder: Path, *, bits: int = 4, symmetric: bool = True, intermediate: int = 128) -> PreTrainedModel:
    """Writes the folder; the dense model of the same rounded weights."""
    model = _llama(intermediate)
    settings = WeightSettings(Nearest(), bits, 32, symmetric)
    save_packed(model, quantize_model(model, pad_batches(IDS.tolist(), max_length=12), settings).linears, folder)
    return load_model(folder, dtype="float32", device="cpu")


@pytest.mark.parametrize("bits,symmetric", [(4, True), (4, False), (3, True)])
def test_the_same_numbers_as_dense_to_16_bits(bits: int, symmetric: bool, tmp_path: Path) -> None:
    dense = _quantized(tmp_path, bits=bits, symmetric=symmetric)
    packed = load_model(tmp_path, dtype="float32", device="cpu", packed=True)
    layers = [module for module in packed.modules() if isinstance(module, PackedLinear)]
    assert len(layers) == 14 and not any(isinstance(m, PackedLinear) for m in dense.modules())
    assert count_parameters(packed) == count_parameters(dense) == dense.num_parameters()
    assert packed.get_output_embeddings().weight is packed.get_input_embeddings().weight
    with torch.no_grad():
        got, expected = packed(IDS).logits, dense(IDS).logits
    assert got.dtype == torch.float32
    assert (got - expected).norm() < 3e-2 * expected.norm()
    assert packed.get_memory_footprint() < dense.get_memory_footprint()


def test_linears_that_do_not_fit_are_dense(tmp_path: Path) -> None:
    dense = _quantized(tmp_path, intermediate=104)  # 104 outputs are no multiple of 16, 104 inputs none of 32
    packed = load_model(tmp_path, dtype="float32", device="cpu", packed=True)
    assert sum(isinstance(module, PackedLinear) for module in packed.modules()) == 8
    with torch.no_grad():
        assert (packed(IDS).logits - dense(IDS).logits).norm() < 3e-2 * dense(IDS).logits.norm()


def test_a_gptq_folder_is_read(tmp_path: Path) -> None:
    """AutoGPTQ's layout, made from ours: codes along the inputs in words, zero points of 8 stored as 7."""
    dense = _quantized(tmp_path)
    tensors, made = load_file(tmp_path / "model.safetensors"), {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        if kind == "weight_packed":  # (O, I / 8) here, (I / 8, O) there, the same bits
            made[f"{stem}.qweight"] = tensor.T.contiguous()
            groups, outputs = tensors[f"{stem}.weight_scale"].shape[1], tensor.shape[0]
            made[f"{stem}.qzeros"] = torch.full((groups, outputs // 8), 0x77777777, dtype=torch.int32)
            made[f"{stem}.scales"] = tensors[f"{stem}.weight_scale"].T.contiguous()
            made[f"{stem}.g_idx"] = (torch.arange(8 * tensor.shape[1]) // 32).to(torch.int32)
        elif kind not in ("weight_scale", "weight_shape"):
            made[name] = tensor
    save_file(made, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    packed = load_model(tmp_path, dtype="float32", device="cpu", packed=True)
    with torch.no_grad():
        assert (packed(IDS).logits - dense(IDS).logits).norm() < 3e-2 * dense(IDS).logits.norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("bits,symmetric", [(4, True), (4, False), (8, True), (3, False)])
def test_packed_on_a_gpu(bits: int, symmetric: bool, tmp_path: Path) -> None:
    """Inputs that fill no tile are no obstacle there, nor are 8 bits."""
    dense = _quantized(tmp_path, bits=bits, symmetric=symmetric, intermediate=96)
    packed = load_model(tmp_path, dtype="bfloat16", device="cuda", packed=True)
    assert sum(isinstance(module, PackedLinear) for module in packed.modules()) == 14
    with torch.no_grad():
        got, expected = packed(IDS.cuda()).logits.float().cpu(), dense(IDS).logits
    assert (got - expected).norm() < 3e-2 * expected.norm()
