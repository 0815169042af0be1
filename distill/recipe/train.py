"""Training entries, run one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from distill.recipe.base import Section
from distill.recipe.signals import FromWeights, LiveSignal, Signal, StoredSignal, TopKSignal


class Lora(Section):
    """Low-rank adapters (2106.09685) instead of full fine-tuning; merged into the weights at the end if asked."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    merge: bool = True

    def head_problem(self) -> tuple[int, str] | None:
        """(place in target_modules, problem) where an adapter is asked for that no loss would train."""
        names = () if self.target_modules == "all-linear" else self.target_modules
        for index, name in enumerate(names):
            if name.split(".")[-1] == "lm_head":
                return index, "the loss head reads lm_head as a plain matrix, an adapter there would learn nothing"
        return None


class EntryCommon(Section):
    """What every training entry has. Batch sizes count rows over all processes."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    init: str | None = Field(
        default=None, description="entry to start from, or 'student'; null: the entry before, else the student"
    )
    data: tuple[str, ...] = Field(min_length=1, description="names of generate jobs, or Parquet paths")
    epochs: float = Field(default=1.0, gt=0)
    max_steps: int | None = Field(default=None, ge=1, description="overrides epochs")
    batch_size: int = Field(default=32, ge=1, description="rows per optimizer step, over all processes")
    micro_batch_size: int = Field(default=8, ge=1, description="rows per forward pass of a process")
    learning_rate: float = Field(default=2e-5, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = Field(default=0.05, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    max_length: int = Field(default=1024, ge=8)
    mixed_precision: Literal["no", "bf16", "auto"] = Field(
        default="no", description="auto: bf16 where the hardware computes in it, else no"
    )
    gradient_checkpointing: bool = False
    logging_steps: int = Field(default=10, ge=1)
    save_steps: int = Field(default=100, ge=1, description="a checkpoint to resume from, every so many steps")
    seed: int = 0
    lora: Lora | None = None


class PassFields(Section):
    """How forward and backward passes are computed."""

    chunk_tokens: int | None = Field(
        default=None, ge=1, description="tokens whose logits exist at once; null: what suits the device"
    )
    kernel: Literal["auto", "torch", "triton"] = Field(
        default="auto", description="what computes the loss; auto: triton on CUDA where it is installed, else torch"
    )
    cuda_graphs: bool = Field(
        default=True, description="replay the models' passes as CUDA graphs, on a GPU, where they can be captured"
    )


class SftEntry(EntryCommon, PassFields):
    """Cross entropy on the teacher's answers (sequence-level distillation)."""

    objective: Literal["sft"]
    packing: bool = False


class Scoring(Section):
    """Several live teachers of one tokenizer for one entry, by the names that jobs know them by."""

    names: tuple[str, ...] = Field(min_length=1, description="ids (else models) of the recipe's teachers")
    weights: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        default=None, description="of the names in turn, for a mixture; null: equal ones"
    )
    route: Literal["mixture", "rows", "data"] = Field(
        default="mixture",
        description="mixture: all score every row; rows: whom its column `teacher` names; data: names in turn for data",
    )

    def problems(self, entry: KdEntry | OnPolicyEntry) -> Iterator[tuple[str, str]]:
        """(key, problem) of what does not go together, the names aside."""
        if self.weights is not None and self.route != "mixture":
            yield "weights", f"with route {self.route} each row has one teacher: leave weights out"
        elif self.weights is not None and len(self.weights) != len(self.names):
            yield "weights", f"needs a weight for each of the {len(self.names)} names; got {len(self.weights)}"
        if self.route == "data" and len(self.names) != len(entry.data):
            yield "names", f"route data needs a name for each of the {len(entry.data)} of data; got {len(self.names)}"
        elif self.route != "data" and len(set(self.names)) < len(self.names):
            yield "names", "a teacher is named twice"
        if not isinstance(entry.signal, LiveSignal):
            yield "route", "only live teachers are several: use signal live"
        elif entry.signal.shard and self.route != "mixture":
            yield "route", "a teacher in shares needs every process at each step, and rows may not be there: no shard"
        if entry.alignment is not None:
            yield "route", "texts are aligned with one teacher: leave alignment or teachers out"
        if isinstance(entry, KdEntry) and entry.matching is not None:
            yield "route", "hidden states are matched with one teacher's: leave matching or teachers out"


class Alignment(Section):
    """How a teacher of another tokenizer is compared, by spans of text that both tokenizations delimit."""

    unmatched: Literal["prefix", "uld"] = Field(
        default="prefix",
        description="tokens that one side lacks: count to the longest shared beginning, or by sorted probabilities",
    )
    uld_weight: float = Field(default=1.0, gt=0, description="of the sorted probabilities' distance, for uld")


class DivergenceFields(PassFields):
    """Which divergence between teacher and student, and how it is computed."""

    divergence: Literal["forward_kl", "reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl", "tvd"] = "forward_kl"
    beta: float = Field(default=0.5, gt=0, lt=1, description="the teacher's share of the mixture of jsd")
    skew: float = Field(default=0.1, gt=0, lt=1, description="share of the first distribution in the skew KLs' second")
    temperature: float = Field(default=1.0, gt=0)
    alignment: Alignment | None = Field(default=None, description="for a live teacher of another tokenizer")
    teachers: Scoring | None = Field(default=None, description="who scores; null: the recipe's `teacher`")


class LayerPair(Section):
    """A layer of each model: 0 is the embeddings, n the output of the n-th layer."""

    student: int = Field(ge=0)
    teacher: int = Field(ge=0)


class HiddenMatching(Section):
    """Hidden states of some of the student's layers pulled to the teacher's, through projections trained along."""

    layers: tuple[LayerPair, ...] = Field(min_length=1, description="whose states are compared")
    weight: float = Field(default=1.0, gt=0, description="loss = the entry's own + weight x mean distance")
    measure: Literal["mse", "cosine"] = "mse"


class FakeQuantization(Section):
    """The grid on which the weights of the decoder layers' linears are rounded while they are trained."""

    bits: Literal[3, 4, 8] = 4
    group_size: int = Field(default=128, ge=8)
    symmetric: bool = True


class KdEntry(EntryCommon, DivergenceFields):
    """Divergence to the teacher's distributions, token by token, plus a share of cross entropy."""

    objective: Literal["kd"]
    ce_weight: float = Field(default=0.0, ge=0, le=1, description="loss = (1 - w) T^2 divergence + w cross entropy")
    packing: bool = False
    signal: Signal = Field(default=LiveSignal(), description="the teacher itself, or what is stored of it")
    matching: HiddenMatching | None = Field(default=None, description="of a live teacher's hidden states, beside")
    quantize: FakeQuantization | None = Field(default=None, description="train for a quantized student (method qat)")

    @property
    def needs_weights(self) -> bool:
        """Whether the teacher's weights must be here."""
        if isinstance(self.signal, TopKSignal):
            return self.signal.source == "weights"
        return not isinstance(self.signal, StoredSignal)

    def signal_problem(self) -> tuple[str, str] | None:
        """(key, problem) where the objective asks for what signal or adapters cannot give."""
        if self.quantize is not None and self.lora is not None:
            return "quantize", "rounds the weights that are trained, which adapters leave alone: leave lora out"
        if self.signal.kind == "sampled" and self.divergence != "forward_kl":
            return "divergence", "sampled ids estimate forward_kl without bias, and no other divergence"
        if isinstance(self.signal, TopKSignal) and self.signal.tail_draws:
            if self.divergence != "forward_kl":
                return "divergence", "draws from the tail serve forward_kl and no other: leave tail_draws out"
            if self.signal.source != "weights":
                return "signal", "servers do not tell the tail, from which tail_draws would be drawn: leave it out"
        if self.matching is not None and (self.signal.kind != "live" or self.ce_weight == 1.0):
            return (
                "matching",
                "only a live teacher has hidden states of every layer: use signal live, ce_weight below 1",
            )
        if isinstance(self.signal, FromWeights) and self.signal.precision == "nf4" and self.signal.moves:
            return "signal", "4-bit weights stay where they compute: leave out offload and shard, or nf4"
        told = isinstance(self.signal, TopKSignal) and self.signal.source != "weights"
        if told and self.temperature != 1.0:
            return "temperature", "servers give distributions at temperature 1 only"
        return None


class Replay(Section):
    """The student's answers of earlier steps, used again so that fewer steps have to answer (2402.03898)."""

    rows: int = Field(default=1024, ge=1, description="answers kept, over all processes; the oldest leave first")
    share: float = Field(default=0.5, gt=0, le=1, description="of the student's own steps, those that answer nothing")
    schedule: Literal["constant", "rising"] = Field(
        default="constant",
        description="rising: the share grows evenly over the training and is itself at the last step",
    )


class Rollout(Section):
    """How the student answers its prompts."""

    temperature: float = Field(default=1.0, ge=0, le=100, description="of sampling; 0 is greedy")
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_new_tokens: int = Field(default=256, ge=1, description="of an answer; with its prompt at most max_length")
    kv_gib: float = Field(default=1.0, gt=0, description="memory of the engine's KV cache, in GiB")
    attention: Literal["auto", "torch", "triton"] = Field(
        default="auto", description="what computes the engine's attention; auto: triton on CUDA, with CUDA graphs"
    )
    replay: Replay | None = Field(default=None, description="use answers of earlier steps again; null: never")


class OnPolicyEntry(EntryCommon, DivergenceFields):
    """Divergence to the teacher on the student's own answers (generalized knowledge distillation, 2306.13649)."""

    objective: Literal["on_policy"]
    divergence: Literal["forward_kl", "reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl", "tvd"] = "reverse_kl"
    lmbda: float = Field(
        default=1.0, ge=0, le=1, description="share of the steps that train on the student's answers, not the dataset's"
    )
    rollout: Rollout = Rollout()
    signal: LiveSignal = Field(default=LiveSignal(), description="how the teacher's weights are held")

    def replay_problem(self) -> tuple[str, str] | None:
        """(key, problem) of a replay that could not be what it asks for."""
        replay = self.rollout.replay
        if replay is None:
            return None
        if self.lmbda == 0:
            return "share", "with lmbda 0 no step is the student's own: leave replay out, or raise lmbda"
        if replay.rows < self.batch_size:
            return "rows", f"a step takes {self.batch_size} answers (batch_size): keep as many at least"
        if replay.share == 1 and replay.schedule == "constant":
            return "share", "only the first answers would ever be trained on: lower it, or set schedule: rising"
        return None


def why_not_aligned(entry: KdEntry | OnPolicyEntry) -> str | None:
    """What keeps an entry's texts from being aligned as it asks; None where it does not ask or nothing does."""
    if entry.alignment is None:
        return None
    if not isinstance(entry.signal, LiveSignal):
        return "what is stored or served of a teacher is in the student's tokens: use signal live"
    if isinstance(entry, KdEntry) and entry.matching is not None:
        return "hidden states of other tokens cannot be matched: leave matching out"
    if entry.kernel == "triton":
        return "the kernel compares models of one tokenizer: set kernel: torch"
    return None


class DpoEntry(EntryCommon):
    """Direct preference optimization (2305.18290) on chosen/rejected pairs."""

    objective: Literal["dpo"]
    beta: float = Field(default=0.1, gt=0)
    loss_type: Literal["sigmoid", "ipo", "hinge"] = "sigmoid"
    learning_rate: float = Field(default=5e-7, gt=0)


class SimpoEntry(EntryCommon):
    """Simple preference optimization (2405.14734) on pairs: mean log probability as the reward, and no reference."""

    objective: Literal["simpo"]
    beta: float = Field(default=2.0, gt=0)
    gamma: float = Field(default=1.0, ge=0, description="margin that the chosen answer's reward is to have")
    learning_rate: float = Field(default=1e-6, gt=0)


class KtoEntry(EntryCommon):
    """Kahneman-Tversky optimization (2402.01306) on single answers, each desirable or not; pairs give two of them."""

    objective: Literal["kto"]
    beta: float = Field(default=0.1, gt=0)
    desirable_weight: float = Field(default=1.0, gt=0)
    undesirable_weight: float = Field(default=1.0, gt=0)
    micro_batch_size: int = Field(
        default=8, ge=2, description="rows per forward pass of a process, among which the KL divergence is estimated"
    )
    learning_rate: float = Field(default=5e-7, gt=0)


class LmEntry(Section):
    """Next-token training on the text that `distill.tasks` writes, for making small base models."""

    objective: Literal["lm"]
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    init: str | None = Field(default=None, description="entry to start from, or 'student'")
    corpus: Literal["chats", "plain"] = Field(
        description="chats: loss on the answers; plain: documents, loss everywhere"
    )
    steps: int = Field(ge=1)
    rows: int = Field(default=256, ge=1, description="packed rows in a step")
    row_tokens: int = Field(default=512, ge=16)
    learning_rate: float = Field(default=2.5e-3, gt=0)
    warmup_steps: int = Field(default=100, ge=0)
    weight_decay: float = Field(default=0.1, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    workers: int = Field(default=14, ge=0, description="processes that write the text; does not change it")
    logging_steps: int = Field(default=50, ge=1)
    save_steps: int = Field(default=500, ge=1)
    seed: int = 0


PairsEntry = DpoEntry | SimpoEntry | KtoEntry
Entry = Annotated[
    SftEntry | KdEntry | OnPolicyEntry | DpoEntry | SimpoEntry | KtoEntry | LmEntry, Field(discriminator="objective")
]
