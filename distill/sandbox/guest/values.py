"""Values as trees of tagged lists, the only form in which they leave a process; types are exact.

Standard library only: it runs inside the sandbox and outside. A value that is no plain data is left to the caller.
"""

import builtins
import collections
import sys
from collections.abc import Callable

Tree = list[object]
_ATOMS = (int, float, complex, str, bytes, bytearray)
_SEQUENCES = (list, tuple, set, frozenset, collections.deque)
_MAPPINGS = (dict, collections.Counter, collections.OrderedDict)
_SAFE_FUNCTIONS = ("abs", "all", "any", "chr", "divmod", "len", "max", "min", "ord", "pow", "round", "sorted", "sum")
# Builtins that travel by name, as in f(str): types, and functions that only compute.
_BUILTINS = {
    name: thing for name, thing in vars(builtins).items() if isinstance(thing, type) or name in _SAFE_FUNCTIONS
}
_BUILTIN_NAMES = {id(thing): name for name, thing in _BUILTINS.items()}


def plain_type(value: object) -> type | None:
    """The type whose data this value is: its own, or a base whose equality it keeps (an IntEnum is an int)."""
    kind = type(value)
    for base in (*_ATOMS, *_SEQUENCES, *_MAPPINGS):
        if kind is base:
            return base
    for base in (*_MAPPINGS[1:], *_ATOMS, *_SEQUENCES, dict):
        if base in kind.__mro__ and kind.__eq__ is base.__eq__:
            return base
    return None


def encode(value: object, other: Callable[[object], Tree] | None = None) -> Tree:
    """The tree of a value. `other` makes the tree of what is no plain data; without it, the name of its type does."""
    if value is None:
        return ["none"]
    if value is True or value is False:
        return ["bool", value]
    base = plain_type(value)
    if base in _SEQUENCES:
        return [base.__name__, *(encode(item, other) for item in value)]  # type: ignore[union-attr, attr-defined]
    if base in _MAPPINGS:
        pairs = ([encode(key, other), encode(item, other)] for key, item in value.items())  # type: ignore[attr-defined]
        return [base.__name__, *pairs]  # type: ignore[union-attr]
    if base is not None:
        return _atom(base, value)
    if type(value) is range:
        return ["range", value.start, value.stop, value.step]
    if type(value).__module__ in _STANDARD and (state := _standard_state(value)) is not None:
        return [type(value).__name__, *state]
    if id(value) in _BUILTIN_NAMES and other is not None:
        return ["builtin", _BUILTIN_NAMES[id(value)]]
    return ["other", type(value).__name__] if other is None else other(value)


def _atom(base: type, value: object) -> Tree:
    if base is int:
        return ["int", format(int(value), "x")]  # type: ignore[call-overload]
    if base is float:
        return ["float", (float(value) + 0.0).hex()]  # type: ignore[arg-type]  # -0.0 equals 0.0
    if base is complex:
        return ["complex", value.real.hex(), value.imag.hex()]  # type: ignore[attr-defined]
    if base is str:
        return ["str", str.__str__(value)]  # type: ignore[arg-type]
    return [base.__name__, value.hex()]  # type: ignore[attr-defined]


# Values of standard modules that tests compare with; the modules are imported only where a candidate did.
_STANDARD = ("decimal", "fractions", "datetime")


def _standard_state(value: object) -> Tree | None:
    kind = type(value)
    if getattr(sys.modules.get(kind.__module__), kind.__name__, None) is not kind:
        return None
    match kind.__name__:
        case "Decimal":
            return [str(value)]
        case "Fraction":
            return [f"{value.numerator}/{value.denominator}"]  # type: ignore[attr-defined]
        case "date" | "datetime" | "time":
            return [value.isoformat()]  # type: ignore[attr-defined]
        case "timedelta":
            return [value.days, value.seconds, value.microseconds]  # type: ignore[attr-defined]
    return None


def _standard_value(tree: Tree) -> object:
    match tree:
        case ["Decimal", str() as text]:
            import decimal

            return decimal.Decimal(text)
        case ["Fraction", str() as text]:
            import fractions

            return fractions.Fraction(text)
        case ["date" | "datetime" | "time" as name, str() as text]:
            import datetime

            kinds = {"date": datetime.date, "datetime": datetime.datetime, "time": datetime.time}
            return kinds[name].fromisoformat(text)  # type: ignore[attr-defined]
        case ["timedelta", int() as days, int() as seconds, int() as microseconds]:
            import datetime

            return datetime.timedelta(days, seconds, microseconds)
    return None


def decode(tree: object, other: Callable[[Tree], object]) -> object:
    """The value of a tree that came from another process; ValueError for what is none. `other` reads its own tags."""
    match tree:
        case ["none"]:
            return None
        case ["bool", bool() as flag]:
            return flag
        case ["int", str() as digits]:
            return int(digits, 16)
        case ["float", str() as digits]:
            return float.fromhex(digits)
        case ["complex", str() as real, str() as imaginary]:
            return complex(float.fromhex(real), float.fromhex(imaginary))
        case ["str", str() as text]:
            return text
        case ["bytes", str() as digits]:
            return bytes.fromhex(digits)
        case ["bytearray", str() as digits]:
            return bytearray.fromhex(digits)
        case ["range", int() as start, int() as stop, int() as step]:
            return range(start, stop, step)
        case ["builtin", str() as name] if name in _BUILTINS:
            return _BUILTINS[name]
        case [str() as tag, *items]:
            found = _standard_value([tag, *items])
            return _collection(tag, items, other) if found is None else found
    raise ValueError("no value")


def _collection(tag: str, items: list[object], other: Callable[[Tree], object]) -> object:
    for kind in _SEQUENCES:
        if tag == kind.__name__:
            return kind(decode(item, other) for item in items)
    for mapping in _MAPPINGS:
        if tag == mapping.__name__:
            made: dict[object, object] = mapping()  # type: ignore[assignment]
            for pair in items:
                if not isinstance(pair, list) or len(pair) != 2:
                    raise ValueError("no mapping")
                made[decode(pair[0], other)] = decode(pair[1], other)
            return made
    return other([tag, *items])
