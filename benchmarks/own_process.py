"""Work in a forked process of its own, which says how far it is, and is ended after a time."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
M = TypeVar("M")
NOT_DONE = "not done"


@dataclass(frozen=True)
class Told(Generic[M]):
    """Something that the work says before it is done."""

    what: M


def in_own_process(
    work: Callable[[Callable[[M], None]], T], hear: Callable[[M], None], *, limit: float | None = None
) -> T | str:
    """What `work` returns in a process of its own, or why it returns nothing. It is given a function for what it has to
    tell meanwhile, which `hear` gets; after `limit` seconds it is killed."""
    context = multiprocessing.get_context("fork")  # what is imported already need not be again; CUDA is not in use here
    receiver, sender = context.Pipe(duplex=False)

    def answer() -> None:
        try:
            sender.send(work(lambda what: sender.send(Told(what))))
        except BaseException as error:
            traceback.print_exc()
            sender.send(f"{type(error).__name__}: {error}")
        sys.stdout.flush()
        os._exit(0)

    process = context.Process(target=answer)
    process.start()
    sender.close()
    deadline = None if limit is None else time.monotonic() + limit
    found: T | str = f"{NOT_DONE} after {limit} s"
    try:
        while receiver.poll(None if deadline is None else max(0.0, deadline - time.monotonic())):
            told = receiver.recv()
            if not isinstance(told, Told):
                found = told
                break
            hear(told.what)
        else:
            process.kill()
    except EOFError:
        found = "its process was killed"
    process.join()
    return found
