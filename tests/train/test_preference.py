"""ipo, simpo and kto: the losses that TRL computes on our rows are the papers' formulas, in float64, row by row."""

from __future__ import annotations

import io
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel, Trainer
from trl import DPOTrainer, KTOTrainer
from trl.experimental.cpo import CPOTrainer

from distill.errors import DataError
from distill.model.load import load_model, load_tokenizer
from distill.recipe.schema import Recipe
from distill.records import UNPAIRED, read_parquet, write_parquet
from distill.runs import Run
from distill.track import read_metrics
from distill.train import stage
from distill.train.unpaired import Answer, columns_of, read_answers
from tests.train import tiny

PEERS: dict[str, type[Trainer]] = {"dpo": DPOTrainer, "simpo": CPOTrainer, "kto": KTOTrainer}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preference")
    tiny.save_model(folder / "teacher")
    tiny.save_data(folder)
    return folder


@dataclass(frozen=True)
class Seen:
    """A micro-batch, the policy's weights when its loss was computed, and that loss."""

    inputs: dict[str, Tensor]
    policy: dict[str, Tensor]
    loss: float


def train(recipe: Recipe) -> list[dict[str, Any]]:
    stage.run(recipe, Run(recipe), console=Console(file=io.StringIO()))
    return read_metrics(Run(recipe).stage("train", recipe.train[0].name).path / "metrics.jsonl")


def watch_last(world: Path, monkeypatch: pytest.MonkeyPatch, name: str, **entry: Any) -> tuple[Seen, Recipe]:
    """The last micro-batch of some steps, by when the policy is not the reference."""
    seen: list[Seen] = []
    peer = PEERS[entry["objective"]]
    original = peer.compute_loss

    def watching(self: Trainer, model: Any, inputs: dict[str, Any], *args: Any, **rest: Any) -> Any:
        loss = original(self, model, inputs, *args, **rest)
        kept = {key: value.clone() for key, value in inputs.items() if isinstance(value, Tensor)}
        seen.append(Seen(kept, {k: v.clone() for k, v in model.state_dict().items()}, float(loss.detach())))
        return loss

    monkeypatch.setattr(peer, "compute_loss", watching)
    recipe = tiny.recipe(world, {"max_steps": 5, "learning_rate": 3e-3, **entry}, name=name)
    train(recipe)
    assert len(seen) == 10
    return seen[-1], recipe


def policy_and_reference(recipe: Recipe, seen: Seen) -> tuple[PreTrainedModel, PreTrainedModel]:
    start = Run(recipe).checkpoint("student")
    policy, reference = (load_model(start, dtype="float32", device="cpu").double() for _ in range(2))
    policy.load_state_dict(seen.policy)
    return policy, reference


@torch.no_grad()
def log_probability(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> tuple[float, int]:
    """Of the tokens under the mask given all before them, summed; and their number. A row alone, without padding."""
    places = mask.nonzero().flatten().tolist()
    log_q = torch.log_softmax(model(ids[None, : places[-1] + 1]).logits[0].double(), -1)
    return sum(float(log_q[place - 1, ids[place]]) for place in places), len(places)


def test_ipo_is_its_formula(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2310.12036, equation 17, with log ratios a token, as its authors confirmed to TRL: (h - 1 / (2 beta))^2."""
    beta = 0.3
    seen, recipe = watch_last(world, monkeypatch, "ipo", objective="dpo", loss_type="ipo", beta=beta)
    policy, reference = policy_and_reference(recipe, seen)
    ids, masks = seen.inputs["input_ids"], seen.inputs["completion_mask"]
    ratios = []
    for row, mask in zip(ids, masks, strict=True):
        ours, count = log_probability(policy, row, mask)
        ratios.append((ours - log_probability(reference, row, mask)[0]) / count)
    half = len(ratios) // 2
    assert half == 4 and max(map(abs, ratios)) > 0.01
    losses = [(ratios[i] - ratios[half + i] - 1 / (2 * beta)) ** 2 for i in range(half)]
    assert seen.loss == pytest.approx(sum(losses) / half, rel=1e-5)


def test_simpo_is_its_formula(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2405.14734, equation 6: -log sigmoid(beta (mean log p of chosen - that of rejected) - gamma), no reference."""
    beta, gamma = 1.5, 0.7
    seen, recipe = watch_last(world, monkeypatch, "simpo", objective="simpo", beta=beta, gamma=gamma)
    policy, _ = policy_and_reference(recipe, seen)
    losses = []
    for row in range(4):
        means = []
        for side in ("chosen", "rejected"):
            total, count = log_probability(
                policy, seen.inputs[f"{side}_input_ids"][row], seen.inputs[f"{side}_labels"][row] != -100
            )
            means.append(total / count)
        margin = beta * (means[0] - means[1]) - gamma
        losses.append(math.log1p(math.exp(-margin)))
    assert seen.loss == pytest.approx(sum(losses) / 4, rel=1e-5)


def test_kto_is_its_formula(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2402.01306, equations 7 and 8: w (1 - sigmoid(+-beta (r - z0))), r the log ratio, z0 that of answers to other
    prompts, a mean over the micro-batch, at least 0."""
    beta, weights = 0.4, {True: 1.3, False: 0.8}
    settings = {"desirable_weight": 1.3, "undesirable_weight": 0.8, "beta": beta}
    seen, recipe = watch_last(world, monkeypatch, "kto", objective="kto", **settings)
    policy, reference = policy_and_reference(recipe, seen)

    def ratios(prefix: str) -> list[float]:
        rows = zip(seen.inputs[f"{prefix}input_ids"], seen.inputs[f"{prefix}completion_mask"], strict=True)
        return [log_probability(policy, *row)[0] - log_probability(reference, *row)[0] for row in rows]

    own, others = ratios(""), ratios("KL_")
    origin = max(0.0, sum(others) / len(others))
    labels = seen.inputs["label"].tolist()
    assert set(labels) == {True, False} and max(map(abs, own)) > 0.01
    losses = [
        weights[label] * (1 - 1 / (1 + math.exp(-beta * (ratio - origin) * (1 if label else -1))))
        for ratio, label in zip(own, labels, strict=True)
    ]
    assert seen.loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)


@pytest.mark.parametrize("objective", ["simpo", "kto"])
def test_accumulated_micro_batches_are_one_batch(world: Path, objective: str) -> None:
    """Loss and gradient of the first step do not depend on the micro-batch; kto's z0 is 0 there."""
    lines = [
        train(tiny.recipe(world, {"objective": objective, "max_steps": 1, "micro_batch_size": micro}, name=f"m{micro}"))
        for micro in (8, 2)
    ]
    assert lines[0][0]["loss"] == pytest.approx(lines[1][0]["loss"], rel=1e-5)
    assert lines[0][0]["grad_norm"] == pytest.approx(lines[1][0]["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("entry", [{"objective": "simpo"}, {"objective": "kto", "lora": {"rank": 4}}])
def test_margins_grow(world: Path, entry: dict[str, Any]) -> None:
    recipe = tiny.recipe(world, {"max_steps": 12, "learning_rate": 3e-3, **entry}, name=f"grow-{entry['objective']}")
    curve = train(recipe)
    assert curve[-1]["reward_margin"] > curve[0]["reward_margin"] + 0.1
    assert Run(recipe).stage("train", entry["objective"]).require().metrics["rows"] == (
        80 if entry["objective"] == "kto" else 40
    )


def test_mismatched_answers_are_the_neighbours_in_the_micro_batch() -> None:
    answers = [Answer([1] * (2 + row), [10 + row] * 3, row % 2 == 0) for row in range(5)]
    columns = columns_of(answers, micro_batch_size=3, max_length=6)
    assert columns["KL_completion_ids"] == [[12] * 3, [10] * 3, [11] * 2, [14] * 1, [13] * 0]
    assert columns["label"] == [True, False, True, False, True]
    assert [len(ids) for ids in columns["prompt_ids"]] == [2, 3, 4, 5, 6]


def test_unpaired_rows_and_pairs_are_read_alike(world: Path, tmp_path: Path) -> None:
    """The same answers as pairs and as rows of their own; a pair of equal answers says nothing and is dropped."""
    tokenizer = load_tokenizer(world / "teacher")
    pairs = read_parquet(world / "pairs.parquet")
    rows = [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
        for pair in pairs
        for side in ("chosen", "rejected")
    ]
    write_parquet(tmp_path / "unpaired.parquet", rows, UNPAIRED)
    paired = read_answers(tokenizer, [world / "pairs.parquet"], 1024)
    unpaired = read_answers(tokenizer, [tmp_path / "unpaired.parquet"], 1024)
    assert paired.answers == unpaired.answers and len(paired.answers) == 80 == unpaired.num_read
    assert unpaired.places[3] == [(0, 3)] and paired.places[3] == [(0, 1)]
    random.Random(0).shuffle(rows)
    write_parquet(tmp_path / "good.parquet", [row for row in rows if row["label"]], UNPAIRED)
    with pytest.raises(DataError, match="no undesirable answers of the 40 rows .* both kinds"):
        read_answers(tokenizer, [tmp_path / "good.parquet"], 1024)
    with pytest.raises(DataError, match="no answers of the 40 rows .* fit into 3 tokens"):
        read_answers(tokenizer, [tmp_path / "good.parquet"], 3)
    with pytest.raises(DataError, match="has no column prompt"):
        read_answers(tokenizer, [world / "chats.parquet"], 8)
