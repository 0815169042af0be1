"""Every kernel that decoding launches compiles for a Hopper GPU, on a machine that has none: the interpreter runs what
the compiler refuses. And none is compiled again for shapes that change from step to step.

python -m pytest tests/kernels/test_compiles.py
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)
pytest.importorskip("triton", reason="the kernels need Triton")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import driver  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from distill.kernels import fused, gemv, paged_attention, w4a16_product  # noqa: E402
from distill.kernels.w4a16_launches import KINDS  # noqa: E402
from distill.kernels.w4a16_product import Form, launch_product  # noqa: E402

BF16 = torch.bfloat16


class Hopper:
    """Triton's driver of a GPU that is not there."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 99  # nobody's, so that nothing is found compiled, or by others

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, str]]:
    """The kernels that are launched, by their identity, with their names: compiled instead of launched."""
    found: dict[int, str] = {}
    launch = JITFunction.run

    def run(self: JITFunction, *args: object, grid: object, warmup: bool, **options: object) -> object:
        kernel = launch(self, *args, grid=grid, warmup=True, **options)
        found[id(kernel)] = self.__name__
        return kernel

    monkeypatch.setattr(JITFunction, "run", run)
    for module in (fused, gemv, paged_attention, w4a16_product):
        monkeypatch.setattr(module, "may_begin_early", lambda device: True)
    own = driver.active if torch.cuda.is_available() else None
    driver.set_active(Hopper())
    yield found
    if own is not None:
        driver.set_active(own)


def _zeros(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.zeros(*shape, dtype=dtype)


@pytest.mark.parametrize("heads,kv_heads,dim", [(14, 2, 64), (28, 4, 128), (8, 8, 128)])
@pytest.mark.parametrize("normed", [False, True])
def test_decode_that_turns(compiled: dict[int, str], heads: int, kv_heads: int, dim: int, normed: bool) -> None:
    cache, rows, table = _zeros(8, kv_heads, 32, dim), _zeros(3, (heads + 2 * kv_heads) * dim), _zeros(64, dim)
    slots = _zeros(3, dtype=torch.int64)
    turn = paged_attention.Turn(table, table, True, slots, (table[0], table[0], 1e-6) if normed else None)
    for room in (16, 1024):  # few splits and many
        blocks = _zeros(3, room, dtype=torch.int32)
        paged_attention.paged_decode(rows, cache, cache, blocks, slots + 1, scale=0.1, turn=turn)
    assert set(compiled.values()) == {"decode_kernel"}


@pytest.mark.parametrize("codes", [None, torch.int8, torch.float8_e4m3fn])
def test_attention(compiled: dict[int, str], codes: torch.dtype | None) -> None:
    cache, ones = _zeros(8, 4, 32, 128, dtype=codes or BF16), torch.ones(3, dtype=torch.int64)
    scales = None if codes is None else (_zeros(8, 4, 32, dtype=torch.float16),) * 2
    query, blocks = _zeros(3, 28, 128), _zeros(3, 1024, dtype=torch.int32)
    paged_attention.paged_decode(query, cache, cache, blocks, ones, scale=0.1, scales=scales)
    paged_attention.varlen_prefill(query, cache, cache, blocks, ones, ones, ones, 1, scale=0.1, scales=scales)
    assert set(compiled.values()) == {"decode_kernel", "prefill_kernel"}


@pytest.mark.parametrize("width", KINDS)
@pytest.mark.parametrize("outputs,inputs,gated,adds", [(4608, 3584, False, False), (37888, 3584, True, False),
                                                       (3584, 18944, False, True)])  # fmt: skip
def test_packed_products(
    compiled: dict[int, str], width: int, outputs: int, inputs: int, gated: bool, adds: bool
) -> None:
    form = Form(outputs, inputs, 4, 128, False, False)
    words, grid, counts = (_zeros(n, dtype=torch.int32) for n in (256, 256, outputs))
    x, out = _zeros(width, inputs), _zeros(width, outputs) if adds else None
    launch_product(x, words, grid, counts, form, None, BF16, width, KINDS[width], out, gated=gated)
    assert set(compiled.values()) == {"product_kernel"}


@pytest.mark.parametrize("hidden,inner", [(896, 4864), (3584, 18944)])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_few_rows(compiled: dict[int, str], hidden: int, inner: int, rows: int) -> None:
    x, norm = _zeros(rows, hidden), (_zeros(hidden), 1e-6)
    gemv.gemv(x, _zeros(32, hidden), _zeros(32), norm=norm if hidden < 2048 else None)
    gemv.gated_gemv(x, _zeros(64, hidden), norm=norm if hidden < 2048 else None)
    gemv.gemv(_zeros(rows, inner), _zeros(hidden, inner), out=x)
    fused.rms_norm(x, *norm)
    fused.silu_mul(*_zeros(rows, 2 * inner).chunk(2, -1))
    assert len(set(compiled.values())) == 4


def test_nothing_is_compiled_again(compiled: dict[int, str]) -> None:
    """For other widths of a block table, or arrays that begin elsewhere in a buffer."""
    cache, table = _zeros(8, 4, 32, 128), _zeros(64, 128)
    for tokens, width in ((8, 3), (8, 32), (7, 33), (7, 16)):
        fields = torch.ones(3, tokens, dtype=torch.int64)  # its rows are aligned to 16 bytes where tokens are even
        blocks = _zeros(1 + tokens * width, dtype=torch.int32)[1:].view(tokens, width)
        query = _zeros(tokens, 28, 128)
        rows = _zeros(tokens, 36 * 128)
        fused.rotate_and_store(rows, table, table, fields[2], cache, cache, query_heads=28, positions=fields[1])
        paged_attention.varlen_prefill(query, cache, cache, blocks, *fields, 100, scale=0.1)
        paged_attention.paged_decode(query, cache, cache, blocks, fields[1], scale=0.1)
    assert sorted(compiled.values()) == ["decode_kernel", "prefill_kernel", "rotate_and_store_kernel"]
