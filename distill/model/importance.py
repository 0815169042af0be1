"""How much heads, neurons and channels matter, measured on calibration rows in one forward pass (Minitron, 2407.14679).

Shapes: structure.py. Scores rank parts within one layer (heads, neurons) or the model (channels); larger is more
important. Sums are float64, and nothing but them is kept between batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from distill.model.calibration import Batch
from distill.model.structure import Structure, norms_of, present_layers, structure_of

Progress = Callable[[str, int, int], None]
"""Called with what is measured, the passes done, and all of them."""


def silent(what: str, done: int, total: int) -> None:
    """No progress."""


@dataclass(frozen=True)
class Importance:
    """Scores (float64, on the CPU) and the energies behind the weights of KV pooling.

    heads_LH, neurons_LF, channels_D: root of the mean over rows of m^2, where m is a part's mean over a row's tokens
    (batch = L2, sequence = mean, as in Minitron) of, by "activation",
        heads     ||o_h||, the head's output before the output projection
        neurons   |a_f|, the input of the down projection
        channels  |norm(x)_c|, summed over all norms of the residual stream
    and by "contribution" the norm of what the part adds to the residual stream: ||W_o[:, h] o_h|| for a head,
    |a_f| ||W_down[:, f]|| for a neuron. By either a part with score 0 adds nothing on these rows.
    queries_LH, effects_LH: means over tokens of ||q_h||^2 and ||W_o[:, h] o_h||^2.
    energy: E x_c^2 (D) of what each norm reads, by the name of its weight.
    """

    heads_LH: Tensor
    neurons_LF: Tensor
    channels_D: Tensor
    queries_LH: Tensor
    effects_LH: Tensor
    energy: dict[str, Tensor]


@torch.no_grad()
def measure(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    width_by: Literal["activation", "contribution"] = "activation",
    progress: Progress = silent,
) -> Importance:
    """All scores of the layers that are not left out, from one pass over the batches on the model's device.

    Raises CheckpointError for a model of another structure.
    """
    structure = structure_of(model)
    sums = _Sums(model, structure, width_by)
    with hooked(sums.hooks()):
        for index, batch in enumerate(batches):
            sums.mask_BT = batch.mask.to(model.device)
            model.base_model(input_ids=batch.input_ids.to(model.device), use_cache=False)
            sums.rows += len(batch.mask)
            sums.tokens += int(batch.mask.sum())
            progress("importance", index + 1, len(batches))
    return sums.result()


class _Sums:
    """What the hooks add up, batch after batch; `mask_BT` says which tokens of the present batch are real."""

    def __init__(self, model: PreTrainedModel, structure: Structure, width_by: str) -> None:
        self.structure = structure
        self._layers, self._norms = present_layers(model), norms_of(model)
        self._contribution = width_by == "contribution"
        self._device = model.device
        self.mask_BT = torch.ones(0, 0, dtype=torch.bool)
        self.rows = self.tokens = 0
        self.heads = self._zeros(len(self._layers), structure.heads)
        self.neurons = self._zeros(len(self._layers), structure.ffn)
        self.queries, self.effects = (self._zeros(len(self._layers), structure.heads) for _ in range(2))
        self.channels = {name: self._zeros(structure.hidden) for name in self._norms}
        self.energy = {name: self._zeros(structure.hidden) for name in self._norms}
        self._grams_LHdd = [self._gram(layer.self_attn.o_proj.weight) for layer in self._layers]

    def hooks(self) -> Iterator[torch.utils.hooks.RemovableHandle]:
        """Attach everything; the caller removes it."""
        for index, layer in enumerate(self._layers):
            attention = layer.self_attn
            yield attention.o_proj.register_forward_pre_hook(lambda _, args, i=index: self._attention(i, args[0]))
            yield layer.mlp.down_proj.register_forward_pre_hook(lambda _, args, i=index: self._mlp(i, args[0]))
            normed = dict(attention.named_children()).get("q_norm")
            source = attention.q_proj if normed is None else normed
            yield source.register_forward_hook(lambda _, args, out, i=index: self._query(i, out))
        for name, norm in self._norms.items():
            yield norm.register_forward_hook(lambda _, args, out, n=name: self._norm(n, args[0], out))

    def result(self) -> Importance:
        structure = self.structure
        neurons = (self.neurons / self.rows).sqrt()
        if self._contribution:
            neurons = neurons * torch.stack(
                [layer.mlp.down_proj.weight.detach().double().norm(dim=0) for layer in self._layers]
            )
        channels = torch.zeros(structure.hidden, dtype=torch.float64, device=self._device)
        for squares in self.channels.values():
            channels = channels + (squares / self.rows).sqrt()
        return Importance(
            heads_LH=(self.heads / self.rows).sqrt().cpu(),
            neurons_LF=neurons.cpu(),
            channels_D=channels.cpu(),
            queries_LH=(self.queries / self.tokens).cpu(),
            effects_LH=(self.effects / self.tokens).cpu(),
            energy={name: (total / self.tokens).cpu() for name, total in self.energy.items()},
        )

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.float64, device=self._device)

    def _gram(self, weight_DHd: Tensor) -> Tensor:
        """(H, d, d): W^T W of each head's columns, with which ||W o||^2 = o^T (W^T W) o."""
        columns_HDd = weight_DHd.detach().float().unflatten(1, (self.structure.heads, -1)).transpose(0, 1)
        return columns_HDd.transpose(1, 2) @ columns_HDd

    def _row_squares(self, values_BTx: Tensor) -> Tensor:
        """(x,): sum over rows of the square of the mean over a row's real tokens."""
        mask = self.mask_BT.unsqueeze(-1)
        means = (values_BTx.double() * mask).sum(1) / mask.sum(1)
        return means.square().sum(0)

    def _total(self, values_BTx: Tensor) -> Tensor:
        """(x,): sum over real tokens."""
        return values_BTx[self.mask_BT].double().sum(0)

    def _attention(self, index: int, outputs_BTHd: Tensor) -> None:
        outputs = outputs_BTHd.float().unflatten(-1, (self.structure.heads, -1))
        squares_BTH = outputs.square().sum(-1)
        effects_BTH = torch.einsum("bthd,hde,bthe->bth", outputs, self._grams_LHdd[index], outputs).clamp_min(0)
        self.heads[index] += self._row_squares((effects_BTH if self._contribution else squares_BTH).sqrt())
        self.effects[index] += self._total(effects_BTH)

    def _query(self, index: int, queries: Tensor) -> None:
        heads = queries if queries.ndim == 4 else queries.unflatten(-1, (self.structure.heads, -1))
        self.queries[index] += self._total(heads.float().square().sum(-1))

    def _mlp(self, index: int, neurons_BTF: Tensor) -> None:
        self.neurons[index] += self._row_squares(neurons_BTF.abs())

    def _norm(self, name: str, before_BTD: Tensor, after_BTD: Tensor) -> None:
        self.channels[name] += self._row_squares(after_BTD.abs())
        self.energy[name] += self._total(before_BTD.float().square())


@contextmanager
def hooked(attach: Iterator[torch.utils.hooks.RemovableHandle]) -> Iterator[None]:
    """The hooks that `attach` makes, until the end of the block."""
    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        handles.extend(attach)
        yield
    finally:
        for handle in handles:
            handle.remove()
