"""What an entry leaves open is chosen by the device."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from distill.errors import DistillError
from distill.objectives.head import _suitable_chunk
from distill.recipe.train import KdEntry, SftEntry
from distill.train.settings import decoder_of, form_of

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def kd(**fields: Any) -> KdEntry:
    return KdEntry(objective="kd", name="kd", data=("rows.parquet",), **fields)


@pytest.mark.parametrize("installed", [True, False])
def test_the_kernel_is_triton_where_it_can_run(monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    for entry in (kd(), SftEntry(objective="sft", name="sft", data=("rows.parquet",))):
        assert entry.kernel == "auto"
        assert form_of(entry, CPU) == "torch"
        assert form_of(entry, GPU) == ("triton" if installed else "torch")
    assert form_of(kd(kernel="torch"), GPU) == "torch"
    for device in (CPU, GPU):
        if installed and device is GPU:
            assert form_of(kd(kernel="triton"), device) == "triton"
            continue
        with pytest.raises(DistillError, match="kernel triton needs a CUDA GPU and the package triton"):
            form_of(kd(kernel="triton"), device)


def test_small_vocabularies_have_longer_chunks_on_a_gpu() -> None:
    assert [_suitable_chunk(GPU, "triton", rows) for rows in (151_936, 128_256, 32_000, 8192)] == [
        *(2048, 2048, 8192, 32_768)
    ]
    assert _suitable_chunk(GPU, "torch", 8192) == 16_384 and _suitable_chunk(CPU, "torch", 8192) == 256


def test_nothing_is_captured_without_a_gpu() -> None:
    student: Any = None
    assert decoder_of(kd(), student, None, device=CPU, processes=1) is None
