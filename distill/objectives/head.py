"""The loss head: distillation loss from hidden states and LM heads, chunk by chunk, without a batch's logits.

Legend: N tokens, H student width, K teacher width, V student rows, U teacher rows, C tokens of a chunk.
The gradients of the student's hidden states and head are made in the forward pass, while a chunk's logits exist, and
the backward pass only scales them. Beyond inputs and gradients there are two buffers: [C, V], in which the student's
logits become their gradient, and one for the teacher's logits, of a quarter of the rows where kernels are used.
Reference, in plain torch: `divergences.distillation_loss`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from distill.objectives.chunk import LogitMap, chunk_loss
from distill.objectives.divergences import IGNORED, LossSums, Objective, distillation_loss

Form = Literal["torch", "triton"]
ChunkLoss = Callable[[Tensor, LogitMap, Tensor | None, LogitMap, Tensor, Objective], Tensor]
CHUNK_TOKENS = 1024
_CHUNK_TOKENS = {"cpu": 256, "torch": CHUNK_TOKENS, "triton": 2 * CHUNK_TOKENS}
_WIDE = 1 << 17  # student rows for which those are measured; with fewer a GPU gets as many more tokens at once
_LOGITS_BYTES = 0.8 * 2**30  # of both buffers, beyond which the teacher's is a quarter of the student's and not a half
_LOW_PRECISION_SUMS = 4  # chunks whose head gradients may be summed in the head's own 16 bits


class TeacherHead(Protocol):
    """What reads a teacher's hidden states [N, K]: a model's LM head, or that of several (`mixture.MixedHead`)."""

    @property
    def rows(self) -> int: ...

    @property
    def map(self) -> LogitMap: ...

    def logits(self, hidden_NK: Tensor) -> Tensor: ...

    def projection(
        self, compute: torch.dtype, rows: int, dtype: torch.dtype, tokens: int
    ) -> Callable[[Tensor], Tensor]: ...


@dataclass(frozen=True)
class Head:
    """An LM head: logits = softcap * tanh(scale * (hidden @ weight^T + bias) / softcap).

    weight: [V, H]; bias: [V] or None; `scale` (Cohere, Granite) and `softcap` (Gemma) as the model's config says.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @property
    def rows(self) -> int:
        """Of the vocabulary, padding included."""
        return self.weight.shape[0]

    @property
    def map(self) -> LogitMap:
        """What happens to the raw projections."""
        return LogitMap(self.scale, self.softcap)

    def projection(
        self, compute: torch.dtype, rows: int, dtype: torch.dtype, tokens: int
    ) -> Callable[[Tensor], Tensor]:
        """Raw projections of at most `rows` of `tokens` hidden states at a time, in `dtype`, without a gradient."""
        return _Projection(self.weight, self.bias, compute, rows, dtype, tokens)

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Logits [N, V], differentiable."""
        return self.transform(torch.nn.functional.linear(hidden_NH, self.weight, self.bias))

    def transform(self, raw_NV: Tensor) -> Tensor:
        """Scale and softcap of raw projections, differentiable."""
        scaled = raw_NV if self.scale == 1.0 else raw_NV * self.scale
        return scaled if self.softcap is None else self.softcap * torch.tanh(scaled / self.softcap)

    def transform_gradient(self, gradient_NV: Tensor, logits_NV: Tensor) -> Tensor:
        """Gradient by raw projections from that by logits, in place over `gradient_NV`."""
        return gradient_NV.mul_(self.map.derivative(logits_NV))


def head_loss_reference(
    student_NH: Tensor,
    student: Head,
    teacher_NK: Tensor | None,
    teacher: TeacherHead | None,
    labels_N: Tensor,
    objective: Objective,
    weights_N: Tensor | None = None,
) -> LossSums:
    """The same sums as `head_loss` from full logits, by autograd."""
    teacher_logits = None
    if objective.ce_weight < 1.0:
        assert teacher_NK is not None and teacher is not None
        teacher_logits = teacher.logits(teacher_NK)
    return distillation_loss(student.logits(student_NH), teacher_logits, labels_N, objective, weights_N)


def head_loss(
    student_NH: Tensor,
    student: Head,
    teacher_NK: Tensor | None,
    teacher: TeacherHead | None,
    labels_N: Tensor,
    objective: Objective,
    weights_N: Tensor | None = None,
    *,
    chunk_tokens: int | None = None,
    form: Form = "torch",
) -> LossSums:
    """Sums over the tokens whose label is not -100 (`labels_N` is shifted already); `loss` carries the gradient, once.

    The teacher gets no gradient. Matmuls run in the autocast dtype where autocast is on, else in that of the hidden
    states; softmax and sums in float32 or better. Rows that are not scored cost nothing but their zero gradient.
    `chunk_tokens`: None for what suits the device. `form` "triton" keeps a chunk's logits in the matmuls' dtype.
    """
    assert (teacher_NK is not None and teacher is not None) or objective.ce_weight == 1.0
    scored = (labels_N != IGNORED).nonzero().squeeze(-1)
    weights = weights_N.index_select(0, scored) if weights_N is not None else None
    teacher_hidden = None
    if objective.ce_weight < 1.0:
        assert teacher_NK is not None
        teacher_hidden = teacher_NK.detach().index_select(0, scored)
    if chunk_tokens is None:
        chunk_tokens = _suitable_chunk(student_NH.device, form, student.weight.shape[0])
    loss, metrics = _HeadLoss.apply(
        student_NH.index_select(0, scored),
        student.weight,
        student.bias,
        student.map,
        teacher_hidden,
        teacher,
        labels_N.index_select(0, scored),
        weights,
        objective,
        chunk_tokens,
        form,
    )
    return LossSums(loss, *metrics.unbind())


def _suitable_chunk(device: torch.device, form: Form, rows: int) -> int:
    """Tokens whose logits exist at once, with a student's head of so many rows."""
    if device.type == "cpu":
        return _CHUNK_TOKENS["cpu" if form == "torch" else form]
    return _CHUNK_TOKENS[form] * max(1, _WIDE // rows)


class _HeadLoss(torch.autograd.Function):
    """Forward makes the gradients; backward scales them in place, and so can run only once."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: FunctionCtx,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        student_map: LogitMap,
        teacher_NK: Tensor | None,
        teacher: TeacherHead | None,
        labels_N: Tensor,
        weights_N: Tensor | None,
        objective: Objective,
        chunk_tokens: int,
        form: Form,
    ) -> tuple[Tensor, Tensor]:
        device, tokens = hidden_NH.device.type, hidden_NH.shape[0]
        compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_NH.dtype
        exact = torch.promote_types(compute, torch.float32)
        few = tokens <= _LOW_PRECISION_SUMS * chunk_tokens and weight_VH.dtype == compute
        gradients = _Gradients.zeros(ctx.needs_input_grad, hidden_NH, weight_VH, few=few, exact=exact)  # type: ignore[attr-defined]
        chunk_function = chunk_loss if form == "torch" else _by_kernel()
        part_tokens = chunk_tokens if form == "torch" else _part_tokens(chunk_tokens, weight_VH, teacher, compute)
        logits = _Projection(weight_VH, bias_V, compute, chunk_tokens, compute if form == "triton" else exact, tokens)
        teacher_logits = None
        if teacher_NK is not None and teacher is not None:
            dtype = compute if form == "triton" else exact
            teacher_logits = teacher.projection(compute, part_tokens, dtype, tokens)
        columns = torch.zeros(4, tokens, dtype=exact, device=hidden_NH.device)
        teacher_map = LogitMap() if teacher is None else teacher.map
        with torch.autocast(device, enabled=False):
            for begin in range(0, tokens, chunk_tokens):
                rows = slice(begin, min(begin + chunk_tokens, tokens))
                hidden = hidden_NH[rows].to(compute)
                gradient_CV = logits(hidden)
                for start in range(begin, rows.stop, part_tokens):
                    part = slice(start, min(start + part_tokens, rows.stop))
                    theirs = None
                    if teacher_NK is not None and teacher_logits is not None:
                        theirs = teacher_logits(teacher_NK[part].to(compute))
                    ours = gradient_CV[start - begin : part.stop - begin]
                    columns[:, part] = chunk_function(ours, student_map, theirs, teacher_map, labels_N[part], objective)
                weights = weights_N[rows].to(exact).unsqueeze(-1) if weights_N is not None else None
                gradients.add(rows, gradient_CV.to(compute), hidden, logits.weight, weights)
            sums = _sums(columns, weights_N, objective)  # a product, which autocast would round to 8 bits
        ctx.gradients = gradients  # type: ignore[attr-defined]
        ctx.dtype = weight_VH.dtype  # type: ignore[attr-defined]
        ctx.mark_non_differentiable(metrics := sums[1:].clone())
        return sums[0].clone(), metrics

    @staticmethod
    def backward(ctx: FunctionCtx, loss_gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        gradients: _Gradients | None = ctx.gradients  # type: ignore[attr-defined]
        assert gradients is not None, "the loss head's backward pass runs once, for it scales the gradients in place"
        dtype = ctx.dtype  # type: ignore[attr-defined]
        ctx.gradients = None  # type: ignore[attr-defined]
        hidden, weight, bias = (
            None if gradient is None else gradient.mul_(loss_gradient.to(gradient.dtype))
            for gradient in (gradients.hidden, gradients.weight, gradients.bias)
        )
        weight = None if weight is None else weight.to(dtype)
        return (hidden, weight, None if bias is None else bias.to(dtype), *(None,) * 8)


@dataclass
class _Gradients:
    """Of the loss, summed chunk by chunk; None where none is asked for. A frozen head costs no matmul.

    The head's gradient is summed in the dtype in which it is handed over, for 16 bits halve the traffic, but in float32
    where so many chunks are summed that 16 bits would lose them.
    """

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    @classmethod
    def zeros(
        cls, wanted: tuple[bool, ...], hidden_NH: Tensor, weight_VH: Tensor, *, few: bool, exact: torch.dtype
    ) -> _Gradients:
        """Room for those of (hidden, weight, bias) that are wanted; the first chunk overwrites the weight's."""
        summed = weight_VH.dtype if few else torch.promote_types(weight_VH.dtype, exact)
        rows, device = weight_VH.shape[0], hidden_NH.device
        return cls(
            torch.zeros_like(hidden_NH) if wanted[0] else None,
            _room(weight_VH, summed, hidden_NH.shape[0]) if wanted[1] else None,
            torch.zeros(rows, dtype=exact, device=device) if wanted[2] else None,
        )

    def add(
        self, rows: slice, gradient_CV: Tensor, hidden_CH: Tensor, projection_VH: Tensor, weights_C1: Tensor | None
    ) -> None:
        """A chunk's share. Weights of tokens are applied to rows of hidden states, which are narrower than logits."""
        if self.hidden is not None:
            by_hidden = gradient_CV @ projection_VH
            self.hidden[rows] = by_hidden if weights_C1 is None else by_hidden * weights_C1
        if weights_C1 is not None:
            hidden_CH = (hidden_CH * weights_C1).to(hidden_CH.dtype)
        if self.weight is not None:
            _add_product_(self.weight, gradient_CV.T, hidden_CH, first=rows.start == 0)
        if self.bias is not None:
            weighted = gradient_CV if weights_C1 is None else gradient_CV * weights_C1
            self.bias += weighted.sum(0, dtype=self.bias.dtype)


class _Projection:
    """Raw projections of a chunk into one buffer that every chunk uses again."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, compute: torch.dtype, rows: int, dtype: torch.dtype, tokens: int
    ) -> None:
        self.weight = weight.detach().to(compute)
        self._bias = None if bias is None else bias.detach().to(compute)
        self._buffer = torch.empty(min(rows, tokens), weight.shape[0], dtype=dtype, device=weight.device)

    def __call__(self, hidden: Tensor) -> Tensor:
        out = self._buffer[: hidden.shape[0]]
        if out.dtype != hidden.dtype:
            return out.copy_(torch.nn.functional.linear(hidden, self.weight, self._bias))
        if self._bias is None:
            return torch.mm(hidden, self.weight.T, out=out)
        return torch.addmm(self._bias, hidden, self.weight.T, out=out)


def _part_tokens(chunk_tokens: int, weight_VH: Tensor, teacher: TeacherHead | None, compute: torch.dtype) -> int:
    """How many of the teacher's rows exist at once: wider products are faster, but their logits are memory."""
    width = weight_VH.shape[0] if teacher is None else teacher.rows
    half = (chunk_tokens * weight_VH.shape[0] + chunk_tokens // 2 * width) * compute.itemsize
    return max(1, chunk_tokens // (2 if half <= _LOGITS_BYTES else 4))


def _by_kernel() -> ChunkLoss:
    """The kernel, as the plain form is called."""
    from distill.kernels.loss import chunk_loss_triton

    def by_kernel(
        student: Tensor, ours: LogitMap, teacher: Tensor | None, theirs: LogitMap, labels: Tensor, objective: Objective
    ) -> Tensor:
        return chunk_loss_triton(
            student,
            teacher,
            labels,
            divergence=objective.divergence,
            mixture=objective.mixture,
            temperature=objective.temperature,
            ce_weight=objective.ce_weight,
            divergence_weight=objective.divergence_scale,
            scales=(ours.scale, theirs.scale),
            softcaps=(ours.softcap, theirs.softcap),
        )

    return by_kernel


def _room(weight_VH: Tensor, dtype: torch.dtype, tokens: int) -> Tensor:
    """For the head's gradient: it is read before it is written only where there is nothing to write."""
    return torch.empty_like(weight_VH, dtype=dtype) if tokens else torch.zeros_like(weight_VH, dtype=dtype)


def _add_product_(total: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
    """total += a @ b, or total = a @ b; CUDA adds 16-bit matrices' product to a float32 total without rounding it."""
    beta = 0.0 if first else 1.0
    if total.dtype == a.dtype:
        total.addmm_(a, b, beta=beta)
    elif total.device.type == "cuda" and total.dtype == torch.float32:
        torch.addmm(total, a, b, out_dtype=torch.float32, beta=beta, out=total)
    elif first:
        total.copy_(a @ b)
    else:
        total += a @ b


def _sums(columns: Tensor, weights_N: Tensor | None, objective: Objective) -> Tensor:
    """(loss, divergence, cross entropy, agreement, accuracy, weight), each token times its weight."""
    weights = torch.ones_like(columns[0]) if weights_N is None else weights_N.to(columns.dtype)
    loss = objective.divergence_scale * columns[0] + objective.ce_weight * columns[1]
    return torch.stack([loss, *columns.unbind(), torch.ones_like(loss)]) @ weights
