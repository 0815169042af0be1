"""The linears of a model that quantization is about: those of its decoder layers, and the grid of each."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from distill.errors import DistillError
from distill.model.scales import MIN_GROUP_SIZE, Grid, group_size_for


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Name and list of the decoder layers: the one list as long as the config says, each item with linears inside."""
    wanted = model.config.get_text_config(decoder=True).num_hidden_layers
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == wanted and all(len(linears_of(m)) >= 2 for m in module)
    ]
    kind = type(model).__name__
    if len(found) != 1:
        raise DistillError(
            f"{kind}: {len(found)} lists of {wanted} decoder layers made of linears, where one is needed",
            remedy="use method nf4 or int8, which need no calibration",
        )
    name, layers = found[0]
    for parameter_name, parameter in layers.named_parameters():
        if parameter.ndim > 2:
            raise DistillError(
                f"{kind}: {name}.{parameter_name} fuses several weights in one tensor (experts)",
                remedy="use method nf4 or int8",
            )
    return name, layers


def linears_of(layer: nn.Module) -> dict[str, nn.Linear]:
    """Linears inside a layer, by name."""
    return {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}


def common_group_size(layers: nn.ModuleList, wanted: int) -> int:
    """One size for the whole model: a format with zero points loads in transformers only with one grid."""
    widths = {linear.in_features for layer in layers for linear in linears_of(layer).values()}
    size = min(group_size_for(width, wanted) for width in widths)
    if any(group_size_for(width, size) != size for width in widths):
        raise DistillError(
            f"no group size of at least {MIN_GROUP_SIZE} made by halving {wanted} divides all of {sorted(widths)}",
            remedy="set symmetric: true, which allows a size for each linear",
        )
    return size


def grids_of(model: PreTrainedModel, *, bits: int, group_size: int, symmetric: bool) -> dict[str, Grid]:
    """The grid of every linear of every decoder layer, by the linear's full name, as the quantizers choose it."""
    prefix, layers = decoder_layers(model)
    size = group_size if symmetric else common_group_size(layers, group_size)
    return {
        f"{prefix}.{index}.{name}": Grid(bits, group_size_for(linear.in_features, size), symmetric)
        for index, layer in enumerate(layers)
        for name, linear in linears_of(layer).items()
    }
