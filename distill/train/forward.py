"""The loss head inside the model's own forward, where DDP, FSDP and autocast hooks see it."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from distill.objectives.aligned import AlignedTargets
from distill.objectives.aligned_head import aligned_head_loss
from distill.objectives.chunk import LogitMap
from distill.objectives.divergences import IGNORED, LossSums, Objective
from distill.objectives.head import Form, Head, TeacherHead, head_loss
from distill.objectives.matching import Matching
from distill.objectives.sparse import SparseTargets
from distill.objectives.sparse_head import sparse_head_loss

Decoder = Callable[[Tensor, Tensor], Tensor]  # rows [B, S] and their positions -> last hidden states [B, S, H]


@dataclass(frozen=True)
class TeacherSignal:
    """What a teacher says of a batch: its last hidden states [B, S, K] and the head that reads them; `layers` are the
    hidden states of those of its layers that are to be matched."""

    hidden: Tensor
    head: TeacherHead
    layers: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class RoutedSignal:
    """What several teachers say of a batch, each of its own tokens: hidden states [n, K], and which of the B x S tokens
    these are. Every scored token is in one part."""

    parts: tuple[tuple[TeacherSignal, Tensor], ...]


@dataclass
class LossOutput(ModelOutput):
    """Sums over the scored tokens of this process's micro-batch, as in `objectives.divergences.LossSums`."""

    loss: Tensor | None = None
    metrics: Tensor | None = None  # [6]: divergence, cross entropy, agreement, accuracy, weight, matching


def head_of(model: PreTrainedModel, logits: LogitMap | None = None) -> Head:
    """The LM head with what the model's config does to its logits; a sharded head is gathered, differentiably.

    `logits`: that, where it is known already, for reading a config takes time.
    """
    layer = model.get_output_embeddings()
    assert layer is not None
    logits = logits or logit_map(model)
    weight, bias = _whole(layer.weight), layer.bias if isinstance(layer, torch.nn.Linear) else None
    return Head(weight, None if bias is None else _whole(bias), logits.scale, logits.softcap)


def logit_map(model: PreTrainedModel) -> LogitMap:
    """What the model's config does to its head's products."""
    config = model.config.get_text_config()
    return LogitMap(logit_scale(config), _number(config, "final_logit_softcapping"))


def logit_scale(config: Any) -> float:
    """Factor on the logits by the several names that architectures give it (1 where there is none)."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        value = _number(config, name)
        if value is not None:
            return value
    divisor = _number(config, "logits_scaling")
    if divisor is None:
        return 1.0
    return divisor if config.model_type == "hyperclovax" else 1.0 / divisor


def attach_loss_head(
    model: PreTrainedModel,
    objective: Objective,
    chunk_tokens: int | None = None,
    form: Form = "torch",
    matching: Matching | None = None,
    decoder: Decoder | None = None,
) -> None:
    """Make `model(..., labels=labels, with_loss_head=True, teacher=signal)` return a LossOutput.

    Without `with_loss_head` the forward is the model's own. Labels are shifted here, once. The base model and the head
    are looked up on each call, for FSDP and PEFT replace them after this. `matching` becomes a module of the model, so
    that its projections are trained, and wrapped, with it. `decoder` takes the place of the base model.
    """
    assert decoder is None or matching is None, "a decoder tells the last layer's states alone"
    original, logits = model.forward, logit_map(model)
    if matching is not None:
        model.add_module("matching", matching)

    @functools.wraps(type(model).forward)
    def forward(
        self: PreTrainedModel,
        *args: Any,
        with_loss_head: bool = False,
        teacher: TeacherSignal | RoutedSignal | SparseTargets | AlignedTargets | None = None,
        **kwargs: Any,
    ) -> Any:
        if not with_loss_head:
            return original(*args, **kwargs)
        labels_BS = kwargs.pop("labels")
        kwargs |= {"use_cache": False, "output_hidden_states": matching is not None}  # peft passes some of them on
        layers: tuple[Tensor, ...] = ()
        if decoder is not None:
            hidden_BSH = decoder(kwargs["input_ids"], kwargs["position_ids"])
        else:
            states = self.base_model(*args, **kwargs)
            hidden_BSH, layers = states.last_hidden_state, states.hidden_states
        shifted_N = torch.full_like(labels_BS, IGNORED)
        shifted_N[:, :-1] = labels_BS[:, 1:]
        labels_N = shifted_N.flatten()

        def sums_of(hidden_NH: Tensor) -> tuple[Tensor, ...]:
            student = head_of(self, logits)
            if isinstance(teacher, SparseTargets):
                sums = sparse_head_loss(hidden_NH, student, teacher, labels_N, objective, chunk_tokens=chunk_tokens)
            elif isinstance(teacher, AlignedTargets):
                sums = aligned_head_loss(hidden_NH, student, teacher, labels_N, objective, chunk_tokens=chunk_tokens)
            elif isinstance(teacher, RoutedSignal):
                sums = _routed_loss(hidden_NH, student, teacher, labels_N, objective, chunk_tokens, form)
            else:
                sums = head_loss(
                    hidden_NH,
                    student,
                    None if teacher is None else teacher.hidden.flatten(0, 1),
                    None if teacher is None else teacher.head,
                    labels_N,
                    objective,
                    chunk_tokens=chunk_tokens,
                    form=form,
                )
            return tuple(vars(sums).values())

        sums = LossSums(*_in_the_head(self.get_output_embeddings(), sums_of, hidden_BSH.flatten(0, 1)))
        loss, matched = sums.loss, sums.loss.new_zeros(())
        if matching is not None:
            assert isinstance(teacher, TeacherSignal)
            distance = matching(layers, teacher.layers, shifted_N != IGNORED)
            loss, matched = loss + matching.weight * distance, distance.detach().to(matched.dtype)
        columns = [sums.divergence, sums.cross_entropy, sums.agreement, sums.accuracy, sums.weight, matched]
        return LossOutput(loss=loss, metrics=torch.stack(columns))

    model.forward = types.MethodType(forward, model)  # type: ignore[method-assign]


def _in_the_head(
    layer: torch.nn.Module, compute: Callable[[Tensor], tuple[Tensor, ...]], hidden_NH: Tensor
) -> tuple[Tensor, ...]:
    """`compute(hidden_NH)`, which reads the head's weights; where ZeRO-3 has these in pieces, as the head's forward.

    ZeRO-3 gathers a module's weights before its forward and again before its backward, where their gradient has to find
    them whole; `deepspeed.zero.GatheredParameters` around the loss would gather them for the forward alone.
    """
    if not any(hasattr(parameter, "ds_status") for parameter in layer.parameters()):
        return compute(hidden_NH)
    layer.forward = compute
    try:
        found: tuple[Tensor, ...] = layer(hidden_NH)
    finally:
        del layer.forward
    return found


def _routed_loss(
    hidden_NH: Tensor,
    student: Head,
    teachers: RoutedSignal,
    labels_N: Tensor,
    objective: Objective,
    chunk_tokens: int | None,
    form: Form,
) -> LossSums:
    """The sums of every teacher's own tokens; with nothing scored, of none."""
    parts = [
        head_loss(
            hidden_NH[places],
            student,
            signal.hidden,
            signal.head,
            labels_N[places],
            objective,
            chunk_tokens=chunk_tokens,
            form=form,
        )
        for signal, places in teachers.parts
    ]
    if not parts:
        nothing = hidden_NH.sum() * 0.0
        return LossSums(nothing, *(nothing.detach() for _ in range(5)))
    return LossSums(
        *(torch.stack(column).sum() for column in zip(*(vars(part).values() for part in parts), strict=True))
    )


def _whole(parameter: Tensor) -> Tensor:
    """A sharded parameter gathered; its gradient is the mean over processes, as FSDP makes that of all others.

    A head that is sharded as a module of its own is never called, so no hook of FSDP's reduces its gradient, nor brings
    a share from CPU memory.
    """
    if not isinstance(parameter, DTensor):
        return parameter
    mesh = parameter.device_mesh
    there: DTensor = parameter.to(mesh.device_type)  # type: ignore[assignment]
    whole = there.full_tensor(grad_placements=[Partial()] * mesh.ndim)
    if whole.requires_grad:
        whole.register_hook(lambda gradient: gradient / mesh.size())
    return whole


def _number(config: Any, name: str) -> float | None:
    """A key that only some architectures' configs have."""
    value = config.to_dict().get(name)
    return None if value is None else float(value)
