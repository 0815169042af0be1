"""A copy of a trained model's weights in bfloat16, which the engine may join and fuse as it likes."""

from __future__ import annotations

import copy

import torch
from transformers import PreTrainedModel


class Copy:
    """A model of the build of `source`, frozen, in eval mode and bfloat16, whose weights are refreshed in place."""

    def __init__(self, source: PreTrainedModel) -> None:
        self._source = source
        self.model = _empty(source)
        self._pairs = (
            _by_name(list(source.named_parameters()), dict(self.model.named_parameters())),
            _by_name(list(source.named_buffers()), dict(self.model.named_buffers())),
        )
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the source's present weights into the copy."""
        for ours, theirs in self._pairs:
            if ours:
                torch._foreach_copy_(ours, theirs)


def _empty(source: PreTrainedModel) -> PreTrainedModel:
    """The source's build with weights of no value, made without drawing random numbers."""
    config = copy.deepcopy(source.config)
    config.dtype = torch.bfloat16
    with torch.device("meta"):
        model = type(source)(config)
    for name, buffer in model.named_buffers():
        assert buffer.dtype == source.get_buffer(name).dtype, "a buffer of another dtype than the source's"
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    model.to_empty(device=source.device)
    model.tie_weights()
    return model.requires_grad_(False).eval()


def _by_name(
    theirs: list[tuple[str, torch.Tensor]], ours: dict[str, torch.Tensor]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """(the copy's tensors, the source's) in the same order: themselves, for the engine moves what they hold."""
    assert {name for name, _ in theirs} == set(ours), "the source has weights that its build has not"
    return [ours[name] for name, _ in theirs], [tensor for _, tensor in theirs]
