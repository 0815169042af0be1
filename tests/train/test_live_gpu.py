"""Live teachers on a GPU: in CPU memory between the layers, and in 4 bits. In shares: `benchmarks/sharded.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distill.train.live import LiveTeacher
from tests.train import tiny

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda")
BATCH = {"input_ids": torch.arange(10, 74).view(2, 32)}


def load(folder: Path, **options: bool | str) -> tuple[LiveTeacher, int]:
    """The teacher, and the GPU memory that it keeps."""
    before = torch.cuda.memory_allocated()
    teacher = LiveTeacher.load(str(folder), device=GPU, trust_remote_code=False, **options)  # type: ignore[arg-type]
    return teacher, torch.cuda.memory_allocated() - before


def test_an_offloaded_teacher_keeps_only_its_head_on_the_gpu(tmp_path: Path) -> None:
    tiny.save_model(tmp_path, width=512, heads=8, kv_heads=8, layers=4)
    batch = {name: values.to(GPU) for name, values in BATCH.items()}
    plain, plain_bytes = load(tmp_path)
    expected = plain(batch)
    del plain
    offloaded, kept_bytes = load(tmp_path, offload=True)
    found = offloaded(batch)
    torch.testing.assert_close(found.hidden, expected.hidden)
    torch.testing.assert_close(found.head.weight, expected.head.weight)
    weights = list(offloaded.model.base_model.parameters())
    assert weights and not any(weight.is_cuda for weight in weights) and found.head.weight.is_cuda
    assert kept_bytes < 0.1 * plain_bytes


def test_4_bit_weights_are_small(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    tiny.save_model(tmp_path, width=512, heads=8, kv_heads=8, layers=4)
    batch = {name: values.to(GPU) for name, values in BATCH.items()}
    expected = load(tmp_path)[0](batch)
    small, kept_bytes = load(tmp_path, precision="nf4")
    agreement = torch.nn.functional.cosine_similarity(small(batch).hidden.float(), expected.hidden.float(), dim=-1)
    linears = sum(weight.numel() for name, weight in small.model.named_parameters() if "proj" in name)
    assert agreement.mean() > 0.8 and kept_bytes < 2 * linears
