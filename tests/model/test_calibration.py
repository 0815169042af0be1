"""Calibration rows: which of a dataset, in which tokens, and how they are padded."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill.errors import CheckpointError, DataError, DistillError
from distill.model.calibration import calibration_batches, pad_batches
from distill.recipe.quantize import Calibration
from distill.records import INSTRUCTION, PREFERENCE, write_parquet
from tests.quantize.tiny import tiny_tokenizer


def test_batches_hold_every_row_once_cut_and_masked() -> None:
    rows = [[5] * 3, [6] * 50, [7] * 4, [], [8]]
    batches = pad_batches(rows, max_length=10, tokens=20)
    tokens = sorted(int(t) for batch in batches for t in batch.input_ids[batch.mask])
    assert tokens == sorted([5] * 3 + [6] * 10 + [7] * 4 + [8])
    assert all(batch.input_ids.numel() <= 20 for batch in batches)
    assert all((batch.input_ids[~batch.mask] == 0).all() for batch in batches)


def test_no_rows_is_refused() -> None:
    with pytest.raises(DistillError, match="no calibration rows"):
        pad_batches([[]], max_length=8)


def test_calibration_rows_are_spread_over_the_dataset(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    rows = [{"messages": [{"role": "user", "content": f"w{3 + index}"}]} for index in range(40)]
    write_parquet(tmp_path / "data.parquet", rows, INSTRUCTION)
    batches = calibration_batches(tokenizer, tmp_path, tmp_path / "data.parquet", Calibration(rows=4))
    words = sorted(int(row[1]) for batch in batches for row in batch.input_ids)
    assert words == [3, 13, 23, 33]


def test_preference_rows_calibrate_on_what_was_chosen(tmp_path: Path) -> None:
    words = {"prompt": "w5", "chosen": "w6", "rejected": "w7"}
    row = {key: [{"role": "user", "content": word}] for key, word in words.items()}
    write_parquet(tmp_path / "data.parquet", [row], PREFERENCE)
    (batch,) = calibration_batches(tiny_tokenizer(), tmp_path, tmp_path / "data.parquet", Calibration())
    assert batch.input_ids.tolist() == [[1, 5, 2, 1, 6, 2]]


def test_bad_calibration_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data.parquet"
    with pytest.raises(DataError, match="no dataset"):
        calibration_batches(tiny_tokenizer(), tmp_path, data, Calibration())
    write_parquet(data, [], INSTRUCTION)
    with pytest.raises(DataError, match="no rows"):
        calibration_batches(tiny_tokenizer(), tmp_path, data, Calibration())
    write_parquet(data, [{"messages": [{"role": "user", "content": "w5"}]}], INSTRUCTION)
    silent = tiny_tokenizer()
    silent.chat_template = None
    with pytest.raises(CheckpointError, match="chat template"):
        calibration_batches(silent, tmp_path, data, Calibration())
    pq.write_table(pa.table({"question": ["w5"]}), data)  # neither chats nor text
    with pytest.raises(DataError, match="nor text; it has question"):
        calibration_batches(tiny_tokenizer(), tmp_path, data, Calibration())


def test_long_texts_give_windows_spread_over_them(tmp_path: Path) -> None:
    """Two texts of 500 words, six rows: three windows of each, at its beginning, middle and end."""
    texts = [" ".join(f"w{3 + (start + index) % 90}" for index in range(500)) for start in (0, 45)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "data.parquet")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None  # text needs none
    batches = calibration_batches(tokenizer, tmp_path, tmp_path / "data.parquet", Calibration(rows=6, max_length=8))
    rows = [row.tolist() for batch in batches for row in batch.input_ids]
    assert len(rows) == 6 and all(len(row) == 8 for row in rows)
    assert sorted(row[0] for row in rows if row[1] in (4, 49)) == [3, 48]  # the beginnings
    assert len({tuple(row) for row in rows}) == 6
