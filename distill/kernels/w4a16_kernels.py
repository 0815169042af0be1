"""Triton kernels of products with packed weights. A weight goes from memory straight to the registers of the tensor
cores: `w4a16_layout.py` has stored it in the order in which they want it. Launched by `w4a16_product.py`.

Legend: O outputs, I inputs, N rows of x, T tiles of 128 inputs; a program has SLABS x 16 outputs and BN rows of x.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


def _unpacking(kind: str, exponent: str, one: str) -> str:
    """PTX: of two words the eight pairs of nibbles as numbers, plus an offset. A nibble u under the right exponent is
    the number 128 + u (bfloat16) or 1,024 + u (float16) exactly, and one instruction puts it there for both words."""
    lines = [f"mov.b32 one, {one};", "prmt.b32 low, $8, $9, 0x5410;", "prmt.b32 high, $8, $9, 0x7632;"]
    for nibble in range(8):
        half, shift = ("low", "high")[nibble // 4], 4 * (nibble % 4)
        if shift:
            lines.append(f"shr.u32 a, {half}, {shift};")
            half = "a"
        lines += [f"lop3.b32 a, {half}, 0x000F000F, {exponent}, 0xEA;", f"fma.rn.{kind} ${nibble}, a, one, $10;"]
    return "{ .reg .b32 low, high, a, one;\n" + "\n".join(lines) + "\n}"


_BFLOAT16 = tl.constexpr(_unpacking("bf16x2", "0x43004300", "0x3F803F80"))
_FLOAT16 = tl.constexpr(_unpacking("f16x2", "0x64006400", "0x3C003C00"))
_REGISTERS = tl.constexpr("=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r,r,r")


@triton.jit
def _nibbles(words, offset, FAST: tl.constexpr):
    """Eight tensors of the shape of `words` in the type of `offset`, which broadcasts to it: nibble j of each word plus
    offset + 128 (bfloat16) or offset + 1,024 (float16). Slowly, in plain Triton, where there is no PTX (FAST)."""
    if FAST:
        if offset.dtype == tl.float16:
            found = tl.inline_asm_elementwise(
                _FLOAT16, _REGISTERS, [words, offset], dtype=(tl.float16,) * 8, is_pure=True, pack=2
            )
        else:
            found = tl.inline_asm_elementwise(
                _BFLOAT16, _REGISTERS, [words, offset], dtype=(tl.bfloat16,) * 8, is_pure=True, pack=2
            )
    else:
        more = offset.to(tl.float32) + (1024.0 if offset.dtype == tl.float16 else 128.0)
        found = (
            ((words & 15).to(tl.float32) + more).to(offset.dtype),
            ((words >> 4 & 15).to(tl.float32) + more).to(offset.dtype),
            ((words >> 8 & 15).to(tl.float32) + more).to(offset.dtype),
            ((words >> 12 & 15).to(tl.float32) + more).to(offset.dtype),
            ((words >> 16 & 15).to(tl.float32) + more).to(offset.dtype),
            ((words >> 20 & 15).to(tl.float32) + more).to(offset.dtype),
            ((words >> 24 & 15).to(tl.float32) + more).to(offset.dtype),
            ((words >> 28 & 15).to(tl.float32) + more).to(offset.dtype),
        )
    return found


@triton.jit
def _places(first, end, COUNT: tl.constexpr, GATED: tl.constexpr):
    """COUNT numbers from `first` on; GATED: half of them, and as many from `end` / 2 + `first` on. And which of them
    are below `end`, or below half of it."""
    count = tl.arange(0, COUNT)
    if GATED:
        own = first + count % (COUNT // 2)
        return own + (count // (COUNT // 2)) * (end // 2), own < end // 2
    return first + count, first + count < end


@triton.jit
def _words(packed, first_slab, tile, num_slabs, num_tiles, SLABS: tl.constexpr, GATED: tl.constexpr):
    """[16 SLABS, 16] int32: the words of these slabs in one tile; nibble j of column k is input 16 j + k. Undoes the
    order of `fragments` by naming, not by moving."""
    slab, inside = _places(first_slab, num_slabs, SLABS, GATED)
    half, place = tl.arange(0, 2), tl.arange(0, 128)
    base = packed + (first_slab.to(tl.int64) * num_tiles + tile) * 256
    offsets = (slab - first_slab)[:, None, None] * (num_tiles * 256) + half[None, :, None] * 128 + place[None, None, :]
    words = tl.load(base + offsets, mask=inside[:, None, None], other=0)
    words = tl.permute(tl.reshape(words, (SLABS, 2, 8, 4, 2, 2)), (0, 4, 2, 1, 3, 5))
    return tl.reshape(words, (SLABS * 16, 16))


@triton.jit
def _codes(packed, first_slab, tile, num_slabs, num_tiles, SLABS: tl.constexpr, GATED: tl.constexpr,
           BITS: tl.constexpr, DTYPE: tl.constexpr, FAST: tl.constexpr):  # fmt: skip
    """Eight [16 SLABS, 16]: signed codes, exactly."""
    base: tl.constexpr = 1024.0 if tl.float16 == DTYPE else 128.0
    middle = tl.full([1, 1], -base - 8.0, tl.float32).to(DTYPE)
    low = _words(packed, first_slab, tile, num_slabs, num_tiles, SLABS, GATED)
    if BITS == 8:
        high = _words(packed + num_slabs * num_tiles * 256, first_slab, tile, num_slabs, num_tiles, SLABS, GATED)
        a, b = _nibbles(low, tl.full([1, 1], -base, tl.float32).to(DTYPE), FAST), _nibbles(high, middle, FAST)
        return (
            b[0] * 16.0 + a[0], b[1] * 16.0 + a[1], b[2] * 16.0 + a[2], b[3] * 16.0 + a[3],
            b[4] * 16.0 + a[4], b[5] * 16.0 + a[5], b[6] * 16.0 + a[6], b[7] * 16.0 + a[7],
        )  # fmt: skip
    return _nibbles(low, middle, FAST)


@triton.jit
def _beside(parts, FIRST: tl.constexpr, COUNT: tl.constexpr, ROWS: tl.constexpr):
    """COUNT (2, 4 or 8) tensors [ROWS, 16] of `parts` from FIRST on, side by side."""
    pair = tl.join(parts[FIRST], parts[FIRST + 1])
    if COUNT == 2:
        found = tl.permute(pair, (0, 2, 1))
    else:
        four = tl.join(pair, tl.join(parts[FIRST + 2], parts[FIRST + 3]))
        if COUNT == 4:
            found = tl.permute(four, (0, 3, 2, 1))
        else:
            rest = tl.join(tl.join(parts[FIRST + 4], parts[FIRST + 5]), tl.join(parts[FIRST + 6], parts[FIRST + 7]))
            found = tl.permute(tl.join(four, rest), (0, 4, 3, 2, 1))
    return tl.reshape(found, (ROWS, 16 * COUNT))


@triton.jit
def _scale(cell, HALF_SCALES: tl.constexpr):
    """The low half of a word of the grid, float16 or bfloat16, in float32."""
    if HALF_SCALES:
        return (cell & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return (cell << 16).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["num_rows", "num_slabs", "num_tiles", "splits"])
def product_kernel(
    x,
    packed,
    grid,
    bias,
    out,
    partial,
    arrived,
    num_rows,
    num_outputs,
    num_inputs,
    num_slabs,
    num_tiles,
    splits,
    x_row,
    SLABS: tl.constexpr,
    BN: tl.constexpr,
    HAS_SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
    BITS: tl.constexpr,
    PARTS: tl.constexpr,
    GROUP_TILES: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ADDS: tl.constexpr,
    HALF_SCALES: tl.constexpr,
    WHOLE: tl.constexpr,
    SCALED: tl.constexpr,
    GATED: tl.constexpr,
    EARLY: tl.constexpr,
    FAST: tl.constexpr,
):
    """out = x W^T + bias, or out += it, or (GATED) silu of its first half of outputs times the second; such a program
    has outputs of both. EARLY: the next kernel may begin when the sums are made.
    A group of inputs is a PARTSth of a tile, or GROUP_TILES tiles. Scales meet the sums of a group, exactly, or
    (SCALED) each weight, rounded to x's type: then sums go on through all groups, and products of one tile run while
    the next is unpacked. With several programs along I, `splits`, the last one to arrive adds up what all have left in
    `partial`, always in the same order, and leaves `arrived` at zero again."""
    if EARLY:
        gdc_wait()
    block, split, strip = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    BO: tl.constexpr = SLABS * 16
    WIDTH: tl.constexpr = 128 // PARTS
    SHARE: tl.constexpr = SLABS // 2 if GATED else SLABS
    outputs, in_slabs = _places(block * (SHARE * 16), num_slabs * 16, BO, GATED)
    rows, inputs = strip * BN + tl.arange(0, BN), tl.arange(0, WIDTH)
    x_part = x + rows.to(tl.int64)[:, None] * x_row + inputs[None, :]
    row_mask = (rows < num_rows)[:, None]
    padded = num_slabs * 16
    acc = tl.zeros([BO, BN], tl.float32)
    first, last = split * num_tiles // splits, (split + 1) * num_tiles // splits
    for tile in tl.range(first, last, num_stages=STAGES):
        codes = _codes(packed, block * SHARE, tile, num_slabs, num_tiles, SLABS, GATED, BITS, x.dtype.element_ty, FAST)
        for part in tl.static_range(PARTS):
            first_input = tile * 128 + part * WIDTH
            group = tile * PARTS + part if PARTS > 1 else tile // GROUP_TILES
            inside = in_slabs if WHOLE else in_slabs & (first_input < num_inputs)
            cell = tl.load(grid + group * padded + outputs, mask=inside, other=0)
            mask = row_mask if WHOLE else row_mask & (first_input + inputs < num_inputs)[None, :]
            numbers = tl.load(x_part + first_input, mask=mask, other=0.0)
            weights = _beside(codes, part * (8 // PARTS), 8 // PARTS, BO)
            if HAS_ZERO:
                weights -= (cell >> 16).to(tl.float32).to(weights.dtype)[:, None]
            scale = _scale(cell, HALF_SCALES)[:, None]
            if SCALED:
                acc = tl.dot((weights * scale.to(weights.dtype)).to(weights.dtype), tl.trans(numbers), acc)
            else:
                acc += tl.dot(weights, tl.trans(numbers)) * scale
    if EARLY:
        gdc_launch_dependents()
    valid = (in_slabs & (outputs < num_outputs))[:, None] & (rows < num_rows)[None, :]
    where = rows.to(tl.int64)[None, :] * num_outputs + outputs[:, None]
    if HAS_SPLITS:
        tl.store(partial + split.to(tl.int64) * num_rows * num_outputs + where, acc, mask=valid)
        tl.debug_barrier()  # all of this program's sums are stored before it counts as arrived
        counter = arrived + strip * tl.num_programs(0) + block
        if tl.atomic_add(counter, 1) != splits - 1:
            return
        acc = tl.zeros([BO, BN], tl.float32)
        place = partial + where
        for _ in tl.range(0, splits, loop_unroll_factor=8 if BN == 16 else 1):  # as many loads under way
            acc += tl.load(place, mask=valid, other=0.0, cache_modifier=".cg")
            place += num_rows * num_outputs
        tl.store(counter, 0)
    if HAS_BIAS:
        acc += tl.load(bias + outputs, mask=in_slabs & (outputs < num_outputs), other=0.0).to(tl.float32)[:, None]
    if GATED:
        gate, up = tl.split(tl.permute(tl.reshape(acc, (2, BO // 2, BN)), (1, 2, 0)))
        gate, up = gate.to(out.dtype.element_ty).to(tl.float32), up.to(out.dtype.element_ty).to(tl.float32)
        active = (gate / (1.0 + tl.exp(-gate))).to(out.dtype.element_ty).to(tl.float32)
        own = block * (BO // 2) + tl.arange(0, BO // 2)
        there = rows.to(tl.int64)[None, :] * (num_outputs // 2) + own[:, None]
        within = (own < num_outputs // 2)[:, None] & (rows < num_rows)[None, :]
        tl.store(out + there, (active * up).to(out.dtype.element_ty), mask=within)
    else:
        if ADDS:
            before = tl.load(out + where, mask=valid, other=0.0).to(tl.float32)
            acc = acc.to(out.dtype.element_ty).to(tl.float32) + before
        tl.store(out + where, acc.to(out.dtype.element_ty), mask=valid)


@triton.jit
def dense_kernel(
    packed,
    grid,
    out,
    num_outputs,
    num_inputs,
    num_slabs,
    num_tiles,
    SLABS: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    HALF_SCALES: tl.constexpr,
    FAST: tl.constexpr,
):
    """out (O, I) = W: one program a tile of SLABS slabs."""
    block, tile = tl.program_id(0), tl.program_id(1)
    ROWS: tl.constexpr = SLABS * 16
    outputs, inputs = block * ROWS + tl.arange(0, ROWS), tile * 128 + tl.arange(0, 128)
    codes = _codes(packed, block * SLABS, tile, num_slabs, num_tiles, SLABS, False, BITS, out.dtype.element_ty, FAST)
    valid = (outputs < num_outputs)[:, None] & (inputs < num_inputs)[None, :]
    cell = tl.load(grid + (inputs // GROUP)[None, :] * num_slabs * 16 + outputs[:, None], mask=valid, other=0)
    weights = _beside(codes, 0, 8, ROWS).to(tl.float32)
    if HAS_ZERO:
        weights -= (cell >> 16).to(tl.float32)
    place = out + outputs.to(tl.int64)[:, None] * num_inputs + inputs[None, :]
    tl.store(place, (weights * _scale(cell, HALF_SCALES)).to(out.dtype.element_ty), mask=valid)
