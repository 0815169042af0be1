"""How the parts of a model are chosen that a student keeps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from distill.recipe.base import Section
from distill.recipe.quantize import Calibration


class Prune(Section):
    """What a student keeps is measured on calibration rows; without this section layers go by their place alone."""

    layers_by: Literal["block_importance", "loss", "spacing"] = Field(
        default="block_importance",
        description="what a layer changes in its input; what the loss loses without it; evenly spaced",
    )
    iterative: bool = Field(default=False, description="measure the layers anew after each one that goes")
    width_by: Literal["activation", "contribution"] = Field(
        default="activation", description="size of a head's or neuron's output; the same behind its output weights"
    )
    kv_pooling: Literal["mean", "weighted"] = Field(
        default="mean", description="key/value heads of a group: their mean, or weighted by what depends on each"
    )
    calibration: Calibration = Calibration()
