"""The tests' process: runs tests that are more than one comparison, with the candidate's names as remote objects.

What the candidate returns arrives as plain data, or as a `Remote` that equals none; so the assertion is decided here,
by this process's own builtins and modules, which the candidate can neither see nor change.
"""

import builtins
import importlib
import sys
import types
from typing import Any

from distill.sandbox.guest.candidate import call
from distill.sandbox.guest.outcomes import explain, send
from distill.sandbox.guest.remote import Broken, Operation, Peer, Remote


def run(tests: list[dict[str, Any]], job: dict[str, object], line: tuple[int, int]) -> None:
    """Run the tests in order in one scope. None holds once the candidate's process is gone."""
    limits: dict[str, float] = job["limits"]  # type: ignore[assignment]
    operations: dict[str, Operation] = {"call": call, "iter": iter, "next": next}
    peer = Peer(*line, operations, output_bytes=int(limits["output_bytes"]), guarded=True)
    scope: dict[str, object] = {"__name__": "tests"}
    borrowed: set[str] = set()
    entry: dict[str, list[str]] = {str(job["entry_point"]): []} if job["entry_point"] else {}
    for test in tests:
        try:
            for name, attributes in {**entry, **dict(test["names"])}.items():
                if name not in scope or name in borrowed:
                    _borrow(name, attributes, job["entry_point"], peer, scope)
                    borrowed.add(name)
            before = dict(scope)
            exec(compile(test["source"], "<test>", "exec"), scope)
            defined = {name: thing for name, thing in scope.items() if before.get(name) is not thing}
            _call_functions(defined, scope.get(str(job["entry_point"])))
        except Broken:
            return
        except BaseException as error:
            outcome: list[object] = ["failed"] if isinstance(error, AssertionError) else explain(error)
        else:
            outcome = ["held"]
        if peer.broken:
            return
        send(test["index"], outcome)


def _call_functions(defined: dict[str, object], candidate: object) -> None:
    """Call what a test only defines: `test...()` as pytest does, and `check(candidate)` as HumanEval does."""
    for name, thing in defined.items():
        if isinstance(thing, types.FunctionType):
            if name.startswith("test") and thing.__code__.co_argcount == 0:
                thing()
            elif name == "check" and thing.__code__.co_argcount == 1:
                thing(candidate)


def _borrow(name: str, attributes: list[str], entry_point: object, peer: Peer, scope: dict[str, object]) -> None:
    """Give a free name of a test its meaning: the candidate's function, else a builtin or a module of Python's own,
    else what the candidate's module calls so. What is nowhere raises NameError when the test uses it."""
    scope.pop(name, None)
    if name != entry_point:
        if name in vars(builtins):
            return
        if attributes and name in sys.stdlib_module_names:
            module = importlib.import_module(name)
            if all(attribute in dir(module) for attribute in attributes):
                scope[name] = module
                return
    try:
        thing = peer.request("name", name)
    except NameError:
        return
    scope[name] = _own(name, thing, peer) if isinstance(thing, Remote) and name != entry_point else thing


def _own(name: str, thing: Remote, peer: Peer) -> object:
    """This process's own form of a standard module, of what a standard module calls by this name, or of an exception's
    class, which `except` needs; else the remote object."""
    base = peer.request("exception", thing)
    if isinstance(base, str):
        return peer.exception(name, base)
    match peer.request("origin", thing):
        case [str() as home, str() as word] if home.partition(".")[0] in sys.stdlib_module_names:
            if word == "" and home == name:
                return importlib.import_module(home)
            if word == name and name in dir(module := importlib.import_module(home)):
                return vars(module).get(name, thing)
    return thing
