"""Benchmark texts in rows: 13-grams, the share of 8-grams at its edge, and programs of one shape."""

from __future__ import annotations

from distill.text.overlap import Benchmark


def words(prefix: str, count: int) -> str:
    return " ".join(f"{prefix}{chr(97 + i)}" for i in range(count))


def test_one_13gram_is_enough_and_twelve_words_are_not() -> None:
    bench = Benchmark(share=1.0)
    bench.add_text(words("q", 20), "first")
    assert bench.overlap("before " + words("q", 13) + " after") == ("13gram", "first")
    assert bench.overlap("before " + words("q", 12) + " after") is None


def test_the_share_of_8grams_decides_at_its_edge() -> None:
    """12 words have five 8-grams; the first 10 hold three of them, the first 11 four."""
    bench = Benchmark(share=0.7)
    bench.add_text(words("q", 12), "short")
    assert bench.overlap(words("q", 10) + " and more") is None  # 3 of 5
    assert bench.overlap(words("q", 11) + " and more") == ("8gram", "short")  # 4 of 5


def test_texts_under_eight_units_are_counted_and_not_looked_for() -> None:
    bench = Benchmark()
    bench.add_text(words("q", 7), "tiny")
    assert bench.too_short == 1 and bench.overlap(words("q", 7)) is None


def test_a_program_is_known_by_its_shape_whatever_its_names() -> None:
    form = (
        "def {f}({xs}):\n    {s} = 0\n    for x in {xs}:\n        if x > 3:\n            {s} += x * x\n    return {s}"
    )
    program = form.format(f="total", xs="items", s="s")
    bench = Benchmark()
    bench.add_program(program, "task/1")
    renamed = form.format(f="f", xs="values", s="found")
    assert bench.same_program(renamed) == "task/1"
    assert bench.same_program("def f(a):\n    return sorted(a, key=lambda p: (p[1], p[0]))[::-1]") is None
