"""Loss and gradient of one chunk's logits on a GPU, by one kernel; on a CPU it runs with TRITON_INTERPRET=1.

The plain form is `objectives.chunk.chunk_loss`. Logits are read twice for the KLs, three times for the others (their
derivative holds a sum that needs the normalisers), and written once. Statistics are in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from distill.kernels.loss_kernels import divergence_kernel

_KINDS = {"forward_kl": 0, "reverse_kl": 1, "jsd": 2, "skew_forward_kl": 3, "skew_reverse_kl": 4, "tvd": 5}


@dataclass(frozen=True)
class Launch:
    """Logits of a tile, warps of a program, tiles read ahead (1: none), whether the student's rows stay in the L2."""

    tile: int = 2048
    warps: int = 4
    stages: int = 3
    keep: bool = False


LAUNCH = Launch()


def chunk_loss_triton(
    student_CV: Tensor,
    teacher_CU: Tensor | None,
    labels_C: Tensor,
    *,
    divergence: str,
    mixture: float,
    temperature: float,
    ce_weight: float,
    divergence_weight: float,
    scales: tuple[float, float],
    softcaps: tuple[float | None, float | None],
    launch: Launch | None = None,
) -> Tensor:
    """Per token: divergence (without T^2), cross entropy, agreement, accuracy, float32 [4, C]; from raw projections.

    `student_CV` becomes the derivative of each token's divergence_weight * divergence + ce_weight * cross entropy.
    `mixture` is the teacher's share of M; scales and softcaps are (student's, teacher's). Rows are contiguous.
    `launch`: None for the measured best.
    """
    launch = launch or LAUNCH
    assert student_CV.dtype in (torch.float32, torch.bfloat16) and student_CV.stride(1) == 1
    tokens, width = student_CV.shape
    common = width if teacher_CU is None else min(width, teacher_CU.shape[1])
    out = torch.empty(4, tokens, dtype=torch.float32, device=student_CV.device)
    if tokens == 0:
        return out
    teacher = student_CV if teacher_CU is None else teacher_CU
    divergence_kernel[(tokens,)](
        student_CV,
        teacher,
        labels_C,
        out,
        student_CV.stride(0),
        teacher.stride(0),
        width,
        common,
        tokens,
        *scales,
        softcaps[0] or 0.0,
        softcaps[1] or 0.0,
        1.0 / temperature,
        mixture,
        divergence_weight / temperature,
        ce_weight,
        KIND=_KINDS[divergence],
        HAS_TEACHER=teacher_CU is not None,
        HAS_CE=ce_weight > 0.0,
        SAME=teacher_CU is not None and temperature == 1.0 and common == width,
        STUDENT_SOFTCAP=softcaps[0] is not None,
        TEACHER_SOFTCAP=softcaps[1] is not None,
        TILE=max(8, min(launch.tile, triton.next_power_of_2(width))),
        STAGES=launch.stages,
        KEEP="evict_last" if launch.keep else "",
        LEAVE="evict_first" if launch.keep else "",
        FAST=student_CV.is_cuda,
        num_warps=launch.warps,
    )
    return out
