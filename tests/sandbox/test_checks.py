"""Tests become a call and an expected value that stays outside, or run whole in a process of their own."""

import collections
import enum

import pytest

from distill.sandbox.checks import Check, canonical, parse_tests, truth
from distill.sandbox.guest.values import decode, encode


def value(thing: object) -> str:
    return canonical(encode(thing))


def parse(test: str) -> Check:
    [check] = parse_tests([test], "f")
    return check


@pytest.mark.parametrize(
    ("test", "source", "expected"),
    [
        ("assert f([1, 2]) == 3", "f([1, 2])", 3),
        ("assert [1, 2] == f(3)", "f(3)", [1, 2]),
        ("assert f(1) is None", "f(1)", None),
        ("assert f(1) == {'a': (1, -2.5)}, 'message'", "f(1)", {"a": (1, -2.5)}),
        ("assert f(lambda x: x, 3) == 3", "f(lambda x: x, 3)", 3),
        ("assert g(f(1)) == 3", "g(f(1))", 3),
    ],
)
def test_a_call_and_a_literal(test: str, source: str, expected: object) -> None:
    assert parse(test) == Check("equal", source, value(expected))


def test_a_bare_call_is_a_question_of_truth() -> None:
    assert parse("assert f(2)") == Check("true", "f(2)")
    assert parse("assert not f(2)") == Check("false", "f(2)")
    false = [None, False, 0, -0.0, 0j, "", b"", [], (), {}, set(), frozenset(), collections.Counter(), range(0)]
    true = [True, 1, 0.5, 1j, " ", b"0", [0], (None,), {0: 0}, {0}, range(1), object()]
    assert [truth(encode(thing)) for thing in false + true] == [bool(thing) for thing in false + true]


@pytest.mark.parametrize(
    "test",
    [
        "assert f(2) > 1",
        "assert abs(f(1) - 2) < 1e-9",
        "assert f(2) == g(2)",
        "assert 1 == f(2) == 1",
        "assert len(f(2)) == 1",  # a builtin that the candidate might replace
        "assert math.isclose(f(2), 3) == True",
        "assert f(1)[0] == 2",
        "assert f(1).startswith('a')",  # asked of the candidate's object, it would be its own judge
        "assert F().size() == 0",
        "x = f(1)\nassert x == 2",
        "assert f(1 ==",
    ],
)
def test_other_tests_never_reach_the_candidate(test: str) -> None:
    assert (parse(test).kind, parse(test).source) == ("test", test)


def test_names_that_a_test_takes_from_elsewhere() -> None:
    check = parse("import math as m\ny = [g(i) for i in range(3)]\nassert m.floor(f(y)) + json.x.y == len(y)")
    assert check.names == (("f", ()), ("g", ()), ("json", ("x",)), ("len", ()), ("range", ()))


def test_a_call_on_what_an_earlier_test_bound_follows_it() -> None:
    tests = ["assert f(y) == 1", "y = 1", "assert f(y) == 1", "assert f(1) == 1"]
    assert [check.kind for check in parse_tests(tests, "f")] == ["equal", "test", "test", "equal"]


def test_an_entry_point_may_be_called_like_a_builtin_or_a_module() -> None:
    tests = ["assert sum([1]) == 1", "assert copy(1) == 1"]
    assert [check.kind for check in parse_tests(tests, "sum")] == ["equal", "test"]
    assert [check.kind for check in parse_tests(tests, "copy")] == ["test", "equal"]


def test_types_are_exact_and_orders_do_not_matter() -> None:
    different = [1, 1.0, True, "1", b"1", [1], (1,), {1}, {1: 1}, None, "", [], (), {}, set(), frozenset(), 1j]
    assert len({value(thing) for thing in different}) == len(different)
    assert value({"a": 1, "b": 2}) == value({"b": 2, "a": 1})
    assert value({3, 1, 2}) == value({2, 3, 1})
    assert value([1, 2]) != value([2, 1])
    assert value(-0.0) == value(0.0)
    assert canonical([]) == "[]"


def test_a_subclass_counts_as_its_base_unless_it_has_its_own_equality() -> None:
    class Equal(list[int]):
        def __eq__(self, other: object) -> bool:
            return True

    assert encode(Equal([1])) == ["other", "Equal"]
    assert encode([Equal()]) == ["list", ["other", "Equal"]]
    assert value(collections.namedtuple("Pair", "a b")(1, 2)) == value((1, 2))
    assert value(collections.defaultdict(int, a=1)) == value(collections.Counter("a")) == value({"a": 1})
    assert value(enum.IntEnum("Colour", ["RED"])["RED"]) == value(1)


def test_values_come_back_as_they_were() -> None:
    import datetime
    import decimal
    import fractions

    things = [
        None,
        True,
        -(2**70),
        0.1,
        1 - 2j,
        "\udc80é",
        b"\0",
        bytearray(b"x"),
        [1, (2, {3}, frozenset({4}))],
        {(1,): []},
    ]
    things += [
        range(1, 9, 2),
        collections.Counter("aab"),
        collections.OrderedDict(b=1, a=2),
        collections.deque([1]),
        len,
        int,
    ]
    things += [
        decimal.Decimal("1.10"),
        fractions.Fraction(1, 3),
        datetime.date(2024, 2, 29),
        datetime.timedelta(1, 2, 3),
    ]

    def nothing_else(thing: object) -> list[object]:
        raise AssertionError(thing)

    for thing in things:
        back = decode(encode(thing, nothing_else), nothing_else)
        assert (back, type(back)) == (thing, type(thing))


@pytest.mark.parametrize(
    "tree",
    [[], ["int"], ["int", 1], ["int", "x"], ["dict", 1], ["set", ["list"]], ["builtin", "eval"], "none", ["no"], 1],
)
def test_nonsense_is_no_value(tree: object) -> None:
    def nothing_else(tree: list[object]) -> object:
        raise ValueError(tree)

    with pytest.raises((ValueError, TypeError)):
        decode(tree, nothing_else)
