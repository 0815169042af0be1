"""Saved models load in transformers and compute what ours compute."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file

from distill.kernels.pack import pack, unpack
from distill.model.load import load_model
from distill.quantize.export import (
    quantization_config,
    quantized_bits_per_weight,
    save_packed,
    weight_bytes,
)
from distill.quantize.sequential import Gptq, Nearest, WeightSettings, quantize_model

from .tiny import probe_ids, tiny_model, token_batches


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("columns", [32, 40, 128, 7])
def test_packing_is_that_of_compressed_tensors(bits: int, columns: int) -> None:
    low = -(2 ** (bits - 1))
    codes = torch.randint(low, -low, (5, columns), generator=torch.Generator().manual_seed(bits)).to(torch.int8)
    codes[0], codes[1] = low, -low - 1
    packed = pack(codes, bits)
    assert torch.equal(packed, pack_to_int32(codes, bits))
    assert torch.equal(unpack(packed, bits, columns), codes)
    assert torch.equal(unpack_from_int32(packed, bits, codes.shape), codes)


def test_packing_by_hand() -> None:
    codes = torch.tensor([[-8, -7, 7, 0, 0, 0, 0, 7]])
    assert pack(codes, 4).item() == 0xF8888F10 - 2**32


CASES = {
    "gptq": WeightSettings(Gptq(), group_size=32),
    "gptq mixed groups": WeightSettings(Gptq(), group_size=64),  # 64 divides 64, but only 32 divides 96
    "gptq asymmetric": WeightSettings(Gptq(), group_size=64, symmetric=False),
    "gptq 3 bits": WeightSettings(Gptq(), bits=3, group_size=32, symmetric=False),
    "gptq 8 bits": WeightSettings(Gptq(act_order=True), bits=8, group_size=32),
    "awq": WeightSettings(Nearest(clip=True), group_size=32, symmetric=False, scaling_points=10),
}


@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_round_trip(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    tiny_model(dtype=dtype).save_pretrained(tmp_path / "before")
    # Loading keeps the rotary buffers in float32, a cast does not.
    model = load_model(tmp_path / "before", dtype="stored", device="cpu")
    result = quantize_model(model, token_batches(), CASES[case])
    save_packed(model, result.linears, tmp_path / "after")
    with torch.no_grad():
        expected = model(probe_ids()).logits
        loaded = load_model(tmp_path / "after", dtype="stored", device="cpu")
        got = loaded(probe_ids()).logits
    assert loaded.dtype == dtype
    for name in result.linears:
        assert torch.equal(loaded.get_submodule(name).weight, model.get_submodule(name).weight), name
    assert torch.allclose(got, expected, rtol=1e-5, atol=1e-5)
    longer = loaded.generate(probe_ids(), max_new_tokens=3, do_sample=False)
    assert longer.shape[1] == probe_ids().shape[1] + 3
    assert weight_bytes(tmp_path / "after") < weight_bytes(tmp_path / "before")
    bits = quantized_bits_per_weight(tmp_path / "before", tmp_path / "after")
    nominal = CASES[case].bits + 8 * dtype.itemsize / 32
    assert nominal - 1 < bits < nominal + 0.6, "the codes, a scale a group, and a few bytes of shapes and zero points"


def test_config_is_one_that_compressed_tensors_reads() -> None:
    model = tiny_model()
    linears = quantize_model(model, token_batches(8), CASES["gptq mixed groups"]).linears
    config = quantization_config(model, linears)
    assert config.pop("dequantize") is False, "two grids: transformers must choose the scheme by module"
    parsed = QuantizationConfig.model_validate(config)
    sizes = {group.weights.group_size: len(group.targets) for group in parsed.config_groups.values()}
    assert sizes == {64: 12, 32: 2}
    assert parsed.ignore == ["lm_head"]


def test_embeddings_are_stored_once_and_as_they_were(tmp_path: Path) -> None:
    model = tiny_model(dtype=torch.bfloat16)
    before = model.get_input_embeddings().weight.clone()
    linears = quantize_model(model, token_batches(8), CASES["awq"]).linears
    save_packed(model, linears, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert torch.equal(tensors["model.embed_tokens.weight"], before)
    assert "lm_head.weight" not in tensors
    assert not any(name.endswith("proj.weight") for name in tensors)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["format"] == "pack-quantized"
    loaded = load_model(tmp_path, device="cpu")
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight


@pytest.mark.parametrize("architecture", ["gemma2", "phi3", "opt", "gpt_neox", "qwen3"])
def test_other_architectures_load_back(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    linears = quantize_model(model, token_batches(8), CASES["awq"]).linears
    save_packed(model, linears, tmp_path)
    with torch.no_grad():
        got = load_model(tmp_path, device="cpu")(probe_ids()).logits
        assert torch.allclose(got, model(probe_ids()).logits, atol=1e-5)
