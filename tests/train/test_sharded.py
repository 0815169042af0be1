"""Student, teacher and head in pieces on two processes (`fully_shard` on gloo): loss and gradients are the whole ones.

accelerate turns FSDP on a CPU into DDP without a word, so the sharding is done here, by hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import LlamaForCausalLM, PreTrainedModel

from distill.errors import CheckpointError
from distill.model.load import load_model, load_tokenizer
from distill.objectives.divergences import CROSS_ENTROPY, Objective
from distill.objectives.sparse import SparseTargets
from distill.recipe.schema import Recipe
from distill.runs import Run
from distill.track import read_metrics
from distill.train.batches import read_sequences
from distill.train.forward import attach_loss_head
from distill.train.live import LiveTeacher, shard_weights
from distill.train.reductions import top_of
from tests.teacher.stored_rows import targets_of
from tests.train import forks, tiny

OBJECTIVES = (CROSS_ENTROPY, Objective("forward_kl", temperature=2.0), Objective("jsd", ce_weight=0.3))


def shard(model: PreTrainedModel, *, head_apart: bool) -> None:
    """Layers one by one, then the rest; the head as a piece of its own, or in one with the embedding."""
    assert isinstance(model, LlamaForCausalLM)
    for layer in model.model.layers:
        fully_shard(layer)
    if head_apart:
        fully_shard(model.lm_head)


def compare(world: Path, tied: bool) -> None:
    """A target of two processes: each takes half of the rows through sharded models, and all through whole ones."""
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    names = ("student", "teacher")
    whole, sharded = ([load_model(world / name, dtype="float32", device="cpu") for name in names] for _ in "ab")
    shard(sharded[0], head_apart=not tied)
    fully_shard(sharded[0])
    shard_weights(sharded[1], torch.device("cpu"))
    for model in sharded:
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
        head = model.get_output_embeddings().weight
        assert isinstance(head, DTensor) and head.to_local().shape[0] < head.shape[0]
    rows = read_sequences(load_tokenizer(world / "teacher"), [world / "chats.parquet"], 64)
    teachers = [LiveTeacher(model) for model in (whole[1], sharded[1])]
    for objective, is_stored in [*((objective, False) for objective in OBJECTIVES), (Objective("reverse_kl"), True)]:
        losses = []
        for student, teacher, mine in (
            (whole[0], teachers[0], range(8)),
            (sharded[0], teachers[1], range(rank, 8, size)),
        ):
            attach_loss_head(student, objective, 16)
            student.zero_grad()
            batch = tiny.batch_of(rows, mine)
            signal = stored_of(teachers[0], batch) if is_stored else teacher(batch)
            output = student(**batch, with_loss_head=True, teacher=signal if objective.ce_weight < 1 else None)
            scale = 1 if student is whole[0] else size  # sharding averages gradients over processes
            (output.loss * scale).backward()
            losses.append(output.loss.detach().clone())
        dist.all_reduce(losses[1])
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
        for (name, ours), expected in zip(sharded[0].named_parameters(), whole[0].parameters(), strict=True):
            assert isinstance(ours.grad, DTensor) and expected.grad is not None, name
            whole_gradient = ours.grad.full_tensor()
            largest = expected.grad.abs().max().item()
            torch.testing.assert_close(whole_gradient, expected.grad, rtol=1e-3, atol=1e-4 * largest, msg=name)
    dist.barrier()


def stored_of(teacher: LiveTeacher, batch: dict[str, torch.Tensor]) -> SparseTargets:
    """The top 20 of each scored token, as a stored signal gives them."""
    hidden = teacher(batch).hidden[:, :-1][batch["labels"][:, 1:] >= 0]
    log_p = torch.log_softmax(teacher.head.logits(hidden), -1)
    return targets_of(top_of(log_p, 20, 0.0)[0].fetch(), log_p.shape[-1])


@pytest.mark.parametrize("tied", [True, False])
def test_sharded_student_teacher_and_head_give_the_whole_loss(tmp_path: Path, tied: bool) -> None:
    tiny.save_model(tmp_path / "teacher", tied=tied)
    tiny.save_model(tmp_path / "student", width=16, tied=tied, seed=1)
    tiny.save_data(tmp_path)
    job = forks.start(compare, tmp_path, tied, log=tmp_path / "log", processes=2)
    assert job.wait() == [0, 0], job.text()


def train_and_look(recipe: Recipe) -> None:
    """A target: the train stage, in which every teacher must be in shares whenever it is asked."""
    ask = LiveTeacher.__call__

    def look(self: LiveTeacher, batch: Any) -> Any:
        for name, parameter in [*self.model.named_parameters(), ("head", self.model.get_output_embeddings().weight)]:
            assert isinstance(parameter, DTensor) and parameter.to_local().numel() < parameter.numel(), name
        found = ask(self, batch)
        assert not isinstance(found.head.weight, DTensor) and not isinstance(found.hidden, DTensor)
        return found

    LiveTeacher.__call__ = look  # type: ignore[method-assign]
    forks.train(recipe)


@pytest.mark.parametrize("tied", [True, False])
def test_a_teacher_in_shares_by_the_recipe_trains_as_a_whole_one(tmp_path: Path, tied: bool) -> None:
    """`shard: true` on two processes, with and without `offload`, has the curve of `kind: live` on one."""
    tiny.save_model(tmp_path / "teacher", tied=tied)
    tiny.save_data(tmp_path)
    base: dict[str, Any] = {"objective": "kd", "max_steps": 3, "init": "student", "micro_batch_size": 2}
    whole = tiny.recipe(tmp_path, {**base, "name": "whole"}, name="whole")
    entries = [
        {**base, "name": "shares", "signal": {"kind": "live", "shard": True}},
        {**base, "name": "offloaded", "signal": {"kind": "live", "shard": True, "offload": True}},
    ]
    sharded = tiny.recipe(tmp_path, *entries[: 2 if tied else 1], name="shares")
    alone = forks.start(forks.train, whole, log=tmp_path / "whole.log")
    shared = forks.start(train_and_look, sharded, log=tmp_path / "shares.log", processes=2)
    assert alone.wait() == [0], alone.text()
    assert shared.wait() == [0, 0], shared.text()
    wanted = read_metrics(Run(whole).stage("train", "whole").path / "metrics.jsonl")
    for entry in sharded.train:
        found = read_metrics(Run(sharded).stage("train", entry.name).path / "metrics.jsonl")
        assert len(found) == len(wanted) == 3
        for ours, theirs in zip(found, wanted, strict=True):
            assert ours["divergence"] == pytest.approx(theirs["divergence"], rel=1e-5)
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)


def test_one_process_has_nobody_to_share_with(tmp_path: Path) -> None:
    tiny.save_model(tmp_path / "teacher")
    with pytest.raises(CheckpointError, match=r"over several processes, and there is one -> .*distill\.launch"):
        LiveTeacher.load(str(tmp_path / "teacher"), device=torch.device("cpu"), trust_remote_code=False, shard=True)
