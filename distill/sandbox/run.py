"""Untrusted Python code against tests: one candidate, or many at a time."""

import hashlib
import json
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict

from distill.sandbox.checks import parse_tests
from distill.sandbox.host import Guest
from distill.sandbox.types import Isolation, Job, Limits, SandboxVerdict

__all__ = ["Isolation", "Job", "Limits", "SandboxVerdict", "check_available", "job_key", "run_code", "run_many"]


def check_available(isolation: Isolation = "bubblewrap") -> None:
    """Start a guest once; SandboxError, with the remedy, where that fails."""
    with Guest(isolation) as guest:
        guest.start()


def job_key(job: Job, limits: Limits, isolation: Isolation) -> str:
    """Equal for jobs that must have equal verdicts."""
    fields = [job.code, list(job.tests), job.entry_point, asdict(limits), isolation]
    return hashlib.sha256(json.dumps(fields).encode()).hexdigest()


def _run(guest: Guest, job: Job, limits: Limits) -> SandboxVerdict:
    if not job.tests:
        return SandboxVerdict(False, 0, 0, "no tests", 0.0)
    return guest.run(job.code, parse_tests(job.tests, job.entry_point), job.entry_point, limits)


def run_code(
    code: str,
    tests: Sequence[str],
    *,
    entry_point: str | None,
    limits: Limits = Limits(),
    isolation: Isolation = "bubblewrap",
) -> SandboxVerdict:
    """The verdict on one candidate, in a sandbox started for it."""
    with Guest(isolation) as guest:
        return _run(guest, Job(code, tuple(tests), entry_point), limits)


def run_many(
    jobs: Sequence[Job],
    *,
    workers: int = 2,
    limits: Limits = Limits(),
    isolation: Isolation = "bubblewrap",
    progress: Callable[[int], None] | None = None,
) -> list[SandboxVerdict]:
    """Verdicts in the order of the jobs; equal jobs run once.

    `progress` is called in the caller's thread with the number of jobs done so far. A sandbox that cannot start, or
    Ctrl-C, ends all workers before the error leaves this function.
    """
    places: dict[str, list[int]] = {}
    for index, job in enumerate(jobs):
        places.setdefault(job_key(job, limits, isolation), []).append(index)
    waiting: queue.SimpleQueue[tuple[str, Job]] = queue.SimpleQueue()
    for key, indices in places.items():
        waiting.put((key, jobs[indices[0]]))
    done: queue.SimpleQueue[tuple[str, SandboxVerdict] | Exception] = queue.SimpleQueue()
    stop = threading.Event()

    def work() -> None:
        try:
            with Guest(isolation) as guest:
                while not stop.is_set():
                    key, job = waiting.get_nowait()
                    done.put((key, _run(guest, job, limits)))
        except queue.Empty:
            return
        except Exception as error:  # raised again in the caller's thread
            done.put(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(workers, len(places)))]
    verdicts: list[SandboxVerdict | None] = [None] * len(jobs)
    finished = 0
    try:
        for thread in threads:
            thread.start()
        for _ in places:
            outcome = done.get()
            if isinstance(outcome, Exception):
                raise outcome
            for index in places[outcome[0]]:
                verdicts[index] = outcome[1]
            finished += len(places[outcome[0]])
            if progress is not None:
                progress(finished)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    return [verdict for verdict in verdicts if verdict is not None]
