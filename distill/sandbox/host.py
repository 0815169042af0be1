"""The host's side of the sandbox: starts the guest program under bubblewrap and talks to it."""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from distill.sandbox.checks import Check, canonical
from distill.sandbox.types import Isolation, Limits, SandboxError, SandboxVerdict

GUEST = Path(__file__).with_name("guest.py")
_START_SECONDS = 20.0
_GRACE_SECONDS = 5.0  # beyond a job's wall time, before the guest itself counts as hung
_TMP_BYTES = 16 * 2**20
_REPLY_BYTES = 8 * 2**20

INSTALL = "install it (`apt-get install bubblewrap`), or ask for `isolation: none` by name"


def _system_folders() -> list[str]:
    """Arguments that show the system's programs and libraries, read-only, and nothing else of the machine."""
    arguments = ["--ro-bind", "/usr", "/usr"]
    for name in ("/lib", "/lib64", "/lib32", "/bin"):
        if os.path.islink(name):
            arguments += ["--symlink", os.readlink(name), name]
        elif os.path.isdir(name):
            arguments += ["--ro-bind", name, name]
    if os.path.exists("/etc/ld.so.cache"):
        arguments += ["--ro-bind", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    prefix = os.path.realpath(sys.base_prefix)
    if not prefix.startswith("/usr"):
        arguments += ["--ro-bind", prefix, prefix]
    return arguments


def command(isolation: Isolation) -> list[str]:
    """The command line that starts a guest."""
    python = [os.path.realpath(sys.executable), "-I", "-S", "-E"]
    if isolation == "none":
        return [*python, str(GUEST), "open"]
    bubblewrap = shutil.which("bwrap")
    if bubblewrap is None:
        raise SandboxError("bubblewrap (bwrap) is not installed, and untrusted code needs it", remedy=INSTALL)
    return [
        *(bubblewrap, "--unshare-all", "--die-with-parent", "--new-session", "--clearenv"),
        *("--setenv", "PATH", "/usr/bin", "--setenv", "LANG", "C.UTF-8", "--setenv", "HOME", "/tmp"),
        *_system_folders(),
        *("--dev", "/dev", "--size", str(_TMP_BYTES), "--tmpfs", "/tmp"),
        *("--ro-bind", str(GUEST), "/guest.py", "--remount-ro", "/", "--chdir", "/tmp", "--cap-drop", "ALL"),
        *python,
        *("/guest.py", "contained"),
    ]


class Guest:
    """One running guest; not for use by two threads. Restarts itself when a candidate may have left traces."""

    def __init__(self, isolation: Isolation) -> None:
        self._isolation = isolation
        self._process: subprocess.Popen[bytes] | None = None
        self._namespaces = False
        self._buffer = b""

    def __enter__(self) -> "Guest":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the guest unless it runs; SandboxError says why it cannot."""
        if self._process is not None:
            return
        arguments = command(self._isolation)
        self._buffer = b""
        self._process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={},
            cwd="/",
            start_new_session=True,
        )
        hello = self._receive(_START_SECONDS)
        if hello is None:
            complaint = self._complaint()
            self.close()
            name = "bubblewrap" if self._isolation == "bubblewrap" else "the sandbox's interpreter"
            remedy = "allow user namespaces (sysctl kernel.unprivileged_userns_clone=1), or ask for `isolation: none`"
            raise SandboxError(f"{name} does not start here: {complaint}", remedy=remedy)
        self._namespaces = bool(hello["namespaces"])

    def close(self) -> None:
        """Kill the guest and all that runs in it."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
        self._process = None

    def run(self, code: str, checks: list[Check], entry_point: str | None, limits: Limits) -> SandboxVerdict:
        """The verdict on one candidate."""
        self.start()
        assert self._process is not None and self._process.stdin is not None
        nonce = os.urandom(16).hex()
        job = {
            "code": code,
            "checks": [(check.mode, check.source) for check in checks],
            "entry_point": entry_point,
            "limits": asdict(limits),
            "nonce": nonce,
        }
        try:
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()
            report = self._receive(limits.wall_seconds + _GRACE_SECONDS)
        except BrokenPipeError:
            report = None
        if report is None or report["stopped"] == "broken":
            self.close()
            return SandboxVerdict(False, 0, len(checks), "error: the sandbox was brought down", limits.wall_seconds)
        if not report["clean"] or (self._isolation == "bubblewrap" and not self._namespaces):
            self.close()
        return judge(report, checks, nonce)

    def _receive(self, seconds: float) -> dict[str, object] | None:
        """The next line from the guest as an object; None when it ends, talks nonsense or stays silent."""
        assert self._process is not None and self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                return None
            part = os.read(descriptor, 65536)
            if not part or len(self._buffer) > _REPLY_BYTES:
                return None
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            return None
        return message if isinstance(message, dict) else None

    def _complaint(self) -> str:
        assert self._process is not None and self._process.stderr is not None
        self._process.kill()
        lines = self._process.stderr.read(4096).decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it ended without a word")


def _outcomes(raw: str, nonce: str, count: int) -> dict[int, list[object]]:
    """The first outcome of each check (-1: of the candidate as a whole); lines of another form do not count."""
    found: dict[int, list[object]] = {}
    for line in raw.split("\n"):
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            continue
        match message:
            case [str() as key, int() as index, [str(), *_] as outcome] if key == nonce and index < count:
                found.setdefault(index, outcome)
    return found


def _is_value(outcome: list[object], expected: str) -> bool:
    try:
        return len(outcome) == 2 and outcome[0] == "value" and canonical(outcome[1]) == expected
    except RecursionError:  # nested as deep as no expected value is
        return False


def judge(report: dict[str, object], checks: list[Check], nonce: str) -> SandboxVerdict:
    """The verdict from what came back: values are compared here, not in the sandbox."""
    outcomes = _outcomes(str(report["raw"]), nonce, len(checks))
    passed = 0
    first_bad: list[object] | None = outcomes.get(-1)
    for index, check in enumerate(checks):
        outcome = outcomes.get(index)
        if outcome is not None and _is_value(outcome, check.expected):
            passed += 1
        elif first_bad is None and outcome is not None:
            first_bad = outcome
    ok = passed == len(checks)
    seconds = report["seconds"]
    assert isinstance(seconds, float)
    return SandboxVerdict(ok, passed, len(checks), "passed" if ok else _reason(report, first_bad), seconds)


def _reason(report: dict[str, object], first_bad: list[object] | None) -> str:
    if report["stopped"]:
        return str(report["stopped"])
    if report["signal"] == signal.SIGXCPU:
        return "timeout"
    match first_bad:
        case ["value", *_]:
            return "failed"
        case ["missing"]:
            return "no function"
        case ["error", str() as text]:
            return f"error: {text}"
        case [str() as kind, *_] if kind in ("forbidden", "memory"):
            return kind
    if report["signal"]:
        return "memory" if report["signal"] == signal.SIGKILL else f"error: killed by signal {report['signal']}"
    return "error: ended before its tests did"
