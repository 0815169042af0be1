"""Datasets on disk: which columns are read, and what is said of a file that is not as it should be."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.errors import DataError
from distill.records import PREFERENCE, read_parquet, write_parquet


def test_only_named_columns_are_read(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    turn = [{"role": "user", "content": "q"}]
    write_parquet(path, [{"prompt": turn, "chosen_score": 1.0}], PREFERENCE)
    assert read_parquet(path, columns=("prompt", "chosen_score")) == [{"prompt": turn, "chosen_score": 1.0}]
    assert set(read_parquet(path)[0]) == set(PREFERENCE.names)
    with pytest.raises(DataError, match="has no column text, id; it has prompt, chosen"):
        read_parquet(path, columns=("prompt", "text", "id"))


def test_missing_and_corrupt_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no dataset at"):
        read_parquet(tmp_path / "none.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read_parquet(tmp_path / "bad.parquet", columns=("prompt",))
