"""Rows and their order: every run sees the same batches, little is padded, packing changes nothing."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from distill.errors import DataError
from distill.model.load import load_model, load_tokenizer
from distill.objectives.divergences import CROSS_ENTROPY, Objective
from distill.objectives.matching import Matching
from distill.records import INSTRUCTION, write_parquet
from distill.train.batches import Sequences, collator, num_steps, pack, read_pairs, read_sequences, row_order
from distill.train.forward import attach_loss_head
from distill.train.live import LiveTeacher
from tests.train import tiny


def test_order_covers_epochs_and_is_deterministic() -> None:
    lengths = [random.Random(i).randint(5, 50) for i in range(90)]
    settings = {"batch_size": 16, "micro_batch_size": 4, "seed": 3}
    steps = num_steps(90, batch_size=16, epochs=2.0, max_steps=None)
    order = row_order(lengths, steps=steps, **settings)
    assert steps == 12 and len(order) == 192
    counts = [order.count(row) for row in range(90)]
    assert min(counts) >= 2 and sum(counts) == 192  # two epochs, and 12 rows to fill the last batch
    assert order == row_order(lengths, steps=steps, **settings)
    assert order != row_order(lengths, steps=steps, **{**settings, "seed": 4})


def test_order_pads_little_and_mixes_lengths_in_a_step() -> None:
    rng = random.Random(0)
    lengths = [rng.randint(60, 250) for _ in range(2000)]
    order = row_order(lengths, batch_size=32, micro_batch_size=8, steps=60, seed=0)
    micro = [[lengths[row] for row in order[i : i + 8]] for i in range(0, len(order), 8)]
    padded = sum(max(rows) * len(rows) for rows in micro)
    assert 1 - sum(map(sum, micro)) / padded < 0.05
    means = [sum(map(sum, micro[i : i + 4])) / 32 for i in range(0, len(micro), 4)]
    overall = sum(means) / len(means)
    # Steps of one length each would spread by 55 (a uniform's standard deviation); mixed ones by about half.
    assert (sum((mean - overall) ** 2 for mean in means) / len(means)) ** 0.5 < 35


def test_two_processes_take_the_same_rows_in_each_step() -> None:
    """accelerate deals micro-batches in turn; a step of 2 x 2 micro-batches has the rows of a step of 1 x 4."""
    order = row_order([9] * 64, batch_size=16, micro_batch_size=4, steps=4, seed=0)
    micro = [order[i : i + 4] for i in range(0, 64, 4)]
    for step in range(4):
        alone = sorted(row for rows in micro[4 * step : 4 * step + 4] for row in rows)
        shared = sorted(row for rank in (0, 1) for rows in micro[rank::2][2 * step : 2 * step + 2] for row in rows)
        assert alone == shared


def test_rows_are_dropped_cut_and_counted(tmp_path: Path) -> None:
    tiny.save_model(tmp_path / "model")
    tokens = load_tokenizer(tmp_path / "model")
    chats = [
        {"messages": [{"role": "user", "content": "red"}, {"role": "assistant", "content": "blue"}]},
        {"messages": [{"role": "user", "content": "red"}, {"role": "assistant", "content": "blue " * 40}]},
        {"messages": [{"role": "user", "content": "red " * 40}, {"role": "assistant", "content": "blue"}]},
    ]
    write_parquet(tmp_path / "data.parquet", chats, INSTRUCTION)
    rows = read_sequences(tokens, [tmp_path / "data.parquet"], 16)
    assert (rows.num_read, rows.num_dropped, rows.num_truncated) == (3, 1, 1)
    assert rows.lengths[1] == 16 and rows.labels[0][-1] == tokens.eos_token_id
    assert all(labels[0] == -100 for labels in rows.labels)
    write_parquet(tmp_path / "long.parquet", chats[2:] * 3, INSTRUCTION)
    with pytest.raises(DataError, match="none of the 3 rows .* has an answer within 8 tokens -> raise max_length"):
        read_sequences(tokens, [tmp_path / "long.parquet"], 8)
    with pytest.raises(DataError, match="has no column prompt"):
        read_pairs(tokens, [tmp_path / "data.parquet"], 16)


@pytest.mark.parametrize("objective", ["sft", "kd", "kd with hidden states"])
def test_packed_and_unpacked_rows_give_the_same_loss_and_gradients(tmp_path: Path, objective: str) -> None:
    """Documents of a packed row do not see each other, in student and teacher, and no first token is predicted from the
    row before. (Stored signals find theirs: `test_signals.py`.)"""
    tiny.save_model(tmp_path / "model")
    tiny.save_model(tmp_path / "teacher", seed=1)
    tiny.save_data(tmp_path)
    tokens = load_tokenizer(tmp_path / "model")
    rows = read_sequences(tokens, [tmp_path / "chats.parquet"], 64)
    packed = pack(rows, 64, seed=0)
    assert sum(map(len, packed.segments)) == 40 and len(packed.segments) < 30 and max(packed.lengths) <= 64
    assert sorted(packed.input_ids[0]) != sorted(rows.input_ids[0])

    signal = LiveTeacher(load_model(tmp_path / "teacher", dtype="float32", device="cpu"))

    def loss_and_gradients(sequences: Sequences) -> tuple[torch.Tensor, list[torch.Tensor]]:
        model = load_model(tmp_path / "model", dtype="float32", device="cpu")
        assert isinstance(model, LlamaForCausalLM)
        matching = None
        if objective == "kd with hidden states":
            matching = Matching(((1, 2),), student=32, teacher=32, measure="mse", weight=0.5, seed=0)
            signal.layers = (2,)
        divergence = CROSS_ENTROPY if objective == "sft" else Objective("jsd", ce_weight=0.2)
        attach_loss_head(model, divergence, 64, matching=matching)
        examples = [
            {"input_ids": ids, "labels": labels, "seq_lengths": segments, "row_ids": names}
            for ids, labels, segments, names in zip(
                sequences.input_ids, sequences.labels, sequences.segments, sequences.row_ids, strict=True
            )
        ]
        collate = collator(0)
        total = torch.zeros(())
        for begin in range(0, len(examples), 5):
            batch = collate(examples[begin : begin + 5])
            del batch["row_ids"]
            output = model(**batch, with_loss_head=True, teacher=None if objective == "sft" else signal(batch))
            output.loss.backward()
            total += output.loss.detach()
        return total, [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    loss, gradients = loss_and_gradients(rows)
    packed_loss, packed_gradients = loss_and_gradients(packed)
    torch.testing.assert_close(packed_loss, loss, rtol=1e-5, atol=0)
    for ours, expected in zip(packed_gradients, gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=2e-4 * expected.abs().max().item())
