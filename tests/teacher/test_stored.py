"""Stored signals: packed numbers, forms, and a folder that survives kills and shows damage."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distill.errors import DataError
from distill.teacher.bits import pack_bits, pack_widths, packed_bytes, unpack_bits, unpack_widths, width_of
from distill.teacher.forms import Sparse, decode_sampled, encode_sampled, join, split
from distill.teacher.stored import ABOUT, DATA, INDEX, About, Fingerprint, Reader, Record, Writer, require_match, row_id
from distill.teacher.tail_draws import decode_top, decode_with_draws, encode_with_draws
from distill.teacher.top_k_form import decode_top_k, encode_top_k
from distill.teacher.tops import sparse_of_tops

ABOUT_TEN = About("top_k", Fingerprint(10, "tokens", "template", "teacher"))


def test_bits_by_hand() -> None:
    # 3, 1, 2 in two bits each, lowest first: 11 10 01 -> 0b100111 = 39
    assert pack_bits(np.array([3, 1, 2]), 2) == bytes([0b100111])
    assert width_of(151_936) == 18 and width_of(2) == 1 and packed_bytes(3, 18) == 7


def test_numbers_of_widths_of_their_own_come_back() -> None:
    rng = np.random.default_rng(1)
    widths = rng.integers(0, 26, 999)
    values = rng.integers(0, 1 << widths)
    assert len(pack_widths(values, widths)) == (widths.sum() + 7) // 8
    np.testing.assert_array_equal(unpack_widths(pack_widths(values, widths), widths), values)


@pytest.mark.parametrize("width", [1, 7, 8, 11, 18, 25])
def test_bits_come_back(width: int) -> None:
    values = np.random.default_rng(width).integers(0, 1 << width, 1001)
    assert len(pack_bits(values, width)) == packed_bytes(1001, width)
    np.testing.assert_array_equal(unpack_bits(pack_bits(values, width), 1001, width), values)
    assert unpack_bits(b"", 0, width).size == 0


def some(tokens: int = 5, k: int = 6, rows: int = 50) -> Sparse:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (tokens, rows))
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    ids = np.argsort(-log_p, -1)[:, :k]
    top = np.take_along_axis(log_p, ids, -1)
    tail = np.log1p(-np.exp(top).sum(-1))
    return Sparse(np.full(tokens, k), ids.ravel(), top.ravel().astype(np.float32), log_tail_T=tail.astype(np.float32))


def by_id(found: Sparse) -> Sparse:
    """Each token's entries by id, as they come back."""
    token_E = np.repeat(np.arange(len(found.counts_T)), found.counts_T)
    order = np.lexsort((found.ids_E, token_E))
    return replace(found, ids_E=found.ids_E[order], logprobs_E=found.logprobs_E[order])


@pytest.mark.parametrize(("tokens", "k", "rows"), [(5, 6, 50), (3, 50, 50), (40, 1, 151_936), (9, 255, 151_936)])
@pytest.mark.parametrize("step_nats", [0.0625, 0.5])
def test_top_k_comes_back_within_its_steps_and_sums_to_one(tokens: int, k: int, rows: int, step_nats: float) -> None:
    found = some(tokens, k, rows)
    packed = encode_top_k(found, rows, step_nats)
    back, expected = decode_top_k(packed, tokens, rows, step_nats), by_id(found)
    np.testing.assert_array_equal(back.ids_E, expected.ids_E)
    np.testing.assert_array_equal(back.counts_T, expected.counts_T)
    assert back.log_tail_T is not None and found.log_tail_T is not None
    np.testing.assert_allclose(back.log_tail_T, np.maximum(found.log_tail_T, -40), atol=1e-3)
    given, told = expected.logprobs_E.reshape(tokens, k), back.logprobs_E.reshape(tokens, k)
    # Rounded by half a step (the likeliest perhaps by one and a half), then shifted to the mass that is left.
    off = (told - given) - np.median(told - given, -1, keepdims=True)
    assert np.abs(off).max() <= 2.01 * step_nats and np.abs(off).mean() < 0.6 * step_nats
    np.testing.assert_allclose(np.exp(told).sum(-1) + np.exp(back.log_tail_T), 1.0, atol=1e-6)
    best = told == told.max(-1, keepdims=True)
    assert (best.sum(-1) == 1).all() and (np.argmax(told, -1) == np.argmax(given, -1)).all()


def test_top_k_by_hand() -> None:
    """Ids 2 and 9 of 16 rows: low bits 010, 001; high ones 0, 1 at places 0 and 2 of 3; levels 4, 0 in unary."""
    found = Sparse(np.array([2]), np.array([2, 9]), np.log(np.array([0.7, 0.7 / np.e**2], "f4")), np.zeros(1, "f4"))
    packed = encode_top_k(found, 16, 0.5)
    assert packed == bytes([2, 0, 0, 0, 0b001010, 0b101, 0b110000])  # count, tail, no low bits of levels, ...
    assert decode_top_k(packed, 1, 16, 0.5).ids_E.tolist() == [2, 9]


def test_ids_take_what_a_set_takes() -> None:
    """128 of 151,936: a set of them has log2 C(151936, 128) / 128 = 11.6 bits each; the list before took 18."""
    found = some(20, 128, 151_936)
    bits = 8 * len(encode_top_k(found, 151_936, 2.0)) / found.counts_T.sum()
    least = (math.lgamma(151_937) - math.lgamma(129) - math.lgamma(151_809)) / math.log(2) / 128
    assert least == pytest.approx(11.6, abs=0.1)
    levels_and_rest = 8 * 3.1 / 128 + 2.2
    assert bits < least + 0.6 + levels_and_rest


def test_a_token_without_entries_has_all_its_mass_in_the_tail() -> None:
    found = Sparse(np.array([0, 1]), np.array([7]), np.zeros(1, np.float32), log_tail_T=np.array([0.0, -40.0], "f4"))
    back = decode_top_k(encode_top_k(found, 10, 0.0625), 2, 10, 0.0625)
    assert back.log_tail_T is not None and back.log_tail_T[0] == 0 and back.counts_T.tolist() == [0, 1]
    assert back.logprobs_E[0] == pytest.approx(0, abs=1e-6) and back.ids_E.tolist() == [7]
    nothing = Sparse(np.zeros(2, int), np.zeros(0, int), np.zeros(0, np.float32), log_tail_T=np.zeros(2, "f4"))
    assert decode_top_k(encode_top_k(nothing, 10, 0.5), 2, 10, 0.5).counts_T.tolist() == [0, 0]


def test_samples_come_back_exactly() -> None:
    weights = np.log(np.array([30, 20, 50, 1, 49]) / 50).astype(np.float32)
    found = Sparse(np.array([2, 1, 2]), np.array([4, 9, 0, 3, 2]), weights, entropy_T=np.array([0.5, 0, 1.25], "f4"))
    back = decode_sampled(encode_sampled(found, 10, 50), 3, 10, 50)
    np.testing.assert_array_equal(back.ids_E, [4, 9, 0, 2, 3])
    np.testing.assert_allclose(np.exp(back.logprobs_E) * 50, [30, 20, 50, 49, 1], rtol=1e-6)
    np.testing.assert_allclose(back.entropy_T, [0.5, 0, 1.25], atol=0.5 * math.log(10) / 255 + 1e-6)


def test_draws_from_the_tail_come_back_as_a_whole_distribution() -> None:
    """Two tokens: a tail of 0.2 of which 3 of 4 draws fell on 5; no tail, from which nothing is drawn."""
    top = Sparse(np.array([2, 1]), np.array([7, 1, 4]), np.log(np.array([0.3, 0.5, 1.0], "f4")),
                 log_tail_T=np.log(np.array([0.2, 1e-30], "f4")))  # fmt: skip
    drawn = Sparse(np.array([2, 0]), np.array([5, 0]), np.log(np.array([0.75, 0.25], "f4")),
                   entropy_T=np.array([1.2, 0.0], "f4"))  # fmt: skip
    packed = encode_with_draws(top, drawn, 10, step_nats=0.01, draws=4)
    back = decode_with_draws(packed, 2, 10, step_nats=0.01, draws=4)
    assert back.counts_T.tolist() == [4, 1] and back.ids_E.tolist() == [0, 1, 5, 7, 4]
    np.testing.assert_allclose(np.exp(back.logprobs_E), [0.05, 0.5, 0.15, 0.3, 1.0], rtol=0.01)
    np.testing.assert_allclose(back.entropy_T, [1.2, 0.0], atol=0.5 * math.log(10) / 255 + 1e-6)
    alone = decode_top(packed, 2, 10, 0.01)
    np.testing.assert_array_equal(alone.ids_E, [1, 7, 4])
    np.testing.assert_allclose(np.exp(alone.log_tail_T[0]), 0.2, rtol=1e-3)


def test_split_undoes_join() -> None:
    found = some()
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
