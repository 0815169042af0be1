"""What the loss head's time on a GPU is made of: its four products by cuBLAS, and its kernel by how it is launched.

    python -m benchmarks.kd_loss_parts [--json PATH]
    python -m benchmarks.kd_loss_parts --compile I/N     compile a share of the kernels into Triton's cache, then end

Times are medians of CUDA events, in microseconds per 1,024 tokens so that rows of different chunks compare. Of the
kernel also the bytes a second that it moves: two reads and a write of the student's logits, two reads of the teacher's
(three and three for JSD).
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.common import Row, envelope, write_json
from benchmarks.kd_loss import GPU_SHAPES, Shape
from distill.kernels.loss import LAUNCH, Launch, chunk_loss_triton

KINDS = {"forward_kl": 0.0, "reverse_kl": 0.0, "jsd": 0.5}
READS = {"forward_kl": 2, "reverse_kl": 2, "jsd": 3}
CHUNKS = (1024, 2048, 4096)
PARTS = (256, 512, 1024)
TILES = ((1024, 4), (2048, 4), (2048, 8), (4096, 8), (4096, 16), (8192, 16), (8192, 32))
LAUNCHES = tuple(
    Launch(tile, warps, stages, keep)
    for (tile, warps), stages, keep in itertools.product(TILES, (1, 3), (False, True))
    if not keep or warps >= 16
)
KERNEL_TOKENS = (512, 1024)


def timed(act: Callable[[], object], repeats: int = 7) -> float:
    """Median microseconds of a call, after one that does not count."""
    act()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        act()
        mark.record()
    torch.cuda.synchronize()
    return 1e3 * statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(marks))


def draw(*shape: int, size: float = 1.0) -> torch.Tensor:
    """Random bfloat16 on the GPU."""
    return (torch.randn(*shape, device="cuda") * size).bfloat16()


def products(shape: Shape) -> Iterator[tuple[str, int, float, Callable[[], object]]]:
    """(name, tokens, FLOPs, call) of each product at each size of a chunk."""
    ours, theirs = draw(shape.vocab, shape.student, size=shape.student**-0.5), draw(shape.vocab, shape.teacher)
    flops = 2.0 * shape.vocab * shape.student
    for tokens in PARTS:
        hidden, out = draw(tokens, shape.teacher), draw(tokens, shape.vocab)
        yield (
            "teacher projection",
            tokens,
            2.0 * tokens * shape.vocab * shape.teacher,
            lambda h=hidden, o=out: torch.mm(h, theirs.T, out=o),
        )
    total16, total32 = torch.zeros_like(ours), torch.zeros_like(ours, dtype=torch.float32)
    for tokens in CHUNKS:
        hidden, out = draw(tokens, shape.student), draw(tokens, shape.vocab, size=1e-3)
        into = torch.empty_like(hidden)
        yield "student projection", tokens, tokens * flops, lambda h=hidden, o=out: torch.mm(h, ours.T, out=o)
        out.normal_(0, 1e-3)
        yield "gradient of hidden", tokens, tokens * flops, lambda i=into, o=out: torch.mm(o, ours, out=i)
        for splits in (2, 4):
            yield (
                f"gradient of hidden, vocabulary in {splits}",
                tokens,
                tokens * flops,
                lambda o=out, s=splits: split_product(o, ours, s),
            )
        yield (
            "gradient of head, written",
            tokens,
            tokens * flops,
            lambda h=hidden, o=out: total16.addmm_(o.T, h, beta=0.0),
        )
        yield (
            "gradient of head, added in bfloat16",
            tokens,
            tokens * flops,
            lambda h=hidden, o=out: total16.addmm_(o.T, h),
        )
        yield (
            "gradient of head, added in float32",
            tokens,
            tokens * flops,
            lambda h=hidden, o=out: torch.addmm(total32, o.T, h, out_dtype=torch.float32, out=total32),
        )


def split_product(gradient: torch.Tensor, weight: torch.Tensor, splits: int) -> torch.Tensor:
    """gradient @ weight as a sum over parts of the vocabulary, so that narrow students fill the GPU."""
    tokens, rows = gradient.shape
    parts = gradient.view(tokens, splits, rows // splits).transpose(0, 1)
    return torch.bmm(parts, weight.view(splits, rows // splits, -1)).sum(0)


def kernel_call(
    student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, divergence: str, launch: Launch
) -> torch.Tensor:
    """One launch; the student's logits become small numbers, which cost the same to read."""
    return chunk_loss_triton(
        student,
        teacher,
        labels,
        divergence=divergence,
        mixture=KINDS[divergence],
        temperature=1.0,
        ce_weight=0.0,
        divergence_weight=1.0,
        scales=(1.0, 1.0),
        softcaps=(None, None),
        launch=launch,
    )


def compile_share(text: str) -> None:
    """Every N-th variant of the kernel, on a few tokens."""
    share, _, of = text.partition("/")
    todo = list(itertools.product(KINDS, LAUNCHES))
    for divergence, launch in todo[int(share) :: int(of)]:
        row, labels = draw(16, GPU_SHAPES[0].vocab), torch.zeros(16, dtype=torch.int64, device="cuda")
        try:
            kernel_call(row, row.clone(), labels, divergence, launch)
        except Exception as error:  # a launch that does not fit the GPU is a result of the sweep
            print(f"{divergence} {launch}: {error}")


def measure_products(shape: Shape) -> list[Row]:
    """Microseconds per 1,024 tokens, with the TFLOP/s in the name."""
    rows = []
    for name, tokens, flops, act in products(shape):
        taken = timed(act)
        what = f"{shape}: {name}, {tokens} tokens, {flops / taken / 1e6:.0f} TFLOP/s"
        rows.append(Row(what, taken * 1024 / tokens, "us/1024 tokens", floor=flops / 790e6 * 1024 / tokens))
    return rows


def measure_kernel(shape: Shape) -> list[Row]:
    """Microseconds per 1,024 tokens of every launch."""
    rows = []
    for tokens in KERNEL_TOKENS:
        student, teacher = draw(tokens, shape.vocab), draw(tokens, shape.vocab)
        labels = torch.randint(0, shape.vocab, (tokens,), device="cuda")
        moved = {name: (2 * reads + 1) * student.nbytes for name, reads in READS.items()}
        for divergence, launch in itertools.product(KINDS, LAUNCHES):
            try:
                taken = timed(lambda d=divergence, g=launch, s=student, t=teacher, i=labels: kernel_call(s, t, i, d, g))
            except Exception as error:
                print(f"{divergence} {launch}: {error}")
                continue
            speed = moved[divergence] / taken / 1e6
            what = f"{shape}: kernel, {divergence}, {tokens} tokens, {_named(launch)}, {speed:.2f} TB/s"
            rows.append(Row(what, taken * 1024 / tokens, "us/1024 tokens"))
    return rows


def _named(launch: Launch) -> str:
    return ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(launch).items())


def copy_speed() -> Row:
    """TB/s of a copy, bytes read and written, as the memory's floor."""
    source = draw(1 << 30)
    into = torch.empty_like(source)
    taken = timed(lambda: into.copy_(source))
    return Row("copy of 2 GiB", 2 * source.nbytes / taken / 1e6, "TB/s")


def main() -> None:
    """Measures, prints, and writes the JSON that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--compile", metavar="I/N")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.compile is not None:
        compile_share(arguments.compile)
        return
    rows = [copy_speed()]
    for shape, measure in itertools.product(GPU_SHAPES, (measure_products, measure_kernel)):
        rows += (new := measure(shape))
        torch.cuda.empty_cache()
        for row in sorted(new, key=lambda r: r.value) if measure is measure_kernel else new:
            print(f"{row.name:<120} {row.value:8.1f} {row.unit}")
        if arguments.json is not None:
            details = {"launch": dataclasses.asdict(LAUNCH)}
            command = "python -m benchmarks.kd_loss_parts"
            write_json(
                arguments.json, envelope(what="parts of the kd loss", command=command, rows=rows, details=details)
            )


if __name__ == "__main__":
    main()
