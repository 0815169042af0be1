"""The lab's arithmetic and its text: what a number in the table means."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest

from benchmarks.lab.cases import CASES, CE, KD, methods, sweep
from benchmarks.lab.entry import RESULT
from benchmarks.lab.run import Lab, table
from benchmarks.lab.text import chat, passages, prompted, split
from distill.model.tokenizer import train_tokenizer

WORDS = "a whale is no fish and a ship is no island but both of them go over the sea by night"


def test_no_author_stands_on_both_sides() -> None:
    novels = [{"author": f"author {n % 12}", "text": WORDS * (1 + n % 5)} for n in range(40)]
    training, validation = split(novels)
    assert len(training) + len(validation) == len(novels)
    assert not {n["author"] for n in training} & {n["author"] for n in validation}
    held = sum(len(n["text"]) for n in validation) / sum(len(n["text"]) for n in novels)
    assert 0.1 <= held < 0.3
    assert split(list(reversed(novels)))[1] == list(reversed(validation))


def test_passages_are_the_text_in_pieces_of_so_many_tokens() -> None:
    text = (WORDS + "\n") * 50
    tokenizer = train_tokenizer([text], vocab_size=300, max_positions=64)
    found = list(passages(tokenizer, text, 20))
    assert text.startswith("".join(found)) and len(text) - len("".join(found)) < 20 * 20
    lengths = [len(tokenizer(passage, add_special_tokens=False)["input_ids"]) for passage in found]
    assert sum(lengths) / len(lengths) == pytest.approx(20, abs=1)


def test_a_prompted_row_is_the_passage_cut_at_a_token() -> None:
    text = WORDS * 4
    tokenizer = train_tokenizer([text], vocab_size=300, max_positions=64)
    question, answer = (message["content"] for message in prompted(tokenizer, chat("", text))["messages"])
    ids = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in (question, answer)]
    assert question + answer == text
    assert len(ids[0]) == len(tokenizer(text, add_special_tokens=False)["input_ids"]) // 8


def test_the_recovered_gap_and_the_distance_from_live(tmp_path: Path) -> None:
    """Teacher 3 nats, cross entropy 4 and 4.2, kd 3.8 and 4: 0.2 of 1.1. Of the stored form, seed 1 alone:
    0.17 of 1, and 0.03 nats above live."""
    lab = Lab(CASES["tiny"], tmp_path, tmp_path, parallel=1, deadline=time.monotonic(), kernel="torch")

    def write(name: str, nats: dict[str, float]) -> None:
        folder = lab.folder(name)
        folder.mkdir(parents=True)
        seeds = {seed: {"nats": value, "perplexity": math.exp(value)} for seed, value in nats.items()}
        (folder / RESULT).write_text(json.dumps({"seeds": seeds}))

    write(CE, {"1": 4.0, "2": 4.2})
    write(f"{KD}/1", {"1": 3.8})
    write(f"{KD}/2", {"2": 4.0})
    write("teacher", {"0": 3.0})
    write("kd from top k", {"1": 3.83})
    todo = methods(lab.case, 2, 1)
    rows, _ = table(lab, todo)
    named = {row.name: row for row in rows}
    assert named[f"{KD}, recovered gap, 2 seeds"].value == pytest.approx(0.2 / 1.1)
    assert named[f"best kd: {KD}"].ok is False
    away = named["kd from top k, perplexity away from live, 1 seeds"]
    assert away.value == pytest.approx(math.exp(0.03) - 1) and away.ok is False


def test_a_sweep_changes_nothing_but_the_rate() -> None:
    found = sweep((1e-3, 2e-3))
    assert [method.entry["learning_rate"] for method in found] == [1e-3, 1e-3, 2e-3, 2e-3]
    assert len({method.name for method in found}) == len(found)
