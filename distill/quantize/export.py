"""Quantized models as plain folders in the compressed-tensors `pack-quantized` format (transformers, vLLM)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from distill.errors import CheckpointError
from distill.kernels.pack import pack
from distill.model.scales import Grid, QuantizedLinear
from distill.quiet import quiet


def packed_tensors(name: str, linear: QuantizedLinear) -> dict[str, Tensor]:
    """The tensors that stand for `name.weight`; zero points are packed along the output dimension."""
    bits = linear.grid.bits
    tensors = {
        f"{name}.weight_packed": pack(linear.codes, bits),
        f"{name}.weight_scale": linear.scales.contiguous(),
        f"{name}.weight_shape": torch.tensor(linear.codes.shape, dtype=torch.int64),
    }
    if linear.zeros is not None:
        tensors[f"{name}.weight_zero_point"] = pack(linear.zeros.T, bits).T.contiguous()
    return tensors


def quantization_config(
    model: nn.Module, linears: Mapping[str, QuantizedLinear], *, act_order: bool = False
) -> dict[str, Any]:
    """The `quantization_config` of config.json: a config group for each grid in use, the first for all not named."""
    by_grid: dict[Grid, list[str]] = {}
    for name, linear in linears.items():
        by_grid.setdefault(linear.grid, []).append(name)
    sizes = sorted(by_grid.items(), key=lambda item: -len(item[1]))
    groups = {}
    for index, (grid, names) in enumerate(sizes):
        whole_row = all(linears[name].codes.shape[1] == grid.group_size for name in names) and grid.group_size % 32 != 0
        groups[f"group_{index}"] = {
            "targets": ["Linear"] if len(sizes) == 1 else names,
            "weights": {
                "num_bits": grid.bits,
                "type": "int",
                "symmetric": grid.symmetric,
                "strategy": "channel" if whole_row else "group",
                "group_size": None if whole_row else grid.group_size,
                "dynamic": False,
                "actorder": "weight" if act_order else None,
            },
        }
    kept = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name not in linears]
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": kept,
        # have transformers unpack the weights at load: it computes with dense ones anyway, and its other way (unpack at
        # the first forward) trips over packed zero points in some versions. Its way at load knows one grid a model.
        "dequantize": len(sizes) == 1,
    }


def save_packed(
    model: PreTrainedModel, linears: Mapping[str, QuantizedLinear], folder: Path, *, act_order: bool = False
) -> None:
    """Write config and weights; everything but `linears` as it is in `model`, tied weights once."""
    state = dict(model.state_dict())
    for name, linear in linears.items():
        del state[f"{name}.weight"]
        state.update(packed_tensors(name, linear))
    model.config.quantization_config = quantization_config(model, linears, act_order=act_order)
    try:
        with quiet():
            model.save_pretrained(folder, state_dict=state)
    finally:
        del model.config.quantization_config


def weight_bytes(folder: Path) -> int:
    """Bytes of the weight files of a checkpoint folder."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"no .safetensors file in {folder}", remedy="save the model as safetensors")
    return sum(file.stat().st_size for file in files)


def quantized_bits_per_weight(before: Path, after: Path) -> float:
    """Stored bits, scales and all, for each weight that `after` holds in another form than `before`."""
    old, new = _tensor_sizes(before), _tensor_sizes(after)
    stored, weights = 0, 0
    for key, (numel, size) in old.items():
        if new.get(key) == (numel, size) or not key.endswith(".weight"):
            continue
        stem = key.removesuffix("weight")
        stored += sum(size for name, (_, size) in new.items() if name.startswith(stem) and name != f"{stem}bias")
        weights += numel
    return 8 * stored / weights if weights else 0.0


def _tensor_sizes(folder: Path) -> dict[str, tuple[int, int]]:
    """Elements and bytes of every tensor in a checkpoint folder, read from the headers alone."""
    sizes: dict[str, tuple[int, int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as handle:
            for key in handle.keys():  # noqa: SIM118 - no mapping, it only has keys()
                view = handle.get_slice(key)
                numel = 1
                for length in view.get_shape():
                    numel *= length
                sizes[key] = (numel, numel * _DTYPE_BYTES[view.get_dtype()])
    return sizes


_DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "F32": 4, "I64": 8, "F64": 8,
}  # fmt: skip
