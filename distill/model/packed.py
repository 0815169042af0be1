"""Quantized checkpoints whose weights stay packed in memory, where the hardware multiplies with them as they are.

transformers makes dense weights of a GPTQ or AWQ folder when it loads it, so that 4 bits save nothing but disk.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from distill.kernels.w4a16 import PackedLinear, dequantize, fits
from distill.model.layouts import MARKS, Codes, read_codes


def load_packed(
    folder: Path, files: list[Path], *, dtype: torch.dtype, device: str, trust_remote_code: bool
) -> PreTrainedModel | None:
    """The model in `folder` on `device`, quantized linears as `PackedLinear` where it can compute them and dense in
    `dtype` else. None where its tensors are not named as the modules that transformers makes of its config."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    quantization = dict(config.quantization_config)
    del config.quantization_config
    config.dtype = dtype
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    assert isinstance(model, PreTrainedModel)
    rest: dict[str, Tensor] = {}
    for stem, tensors in _by_module(files, MARKS[quantization["quant_method"]], device):
        if stem is None:
            rest |= {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
            continue
        found = dict(model.named_modules()).get(stem)
        if not isinstance(found, nn.Linear):
            return None
        parent, _, name = stem.rpartition(".")
        setattr(
            model.get_submodule(parent), name, _linear(read_codes(quantization, tensors), tensors.get("bias"), dtype)
        )
    _, unexpected = model.load_state_dict(rest, strict=False, assign=True)
    model.tie_weights()
    if unexpected or any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()]):
        return None
    if (folder / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    nn.Module.to(model, device)  # what is no weight: buffers of the model's own
    return model.requires_grad_(False)


def has_packable(folder: Path) -> bool:
    """Whether config.json names a format that `load_packed` reads."""
    quantization = json.loads((folder / "config.json").read_text()).get("quantization_config") or {}
    method = quantization.get("quant_method")
    if method == "compressed-tensors":
        return bool(quantization.get("format") == "pack-quantized")
    return method in ("gptq", "awq") and quantization.get("bits") == 4


def count_parameters(model: PreTrainedModel) -> int:
    """Weights of the model, packed ones included, tied ones once."""
    packed = [module for module in model.modules() if isinstance(module, PackedLinear)]
    biases = sum(module.out_features for module in packed if module.bias is not None)
    return model.num_parameters() + biases + sum(module.in_features * module.out_features for module in packed)


def _by_module(files: list[Path], mark: str, device: str) -> Iterator[tuple[str | None, dict[str, Tensor]]]:
    """The tensors of each quantized linear without its name in front, then all others under None, file by file; a
    linear's tensors may lie in several files."""
    where: dict[str, Path] = {}
    for file in files:
        with safe_open(file, framework="pt") as handle:
            where.update(dict.fromkeys(handle.keys(), file))
    stems = sorted(name.removesuffix(f".{mark}") for name in where if name.endswith(f".{mark}"))
    known = set(stems)
    of_stem: dict[str, list[str]] = {stem: [] for stem in stems}
    others = []
    for name in where:
        stem = name.rpartition(".")[0]
        of_stem[stem].append(name) if stem in known else others.append(name)
    for stem, names in of_stem.items():
        yield stem, {name.removeprefix(f"{stem}."): _read(where[name], name, device) for name in names}
    yield None, {name: _read(where[name], name, device) for name in others}


def _read(file: Path, name: str, device: str) -> Tensor:
    with safe_open(file, framework="pt", device=device) as handle:
        tensor: Tensor = handle.get_tensor(name)
        return tensor


def _linear(weight: Codes, bias: Tensor | None, dtype: torch.dtype) -> nn.Module:
    rows, columns = weight.codes.shape
    groups = weight.scales.shape[1]
    codes, order = weight.codes, None
    if weight.group_of is not None:
        order = torch.argsort(weight.group_of, stable=True)
        codes = codes[:, order]
        if not torch.equal(weight.group_of[order], torch.arange(columns, device=order.device) // (columns // groups)):
            raise ValueError("groups of different sizes")
    if fits(rows, columns, bits=weight.bits, group_size=columns // groups, device=codes.device):
        narrow = None if bias is None else bias.to(dtype)
        return PackedLinear(codes, weight.scales, bits=weight.bits, zeros=weight.zeros, bias=narrow, order=order)
    dense = dequantize(codes, weight.scales, weight.zeros)
    if order is not None:
        dense = dense[:, torch.argsort(order)]
    linear = nn.Linear(columns, rows, bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(dense.to(dtype), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    return linear
