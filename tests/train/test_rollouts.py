"""On-policy distillation: answers are the student's of this very step, in the asked share, and the loss is on them."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel
from trl import SFTTrainer

from distill.engine.runner import Engine
from distill.engine.types import EngineConfig, SamplingParams
from distill.errors import DistillError
from distill.model.load import load_model, load_tokenizer
from distill.recipe.load import load_recipe
from distill.recipe.schema import Recipe
from distill.recipe.train import Lora, OnPolicyEntry, Rollout
from distill.records import INSTRUCTION, write_parquet
from distill.runs import Run
from distill.track import read_metrics
from distill.train import stage
from distill.train.batches import Sequences, collator, read_sequences
from distill.train.copies import Copy
from distill.train.lora import adapter_config
from distill.train.rollouts import Batch, Rollouts, prompts_of
from tests.train import tiny

IGNORED = -100


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts of several KV blocks, so that what the engine keeps of them would be found again."""
    folder = tmp_path_factory.mktemp("rollouts")
    tiny.save_model(folder / "teacher")
    rng = random.Random(0)
    chats = [
        {
            "messages": [
                {"role": "user", "content": " ".join(rng.choices(tiny.WORDS, k=rng.randint(40, 90)))},
                {"role": "assistant", "content": "red"},
                {"role": "user", "content": "and blue"},
                {"role": "assistant", "content": "blue red"},
            ]
        }
        for _ in range(6)
    ]
    write_parquet(folder / "long.parquet", chats, INSTRUCTION)
    tiny.save_data(folder)
    return folder


def rows_of(world: Path) -> Sequences:
    return read_sequences(load_tokenizer(world / "teacher"), [world / "long.parquet"], 256)


def batches_of(world: Path) -> list[Batch]:
    rows = rows_of(world)
    examples = [
        {"input_ids": ids, "labels": labels, "seq_lengths": segments, "row_ids": names}
        for ids, labels, segments, names in zip(rows.input_ids, rows.labels, rows.segments, rows.row_ids, strict=True)
    ]
    return [collator(0)(examples[:3]), collator(0)(examples[3:])]


def rollouts_of(world: Path, model: PreTrainedModel, *, lmbda: float = 1.0, **rollout: Any) -> Rollouts:
    entry = OnPolicyEntry(
        name="o",
        objective="on_policy",
        data=("x.parquet",),
        max_length=256,
        lmbda=lmbda,
        rollout=Rollout(max_new_tokens=9, **rollout),
    )
    return Rollouts(model, load_tokenizer(world / "teacher"), entry, rows=6, collate=collator(0))


def student(world: Path, *, lora: bool = False) -> PreTrainedModel:
    model = load_model(world / "teacher", dtype="float32", device="cpu")
    if lora:
        torch.manual_seed(1)
        get_peft_model(model, adapter_config(Lora(rank=4)))
        shake(model)
    return model.train()


def shake(model: PreTrainedModel) -> None:
    """An optimizer's step, as far as the engine can tell."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)


@torch.no_grad()
def greedy(model: PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    """By transformers' own generate, without a cache of ours."""
    training = model.training
    made = model.eval().generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False, pad_token_id=0)
    model.train(training)
    found: list[int] = made[0, len(prompt) :].tolist()
    return found


def answers_in(batches: Sequence[Batch]) -> list[list[int]]:
    return [[token for token in row if token != IGNORED] for batch in batches for row in batch["labels"].tolist()]


def test_a_copy_in_bfloat16_answers_as_the_weights_are_now(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where the engine joins the copy's weights: the trained ones stay where they are."""
    model, batches = student(world), batches_of(world)
    rollouts = rollouts_of(world, model, temperature=0.0)
    monkeypatch.setattr(rollouts, "_is_copied", lambda: True)
    places = [weight.data_ptr() for weight in model.parameters()]
    state = torch.get_rng_state()
    for step in range(2):
        rounded = load_model(world / "teacher", dtype="bfloat16", device="cpu")
        rounded.load_state_dict(model.state_dict())
        engine = Engine(rounded, load_tokenizer(world / "teacher"), EngineConfig(max_model_len=256))
        prompts = [prompt for batch in batches for prompt in prompts_of(batch)]
        expected = engine.generate(prompts, SamplingParams(max_tokens=9, temperature=0.0))
        assert answers_in(rollouts(batches, step)) == [list(answer.token_ids) for answer in expected]
        shake(model)
    assert model.training and places == [weight.data_ptr() for weight in model.parameters()]
    assert torch.equal(state, torch.get_rng_state())


def test_a_copy_follows_its_source_when_its_weights_were_put_together(world: Path) -> None:
    source = student(world)
    copy = Copy(source)
    attention = copy.model.model.layers[0].self_attn
    linears = [attention.q_proj, attention.k_proj, attention.v_proj]
    whole = torch.cat([linear.weight.data for linear in linears])
    for linear, part in zip(linears, whole.split([len(linear.weight) for linear in linears]), strict=True):
        linear.weight.data = part
    shake(source)
    copy.refresh()
    theirs = source.model.layers[0].self_attn
    assert torch.equal(whole, torch.cat([theirs.q_proj.weight, theirs.k_proj.weight, theirs.v_proj.weight]).bfloat16())
    assert copy.model.lm_head.weight is copy.model.model.embed_tokens.weight


@pytest.mark.parametrize("lora", [False, True])
def test_answers_are_those_of_the_weights_as_they_are_now(world: Path, lora: bool) -> None:
    """Greedy answers are transformers' own, also after the weights changed in place under a filled prefix cache."""
    model, batches = student(world, lora=lora), batches_of(world)
    rollouts = rollouts_of(world, model, temperature=0.0)
    prompts = [prompt for batch in batches for prompt in prompts_of(batch)]
    assert min(map(len, prompts)) > 40
    found = []
    for step in range(2):
        made = rollouts(batches, step)
        assert model.training
        expected = [greedy(model, prompt, 9) for prompt in prompts]
        assert answers_in(made) == expected
        found.append(expected)
        for batch in made:
            for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
                start = next(place for place, label in enumerate(labels) if label != IGNORED)
                assert ids[:start] in prompts and all(
                    label in (IGNORED, token) for token, label in zip(ids, labels, strict=True)
                )
        shake(model)
    assert found[0] != found[1]


def test_an_answer_depends_on_seed_step_and_row_alone(world: Path) -> None:
    model, batches = student(world), batches_of(world)
    together = answers_in(rollouts_of(world, model)(batches, 3))
    again = rollouts_of(world, model)
    assert answers_in(again([batches[1]], 3)) == together[3:]
    assert answers_in(again(batches, 3)) == together
    assert answers_in(again(batches, 4)) != together
    assert len({tuple(answer) for answer in together}) == 6


def test_prompt_and_answer_stay_within_max_length(world: Path) -> None:
    model, batches = student(world), batches_of(world)
    longest = max(len(prompt) for batch in batches for prompt in prompts_of(batch))
    entry = OnPolicyEntry(name="o", objective="on_policy", data=("x.parquet",), max_length=longest + 4)
    made = Rollouts(model, load_tokenizer(world / "teacher"), entry, rows=6, collate=collator(0))(batches, 0)
    assert max(batch["input_ids"].shape[1] for batch in made) == longest + 4


def test_lmbda_is_the_share_of_on_policy_steps(world: Path) -> None:
    """2306.13649, algorithm 1: with probability lmbda a batch is the student's own; 0 and 1 are never and always."""
    model, batches = student(world), batches_of(world)
    shares = {}
    for lmbda in (0.0, 0.3, 1.0):
        rollouts, others = (rollouts_of(world, model, lmbda=lmbda) for _ in range(2))
        own = [rollouts.is_own(step) for step in range(4000)]
        assert own == [others.is_own(step) for step in range(4000)]
        shares[lmbda] = sum(own) / len(own)
    assert shares[0.0] == 0.0 and shares[1.0] == 1.0
    assert shares[0.3] == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 4000) ** 0.5)
    untouched = rollouts_of(world, model, lmbda=0.0)(batches, 0)
    assert all(ours is theirs for ours, theirs in zip(untouched, batches, strict=True))


def reverse_kl_by_hand(student: PreTrainedModel, teacher: PreTrainedModel, batch: Batch, temperature: float) -> Tensor:
    """T^2 sum of Q (log Q - log P) over the positions that predict an answer's token, in float64, a row at a time."""
    total = torch.zeros((), dtype=torch.float64)
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        places = [place for place, label in enumerate(labels.tolist()) if label != IGNORED]
        row = ids[None, : places[-1] + 1]
        with torch.no_grad():
            q, p = (torch.log_softmax(model(row).logits[0].double() / temperature, -1) for model in (student, teacher))
        for place in places:
            total += temperature**2 * (q[place - 1].exp() * (q[place - 1] - p[place - 1])).sum()
    return total


@pytest.mark.parametrize("lora", [False, True])
def test_the_loss_is_the_divergence_on_the_students_answers(
    world: Path, monkeypatch: pytest.MonkeyPatch, lora: bool
) -> None:
    steps: list[list[Batch]] = []
    original = Rollouts.__call__

    def watching(self: Rollouts, batches: Sequence[Batch], step: int) -> list[Batch]:
        steps.append(original(self, batches, step))
        return steps[-1]

    monkeypatch.setattr(Rollouts, "__call__", watching)
    settings = {"temperature": 2.0, "rollout": {"max_new_tokens": 7, "top_p": 0.9}, "micro_batch_size": 2}
    adapters = {"lora": {"rank": 4}} if lora else {}
    recipe = tiny.recipe(
        world, {"objective": "on_policy", "max_steps": 3, **settings, **adapters}, name=f"loss-{lora}".lower()
    )
    lines = train(recipe)
    student = load_model(Run(recipe).checkpoint("student"), dtype="float32", device="cpu")
    teacher = load_model(world / "teacher", dtype="float32", device="cpu")
    assert [len(batches) for batches in steps] == [4, 4, 4]
    loss = sum(reverse_kl_by_hand(student, teacher, batch, 2.0) for batch in steps[0])
    scored = sum(int((batch["labels"] != IGNORED).sum()) for batch in steps[0])
    assert lines[0]["loss"] == pytest.approx(float(loss) / scored, rel=1e-5)
    assert lines[0]["trained_tokens"] == scored and lines[0]["on_policy"] == 1.0
    tokens = sum(len(prompt) + len(answer) for prompt, answer in answered(steps))
    assert lines[-1]["tokens"] == tokens == Run(recipe).stage("train", "on_policy").require().metrics["tokens"]


def answered(steps: Sequence[Sequence[Batch]]) -> list[tuple[list[int], list[int]]]:
    return [
        (prompt, answer)
        for batches in steps
        for batch in batches
        for prompt, answer in zip(prompts_of(batch), answers_in([batch]), strict=True)
    ]


def train(recipe: Recipe) -> list[dict[str, Any]]:
    stage.run(recipe, Run(recipe), console=Console(file=io.StringIO()))
    return read_metrics(Run(recipe).stage("train", recipe.train[0].name).path / "metrics.jsonl")


def test_training_on_policy_comes_nearer_to_the_teacher(world: Path) -> None:
    recipe = tiny.recipe(
        world,
        {"objective": "on_policy", "max_steps": 40, "lmbda": 0.7, "rollout": {"max_new_tokens": 8}},
        name="nearer",
    )
    lines = train(recipe)
    first, last = (sum(line["divergence"] for line in part) / 5 for part in (lines[:5], lines[-5:]))
    assert last < 0.8 * first
    assert {line["on_policy"] for line in lines} == {0.0, 1.0}


def test_a_recipe_without_teacher_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "name: r\nteacher: {kind: openai, model: m, base_url: 'http://localhost:1/v1'}\nstudent: {model: m}\n"
        "train: [{name: o, objective: on_policy, data: [a.parquet]}]\n"
    )
    with pytest.raises(DistillError, match="on_policy reads the teacher's distributions: set teacher.weights"):
        load_recipe(tmp_path / "r.yaml")


def test_sharded_students_are_refused(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = SFTTrainer.__init__

    def sharded(self: SFTTrainer, *args: Any, **rest: Any) -> None:
        original(self, *args, **rest)
        self.is_fsdp_enabled = True

    monkeypatch.setattr(SFTTrainer, "__init__", sharded)
    with pytest.raises(DistillError, match="launch with DDP"):
        train(tiny.recipe(world, {"objective": "on_policy", "max_steps": 1}, name="sharded"))
