"""The loss head beside others: seconds and memory of one forward and backward pass from hidden states and two LM heads.

    python -m benchmarks.kd_loss [--quick] [--threads N] [--json PATH]

On a CPU: V = 32,000 in float32 against log-softmax over whole logits and TRL's chunked divergence. On a CUDA GPU: two
shapes of real models in bfloat16, also against Liger-Kernel where it is installed. Times are the best of alternating
rounds. Memory is what a first pass needs beyond its inputs, gradients included: on a GPU the allocator's peak, on a CPU
the peak resident size of a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.common import Row, envelope, write_json
from distill.objectives.divergences import DivergenceName, Objective
from distill.objectives.head import Form, Head, head_loss

GPU_FLOPS = 790e12  # of bfloat16 matmuls, as measured on an H100 and an H200
NAIVE, OURS, FROZEN = "naive", "ours", "ours, frozen head"
BETAS = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": 0.5}  # as TRL and Liger name them
CPU_SPEEDUP, CPU_MEMORY = 1.5, 0.25
PAUSE = 0.05  # seconds between two passes on a GPU, so that each starts at the clocks that the one before it started at


@dataclass(frozen=True)
class Shape:
    """N tokens, V vocabulary rows, student and teacher width; bars in milliseconds (KLs, JSD) and GiB for a GPU."""

    tokens: int
    vocab: int
    student: int
    teacher: int
    bars: tuple[float, float, float] | None = None

    def __str__(self) -> str:
        return f"N={self.tokens} V={self.vocab} H {self.student} <- {self.teacher}"

    @property
    def flops(self) -> float:
        """Student projection, its two gradients, teacher projection: 6 N Hs V + 2 N Ht V."""
        return self.tokens * self.vocab * (6.0 * self.student + 2.0 * self.teacher)


GPU_SHAPES = (Shape(4096, 151_936, 896, 3584, (13.5, 14.5, 1.1)), Shape(8192, 128_256, 2048, 4096, (34.0, 36.0, 1.6)))
CPU_SHAPES = (Shape(2048, 32_000, 256, 256), Shape(2048, 32_000, 256, 512), Shape(2048, 32_000, 576, 960))
QUICK_SHAPES = (Shape(1024, 32_000, 256, 256),)


@dataclass(frozen=True)
class Inputs:
    """Hidden states and heads; those of the student want gradients."""

    hidden: Tensor
    head: Tensor
    teacher_hidden: Tensor
    teacher_head: Tensor
    labels: Tensor

    @classmethod
    def of(cls, shape: Shape, device: str) -> Inputs:
        """Random, with logits of standard deviation 1."""
        torch.manual_seed(0)
        dtype = torch.bfloat16 if device == "cuda" else torch.float32

        def draw(rows: int, width: int, size: float) -> Tensor:
            return (torch.randn(rows, width, device=device) * size).to(dtype)

        return cls(
            draw(shape.tokens, shape.student, 1.0).requires_grad_(),
            draw(shape.vocab, shape.student, shape.student**-0.5).requires_grad_(),
            draw(shape.tokens, shape.teacher, 1.0),
            draw(shape.vocab, shape.teacher, shape.teacher**-0.5),
            torch.randint(0, shape.vocab, (shape.tokens,), device=device),
        )


Pass = Callable[[Inputs, DivergenceName], Tensor]


def naive(inputs: Inputs, divergence: DivergenceName) -> Tensor:
    """Whole logits, log-softmax, autograd."""
    with torch.no_grad():
        log_p = torch.log_softmax((inputs.teacher_hidden @ inputs.teacher_head.T).float(), -1)
    log_q = torch.log_softmax((inputs.hidden @ inputs.head.T).float(), -1)
    if divergence == "forward_kl":
        return (log_p.exp() * (log_p - log_q)).sum()
    if divergence == "reverse_kl":
        return (log_q.exp() * (log_q - log_p)).sum()
    log_m = torch.logaddexp(log_p, log_q) - math.log(2.0)
    return 0.5 * ((log_p.exp() * (log_p - log_m)).sum() + (log_q.exp() * (log_q - log_m)).sum())


def ours(form: Form, *, frozen: bool = False) -> Pass:
    """The loss head with the chunk that suits the device; a frozen head (LoRA) gets no gradient."""

    def run(inputs: Inputs, divergence: DivergenceName) -> Tensor:
        teacher = Head(inputs.teacher_head)
        objective = Objective(divergence)
        student = Head(inputs.head.detach() if frozen else inputs.head)
        return head_loss(
            inputs.hidden, student, inputs.teacher_hidden, teacher, inputs.labels, objective, form=form
        ).loss

    return run


def trl(inputs: Inputs, divergence: DivergenceName) -> Tensor:
    """What TRL's DistillationTrainer uses: tiles of tokens and vocabulary, logits made anew in the backward pass."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    found, _ = ChunkedDivergenceFunction.apply(
        inputs.hidden, inputs.head, None, inputs.teacher_hidden, inputs.teacher_head, None, BETAS[divergence]
    )
    total: Tensor = found.sum()
    return total


def liger_chunked(inputs: Inputs, divergence: DivergenceName) -> Tensor:
    """Liger-Kernel's chunked loss, compiled, without its share of cross entropy."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=BETAS[divergence])
    total: Tensor = loss(
        inputs.hidden, inputs.head, inputs.teacher_hidden, inputs.teacher_head, inputs.labels, None, None
    )
    return total


def liger_triton(inputs: Inputs, divergence: DivergenceName) -> Tensor:
    """Liger-Kernel's fused linear JSD."""
    from liger_kernel.transformers import LigerFusedLinearJSD

    total: Tensor = LigerFusedLinearJSD(jsd_beta=BETAS[divergence])(
        inputs.hidden, inputs.head, inputs.teacher_hidden, inputs.teacher_head, inputs.labels
    )
    return total


def matmuls(inputs: Inputs, _: DivergenceName) -> Tensor:
    """The four matmuls alone, in the chunks of the device: what nothing can be faster than."""
    size = 2048 if inputs.hidden.is_cuda else 256
    with torch.no_grad():
        total = torch.zeros_like(inputs.head)
        for begin in range(0, len(inputs.hidden), size):
            rows = slice(begin, begin + size)
            logits = inputs.hidden[rows] @ inputs.head.T
            inputs.teacher_hidden[rows] @ inputs.teacher_head.T
            total.addmm_(logits.T, inputs.hidden[rows])
            logits @ inputs.head
    return torch.zeros(()).requires_grad_()


def passes(device: str) -> dict[str, Pass]:
    """What is measured, by name."""
    if device == "cpu":
        return {"matmuls": matmuls, NAIVE: naive, "TRL": trl, OURS: ours("torch")}
    found: dict[str, Pass] = {"matmuls": matmuls, OURS: ours("triton"), FROZEN: ours("triton", frozen=True)}
    found |= {"ours, torch": ours("torch"), NAIVE: naive}
    if importlib.util.find_spec("trl") is not None:
        found["TRL"] = trl
    if importlib.util.find_spec("liger_kernel") is not None:
        found |= {"Liger chunked": liger_chunked, "Liger Triton": liger_triton}
    return found


def once(act: Pass, inputs: Inputs, divergence: DivergenceName) -> float:
    """Seconds of a forward and backward pass."""
    inputs.hidden.grad = inputs.head.grad = None
    if inputs.hidden.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    act(inputs, divergence).backward()  # type: ignore[no-untyped-call]
    if inputs.hidden.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def cpu_peak(name: str, shape: Shape, divergence: DivergenceName, threads: int) -> float:
    """Bytes beyond the inputs at the highest resident size of a pass; for a process of its own, warmed up first."""
    torch.set_num_threads(threads)
    act = passes("cpu")[name]
    once(act, Inputs.of(Shape(8, 1000, shape.student, shape.teacher), "cpu"), divergence)
    inputs = Inputs.of(shape, "cpu")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status_bytes("VmRSS")
    once(act, inputs, divergence)
    return _status_bytes("VmHWM") - before


def _status_bytes(key: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return float(line.split()[1]) * 1024


def gpu_peak(act: Pass, inputs: Inputs, divergence: DivergenceName) -> float:
    """Bytes that the allocator handed out beyond the inputs."""
    inputs.hidden.grad = inputs.head.grad = None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    once(act, inputs, divergence)
    return float(torch.cuda.max_memory_allocated() - before)


@dataclass(frozen=True)
class Measured:
    """Seconds and bytes of one shape and divergence, by implementation."""

    shape: Shape
    divergence: DivergenceName
    seconds: dict[str, float]
    peak: dict[str, float]


def measure(shape: Shape, divergence: DivergenceName, device: str, rounds: int, threads: int) -> Measured:
    """All implementations in turn, `rounds` times after a first pass that does not count."""
    inputs = Inputs.of(shape, device)
    todo = passes(device)
    if divergence != "jsd":
        todo.pop("Liger Triton", None)
    for name, act in list(todo.items()):
        try:
            once(act, inputs, divergence)
        except Exception as error:  # a peer that does not run here is said and left out
            if name == OURS:
                raise
            print(f"{name} does not run here: {type(error).__name__}: {error}")
            del todo[name]
    taken: dict[str, list[float]] = {name: [] for name in todo}
    for number in range(rounds + 1):
        for name, act in todo.items():
            if device == "cuda":
                time.sleep(PAUSE)
            seconds = once(act, inputs, divergence)
            if number:
                taken[name].append(seconds)
    peak = {}
    if device == "cuda":
        peak = {name: gpu_peak(act, inputs, divergence) for name, act in todo.items() if name != "matmuls"}
    else:
        context = multiprocessing.get_context("spawn")
        for name in [name for name in (NAIVE, "TRL", OURS) if name in todo]:
            with context.Pool(1) as pool:
                peak[name] = pool.apply(cpu_peak, (name, shape, divergence, threads))
    return Measured(shape, divergence, {name: min(values) for name, values in taken.items()}, peak)


def rows_of(found: Measured, *, first: bool) -> list[Row]:
    """Ours against every other; bars where there are any: on a CPU for the first shape, against naive."""
    what = f"{found.divergence}, {found.shape}"
    mine, floor = found.seconds[OURS], found.seconds.get("matmuls", found.shape.flops / GPU_FLOPS)
    rows = []
    for name in found.peak:
        speed, memory = found.seconds[name] / mine, found.peak[OURS] / found.peak[name]
        cpu_bar = found.shape.bars is None and name == NAIVE
        slow = (CPU_SPEEDUP, speed >= CPU_SPEEDUP) if cpu_bar and first else (None, None)
        large = (CPU_MEMORY, memory <= CPU_MEMORY) if cpu_bar else (None, None)
        if name == OURS and found.shape.bars is not None:
            kl, jsd, gib = found.shape.bars
            limit = jsd if found.divergence == "jsd" else kl
            rows.append(Row(f"{what}, ours", 1e3 * mine, "ms", floor=1e3 * floor, bar=limit, ok=1e3 * mine <= limit))
            used = found.peak[OURS] / 2**30
            rows.append(Row(f"{what}, memory, ours", used, "GiB", bar=gib, ok=used <= gib))
        elif name != OURS:
            times = (1e3 * mine, "ms", 1e3 * found.seconds[name], speed, 1e3 * floor)
            rows.append(Row(f"{what}, against {name}", *times, *slow))
            sizes = (found.peak[OURS] / 2**20, "MiB", found.peak[name] / 2**20, memory, None)
            rows.append(Row(f"{what}, memory against {name}", *sizes, *large))
    return rows


def show(rows: list[Row]) -> None:
    """A line a number."""
    for row in rows:
        peer = "" if row.peer is None else f"  {row.peer:9.1f}  ratio {row.ratio:5.2f}"
        floor = "" if row.floor is None else f"  floor {row.floor:.1f}"
        bar = "" if row.bar is None else f"  bar {row.bar:g}: {'met' if row.ok else 'MISSED'}"
        print(f"{row.name:<70} {row.value:9.1f} {row.unit}{peer}{floor}{bar}")


def main() -> None:
    """Measures, prints, and writes the JSON that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one small shape, forward KL and JSD, fewer rounds")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shapes = GPU_SHAPES if device == "cuda" else QUICK_SHAPES if arguments.quick else CPU_SHAPES
    divergences: tuple[DivergenceName, ...] = ("forward_kl", "jsd") if arguments.quick else tuple(BETAS)  # type: ignore[arg-type]
    rounds = 2 if arguments.quick else 5
    command = "python -m benchmarks.kd_loss" + (" --quick" if arguments.quick else "")
    rows, details = [], []
    for shape in shapes:
        for divergence in divergences:
            found = measure(shape, divergence, device, rounds, arguments.threads)
            rows += (new := rows_of(found, first=shape == shapes[0]))
            details.append({"what": f"{divergence}, {shape}", "seconds": found.seconds, "peak_bytes": found.peak})
            show(new)
            if arguments.json is not None:
                result = envelope(what="kd loss", command=command, rows=rows, details={"measured": details})
                write_json(arguments.json, result)


if __name__ == "__main__":
    main()
