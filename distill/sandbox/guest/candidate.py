"""The candidate's process: runs its code and the calls it is sent. It holds no expected value and no test."""

import operator
import types
from collections.abc import Callable

from distill.sandbox.guest.outcomes import explain, send
from distill.sandbox.guest.remote import ARITHMETIC, COMPARISONS, Broken, Operation, Peer, builtin_base
from distill.sandbox.guest.values import encode


def run(job: dict[str, object], line: tuple[int, int] | None) -> None:
    """Load the code, evaluate the calls, then do what the tests' process asks for on `line`, where there is one."""
    scope: dict[str, object] = {"__name__": "candidate"}
    try:
        exec(compile(str(job["code"]), "<candidate>", "exec"), scope)
    except BaseException as error:
        send(-1, explain(error))
        return
    if job["entry_point"] is not None and not callable(scope.get(str(job["entry_point"]))):
        send(-1, ["missing"])
        return
    for index, source in job["calls"]:  # type: ignore[attr-defined]
        try:
            send(index, ["value", encode(eval(source, scope))])
        except BaseException as error:
            send(index, explain(error))
    if line is not None:
        try:
            Peer(*line, _operations(scope), output_bytes=2**62, guarded=False).serve()
        except Broken:
            return
        except BaseException as error:
            send(-1, explain(error))


def _operations(scope: dict[str, object]) -> dict[str, Operation]:
    def name(wanted: str) -> object:
        if wanted not in scope:
            raise NameError(f"name '{wanted}' is not defined")
        return scope[wanted]

    named = {word: getattr(operator, word) for word in (*COMPARISONS, "getitem", "setitem", "delitem", "neg", "invert")}
    named |= {word: getattr(operator, word + "_" * (word in ("and", "or"))) for word in ARITHMETIC}
    plain = {"len": len, "str": str, "repr": repr, "bool": bool, "abs": abs, "isinstance": isinstance}
    return {
        **named,
        **plain,
        **{"get": getattr, "set": setattr, "call": call, "iter": iter, "next": next},
        **{"name": name, "origin": _origin, "exception": _exception},
    }


def call(function: Callable[..., object], /, *values: object, **names: object) -> object:
    """What `function` returns."""
    return function(*values, **names)


def _origin(thing: object) -> list[str] | None:
    """Where a module, or what was imported from one, comes from."""
    if isinstance(thing, types.ModuleType):
        return [thing.__name__, ""]
    home, name = getattr(thing, "__module__", None), getattr(thing, "__name__", None)
    return [home, name] if isinstance(home, str) and isinstance(name, str) else None


def _exception(thing: object) -> str | None:
    """For a class of exceptions, its nearest builtin base."""
    return builtin_base(thing) if isinstance(thing, type) and issubclass(thing, Exception) else None
