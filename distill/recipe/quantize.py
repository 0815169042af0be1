"""Quantized variants of trained students."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distill.recipe.base import Section


class Calibration(Section):
    """Rows whose activations steer GPTQ and AWQ."""

    data: str | None = Field(default=None, description="generate job or Parquet path; null: the first of the training")
    rows: int = Field(default=128, ge=1)
    max_length: int = Field(default=512, ge=8)


class QuantizeCommon(Section):
    """What every quantize entry has."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    of: str | None = Field(default=None, description="train entry to quantize; null: the last one")


class Nf4(QuantizeCommon):
    """bitsandbytes 4-bit NormalFloat (2305.14314)."""

    method: Literal["nf4"]
    double_quant: bool = True


class Int8(QuantizeCommon):
    """bitsandbytes LLM.int8() (2208.07339)."""

    method: Literal["int8"]
    outlier_threshold: float = Field(default=6.0, ge=0)


class Gptq(QuantizeCommon):
    """GPTQ (2210.17323): second-order rounding from calibration activations."""

    method: Literal["gptq"]
    bits: Literal[3, 4, 8] = 4
    group_size: int = Field(default=128, ge=8)
    symmetric: bool = True
    act_order: bool = True
    damping: float = Field(default=0.01, gt=0, lt=1)
    calibration: Calibration = Calibration()


class Awq(QuantizeCommon):
    """AWQ (2306.00978): activation-aware scaling before rounding."""

    method: Literal["awq"]
    bits: Literal[3, 4, 8] = 4
    group_size: int = Field(default=128, ge=8)
    symmetric: bool = False
    grid: int = Field(default=20, ge=2, description="points of the scaling exponent tried between 0 and 1")
    calibration: Calibration = Calibration()


class Qat(QuantizeCommon):
    """The grid that a kd entry with `quantize` was trained on, as it was trained: nothing is rounded anew."""

    method: Literal["qat"]


Quantizer = Annotated[Nf4 | Int8 | Gptq | Awq | Qat, Field(discriminator="method")]
