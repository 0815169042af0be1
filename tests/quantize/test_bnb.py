"""Our formulas for NF4 and LLM.int8() against bitsandbytes, and its models written and read again on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bitsandbytes import functional

from distill.model.load import load_model
from distill.quantize.bnb import (
    dequantize_nf4,
    dequantized_weights,
    int8_matmul,
    load_int8,
    load_nf4,
    nf4_code_book,
    quantize_nf4,
)
from distill.quantize.export import quantized_bits_per_weight, weight_bytes

from .tiny import probe_ids, tiny_model


def test_code_book_is_that_of_bitsandbytes() -> None:
    book = nf4_code_book()
    assert torch.allclose(book, functional.get_4bit_type("nf4", device="cpu"), atol=1e-6)
    assert len(book) == 16 and book[0] == -1 and book[7] == 0 and book[15] == 1
    assert (book.diff() > 0).all()


def test_normal_weights_use_all_codes_about_equally() -> None:
    """What NF4 is for: at the scale it was made for, a normal value falls on each inner code about as often."""
    values = torch.randn(1 << 16, generator=torch.Generator().manual_seed(0))
    book = nf4_code_book()
    largest_quantile = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(0.9677083))
    codes = torch.bucketize(values / largest_quantile, (book[1:] + book[:-1]) / 2)
    share = torch.bincount(codes, minlength=16) / len(values)
    assert (share[1:-1] > 0.5 / 16).all() and (share[1:-1] < 1.5 / 16).all()


def test_nf4_blocks_are_those_of_bitsandbytes() -> None:
    values = torch.randn(64 * 40, generator=torch.Generator().manual_seed(1))
    packed, state = functional.quantize_4bit(values, blocksize=64, quant_type="nf4")
    expected = functional.dequantize_4bit(packed, state).flatten()
    codes, scales = quantize_nf4(values)
    assert torch.allclose(dequantize_nf4(codes, scales), expected, atol=1e-6)
    assert torch.allclose(scales, state.absmax)


def test_nf4_code_points_are_exact() -> None:
    book = nf4_code_book()
    values = torch.cat([book * 3, book * 0.5, torch.zeros(32)])
    assert torch.equal(dequantize_nf4(*quantize_nf4(values, 16)), values)


@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_int8_matmul_is_that_of_bitsandbytes(threshold: float) -> None:
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(10, 64, generator=generator).half()
    inputs[3, 5], inputs[1, 7] = 20, -9
    weight = torch.randn(32, 64, generator=generator).half()
    codes, row_scales, outliers = functional.int8_vectorwise_quant(inputs, threshold=threshold)
    weight_codes, weight_scales, _ = functional.int8_vectorwise_quant(weight)
    expected, _ = torch.ops.bitsandbytes.int8_mixed_scaled_mm(
        inputs, codes, weight_codes, row_scales, weight_scales, outliers, None
    )
    ours = int8_matmul(inputs, weight, threshold)
    assert (ours - expected).norm() < 1e-3 * ours.norm()


def test_outlier_columns_are_what_saves_int8() -> None:
    generator = torch.Generator().manual_seed(3)
    inputs, weight = torch.randn(50, 64, generator=generator), torch.randn(32, 64, generator=generator)
    inputs[:, 9] *= 100
    exact = inputs @ weight.T
    with_outliers = (int8_matmul(inputs, weight, 6.0) - exact).norm()
    without = (int8_matmul(inputs, weight, 0.0) - exact).norm()
    assert with_outliers < without / 3


def test_int8_by_hand() -> None:
    # codes of x: 127, 64 (63.5 to even) at 1/127 * 2; codes of w: 127, -127 at 1/127
    got = int8_matmul(torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, -1.0]]))
    assert got.item() == pytest.approx((127 * 127 - 64 * 127) * (2 / 127) * (1 / 127))


@pytest.mark.parametrize("method", ["nf4", "nf4 single", "int8"])
def test_models_are_written_and_read_again(method: str, tmp_path: Path) -> None:
    source, target = tmp_path / "before", tmp_path / "after"
    original = tiny_model(dtype=torch.bfloat16)
    original.save_pretrained(source)
    model = load_int8(source) if method == "int8" else load_nf4(source, double_quant=method == "nf4")
    model.save_pretrained(target)
    weights = dequantized_weights(model)
    # rows of 96 are no whole blocks of 64: NF4 leaves down_proj alone
    assert len(weights) == (14 if method == "int8" else 12)
    limit = 0.01 if method == "int8" else 0.12
    for name, weight in weights.items():
        before = original.get_parameter(name).float()
        assert 0 < (before - weight.float()).norm() < limit * before.norm(), name
    loaded = load_model(target, dtype="stored", device="cpu")
    with torch.no_grad():
        assert torch.equal(loaded(probe_ids()).logits, model(probe_ids()).logits)
    assert loaded.generate(probe_ids(), max_new_tokens=2, do_sample=False).shape[1] == probe_ids().shape[1] + 2
    assert dequantized_weights(loaded).keys() == weights.keys(), "also after a forward pass has moved the int8 scales"
    assert weight_bytes(target) < weight_bytes(source)
    bits = quantized_bits_per_weight(source, target)
    assert (8 < bits < 9) if method == "int8" else (4.1 < bits < 12), "each linear carries its code books"


@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_float32_is_what_a_16_bit_checkpoint_computes_in_when_asked(method: str, tmp_path: Path) -> None:
    source, target = tmp_path / "before", tmp_path / "after"
    tiny_model(dtype=torch.bfloat16).save_pretrained(source)
    (load_int8(source) if method == "int8" else load_nf4(source)).save_pretrained(target)
    model = load_model(target, dtype="float32", device="cpu")
    plain = load_model(source, dtype="float32", device="cpu")
    for name, weight in dequantized_weights(model).items():
        plain.get_parameter(name).data = weight.float()
    with torch.no_grad():
        got = model(probe_ids(), output_hidden_states=True)
        expected = plain(probe_ids(), output_hidden_states=True)
    assert model.dtype == got.logits.dtype == torch.float32
    # exact but for rounding; LLM.int8() rounds its inputs to 8 bits besides
    close = {"nf4": 1e-5, "int8": 3e-2}[method]
    for mine, theirs in zip(got.hidden_states, expected.hidden_states, strict=True):
        assert (mine - theirs).norm() <= close * theirs.norm()
