"""What a kd entry sees of its teacher: the teacher itself at every step, or what was stored of it before."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from distill.recipe.base import Section

TAIL_DRAWS = 16


class FromWeights(Section):
    """How the teacher's weights are held, where they are needed here."""

    precision: Literal["auto", "bf16", "nf4"] = Field(
        default="auto", description="auto: as stored, or what the CPU computes in; nf4: 4-bit by bitsandbytes"
    )
    offload: bool = Field(default=False, description="weights stay in CPU memory and visit the GPU layer by layer")

    @property
    def moves(self) -> bool:
        """Whether weights are elsewhere than where they compute."""
        return self.offload


class LiveSignal(FromWeights):
    """The teacher runs beside the student at every step."""

    kind: Literal["live"] = "live"
    shard: bool = Field(default=False, description="each process keeps a share of the teacher's weights (FSDP2)")

    @property
    def moves(self) -> bool:
        return self.offload or self.shard


class TopKSignal(FromWeights):
    """The likeliest tokens and the mass of all others, stored once, and a few of the others, which forward KL uses."""

    kind: Literal["top_k"]
    k: int = Field(default=64, ge=1, le=255, description="tokens kept at a position, at most")
    min_probability: float = Field(default=1e-4, ge=0, lt=1, description="less likely ones are left to the tail")
    step_nats: float = Field(default=0.0625, gt=0, le=2, description="between two log probabilities as they are stored")
    tail_draws: int | None = Field(
        default=None,
        ge=0,
        le=255,
        description="ids drawn from the others, for forward_kl: unbiased over the vocabulary; default 16, for what "
        "servers tell 0",
    )
    seed: int = Field(default=0, description="of the draws")
    source: Literal["weights", "server", "sidecar"] = Field(
        default="weights", description="server: its prompt log probabilities; sidecar: logprobs.parquet of generate"
    )

    @property
    def num_tail_draws(self) -> int:
        """How many are drawn: nobody but the teacher's weights tells the tail."""
        if self.tail_draws is not None:
            return self.tail_draws
        return TAIL_DRAWS if self.source == "weights" else 0


class SampledSignal(FromWeights):
    """Ids drawn from the teacher's distribution, stored once; forward_kl only."""

    kind: Literal["sampled"]
    draws: int = Field(default=28, ge=1, le=255, description="draws at a position; equal ones are stored once")
    seed: int = 0


class HiddenSignal(FromWeights):
    """The teacher's last hidden states and its head, stored once: the whole distribution, nothing lost."""

    kind: Literal["hidden"]


class StoredSignal(Section):
    """Signals that lie in a folder already, from another run or machine."""

    kind: Literal["stored"]
    path: str = Field(description="folder with about.json, data.bin and index.bin")


def _signal_kind(value: object) -> str:
    """`kind` may be left out: the teacher is then live."""
    if isinstance(value, dict):
        return str(value.get("kind", "live"))
    assert isinstance(value, LiveSignal | TopKSignal | SampledSignal | HiddenSignal | StoredSignal)
    return value.kind


WrittenSignal = TopKSignal | SampledSignal | HiddenSignal
Signal = Annotated[
    Annotated[LiveSignal, Tag("live")]
    | Annotated[TopKSignal, Tag("top_k")]
    | Annotated[SampledSignal, Tag("sampled")]
    | Annotated[HiddenSignal, Tag("hidden")]
    | Annotated[StoredSignal, Tag("stored")],
    Discriminator(_signal_kind),
]
