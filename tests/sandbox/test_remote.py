"""Tests that run in a process of their own see honest candidates as Python would, and liars as what they are."""

from collections.abc import Iterator

import pytest

from distill.sandbox.checks import parse_tests
from distill.sandbox.host import Guest
from distill.sandbox.types import Limits, SandboxVerdict


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with Guest("bubblewrap") as started:
        yield started


def judge(
    guest: Guest, code: str, *tests: str, entry_point: str | None = "f", wall_seconds: float = 10.0
) -> SandboxVerdict:
    limits = Limits(cpu_seconds=1, wall_seconds=wall_seconds)
    return guest.run(code, parse_tests(tests, entry_point), entry_point, limits)


STACK = """
class Stack:
    kind = "lifo"
    def __init__(self, items=()): self.items = list(items)
    def push(self, item): self.items.append(item)
    def pop(self): return self.items.pop()
    def __len__(self): return len(self.items)
    def __iter__(self): return iter(self.items)
    def __getitem__(self, place): return self.items[place]
    def __eq__(self, other): return isinstance(other, Stack) and self.items == other.items
    def __add__(self, other): return Stack(self.items + other.items)
    def __repr__(self): return f"Stack({self.items})"
"""


# A candidate, `>>>`, and a test that it passes.
HONEST = """\
def f(x):
    x.sort()
>>>
a = [3, 1]
assert f(a) is None and a == [1, 3]
---
def f(x):
    x['k'] = [1]
    x.pop('old')
>>>
a = {'old': 0}
f(a)
assert a == {'k': [1]}
---
def f(x):
    x.reverse()
    return x
>>>
a = [1, 2]
assert f(a) is a and a == [2, 1]
---
def f(x):
    return list(x)
>>>
a = [1, 2]
assert f(a) is not a and f(a) == a
---
def f(g, n):
    return g(n)
>>>
seen = []
f(seen.append, 3)
assert seen == [3]
---
def f(g, n):
    return g(g(n))
>>>
assert f(lambda x: x + 1, 3) - 5 == 0
---
def f(g):
    return [g(x) for x in 'ab']
>>>
assert f(str.upper) + f(ord) == ['A', 'B', 97, 98]
---
def f(it):
    return sum(it)
>>>
assert f(x for x in (1, 2)) + f(range(3)) + f(map(abs, [-1])) == 7
---
def f(g):
    def w(*a, **k):
        return g(*a, **k) + 1
    return w
>>>
@f
def h(a, b=1):
    return a + b
assert h(1, b=3) == 5
---
def f(n):
    yield from range(n)
>>>
assert list(f(3)) == [0, 1, 2] and next(f(2)) == 0 and 2 in f(4)
---
def f(n):
    yield from range(n)
>>>
it = f(1)
next(it)
try:
    next(it)
except StopIteration:
    it = None
assert it is None
---
def f(x):
    raise ValueError('bad value')
>>>
try:
    f(1)
except ValueError as e:
    assert 'bad' in str(e)
else:
    assert False
---
class E(KeyError):
    pass
def f(x):
    raise E('k')
>>>
try:
    f(1)
except E as e:
    assert isinstance(e, LookupError)
else:
    assert False
---
from collections import Counter
def f(x):
    return Counter(x)
>>>
assert f('aab') == Counter('aab') and f('ab').most_common(1) == [('a', 1)]
---
import math
import datetime as dt
def f(d):
    return d + dt.timedelta(1)
>>>
assert f(dt.date(2024, 2, 28)) == dt.date(2024, 2, 29) and math.floor(1.5) == 1
---
from fractions import Fraction
def f(x):
    return Fraction(1, x)
>>>
from fractions import Fraction
assert f(2) + Fraction(1, 2) == 1
---
def f(path):
    return open(path).read()
>>>
with open('/tmp/in', 'w') as file:
    file.write('x' * 3)
assert len(f('/tmp/in')) == 3
---
LIMIT = 3
def f(x):
    return min(x, LIMIT)
>>>
assert f(9) == LIMIT and f(1) < LIMIT
---
def f(x):
    return abs(x)
>>>
def check(candidate):
    assert candidate(-1) == 1
    assert candidate(0) == 0
check(f)
"""


@pytest.mark.parametrize("case", HONEST.split("\n---\n"))
def test_honest_functions(case: str, guest: Guest) -> None:
    code, _, test = case.partition("\n>>>\n")
    assert judge(guest, code, test).reason == "passed"
    assert judge(guest, code, test.rstrip() + "\nassert False").reason == "failed"


@pytest.mark.parametrize("test", ["def test_it():\n    assert f(1) == {}", "def check(g):\n    assert g(1) == {}"])
def test_a_test_that_is_only_defined_is_called(test: str, guest: Guest) -> None:
    code = "def f(x):\n    return x + 1"
    assert judge(guest, code, test.format(2)).reason == "passed"
    assert judge(guest, code, test.format(3)).reason == "failed"


def test_honest_objects(guest: Guest) -> None:
    tests = (
        "s = Stack()\ns.push(3)\nassert len(s) == 1 and s.pop() == 3 and not s",
        "try:\n    Stack().pop()\nexcept IndexError:\n    pass\nelse:\n    raise AssertionError",
        "s = Stack([1, 2])\nassert list(s) == [1, 2] and s[0] == 1 and s[-1] == 2 and 2 in s and max(s) == 2",
        "assert Stack([1]) == Stack([1]) and Stack([1]) != Stack([2]) and Stack([1]) + Stack([2]) == Stack([1, 2])",
        "s = Stack()\ns.items = [5]\nassert s.items == [5] and s.kind == 'lifo' and isinstance(s, Stack)",
        "assert str(Stack([1])) == 'Stack([1])' and repr(Stack()) == 'Stack([])' and not isinstance(1, Stack)",
        "a = [Stack([1]), Stack([2])]\nassert a[0] in a and a.index(Stack([2])) == 1",
    )
    assert judge(guest, STACK, *tests, entry_point="Stack").reason == "passed"


LIAR = """
class Liar:
    def __getattr__(self, name): return Liar()
    def __call__(self, *values, **names): return True
    def __eq__(self, other): return True
    __lt__ = __gt__ = __ge__ = __le__ = __contains__ = __instancecheck__ = __subclasscheck__ = __eq__
    def __sub__(self, other): return 0
    __add__ = __mul__ = __mod__ = __rsub__ = __radd__ = __rmul__ = __truediv__ = __floordiv__ = __pow__ = __sub__
    def __iter__(self): return iter((1, 2, 3))
    def __len__(self): return 3
    def __enter__(self): return self
    def __exit__(self, *error): return True
    def __format__(self, form): return "2"
    def __str__(self): return "1"
    def __index__(self): return 2
    __int__ = __round__ = __trunc__ = __float__ = __index__
    __hash__ = None
def f(*values):
    return Liar()
"""


@pytest.mark.parametrize(
    "test",
    [
        "assert f(1) > 1",
        "assert 1 < f(1)",
        "assert f(1) - 2 == 0",
        "assert abs(2 - f(1)) < 1",
        "assert f(1) % 2 == 0",
        "assert f(1) in (2, 3) or 2 in (f(1),)",
        "assert 7 in f(1)",
        "assert {f(1): 1}[2] == 1",
        "assert [f(1)] == [2] or (f(1),) == (2,) or {'a': f(1)} == {'a': 2}",
        "assert f(1).startswith('x')",
        "assert f(1).issubset({1})",
        "assert isinstance(f(1), (int, float, str, list, dict)) or issubclass(type(f(1)), int)",
        "assert f'{f(1)}' == '2' or '%d' % f(1) == '2' or int(f(1)) == 2",
        "import math\nassert math.isclose(f(1), 2)",
        "assert round(f(1)) == 2 or sum([f(1)]) == 0 or [1, 2][f(1)]",
        "with f(1):\n    assert False",
        "import operator\nassert operator.eq(f(1), 2) or operator.contains(f(1), 9)",
        "import unittest\nunittest.TestCase().assertEqual(f(1), 2)",
        "assert max(f(1), 2) == 2",
        "assert sorted(f(1)) == [3, 4]",
        "assert any(x is True for x in f(1))",
        "assert f(1) == f(2).__class__ or f(1).__class__ is int",
    ],
)
def test_an_object_that_says_yes_to_everything_says_nothing(test: str, guest: Guest) -> None:
    assert judge(guest, LIAR, test).passed == 0


@pytest.mark.parametrize(
    "leaves", ["os._exit(0)", "sys.exit(0)", "os.abort()", "os.kill(os.getpid(), 9)", "os.close(3)\n    while 1: pass"]
)
def test_leaving_is_no_expected_exception(leaves: str, guest: Guest) -> None:
    test = "try:\n    f(1)\nexcept BaseException:\n    pass\nelse:\n    assert False"
    verdict = judge(guest, f"import os, sys\ndef f(x):\n    {leaves}", test, "assert 1 + 1 == 2", wall_seconds=0.5)
    assert (verdict.ok, verdict.passed) == (False, 0)


def test_the_candidate_cannot_use_what_it_was_not_given(guest: Guest) -> None:
    """What a test passes may be called and iterated over; its attributes, globals and code stay out of reach."""
    code = (
        "def f(g):\n    for name in ('__globals__', '__code__', '__closure__', '__self__', 'append'):\n        try:\n"
        "            getattr(g, name)\n            return name\n        except AttributeError:\n            pass\n"
        "    return g(1)"
    )
    assert judge(guest, code, "secret = 41\nassert f(lambda x: secret + x) == 42").reason == "passed"
