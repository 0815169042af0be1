"""The live teacher: frozen, in this process; in its own precision, in 4 bits, in CPU memory, or in shares (FSDP2)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from distill.errors import CheckpointError
from distill.model.load import DtypeName, load_model, load_tokenizer
from distill.objectives.head import Head
from distill.train.forward import Decoder, TeacherSignal, head_of

Precision = Literal["auto", "bf16", "nf4"]


class LiveTeacher:
    """A frozen teacher in eval mode; its hidden states are made anew for each batch, without gradients.

    `layers` are those whose states are told beside the last one's; 0 is the embeddings. `decoder`, where there is one,
    makes the last one's alone.
    """

    layers: tuple[int, ...] = ()
    decoder: Decoder | None = None

    def __init__(self, model: PreTrainedModel, head: Head | None = None) -> None:
        self.model = model.eval().requires_grad_(False)
        whole = not isinstance(model.get_output_embeddings().weight, DTensor)
        self._head = head_of(model) if head is None and whole else head

    @property
    def head(self) -> Head:
        """What reads the hidden states. One in shares is gathered each time, by all processes at once, and not kept."""
        return head_of(self.model) if self._head is None else self._head

    @classmethod
    def load(
        cls,
        path: str,
        *,
        device: torch.device,
        trust_remote_code: bool,
        precision: Precision = "auto",
        offload: bool = False,
        shard: bool = False,
    ) -> LiveTeacher:
        """The teacher at `path` on `device`. "auto" is the dtype that suits both. Raises CheckpointError."""
        if precision == "nf4":
            assert not offload and not shard, "the recipe refuses this: 4-bit weights stay where they compute"
            return cls(_load_nf4(path, device, trust_remote_code))
        dtype: DtypeName = "auto" if device.type == "cpu" else "stored"
        if precision == "bf16":
            dtype = "bfloat16"
        model = load_model(path, dtype=dtype, device="cpu", trust_remote_code=trust_remote_code)
        if shard:
            shard_weights(model, device, offload=offload)
            return cls(model)
        if not offload:
            torch.nn.Module.to(model, device)
            return cls(model)
        from accelerate import cpu_offload

        head = head_of(model)
        bias = None if head.bias is None else head.bias.detach().to(device)
        kept = Head(head.weight.detach().to(device, copy=True), bias, head.scale, head.softcap)
        cpu_offload(model.base_model, execution_device=device)
        return cls(model, kept)

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Tensor]) -> TeacherSignal:
        assert not self.model.training, "a teacher in train mode would drop activations out"
        if self.decoder is not None and not self.layers:
            return TeacherSignal(self.decoder(batch["input_ids"], batch["position_ids"]), self.head)
        inputs = {name: batch[name] for name in ("input_ids", "position_ids", "attention_mask") if name in batch}
        states = self.model.base_model(**inputs, use_cache=False, output_hidden_states=bool(self.layers))
        told = tuple(states.hidden_states[layer] for layer in self.layers)
        return TeacherSignal(states.last_hidden_state, self.head, told)


def shard_weights(model: PreTrainedModel, device: torch.device, *, offload: bool = False) -> None:
    """Cut the weights over all processes, decoder layer by decoder layer: a layer is whole only while it computes.

    `offload`: the shares are in CPU memory in between. Every process must then call the model equally often.
    """
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        raise CheckpointError(
            "a teacher is sharded over several processes, and there is one",
            remedy="start it by `python -m distill.launch --num_processes N ...`, or leave out signal.shard",
        )
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = CPUOffloadPolicy(pin_memory=device.type == "cuda") if offload else OffloadPolicy()
    cut = functools.partial(fully_shard, mesh=mesh, offload_policy=policy, reshard_after_forward=True)
    source, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head.weight is source.weight
    layers = set(model._no_split_modules or ())
    for module in list(model.base_model.modules()):
        if type(module).__name__ in layers:
            cut(module)
    cut(model.base_model)  # not the model: only its hidden states are asked for
    if tied:
        head.weight = source.weight  # sharding put another parameter into the embedding
    else:
        cut(head)


def require_same_tokens(student: PreTrainedTokenizerBase, teacher_path: str, *, trust_remote_code: bool) -> None:
    """Refuse a teacher whose token ids mean something else: its distributions would teach nonsense in silence."""
    teacher = load_tokenizer(teacher_path, trust_remote_code=trust_remote_code)
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    differing = sorted((token for token, index in ours.items() if theirs.get(token) != index), key=ours.__getitem__)
    if differing:
        example = differing[0]
        raise CheckpointError(
            f"student and teacher {teacher_path} have different tokenizers: {len(differing)} of {len(ours)} tokens "
            f"differ, first {example!r} ({ours[example]} against {theirs.get(example, 'none')})",
            remedy="set `alignment: {}` on the entry, with a live teacher, which compares spans of text; or use "
            "objective sft, which needs only the teacher's text, or a student of the teacher's family",
        )


def _load_nf4(path: str, device: torch.device, trust_remote_code: bool) -> PreTrainedModel:
    compute = torch.float32 if device.type == "cpu" else torch.bfloat16
    scheme = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path,
            quantization_config=scheme,
            dtype=compute,
            device_map={"": str(device)},
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise CheckpointError(f"{path} does not load in 4 bits: {error}", remedy="set precision: auto") from error
    assert isinstance(model, PreTrainedModel)
    from distill.model.recast import keep_exact  # bitsandbytes takes a second to import

    keep_exact(model)
    return model
