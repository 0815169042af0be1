"""Stored signals: packed numbers, forms, and a folder that survives kills and shows damage."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from distill.errors import DataError
from distill.teacher.bits import MAX_WIDTH, pack_widths, packed_bytes, width_of
from distill.teacher.forms import join, split
from distill.teacher.stored import ABOUT, DATA, INDEX, About, Fingerprint, Reader, Record, Writer, require_match, row_id
from distill.teacher.top_k_form import encode_top_k
from distill.teacher.tops import sparse_of_tops
from tests.teacher.stored_rows import some_top_k

ABOUT_TEN = About("top_k", Fingerprint(10, "tokens", "template", "teacher"))


def test_bits_by_hand() -> None:
    # 3, 1, 2 in two bits each, lowest first: 11 10 01 -> 0b100111 = 39
    assert pack_widths(np.array([3, 1, 2]), np.full(3, 2)) == bytes([0b100111])
    assert width_of(151_936) == 18 and width_of(2) == 1 and packed_bytes(3, 18) == 7


def test_numbers_of_widths_of_their_own_lie_one_after_the_other() -> None:
    rng = np.random.default_rng(1)
    widths = rng.integers(0, MAX_WIDTH + 1, 999)
    values = rng.integers(0, 1 << widths)
    packed = pack_widths(values, widths)
    assert len(packed) == (widths.sum() + 7) // 8
    whole = int.from_bytes(packed, "little")
    for value, width in zip(values.tolist(), widths.tolist(), strict=True):
        assert whole & ((1 << width) - 1) == value
        whole >>= width
    assert whole == 0 and pack_widths(values[:0], widths[:0]) == b""


def test_ids_take_what_a_set_takes() -> None:
    """128 of 151,936: a set of them has log2 C(151936, 128) / 128 = 11.6 bits each; the list before took 18."""
    found = some_top_k(20, 128, 151_936)
    bits = 8 * len(encode_top_k(found, 151_936, 2.0)) / found.counts_T.sum()
    least = (math.lgamma(151_937) - math.lgamma(129) - math.lgamma(151_809)) / math.log(2) / 128
    assert least == pytest.approx(11.6, abs=0.1)
    levels_and_rest = 8 * 3.1 / 128 + 2.2
    assert bits < least + 0.6 + levels_and_rest


def test_split_undoes_join() -> None:
    found = some_top_k()
    parts = split(found, [2, 3])
    assert [len(part.counts_T) for part in parts] == [2, 3]
    np.testing.assert_array_equal(join(parts).logprobs_E, found.logprobs_E)


def test_what_servers_tell() -> None:
    """Ids beyond the common rows are conditioned away; what is not told is the tail; nothing told is all tail."""
    tops = [{3: math.log(0.5), 1: math.log(0.2), 99: math.log(0.2)}, None, {2: math.log(0.9), 5: math.log(0.01)}]
    found = sparse_of_tops(tops, k=8, min_probability=0.05, rows=10)
    assert found.counts_T.tolist() == [2, 0, 1] and found.ids_E.tolist() == [3, 1, 2]
    np.testing.assert_allclose(np.exp(found.logprobs_E), [0.625, 0.25, 0.9], rtol=1e-6)
    assert found.log_tail_T is not None
    np.testing.assert_allclose(np.exp(found.log_tail_T), [0.125, 1.0, 0.1], rtol=1e-5)
    unnamed = sparse_of_tops([{3: math.log(0.5), -1: math.log(0.2), 4: math.log(0.1)}], k=8, min_probability=0, rows=10)
    assert unnamed.ids_E.tolist() == [3], "4 is less likely than something in the tail"
    own = sparse_of_tops([{3: math.log(0.5), 7: math.log(1e-9)}], k=1, min_probability=0, rows=10, extra=True)
    assert own.ids_E.tolist() == [3]


def records(count: int) -> list[Record]:
    return [Record(row_id([i, i + 1], [-100, i + 1]), 1, 2, bytes([i] * (5 + i))) for i in range(count)]


def test_rows_are_found_by_id_and_a_second_writer_goes_on(tmp_path: Path) -> None:
    rows = records(9)
    Writer(tmp_path, ABOUT_TEN).add(rows[:4])
    second = Writer(tmp_path, ABOUT_TEN)
    assert rows[3].row in second and rows[4].row not in second
    second.add(rows[2:])
    reader = Reader(tmp_path)
    assert len(reader) == 9 and [reader.read(row.row) for row in reversed(rows)] == rows[::-1]
    assert reader.size_bytes == (tmp_path / DATA).stat().st_size + (tmp_path / INDEX).stat().st_size
    assert reader.missing([rows[0].row, 17]) == [17]
    with pytest.raises(DataError, match="no signals of row 11"):
        reader.read(17)


def test_torn_at_every_byte_nothing_whole_is_lost(tmp_path: Path) -> None:
    """A writer that was killed leaves data without index, or part of a record; the next one cuts it off."""
    rows = records(2)
    Writer(tmp_path, ABOUT_TEN).add(rows)
    data, index = (tmp_path / DATA).read_bytes(), (tmp_path / INDEX).read_bytes()
    for left in range(len(index) + 1):
        (tmp_path / DATA).write_bytes(data + b"half a row")
        (tmp_path / INDEX).write_bytes(index[:left])
        again = Writer(tmp_path, ABOUT_TEN)
        assert [row.row in again for row in rows] == [place < left // 32 for place in range(2)]
        again.add(rows)
        reader = Reader(tmp_path)
        assert [reader.read(row.row) for row in rows] == rows
    for left in range(len(data)):
        (tmp_path / DATA).write_bytes(data[:left])
        (tmp_path / INDEX).write_bytes(index)
        Writer(tmp_path, ABOUT_TEN).add(rows)
        reader = Reader(tmp_path)
        assert [reader.read(row.row) for row in rows] == rows


def test_a_flipped_bit_is_named(tmp_path: Path) -> None:
    rows = records(3)
    Writer(tmp_path, ABOUT_TEN).add(rows)
    data = bytearray((tmp_path / DATA).read_bytes())
    data[7] ^= 4
    (tmp_path / DATA).write_bytes(data)
    with pytest.raises(DataError, match=f"the bytes of row {rows[1].row:x} at 5 changed"):
        Reader(tmp_path).read(rows[1].row)
    assert Reader(tmp_path).read(rows[2].row) == rows[2]


def test_another_fingerprint_is_refused_by_name(tmp_path: Path) -> None:
    Writer(tmp_path, ABOUT_TEN).add(records(1))
    reader, holds = Reader(tmp_path), ABOUT_TEN.fingerprint
    require_match(reader, holds, 1.0)
    for name in ("vocabulary", "tokenizer", "chat_template", "teacher"):
        other = Fingerprint(**{**vars(holds), name: 11 if name == "vocabulary" else "x"})
        with pytest.raises(DataError, match=f"of another {name.replace('_', ' ')} "):
            require_match(reader, other, 1.0)
    with pytest.raises(DataError, match="at temperature 1, training is at 2"):
        require_match(reader, holds, 2.0)
    (tmp_path / ABOUT).write_text("{")
    with pytest.raises(DataError, match="not readable"):
        Reader(tmp_path)


def test_other_settings_start_over(tmp_path: Path) -> None:
    Writer(tmp_path, ABOUT_TEN).add(records(2))
    other = About("top_k", ABOUT_TEN.fingerprint, temperature=2.0)
    assert records(2)[0].row not in Writer(tmp_path, other)
