"""Which number format a device computes in without loss of speed."""

from __future__ import annotations

import torch


def has_fast_bfloat16(device: str) -> bool:
    """Whether bfloat16 products on `device` ("cpu", "cuda", "cuda:1") run on hardware made for them.

    A CPU without AVX-512 (or its Arm counterpart) converts each number in software and is far slower than in float32;
    oneDNN, which computes torch's products on CPUs, says which kind it is.
    """
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
