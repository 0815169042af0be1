"""The teacher and the student: which models, and how they are reached."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from distill.recipe.base import Section
from distill.recipe.prune import Prune

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class Price(Section):
    """Dollars per million tokens; null means unknown, which is said and never taken for 0."""

    input: float | None = Field(default=None, ge=0)
    output: float | None = Field(default=None, ge=0)
    cached_input: float | None = Field(default=None, ge=0, description="null: as input")
    reasoning: float | None = Field(default=None, ge=0, description="null: as output, of which they are a part")
    batch_input: float | None = Field(default=None, ge=0, description="in a batch; null: as online")
    batch_output: float | None = Field(default=None, ge=0, description="in a batch; null: as online")


class Batch(Section):
    """How requests go through the provider's Batch API, which answers within a day at a lower price."""

    requests: int = Field(default=10_000, ge=1, le=50_000, description="in one batch, at most")
    poll_seconds: float = Field(default=30.0, gt=0, description="between two looks at a batch")
    gather_seconds: float = Field(default=2.0, gt=0, description="a batch goes when nothing joined it for so long")


class TeacherCommon(Section):
    """What holds for every teacher that is asked over the OpenAI protocol."""

    id: str | None = Field(default=None, description="stable identity in request keys, else made from url and model")
    weights: str | None = Field(default=None, description="folder or hub id of its weights, for live divergence")
    max_concurrency: int = Field(default=64, ge=1, le=4096)
    requests_per_minute: float | None = Field(default=None, gt=0)
    tokens_per_minute: float | None = Field(default=None, gt=0)
    timeout_seconds: float = Field(default=120.0, gt=0, description="for one attempt")
    deadline_seconds: float = Field(default=600.0, gt=0, description="for all attempts at a request and waits between")
    max_attempts: int = Field(default=6, ge=1, le=100, description="a refused rate (429, 503) is no failed attempt")
    price: Price | None = Field(default=None, description="overrides the price files")
    budget_usd: float | None = Field(default=None, gt=0, description="hard stop over all sessions of a run")
    transport: Literal["auto", "sdk"] = Field(
        default="auto", description="sdk: always the official SDK; auto: it where a proxy or an odd URL needs it"
    )


class OpenAITeacher(TeacherCommon):
    """Any OpenAI-compatible endpoint: OpenAI, vLLM, SGLang, a gateway."""

    kind: Literal["openai"] = "openai"
    model: str
    base_url: str | None = Field(
        default=None, pattern=r"^https?://\S+$", description="null: OPENAI_BASE_URL, else the public API"
    )
    api_key_env: str = Field(default="OPENAI_API_KEY", description="name of the variable that holds the key")
    mode: Literal["online", "batch"] = Field(default="online", description="batch: through the Batch API")
    batch: Batch = Batch()


class AzureTeacher(TeacherCommon):
    """A deployment of Azure OpenAI (Foundry), by key or by Entra ID."""

    kind: Literal["azure"]
    model: str = Field(description="name of the deployment")
    base_url: str | None = Field(
        default=None, pattern=r"^https?://\S+$", description="of the resource; null: AZURE_OPENAI_ENDPOINT"
    )
    api_version: str | None = Field(
        default=None,
        pattern=r"^(v1|preview|\d{4}-\d\d-\d\d(-preview)?)$",
        description="null: the undated API at /openai/v1; a date: /openai/deployments/<model>",
    )
    auth: Literal["key", "entra"] = Field(default="key", description="entra: a token in place of the key")
    api_key_env: str = Field(default="AZURE_OPENAI_API_KEY", description="name of the variable that holds the key")
    token_env: str = Field(
        default="AZURE_OPENAI_AD_TOKEN", description="variable that holds a token; empty: azure-identity gets tokens"
    )
    scope: str = Field(default="https://cognitiveservices.azure.com/.default", description="that tokens are for")


class EmbeddedTeacher(TeacherCommon):
    """A local checkpoint: served by the CLI on a free loopback port while a verb needs it, or run in its process."""

    kind: Literal["embedded"] = "embedded"
    model: str = "data/teacher"
    dtype: Dtype = "float32"
    backend: Literal["server", "transformers"] = Field(
        default="server", description="server: a child process behind the protocol; transformers: in this process"
    )
    max_concurrency: int = Field(default=128, ge=1, le=4096)


def _teacher_kind(value: Any) -> str:
    """`kind` may be left out: a teacher is then an OpenAI-compatible endpoint."""
    kind = value.get("kind", "openai") if isinstance(value, dict) else value.kind
    return str(kind)


Teacher = Annotated[
    Annotated[OpenAITeacher, Tag("openai")]
    | Annotated[AzureTeacher, Tag("azure")]
    | Annotated[EmbeddedTeacher, Tag("embedded")],
    Discriminator(_teacher_kind),
]


def weights_of(teacher: Teacher) -> str | None:
    """Folder or hub id of a teacher's weights, where they can be had."""
    return teacher.weights or (teacher.model if isinstance(teacher, EmbeddedTeacher) else None)


class Scratch(Section):
    """A Llama with random weights and a byte-level BPE tokenizer trained on its corpus."""

    vocab_size: int = Field(ge=512)
    hidden_size: int = Field(ge=8)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    intermediate_size: int = Field(ge=8)
    max_positions: int = Field(default=2048, ge=16)
    seed: int = 0


class Student(Section):
    """The model to train: a pretrained one, optionally cut down first, or one from scratch."""

    model: str | None = Field(default=None, description="folder or hub id of the weights to start from")
    scratch: Scratch | None = Field(default=None, description="instead of model: random weights of this shape")
    layers: int | None = Field(default=None, ge=1, description="keep this many decoder layers (depth pruning)")
    heads: int | None = Field(default=None, ge=1, description="keep this many query heads a layer (needs prune)")
    kv_heads: int | None = Field(default=None, ge=1, description="mean-pool key/value heads to this many (GQA)")
    intermediate_size: int | None = Field(default=None, ge=1, description="keep this many FFN neurons (needs prune)")
    hidden_size: int | None = Field(default=None, ge=1, description="keep this many channels (needs prune)")
    prune: Prune | None = Field(default=None, description="what is kept is measured; null: layers evenly spaced")
    chat_template: str | None = Field(default=None, description="Jinja file; null: the tokenizer's own")
    dtype: Dtype = "bfloat16"
    trust_remote_code: bool = False

    @property
    def cuts(self) -> dict[str, int]:
        """What is asked of the model's size, by name."""
        asked = {
            "layers": self.layers,
            "heads": self.heads,
            "KV heads": self.kv_heads,
            "neurons": self.intermediate_size,
            "channels": self.hidden_size,
        }
        return {what: size for what, size in asked.items() if size is not None}

    @property
    def measures_width(self) -> bool:
        """Whether heads, neurons, channels or the weights of KV heads are measured."""
        if self.prune is None:
            return False
        narrower = (self.heads, self.intermediate_size, self.hidden_size) != (None, None, None)
        return narrower or (self.kv_heads is not None and self.prune.kv_pooling != "mean")

    @property
    def measures(self) -> bool:
        """Whether anything is measured on calibration rows."""
        by_importance = self.prune is not None and self.prune.layers_by != "spacing"
        return self.measures_width or (by_importance and self.layers is not None)

    def problems(self) -> Iterator[tuple[str, str]]:
        """(key, problem) of settings that do not go together."""
        if (self.model is None) == (self.scratch is None):
            yield "", "needs either 'model' or 'scratch'"
        narrower = {"heads": self.heads, "intermediate_size": self.intermediate_size, "hidden_size": self.hidden_size}
        for key, value in narrower.items():
            if self.prune is None and value is not None:
                yield key, "what goes is measured: add student.prune"
        if self.prune is not None and not self.measures:
            yield "prune", "nothing is to be measured: set layers, heads, intermediate_size, hidden_size or kv_heads"
        if self.heads is not None and self.kv_heads is not None and self.heads % self.kv_heads:
            yield "heads", f"must be a multiple of kv_heads {self.kv_heads}"
