"""The program inside the sandbox: it forks fresh processes for each candidate and sends back what they say.

Standard library only: it runs under `python -I -S -E`. Jobs come in on stdin, one line (JSON) each and one at a time;
replies go to stdout. Tests come in a file in memory, whose descriptor is the last argument. Behind each other stand

- the loop in `main`, which runs no foreign code, and reads none either: what it read, later candidates would find in
  the memory that they inherit;
- for each job a supervisor, which moves into new namespaces (where that is possible), reads the job, starts the
  processes below, reads their results up to a limit of time and bytes, and kills them with all that they started;
- the candidate, and, for tests that are more than one comparison, the tests' process, the only one that ever reads
  them. Both have no capability, no descriptor but /dev/null and their pipes, resource limits, and a seccomp filter.
  The tests' process is the first of the PID namespace, which the kernel protects from the signals of the others; the
  candidate cannot name any other.
"""

import contextlib
import ctypes
import fcntl
import importlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence

from distill.sandbox.guest import candidate, tests
from distill.sandbox.guest.confine import confine, hide, isolate, libc
from distill.sandbox.guest.outcomes import RESULTS

_BROKEN: dict[str, object] = {"stopped": "broken"}
_LINE = (RESULTS + 1, RESULTS + 2)  # where a child finds its end of the line between tests and candidate
_TESTS = RESULTS + 3  # where the tests' process finds the file
# What candidates import most: a fork of a process that has them need not load them.
_PRELOADED = ("bisect", "copy", "dataclasses", "datetime", "decimal", "fractions", "heapq", "random", "re", "typing")
_ENDING_SECONDS = 0.1
# Killed, a process that used this share of its CPU seconds ran out of them. The kernel counts those in ticks: on a busy
# machine it kills at 0.65 of what it then reports as used.
_CPU_SHARE = 0.3
_ENDED = 2  # exit code of a supervisor that found no more jobs


def _start(body: Callable[[], None], library: ctypes.CDLL, limits: dict[str, float], kept: Sequence[int]) -> int:
    """A confined child that holds /dev/null and, from 3 on, the `kept` descriptors; its PID."""
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        os.umask(0o022)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, RESULTS + len(kept)) for descriptor in kept]
        null = os.open("/dev/null", os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        for place, descriptor in enumerate(moved):
            os.dup2(descriptor, RESULTS + place)
        os.closerange(RESULTS + len(kept), os.sysconf("SC_OPEN_MAX"))
        confine(library, limits)
        body()
    finally:
        os._exit(0)


def _start_all(library: ctypes.CDLL, job: dict[str, object]) -> dict[int, int]:
    """Start what the job needs, the candidate last: PID -> the descriptor on which it is heard."""
    limits: dict[str, float] = job["limits"]  # type: ignore[assignment]
    heard: dict[int, int] = {}
    opened: list[int] = []

    def pipe() -> tuple[int, int]:
        ends = os.pipe()
        opened.extend(ends)
        return ends

    line: tuple[int, int] | None = None
    if job["tests_bytes"]:
        from_candidate, to_tests = pipe()
        from_tests, to_candidate = pipe()
        receiving, sending = pipe()
        kept = (sending, from_candidate, to_candidate, int(sys.argv[3]))
        heard[_start(lambda: _run_tests(job), library, limits, kept)] = receiving
        line = (from_tests, to_tests)
    receiving, sending = pipe()
    inner = None if line is None else _LINE
    kept = (sending, *(line or ()))
    heard[_start(lambda: candidate.run(job, inner), library, limits, kept)] = receiving
    for descriptor in set(opened) - set(heard.values()):
        os.close(descriptor)
    return heard


def _run_tests(job: dict[str, object]) -> None:
    found = json.loads(os.pread(_TESTS, int(str(job["tests_bytes"])), 0))
    tests.run(found, job, _LINE)
    for descriptor in (RESULTS, *_LINE):  # the first process of a namespace takes the others with it: not before time
        os.close(descriptor)
    signal.pause()


def _collect(pipes: list[int], limits: dict[str, float]) -> tuple[list[bytearray], str]:
    """(what came on each pipe, "" or why we stopped listening)."""
    received = {pipe: bytearray() for pipe in pipes}
    listening = set(pipes)
    deadline = time.monotonic() + limits["wall_seconds"]
    stopped = ""
    while listening and not stopped:
        left = deadline - time.monotonic()
        for pipe in select.select(list(listening), [], [], max(left, 0))[0]:
            part = os.read(pipe, 65536)
            received[pipe] += part
            if not part:
                listening.remove(pipe)
            if len(received[pipe]) > limits["output_bytes"]:
                received[pipe].clear()
                stopped = "output"
        if listening and not stopped and left <= 0:
            stopped = "timeout"
    return [received[pipe] for pipe in pipes], stopped


def _end(children: list[int], *, patient: bool) -> tuple[int, float]:
    """Kill what still runs; the signal that ended the candidate, which is the last, if it was not ours, else 0; and
    the most CPU seconds that one of them used."""
    # With `patient`, the candidate has closed its pipe, most likely by ending.
    ended = patient and bool(select.select([os.pidfd_open(children[-1])], [], [], _ENDING_SECONDS)[0])
    signals, spent = [], 0.0
    for child in reversed(children):  # the end of the first takes all others with it
        for kill in (os.kill, os.killpg):
            with contextlib.suppress(OSError):
                kill(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
        signals.append(os.WTERMSIG(status) if ended and os.WIFSIGNALED(status) else 0)
        spent = max(spent, usage.ru_utime + usage.ru_stime)
    return signals[0], spent


def _supervise(library: ctypes.CDLL, job: dict[str, object], namespaces: bool) -> dict[str, object]:
    """Run one candidate to its end and report; called in a process of its own."""
    limits: dict[str, float] = job["limits"]  # type: ignore[assignment]
    limits["namespaces"] = namespaces
    start = time.monotonic()
    heard = _start_all(library, job)
    said, stopped = _collect(list(heard.values()), limits)
    killed, spent = _end(list(heard), patient=not stopped)
    if killed == signal.SIGKILL and spent > _CPU_SHARE * limits["cpu_seconds"]:
        stopped = "timeout"
    return {
        "candidate": said[-1].decode(errors="replace"),
        "tests": said[0].decode(errors="replace") if len(said) > 1 else "",
        "stopped": stopped,
        "signal": killed,
        "namespaces": namespaces,
        "seconds": time.monotonic() - start,
    }


def _reply(message: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _answer(library: ctypes.CDLL) -> int:
    """Wait for a job in new namespaces, run it and reply; the exit code of the supervisor."""
    namespaces = sys.argv[1] == "contained" and isolate(library)
    line = bytearray()
    while not line.endswith(b"\n"):
        part = os.read(0, 65536)
        if not part:
            return _ENDED
        line += part
    _reply(_supervise(library, json.loads(line), namespaces))
    return 0


def main() -> None:
    """Say hello, then answer jobs until stdin ends."""
    library = libc()
    hide(library)
    os.environ.clear()  # bubblewrap itself sets PWD
    _reply({"ready": True})
    waiting = list(_PRELOADED)
    while True:
        supervisor = os.fork()
        if supervisor == 0:
            code = 1
            try:
                code = _answer(library)
            finally:
                os._exit(code)
        while waiting:  # for the later ones: who runs one candidate only need not wait for it
            importlib.import_module(waiting.pop())
        code = os.waitstatus_to_exitcode(os.waitpid(supervisor, 0)[1])
        if code != 0:
            if code != _ENDED:
                _reply(_BROKEN)
            return
