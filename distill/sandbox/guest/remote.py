"""Two processes that call each other's functions: the tests on one side, the candidate on the other.

A line (JSON) is a request, `["do", operation, operands, names]`, or an answer: `["value", tree, changed]`,
`["same", place, changed]` or `["raise", name, base, text]`. Plain data travels as it is; what is none stays where it
is, and the other side holds a `Remote`, whose operations are requests. `changed` is what arguments became meanwhile.
"""

import builtins
import json
import os
from collections.abc import Callable
from typing import NoReturn

from distill.sandbox.guest.values import Tree, decode, encode, plain_type

_CHANGEABLE = (list, dict, set, bytearray)
Operation = Callable[..., object]


class Broken(BaseException):
    """The other side is gone or talks nonsense. No `Exception`, so that no test takes it for a call that fails."""


class Peer:
    """One end of the line to the other process. With `guarded`, it may only use what this side has handed to it."""

    def __init__(
        self, reading: int, writing: int, operations: dict[str, Operation], *, output_bytes: int, guarded: bool
    ) -> None:
        self._reading = reading
        self._writing = writing
        self._operations = operations
        self._guarded = guarded
        self._left = output_bytes  # that the other side may still send
        self._buffer = bytearray()
        self._shown: list[object] = []  # what the other side holds as Remote, by number
        self._exceptions: dict[str, type[Exception]] = {}
        self.broken = False

    def request(self, operation: str, *operands: object, **names: object) -> object:
        """The result of an operation on the other side. Raises what it raised, or Broken."""
        trees = [encode(operand, self._show) for operand in operands]
        self._send(["do", operation, trees, [[name, encode(value, self._show)] for name, value in names.items()]])
        while True:
            match self._receive():
                case ["do", str() as wanted, list() as values, list() as pairs]:
                    self._send(self._perform(wanted, values, pairs))
                case ["value", tree, list() as changed]:
                    self._change(operands, changed)
                    return self._decode(tree)
                case ["same", int() as place, list() as changed] if 0 <= place < len(operands):
                    self._change(operands, changed)
                    return operands[place]
                case ["raise", str() as name, str() as base, str() as text]:
                    raise self.exception(name, base)(text)
                case _:
                    self._break()

    def serve(self) -> None:
        """Answer requests until the other side is done, which raises Broken."""
        while True:
            match self._receive():
                case ["do", str() as wanted, list() as values, list() as pairs]:
                    self._send(self._perform(wanted, values, pairs))
                case _:
                    self._break()

    def exception(self, name: str, base: str) -> type[Exception]:
        """The builtin exception of that name, or one of our own, always the same, under a builtin base."""
        for known in (name, base):
            kind = vars(builtins).get(known)
            if isinstance(kind, type) and issubclass(kind, Exception):
                return kind if known == name else self._exceptions.setdefault(name, type(name, (kind,), {}))
        return Exception

    def _perform(self, wanted: str, values: list[object], pairs: list[object]) -> list[object]:
        if wanted not in self._operations:
            return ["raise", "AttributeError", "AttributeError", f"{wanted} is not for the other side"]
        if self._guarded and not (values and isinstance(values[0], list) and values[0][:1] == ["yours"]):
            self._break()
        operands = [self._decode(value) for value in values]
        names = {str(name): self._decode(value) for name, value in pairs}  # type: ignore[misc, has-type]
        before = [encode(value, self._show) if plain_type(value) in _CHANGEABLE else None for value in operands]
        try:
            result = self._operations[wanted](*operands, **names)
            changed = [
                [place, new]
                for place, (old, value) in enumerate(zip(before, operands, strict=True))
                if old is not None and (new := encode(value, self._show)) != old
            ]
            for place, value in enumerate(operands):
                if value is result and before[place] is not None:
                    return ["same", place, changed]
            return ["value", encode(result, self._show), changed]
        except Exception as error:
            return ["raise", type(error).__name__, builtin_base(type(error)), _text(error)]

    def _change(self, operands: tuple[object, ...], changed: list[object]) -> None:
        """Give lists, dicts, sets and bytearrays the content that they have on the other side."""
        for entry in changed:
            match entry:
                case [int() as place, tree] if 0 <= place < len(operands):
                    old, new = operands[place], self._decode(tree)
                case _:
                    self._break()
            if (
                isinstance(old, list)
                and isinstance(new, list)
                or isinstance(old, bytearray)
                and isinstance(new, bytearray)
            ):
                old[:] = new  # type: ignore[index]
            elif isinstance(old, dict) and isinstance(new, dict) or isinstance(old, set) and isinstance(new, set):
                old.clear()
                old.update(new)  # type: ignore[arg-type]
            else:
                self._break()

    def _show(self, value: object) -> Tree:
        if isinstance(value, Remote):
            return ["yours", object.__getattribute__(value, "_number")]
        for number, shown in enumerate(self._shown):
            if shown is value:
                return ["mine", number]
        self._shown.append(value)
        return ["mine", len(self._shown) - 1]

    def _decode(self, tree: object) -> object:
        try:
            return decode(tree, self._seen)
        except (ValueError, TypeError, RecursionError, ArithmeticError, MemoryError):
            self._break()

    def _seen(self, tree: Tree) -> object:
        match tree:
            case ["mine", int() as number]:
                return Remote(self, number)
            case ["yours", int() as number] if 0 <= number < len(self._shown):
                return self._shown[number]
        raise ValueError("no value")

    def _send(self, message: list[object]) -> None:
        line = json.dumps(message).encode() + b"\n"
        try:
            while line:
                line = line[os.write(self._writing, line) :]
        except OSError:
            self._break()

    def _receive(self) -> object:
        while (end := self._buffer.find(b"\n")) < 0:
            try:
                part = os.read(self._reading, 65536)
            except OSError:
                part = b""
            self._left -= len(part)
            if not part or self._left < 0:
                self._break()
            self._buffer += part
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            return json.loads(line)
        except (ValueError, RecursionError):
            self._break()

    def _break(self) -> NoReturn:
        self.broken = True
        raise Broken


def builtin_base(kind: type) -> str:
    """The name of the nearest builtin that an exception's class derives from."""
    return next(base.__name__ for base in kind.__mro__ if vars(builtins).get(base.__name__) is base)


def _text(error: Exception) -> str:
    try:
        return str(error)[:500]
    except Exception:  # the candidate's own exception may fail to print
        return ""


# Questions about a value that plain data answers itself: asked of a remote object, it would be its own judge.
_QUESTIONS = {
    name
    for kind in (str, bytes, int, float, set, frozenset)
    for name in dir(kind)
    if name.startswith("is") or name.endswith("with")
}


class Remote:
    """An object of the other process. It is neither compared nor combined with plain data of this one, only with other
    objects of that process: an `__eq__` that is always true, or an `__sub__` that is always 0, has nothing to lie of.
    """

    def __init__(self, peer: Peer, number: int) -> None:
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_number", number)

    def __getattr__(self, name: str) -> object:
        if name.startswith("__") or name in _QUESTIONS:
            raise AttributeError(name)
        return _ask(self, "get", name)

    def __setattr__(self, name: str, value: object) -> None:
        _ask(self, "set", name, value)

    def __call__(self, /, *values: object, **names: object) -> object:
        return object.__getattribute__(self, "_peer").request("call", self, *values, **names)

    def __iter__(self) -> object:
        return _ask(self, "iter")

    def __hash__(self) -> int:
        return object.__getattribute__(self, "_number")

    def __instancecheck__(self, value: object) -> bool:
        return isinstance(value, Remote) and _ask(value, "isinstance", self) is True


def _ask(remote: Remote, operation: str, *operands: object) -> object:
    return object.__getattribute__(remote, "_peer").request(operation, remote, *operands)


def _unary(operation: str) -> Operation:
    return lambda self: _ask(self, operation)


def _items(operation: str) -> Operation:
    return lambda self, *operands: _ask(self, operation, *operands)


def _between_remotes(operation: str) -> Operation:
    return lambda self, right: _ask(self, operation, right) if isinstance(right, Remote) else NotImplemented


COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "matmul")
UNARY = ("next", "len", "str", "repr", "bool", "neg", "abs", "invert")
ITEMS = ("getitem", "setitem", "delitem")
for _name in (*COMPARISONS, *ARITHMETIC):
    setattr(Remote, f"__{_name}__", _between_remotes(_name))
for _name in UNARY:
    setattr(Remote, f"__{_name}__", _unary(_name))
for _name in ITEMS:
    setattr(Remote, f"__{_name}__", _items(_name))
