"""What GPTQ and AWQ learn from data: the Gram matrix of every linear's inputs, one decoder layer at a time.

Only the hidden states between two layers are kept for all rows, and only one Gram matrix exists at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from distill.errors import DistillError
from distill.model.calibration import Batch
from distill.model.linears import linears_of


@dataclass(frozen=True)
class InputGroup:
    """Linears of a layer (names inside it) that read the same tensor, and the norm that wrote it, if one did."""

    linears: tuple[str, ...]
    norm: str | None


@dataclass(frozen=True)
class InputStatistics:
    """Of n real tokens x: gram (I, I) = sum x x^T / n and mean_abs (I,) = sum |x| / n, in float32."""

    gram: Tensor
    mean_abs: Tensor


@dataclass
class LayerInputs:
    """The hidden states that enter a layer, a tensor (B, T, hidden) a batch; `masks` say which tokens are real."""

    hidden: list[Tensor]
    masks: list[Tensor]


Extras = list[tuple[tuple[Any, ...], dict[str, Any]]]
"""Of each batch, what a layer is called with beside its hidden states (rotary embeddings, masks)."""


class _SeenEnough(Exception):
    """Ends a forward pass once the wanted inputs were seen."""


@torch.no_grad()
def capture(
    model: PreTrainedModel, layers: nn.ModuleList, batches: Sequence[Batch]
) -> tuple[LayerInputs, list[Extras]]:
    """The inputs of the first layer, and what every layer is called with beside them, from one pass over the batches.

    Refuses a model whose layers are not a plain chain: then one layer's output would not be the next one's input.
    """
    device = model.device
    first: list[Tensor] = []
    extras: list[Extras] = [[] for _ in layers]
    last_output: list[Tensor] = []

    def before(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden, *rest = args if args else (kwargs["hidden_states"],)
        if index == 0:
            first.append(hidden)
        elif hidden is not last_output[-1]:
            raise DistillError(
                f"{type(model).__name__}: layer {index} does not read the output of layer {index - 1}",
                remedy="use method nf4 or int8",
            )
        named = {key: value for key, value in kwargs.items() if key not in ("hidden_states", "past_key_values")}
        extras[index].append((tuple(rest), named))

    def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        last_output[:] = [_tensor(output)]

    with _hooks() as handles:
        for index, layer in enumerate(layers):
            handles.append(
                layer.register_forward_pre_hook(lambda _, args, kw, i=index: before(i, args, kw), with_kwargs=True)
            )
            handles.append(layer.register_forward_hook(after))
        for batch in batches:
            model.base_model(input_ids=batch.input_ids.to(device), use_cache=False)
    return LayerInputs(first, [batch.mask.to(device) for batch in batches]), extras


def _tensor(output: Any) -> Tensor:
    """A layer's hidden states; some architectures return them in a tuple."""
    hidden = output[0] if isinstance(output, tuple) else output
    assert isinstance(hidden, Tensor)
    return hidden


@torch.no_grad()
def run_layer(layer: nn.Module, hidden: Tensor, extra: tuple[tuple[Any, ...], dict[str, Any]]) -> Tensor:
    """One layer on one batch."""
    return _tensor(layer(hidden, *extra[0], **extra[1]))


def advance(layer: nn.Module, inputs: LayerInputs, extras: Extras) -> None:
    """Replace the inputs of a layer by its outputs, batch by batch."""
    for index, extra in enumerate(extras):
        inputs.hidden[index] = run_layer(layer, inputs.hidden[index], extra)


@torch.no_grad()
def input_groups(layer: nn.Module, inputs: LayerInputs, extras: Extras) -> list[InputGroup]:
    """The layer's linears by the tensor they read, in the order in which they run, found by running one row."""
    seen: list[tuple[Tensor, list[str]]] = []
    norm_outputs: list[tuple[Tensor, str]] = []
    with _hooks() as handles:
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear):
                handles.append(module.register_forward_pre_hook(lambda _, args, n=name: _note(seen, args[0], n)))
            elif is_norm(module):
                handles.append(module.register_forward_hook(lambda _, args, out, n=name: norm_outputs.append((out, n))))
        # the tensors are compared by identity, so they are all kept alive until the end of the pass
        run_layer(layer, inputs.hidden[0], extras[0])
    missing = set(linears_of(layer)) - {name for _, names in seen for name in names}
    if missing:
        raise DistillError(
            f"{type(layer).__name__}: {', '.join(sorted(missing))} did not run in a plain pass",
            remedy="use method nf4 or int8",
        )
    return [
        InputGroup(tuple(names), next((norm for out, norm in norm_outputs if out is tensor), None))
        for tensor, names in seen
    ]


def is_norm(module: nn.Module) -> bool:
    """A layer or RMS norm: a leaf with one weight a channel."""
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    return weight is not None and weight.ndim == 1 and not list(module.children())


def _note(seen: list[tuple[Tensor, list[str]]], tensor: Tensor, name: str) -> None:
    for known, names in seen:
        if known is tensor:
            names.append(name)
            return
    seen.append((tensor, [name]))


@contextmanager
def _hooks() -> Iterator[list[torch.utils.hooks.RemovableHandle]]:
    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def input_statistics(layer: nn.Module, linear: nn.Linear, inputs: LayerInputs, extras: Extras) -> InputStatistics:
    """Gram matrix and mean magnitude of what `linear` reads over all real tokens of all batches.

    The layer runs only as far as `linear`, so the linears before it may be quantized already.
    """
    device = linear.weight.device
    gram = torch.zeros(linear.in_features, linear.in_features, device=device)
    total = torch.zeros(linear.in_features, device=device)
    count = 0
    seen: list[Tensor] = []

    def stop(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[:] = [args[0]]
        raise _SeenEnough

    with _hooks() as handles:
        handles.append(linear.register_forward_pre_hook(stop))
        for hidden, mask, extra in zip(inputs.hidden, inputs.masks, extras, strict=True):
            with suppress(_SeenEnough):
                run_layer(layer, hidden, extra)
            real = seen.pop().reshape(-1, linear.in_features)[mask.reshape(-1)].float()
            gram.addmm_(real.T, real)
            total.add_(real.abs().sum(0))
            count += len(real)
    return InputStatistics(gram / count, total / count)
