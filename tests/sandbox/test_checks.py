"""Tests become a call and an expected value that stays outside."""

import pytest

from distill.sandbox.checks import canonical, parse_test
from distill.sandbox.guest import encode


def value(thing: object) -> str:
    return canonical(encode(thing))


@pytest.mark.parametrize(
    ("test", "source", "expected"),
    [
        ("assert f([1, 2]) == 3", "f([1, 2])", 3),
        ("assert [1, 2] == f(3)", "f(3)", [1, 2]),
        ("assert f(1) is None", "f(1)", None),
        ("assert f(1) == {'a': (1, -2.5)}, 'message'", "f(1)", {"a": (1, -2.5)}),
        ("assert f(2) > 1", "not not (f(2) > 1)", True),
        ("assert not f(2)", "not not (not f(2))", True),
        ("assert f(2) == g(2)", "not not (f(2) == g(2))", True),
        ("assert 1 == f(2) == 1", "not not (1 == f(2) == 1)", True),
    ],
)
def test_forms_of_tests(test: str, source: str, expected: object) -> None:
    check = parse_test(test)
    assert (check.mode, check.source, check.expected) == ("value", source, value(expected))


def test_statements_and_nonsense_run_as_blocks() -> None:
    assert parse_test("x = f(1)\nassert x == 2").mode == "block"
    assert parse_test("assert f(1 ==").mode == "block"


def test_types_are_exact_and_orders_do_not_matter() -> None:
    different = [1, 1.0, True, "1", b"1", [1], (1,), {1}, {1: 1}, None, "", [], (), {}, set(), frozenset()]
    assert len({value(thing) for thing in different}) == len(different)
    assert value({"a": 1, "b": 2}) == value({"b": 2, "a": 1})
    assert value({3, 1, 2}) == value({2, 3, 1})
    assert value([1, 2]) != value([2, 1])
    assert value(-0.0) == value(0.0)
    assert canonical([]) == "[]"


def test_an_object_becomes_its_type() -> None:
    class Equal(list[int]):
        def __eq__(self, other: object) -> bool:
            return True

    assert encode(Equal([1])) == ["other", "Equal"]
    assert encode([Equal()]) == ["list", ["other", "Equal"]]
