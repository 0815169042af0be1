"""NF4 and LLM.int8(): the formulas as pure functions, and the models as bitsandbytes makes and saves them."""

from __future__ import annotations

from pathlib import Path

import bitsandbytes
import torch
from bitsandbytes import functional
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from distill.model.recast import keep_exact
from distill.quiet import quiet

NF4_OFFSET = 0.9677083
"""1 - (1/32 + 1/30) / 2, the mean of the outermost quantiles of a 4-bit code with an even and an odd half."""

NF4_BLOCK = 64


def nf4_code_book() -> Tensor:
    """The 16 values of 4-bit NormalFloat, ascending, -1 .. 1 (QLoRA, 2305.14314, section 3; as in bitsandbytes).

    Quantiles of N(0, 1), so that a normal weight falls on each code about equally often: 8 positive ones at equally
    spaced probabilities from 0.9677 down to 1/2, 7 negative ones likewise, and an exact zero; divided by the largest.
    """
    normal = torch.distributions.Normal(0.0, 1.0)
    positive = normal.icdf(torch.linspace(NF4_OFFSET, 0.5, 9, dtype=torch.float64)[:-1])
    negative = -normal.icdf(torch.linspace(NF4_OFFSET, 0.5, 8, dtype=torch.float64)[:-1])
    values = torch.cat([positive, negative, torch.zeros(1, dtype=torch.float64)]).sort().values
    return (values / values.max()).float()


def quantize_nf4(values: Tensor, block_size: int = NF4_BLOCK) -> tuple[Tensor, Tensor]:
    """Block-wise NF4 of a flat tensor of whole blocks: q = argmin_k |x / s - c_k|, with s = max|x| of the block.

    Returns uint8 codes 0..15 and a scale a block. (bitsandbytes can also quantize the scales to 8 bits, "double
    quantization": from 0.5 to 0.127 bits a weight.)
    """
    blocks = values.float().view(-1, block_size)
    scales = blocks.abs().amax(-1)
    normalised = blocks / torch.where(scales > 0, scales, torch.ones_like(scales)).unsqueeze(-1)
    # the nearest code is the number of midpoints between codes that lie below the value
    book = nf4_code_book().to(values.device)
    codes = torch.bucketize(normalised, (book[1:] + book[:-1]) / 2)
    return codes.to(torch.uint8).flatten(), scales


def dequantize_nf4(codes: Tensor, scales: Tensor) -> Tensor:
    """x ~ s c_q, flat."""
    values = nf4_code_book().to(codes.device)[codes.long()]
    return (values.view(len(scales), -1) * scales.unsqueeze(-1)).flatten()


def int8_matmul(inputs: Tensor, weight: Tensor, threshold: float = 6.0) -> Tensor:
    """LLM.int8() (2208.07339): X W^T with 8-bit integers, but for the columns of X that hold an outlier.

    With O the columns in which some |x| >= threshold (none if threshold is 0):
        X W^T ~ X_O W_O^T  +  diag(s_x) (X8 W8^T) diag(s_w),   s = absmax / 127 of each row of W, and of each row of X
    over its values below the threshold. inputs (T, I), weight (O, I); the integer product is exact, as in int32.
    """
    top = 127
    row_absmax = weight.float().abs().amax(-1)
    weight_scale = torch.where(row_absmax > 0, row_absmax, torch.ones_like(row_absmax)) / top
    weight_codes = torch.round(weight.float() / weight_scale[:, None])
    large = inputs.abs() >= threshold if threshold > 0 else torch.zeros_like(inputs, dtype=torch.bool)
    outlier = large.any(0)
    input_absmax = inputs.float().masked_fill(large, 0).abs().amax(-1)
    input_scale = torch.where(input_absmax > 0, input_absmax, torch.ones_like(input_absmax)) / top
    input_codes = torch.round(inputs.float().masked_fill(outlier, 0) / input_scale[:, None])
    product = (input_codes.double() @ weight_codes.double().T).float() * input_scale[:, None] * weight_scale
    # the stored weight is int8, so outlier columns meet the dequantized weight
    stored = weight_codes[:, outlier] * weight_scale[:, None]
    return product + inputs[:, outlier].float() @ stored.T


def load_nf4(folder: Path, *, double_quant: bool = True, device: str = "cpu") -> PreTrainedModel:
    """The checkpoint with its linears, but for the LM head, in NF4 blocks of 64; computes in the checkpoint's dtype.

    Linears whose rows are no whole number of blocks stay as they are: on the CPU, bitsandbytes 0.50 writes their blocks
    across rows and reads them back row by row, with the scales of other blocks.
    """
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=_checkpoint_dtype(folder),
        llm_int8_skip_modules=_torn_rows(folder),
    )
    return _load(folder, config, device)


def load_int8(folder: Path, *, outlier_threshold: float = 6.0, device: str = "cpu") -> PreTrainedModel:
    """The checkpoint with its decoder linears in LLM.int8()."""
    return _load(folder, BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=outlier_threshold), device)


def _load(folder: Path, config: BitsAndBytesConfig, device: str) -> PreTrainedModel:
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=config, dtype="auto", device_map={"": device}
        )
    assert isinstance(model, PreTrainedModel)
    keep_exact(model)
    return model


def _torn_rows(folder: Path) -> list[str] | None:
    """Linears whose rows are no whole blocks, and the LM head; None (the library's own choice) if there is none."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    linears = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    head = model.get_output_embeddings()
    torn = [name for name, module in linears.items() if module.in_features % NF4_BLOCK and module is not head]
    return [*torn, *(name for name, module in linears.items() if module is head)] if torn else None


def _checkpoint_dtype(folder: Path) -> torch.dtype:
    dtype = AutoConfig.from_pretrained(folder).dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def dequantized_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """What the quantized linears' weights stand for, by parameter name."""
    weights: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            packed = module.weight
            assert isinstance(packed, bitsandbytes.nn.Params4bit)
            weights[f"{name}.weight"] = functional.dequantize_4bit(packed.data, packed.quant_state)
        elif isinstance(module, bitsandbytes.nn.Linear8bitLt):
            rows = module.weight
            assert isinstance(rows, bitsandbytes.nn.Int8Params)
            # the first forward pass moves the scales from the weight to the module's state
            scales = module.state.SCB if rows.SCB is None else rows.SCB
            assert scales is not None
            weights[f"{name}.weight"] = functional.int8_vectorwise_dequant(rows.data, scales)
    return weights
