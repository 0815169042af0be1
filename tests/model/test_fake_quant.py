"""Fake quantization: what it computes with is what the packed form is read as, and gradients go by."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from distill.errors import CheckpointError
from distill.model.fake_quant import attach_fake_quantization, fake_quantize, read_grid, round_weight, save_grid
from distill.model.linears import grids_of
from distill.model.load import load_model
from distill.model.scales import Grid, round_to_nearest
from tests.train import tiny


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_are_those_of_the_grid_and_the_gradient_is_the_weights(
    bits: int, symmetric: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 32, requires_grad=True)
    grid = Grid(bits, 8, symmetric)
    rounded = fake_quantize(weight, grid, dtype)
    codes, scales, zeros = round_to_nearest(weight.detach(), grid, dtype=dtype)
    for row in range(6):
        for column in range(32):
            code = int(codes[row, column]) - (0 if zeros is None else int(zeros[row, column // 8]))
            expected = torch.tensor(code, dtype=dtype) * scales[row, column // 8].to(dtype)
            assert rounded[row, column].item() == expected.item()
    assert all(len(group.unique()) <= 2**bits for group in rounded.detach().view(-1, 8))
    assert not torch.equal(rounded, weight)
    upstream = torch.randn(6, 32)
    rounded.backward(upstream)
    assert torch.equal(weight.grad, upstream)  # type: ignore[arg-type]


def test_a_model_computes_with_rounded_linears_and_keeps_its_state(tmp_path: Path) -> None:
    tiny.save_model(tmp_path / "m")
    model = load_model(tmp_path / "m", dtype="float32", device="cpu")
    plain = load_model(tmp_path / "m", dtype="float32", device="cpu")
    assert isinstance(model, LlamaForCausalLM)
    grids = grids_of(model, bits=3, group_size=16, symmetric=True)
    assert len(grids) == 14 and "lm_head" not in grids and {grid.group_size for grid in grids.values()} == {16}
    attach_fake_quantization(model, grids, torch.float32)
    assert model.state_dict().keys() == plain.state_dict().keys()
    layer, inputs = model.model.layers[0].mlp.up_proj, torch.randn(3, 32)
    rounded = round_weight(layer.weight, grids["model.layers.0.mlp.up_proj"], torch.float32).weight()
    assert torch.equal(layer(inputs), F.linear(inputs, rounded))
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        for name, grid in grids.items():
            linear = plain.get_submodule(name)
            linear.weight.copy_(round_weight(linear.weight, grid, torch.float32).weight())
        assert torch.equal(model(ids).logits, plain(ids).logits)


def test_a_grid_is_written_and_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for symmetric in (True, False):
        folder = tmp_path / str(symmetric)
        folder.mkdir()
        linears = {
            name: round_weight(torch.randn(4, 32), Grid(4, size, symmetric), torch.bfloat16)
            for name, size in (("a.b", 8), ("c", 32))
        }
        save_grid(linears, folder)
        read = read_grid(folder)
        assert read.keys() == linears.keys()
        for name, linear in linears.items():
            assert read[name].grid == linear.grid
            assert torch.equal(read[name].codes, linear.codes) and torch.equal(read[name].weight(), linear.weight())
    with pytest.raises(CheckpointError, match="has no grid that it was trained on"):
        read_grid(tmp_path)
