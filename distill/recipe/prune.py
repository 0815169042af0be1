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
        description="by what a layer changes in its input, by the loss without it (the ends stay), or evenly spaced",
    )
    iterative: bool = Field(default=True, description="measure the layers anew after each one that goes")
    width_by: Literal["contribution", "activation"] = Field(
        default="contribution", description="what heads and neurons add to the residual stream, or their own size"
    )
    kv_pooling: Literal["aligned", "weighted", "mean"] = Field(
        default="aligned", description="heads of a group: turned towards each other first, keys weighted, or their mean"
    )
    calibration: Calibration = Calibration()
