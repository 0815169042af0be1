"""Bugs that cost quality without a word, each with the place where it happened to others: none of them is here.

Those that only a whole run shows are in `test_silent_runs.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedTokenizerBase

from distill.model.chat import encode_completion, encode_preference, render
from distill.model.load import load_model, load_tokenizer
from distill.objectives.divergences import CROSS_ENTROPY, Objective
from distill.objectives.head import Head, head_loss
from distill.recipe.train import Lora
from distill.train.batches import Sequences, read_sequences
from distill.train.forward import attach_loss_head
from distill.train.lora import adapter_config
from distill.train.signals import LiveTeacher
from tests.train import tiny

IGNORED = -100
CHAT: list[Any] = [{"role": "user", "content": "reverse red blue"}, {"role": "assistant", "content": "blue red"}]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("silent")
    tiny.save_model(folder / "teacher")
    tiny.save_data(folder)
    return folder


def rows_of(world: Path, tokenizer: PreTrainedTokenizerBase | None = None) -> Sequences:
    return read_sequences(tokenizer or load_tokenizer(world / "teacher"), [world / "chats.parquet"], 1024)


@pytest.mark.parametrize("position", [1, 4, 7])
def test_labels_are_shifted_once(world: Path, position: int) -> None:
    """The one trained token at `position` is predicted from `position - 1`: not from itself, nor from two before.

    Twice: huggingface/transformers#47394 (GitForCausalLM). Not at all: the confusion of transformers#35066.
    """
    model = load_model(world / "teacher", dtype="float32", device="cpu")
    ids = torch.tensor([[1, 9, 30, 41, 17, 22, 8, 19]])
    labels = torch.full_like(ids, IGNORED)
    labels[0, position] = ids[0, position]
    log_q = torch.log_softmax(model(ids).logits[0], -1)
    expected = [-log_q[place, ids[0, position]].item() for place in range(8)]
    attach_loss_head(model, CROSS_ENTROPY, 64)
    ours = model(input_ids=ids, labels=labels, with_loss_head=True)
    assert ours.loss.item() == pytest.approx(expected[position - 1], rel=1e-5) and ours.metrics[4].item() == 1.0
    assert all(abs(ours.loss.item() - other) > 1e-3 for place, other in enumerate(expected) if place != position - 1)


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_padding_is_no_token(world: Path, pad_is_eos: bool) -> None:
    """A padded batch has the loss, the gradient and the token count of its rows one by one.

    Padding as tokens in distillation losses: peremartra/optipfair#34, arcee-ai/DAM#16.
    """
    tokenizer = load_tokenizer(world / "teacher")
    rows = rows_of(world)
    chosen = sorted(range(len(rows.input_ids)), key=lambda row: len(rows.input_ids[row]))[::13]
    teacher = LiveTeacher(load_model(world / "teacher", dtype="float32", device="cpu"))
    tiny.save_model(world / "other", seed=1)
    pad = tokenizer.eos_token_id if pad_is_eos else tokenizer.pad_token_id

    def loss_of(batches: list[list[int]]) -> tuple[float, float, Tensor]:
        model = load_model(world / "other", dtype="float32", device="cpu")
        attach_loss_head(model, Objective(ce_weight=0.5), 64)
        loss, weight = 0.0, 0.0
        for batch in (tiny.batch_of(rows, numbers, pad) for numbers in batches):
            output = model(**batch, with_loss_head=True, teacher=teacher(batch))
            output.loss.backward()
            loss, weight = loss + output.loss.item(), weight + output.metrics[4].item()
        gradient = model.get_output_embeddings().weight.grad
        assert gradient is not None
        return loss, weight, gradient

    together, apart = loss_of([chosen]), loss_of([[row] for row in chosen])
    assert len({rows.lengths[row] for row in chosen}) > 2
    assert together[1] == apart[1] == sum(rows.trained[row] for row in chosen)
    assert together[0] == pytest.approx(apart[0], rel=1e-5)
    torch.testing.assert_close(together[2], apart[2], rtol=1e-3, atol=1e-4)


def test_one_bos_from_template_and_tokenizer(world: Path) -> None:
    """A template that writes BOS and a tokenizer that adds one give one, in chats and in pairs.

    huggingface/alignment-handbook#127, open-r1#462; the advice of huggingface/transformers#31796.
    """
    tokenizer = load_tokenizer(world / "teacher")
    bos = tokenizer.bos_token_id
    backend = tokenizer.backend_tokenizer
    backend.post_processor = TemplateProcessing(
        single=f"{tokenizer.bos_token} $A", special_tokens=[(tokenizer.bos_token, bos)]
    )
    assert tokenizer("red")["input_ids"][0] == bos and str(tokenizer.chat_template).startswith("{{ bos_token }}")
    assert render(tokenizer, CHAT, True).count(bos) == 1
    ids, labels = encode_completion(tokenizer, CHAT, 100)
    assert ids.count(bos) == 1 and ids[0] == bos and bos not in labels
    pair = encode_preference(tokenizer, CHAT[:1], CHAT[1:], [{"role": "assistant", "content": "red"}], 100)
    assert pair is not None and pair.prompt_ids.count(bos) == 1
    assert bos not in pair.chosen_ids + pair.rejected_ids


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
def test_temperature_squared_is_in_loss_and_gradient(divergence: Any) -> None:
    """Loss and gradient are those of T^2 KL at temperature T, by PyTorch's own KL: 1503.02531, section 2.

    Forgotten in keras-team/keras-io#869 and IntelLabs/distiller#122.
    """
    temperature = 4.0
    generator = torch.Generator().manual_seed(0)
    hidden, teacher = torch.randn(2, 6, 11, generator=generator, dtype=torch.float64).unbind()
    hidden.requires_grad_()
    eye = Head(torch.eye(11, dtype=torch.float64))
    labels = torch.zeros(6, dtype=torch.long)
    ours = head_loss(hidden, eye, teacher, eye, labels, Objective(divergence, temperature=temperature))
    log_q, log_p = (F.log_softmax(logits / temperature, -1) for logits in (hidden, teacher))
    first, second = (log_q, log_p) if divergence == "forward_kl" else (log_p, log_q)
    wanted = temperature**2 * F.kl_div(first, second, reduction="sum", log_target=True)
    assert ours.loss.item() == pytest.approx(wanted.item(), rel=1e-9)
    gradients = [torch.autograd.grad(loss, hidden, retain_graph=True)[0] for loss in (ours.loss, wanted)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("longer", ["student", "teacher"])
def test_rows_that_one_vocabulary_lacks_have_no_mass(divergence: Any, longer: str) -> None:
    """Equal on the common rows is equal: the rows that one side lacks are not logits of 0.

    DistillKit pads the shorter logits with zeros (`pad_logits`, arcee-ai/DistillKit#37), Liger the student's
    (linkedin/Liger-Kernel#634): a row that does not exist gets exp(0) of the mass.
    """
    short = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
    long = torch.cat([short + 1.5, torch.tensor([[2.0, 3.0]], dtype=torch.float64)], -1)
    student, teacher = (long, short) if longer == "student" else (short, long)
    student.requires_grad_()

    def loss_of(student: Tensor, teacher: Tensor) -> Tensor:
        heads = [Head(torch.eye(logits.shape[-1], dtype=torch.float64)) for logits in (student, teacher)]
        return head_loss(student, heads[0], teacher, heads[1], torch.tensor([0]), Objective(divergence)).loss

    loss = loss_of(student, teacher)
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient.abs().max() < 1e-12
    zeros = torch.zeros(1, 2, dtype=torch.float64)
    padded = [side if side.shape[-1] == 5 else torch.cat([side, zeros], -1) for side in (student, teacher)]
    assert loss_of(*padded).item() > 0.01


class Shapes(TorchDispatchMode):
    """The shapes of all tensors that operations make."""

    def __init__(self) -> None:
        super().__init__()
        self.made: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = str(func)
        if not name.startswith(("aten.detach", "aten.view", "aten.t.", "aten.alias", "aten.transpose", "aten.permute")):
            for tensor in out if isinstance(out, tuple | list) else (out,):
                if isinstance(tensor, Tensor):
                    self.made.add(tuple(tensor.shape))
        return out


@pytest.mark.parametrize("lora", [True, False])
def test_a_frozen_head_costs_no_gradient(world: Path, lora: bool) -> None:
    """With LoRA nothing of the head's shape is made: no buffer, no matmul whose result is thrown away.

    linkedin/Liger-Kernel#1441, PrimeIntellect-ai/prime-rl#3011. And no adapter sits on the head, which a loss that
    reads `lm_head.weight` would pass over (huggingface/trl#4612); recipes refuse its name (tests/recipe/test_load.py).
    """
    base = load_model(world / "teacher", dtype="float32", device="cpu")
    attach_loss_head(base, CROSS_ENTROPY, 64)
    config = adapter_config(Lora(rank=4))
    model = get_peft_model(base, config) if lora else base
    adapted = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert not lora or (adapted and not any("lm_head" in name for name in adapted))
    batch = {"input_ids": torch.arange(5, 25).reshape(1, 20), "labels": torch.arange(5, 25).reshape(1, 20)}
    head = base.get_output_embeddings().weight
    with Shapes() as shapes:
        model(**batch, with_loss_head=True).loss.backward()
    of_head = {tuple(head.shape), tuple(reversed(head.shape))}
    assert bool(shapes.made & of_head) != lora
    assert (head.grad is None) == lora and isinstance(model, PeftModel) == lora


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_the_end_of_turn_is_trained(world: Path, pad_is_eos: bool) -> None:
    """Every row's last trained token is the end of its turn, also where the padding is the same token; in pairs too.

    huggingface/trl#1623 and #3091, huggingface/alignment-handbook#127 (pad = eos masks the end), torchtune#949.
    """
    tokenizer = load_tokenizer(world / "teacher")
    if pad_is_eos:
        tokenizer.pad_token = tokenizer.eos_token
    eos = tokenizer.eos_token_id
    rows = rows_of(world, tokenizer)
    batch = tiny.batch_of(rows, range(len(rows.input_ids)), tokenizer.pad_token_id)
    assert ((batch["labels"] == eos).sum(-1) == 1).all()
    last = [max(i for i, label in enumerate(row) if label != IGNORED) for row in batch["labels"].tolist()]
    assert all(batch["labels"][row, place] == eos for row, place in enumerate(last))
    pair = encode_preference(tokenizer, CHAT[:1], CHAT[1:], [{"role": "assistant", "content": "red"}], 100)
    assert pair is not None and pair.chosen_ids[-1] == pair.rejected_ids[-1] == eos
