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

from distill.sandbox.checks import Check
from distill.sandbox.guest import main as program
from distill.sandbox.types import Isolation, Limits, SandboxError, SandboxVerdict
from distill.sandbox.verdict import judge

GUEST = Path(program.__file__).parent  # imported, it is compiled: inside, where all is read-only, that would be lost
_INSIDE = "/code/distill/sandbox/guest"
_MAIN = """\
import sys
sys.path.insert(0, sys.argv[2])
from distill.sandbox.guest.main import main
sys.path.pop(0)
main()"""
_START_SECONDS = 20.0
_GRACE_SECONDS = 5.0  # beyond a job's wall time, before the guest itself counts as hung
_TMP_BYTES = 16 * 2**20  # where candidates have no /tmp of their own
_REPLY_BYTES = 8 * 2**20

INSTALL = "install it (`apt-get install bubblewrap`), or ask for `isolation: none` by name"
ALLOW = (
    "allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, or on Ubuntu"
    " kernel.apparmor_restrict_unprivileged_userns=0), or ask for `isolation: none` by name"
)


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
    python = [os.path.realpath(sys.executable), "-I", "-S", "-E", "-c", _MAIN]
    if isolation == "none":
        return [*python, "open", str(GUEST.parents[2])]
    bubblewrap = shutil.which("bwrap")
    if bubblewrap is None:
        raise SandboxError("bubblewrap (bwrap) is not installed, and untrusted code needs it", remedy=INSTALL)
    # The one capability, inside the user namespace only, is for the guest's loop: it gives each candidate a /tmp.
    return [
        *(bubblewrap, "--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--clearenv"),
        *_system_folders(),
        *("--dev", "/dev", "--remount-ro", "/dev", "--dir", "/proc", "--size", str(_TMP_BYTES), "--tmpfs", "/tmp"),
        *("--ro-bind", str(GUEST), _INSIDE, "--remount-ro", "/", "--chdir", "/tmp"),
        *("--hostname", "sandbox", "--cap-drop", "ALL", "--cap-add", "CAP_SYS_ADMIN"),
        *python,
        *("contained", "/code"),
    ]


class Guest:
    """One running guest; not for use by two threads. Restarts itself when a candidate may have left traces."""

    def __init__(self, isolation: Isolation) -> None:
        self._isolation = isolation
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self._tests = -1

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
        self._tests = os.memfd_create("tests")
        self._process = subprocess.Popen(
            [*arguments, str(self._tests)],
            pass_fds=(self._tests,),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={},
            cwd="/",
            start_new_session=True,
        )
        if self._receive(_START_SECONDS) is None:
            complaint = self._complaint()
            self.close()
            name = "bubblewrap" if self._isolation == "bubblewrap" else "the sandbox's interpreter"
            raise SandboxError(f"{name} does not start here: {complaint}", remedy=ALLOW)

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
        os.close(self._tests)
        self._process = None

    def run(self, code: str, checks: list[Check], entry_point: str | None, limits: Limits) -> SandboxVerdict:
        """The verdict on one candidate."""
        self.start()
        assert self._process is not None and self._process.stdin is not None
        tests = [
            {"index": index, "source": check.source, "names": check.names}
            for index, check in enumerate(checks)
            if check.kind == "test"
        ]
        job = {
            "code": code,
            "calls": [(index, check.source) for index, check in enumerate(checks) if check.kind != "test"],
            "tests_bytes": self._lay_out(tests),
            "entry_point": entry_point,
            "limits": asdict(limits),
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
        if self._isolation == "bubblewrap" and not report["namespaces"]:
            self.close()  # what it left behind, no later candidate shall find
        return judge(report, checks)

    def _lay_out(self, tests: list[dict[str, object]]) -> int:
        """Put tests where only their own process will read them; the number of bytes, 0 without tests."""
        text = json.dumps(tests).encode() if tests else b""
        os.ftruncate(self._tests, 0)
        return os.pwrite(self._tests, text, 0)

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
