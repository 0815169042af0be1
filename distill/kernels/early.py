"""Kernels that begin while the one before still runs, and wait for it before they read what it wrote.

Programmatic dependent launch, of GPUs from Hopper on (CUDA programming guide): a kernel lets the next one begin as soon
as all its own programs have. The next one reads there what nobody writes, as weights, and then waits until the kernel
before is through, which has waited in its turn: so everything earlier is through as well. A kernel launched in the
plain way waits for all of it.
"""

from __future__ import annotations

from functools import cache

import torch


@cache
def may_begin_early(device: torch.device) -> bool:
    """Whether the device can launch kernels so."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9
