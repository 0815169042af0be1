"""Hostile programs in bubblewrap: none gets at the host or at its neighbours, and none passes tests it does not pass.

They run only where they are contained: some kill every process that they can name.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from distill.sandbox.checks import parse_tests
from distill.sandbox.host import Guest, command
from distill.sandbox.types import Limits, SandboxVerdict
from tests.sandbox.corpus import FORGED_TESTS, Payload, World, all_processes, payloads, processes_below, world

QUICK = Limits(cpu_seconds=1, wall_seconds=0.3)
PATIENT = Limits(cpu_seconds=1, wall_seconds=10.0)  # for code that ends by itself: the machine may be busy
ALL = payloads()
HOSTILE = [payload for payload in ALL if payload.kind != "forge"]
FORGERS = [payload for payload in ALL if payload.kind == "forge"]

HONEST = "import math\ndef f(x):\n    return x + 1"

# What the next candidate finds: the same as in a sandbox that has run nothing.
PROBE = """
import os, signal, sys, resource, threading
def f(x):
    return [
        [os.listdir(folder) for folder in ("/tmp", "/dev/shm", "/proc")], os.getcwd(), os.umask(0o22),
        sorted(os.environ), [path for path in sys.path if not path.startswith(sys.base_prefix)], os.uname().nodename,
        threading.active_count(), resource.getrlimit(resource.RLIMIT_CPU), signal.getitimer(signal.ITIMER_REAL)[0],
        sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())), os.getpid(), [i for i in range(64) if _is_open(i)],
    ]
def _is_open(number):
    try:
        os.fstat(number)
        return True
    except OSError:
        return False
"""

PROBED = [
    [[], [], []], "/tmp", 0o22, [], [], "sandbox", 1, (1, 1), 0.0, [], 1, [0, 1, 2, 3],
]  # fmt: skip


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("canary")) as made:
        yield made


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with Guest("bubblewrap") as started:
        started.start()
        yield started


def judge(guest: Guest, code: str, tests: tuple[str, ...], limits: Limits = QUICK) -> SandboxVerdict:
    return guest.run(code, parse_tests(tests, "f"), "f", limits)


def test_there_are_enough() -> None:
    assert len(HOSTILE) >= 40 and len(FORGERS) >= 8
    assert len({(payload.kind, payload.name) for payload in ALL}) == len(ALL)


@pytest.mark.parametrize("payload", HOSTILE, ids=lambda payload: f"{payload.kind}: {payload.name}")
def test_no_escape(payload: Payload, target: World, guest: Guest) -> None:
    verdict = judge(guest, target.aim(payload.code), target.evidence())
    assert verdict.passed == 0, verdict
    assert verdict.seconds < QUICK.wall_seconds + 1
    assert target.harm() == []
    assert judge(guest, HONEST, ("assert f(1) == 2", "assert f(1) > 1"), PATIENT).reason == "passed"
    assert "brought down" not in verdict.reason


@pytest.mark.parametrize("payload", FORGERS, ids=lambda payload: payload.name)
def test_no_forged_pass(payload: Payload, target: World, guest: Guest) -> None:
    """All forms of tests but two in one job; the benchmark and the next test take each by itself."""
    apart = ("literal", "borrowed modules")
    joint = tuple(test for form, tests in FORGED_TESTS.items() if form not in apart for test in tests)
    for tests in (*(FORGED_TESTS[form] for form in apart), joint):
        verdict = judge(guest, target.aim(payload.code), tests)
        assert verdict.passed == 0, (tests, verdict)
    assert target.harm() == []


@pytest.mark.slow
@pytest.mark.parametrize("form", FORGED_TESTS)
def test_no_forged_pass_in_any_form(form: str, target: World, guest: Guest) -> None:
    for payload in FORGERS:
        verdict = judge(guest, target.aim(payload.code), FORGED_TESTS[form], Limits())
        assert verdict.passed == 0, (payload.name, verdict)
    assert target.harm() == []


@pytest.mark.parametrize("form", FORGED_TESTS)
def test_honest_code_passes_them_all(form: str, guest: Guest) -> None:
    assert judge(guest, HONEST, FORGED_TESTS[form], PATIENT).reason == "passed"


def test_the_next_candidate_finds_nothing(target: World, guest: Guest) -> None:
    probe = (f"assert f(1) == {PROBED!r}",)
    assert judge(guest, PROBE, probe, PATIENT).reason == "passed"
    for payload in ALL:
        if payload.kind == "zygote":
            judge(guest, target.aim(payload.code), target.evidence())
            assert judge(guest, PROBE, probe, PATIENT).reason == "passed", payload.name


def test_the_search_of_the_memory_would_find_something(guest: Guest) -> None:
    """The payload that looks for earlier candidates finds what really is in its own memory, and no earlier one."""
    [search] = [payload for payload in ALL if payload.name.startswith("searches its memory")]
    mark = "# earlier-candidate " * 4000
    judge(guest, f"{mark}\ndef f(x):\n    return 1", ("assert f(1) == 1",), PATIENT)
    found = ("assert f(1) == 'escaped'",)
    assert not judge(guest, search.code, found, PATIENT).ok
    assert judge(guest, f"{search.code}\nheld = {mark!r}", found, PATIENT).ok


def test_nothing_survives() -> None:
    with Guest("bubblewrap") as guest:
        for payload in ALL:
            if payload.name in ("becomes a daemon", "forks without end", "ignores all signals and never ends"):
                judge(guest, payload.code, ("assert f(1) == 2",))
        assert guest._process is not None
        running = {guest._process.pid} | processes_below(guest._process.pid)
        assert len(running) > 2
    deadline = time.monotonic() + 10  # the kernel ends a namespace in its own time
    while running & set(all_processes()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_naive_harness_is_forged(target: World) -> None:
    """The payloads are no duds: code and test in one process, where exit code 0 is a pass, is fooled by many."""
    arguments = command("bubblewrap")
    naive = arguments[: arguments.index("-c") + 1]
    fooled = []
    for payload in FORGERS:
        program = f"{target.aim(payload.code)}\nassert f(1) == 2\nassert f(2) == 3\n"
        run = subprocess.run([*naive, program], capture_output=True, timeout=20, start_new_session=True)
        if run.returncode == 0:
            fooled.append(payload.name)
    assert len(fooled) >= 8, fooled


HARMLESS_ENOUGH = {
    *("reads a file of the host", "climbs out with ..", "writes into a file of the host", "deletes a file of the host"),
    *("reads the environment of the host", "reads the environment in the C library", "runs a program"),
    *("reads the environment of other processes", "connects to the host's loopback", "connects with the C library"),
    *("connects to unix sockets of the host", "listens", "kills a process of the host"),
}


def test_without_a_sandbox_they_do_get_out(tmp_path: Path) -> None:
    """Nor are the others duds; shown with those that do this machine no harm."""
    chosen = [payload for payload in HOSTILE if payload.name in HARMLESS_ENOUGH]
    assert len(chosen) == len(HARMLESS_ENOUGH)
    for payload in chosen:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        with world(folder) as target:
            program = f"{target.aim(payload.code)}\nprint(f(1))"
            run = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, timeout=20)
            assert run.stdout.strip() in ("escaped", target.secret) or target.harm(), (payload.name, run)
