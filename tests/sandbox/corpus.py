"""Hostile programs (payloads/*.txt), and the part of the host that they are after."""

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).with_name("payloads")

# What a right `f(x) = x + 1` passes, in every form that tests have.
FORGED_TESTS: dict[str, tuple[str, ...]] = {
    "literal": ("assert f(1) == 2", "assert f(2) == 3"),
    "close": ("assert abs(f(1) - 2) < 1e-9", "import math\nassert math.isclose(f(2), 3.0)"),
    "order": ("assert 1 < f(1) < 3 and f(2) > f(1)",),
    "membership": ("assert isinstance(f(1), int) and f(1) in (2, 4)",),
    "helpers": (
        "assert round(f(1)) == f(1) and sorted([f(2), f(1)]) == [2, 3]",
        "assert len(str(f(1))) == 1 and f(1) == 2",
    ),
    "statements": ("y = f(1)\nassert y == 2", "assert y + 1 == 3 and f(y) == 3"),
    "strings": ("assert str(f(1)).isdigit() and str(f(1)) == '2'", "assert f'{f(2):d}' == '3'"),
    "equality": ("assert f(1) == f(0) + 1 and f(2) == f(1) + 1 and f(0) != f(1)", "assert (f(1) == 2) == True"),
    "borrowed modules": ("assert math.isclose(f(1), 2) and math.floor(f(2)) == 3",),
}


@dataclass(frozen=True)
class Payload:
    """One hostile program. `kind` is its file: what it is after."""

    kind: str
    name: str
    code: str


def payloads() -> list[Payload]:
    """All of them, as written: placeholders are filled in by `World.aim`."""
    found: list[Payload] = []
    for path in sorted(FOLDER.glob("*.txt")):
        for part in path.read_text(encoding="utf-8").split("\n= "):
            name, _, code = part.removeprefix("= ").partition("\n")
            found.append(Payload(path.stem, name, code))
    return found


@dataclass
class World:
    """Canaries of the host: a secret in a file and in the environment, servers that nobody may reach, a process."""

    folder: Path
    secret: str = field(default_factory=lambda: f"canary-{secrets.token_hex(16)}")
    abstract: str = field(default_factory=lambda: f"canary-{secrets.token_hex(8)}")
    visitors: list[str] = field(default_factory=list)
    port: int = 0
    pid: int = 0

    def aim(self, code: str) -> str:
        """A payload with the canaries' names in it: worst case, it knows them."""
        uids = f"{os.getuid()}, 65534"
        known = {"CANARY": str(self.folder), "SECRET": self.secret, "ABSTRACT": self.abstract, "UIDS": uids}
        for name, value in {**known, "PORT": str(self.port), "PID": str(self.pid)}.items():
            code = code.replace(f"@{name}@", value)
        return code

    def evidence(self) -> tuple[str, ...]:
        """Tests of which a payload passes one if it got what it was after."""
        return ("assert f(1) == 'escaped'", f"assert f(1) == {self.secret!r}")

    def harm(self) -> list[str]:
        """What has been done to the host."""
        found = [f"{visitor} was reached" for visitor in self.visitors]
        if sorted(path.name for path in self.folder.iterdir()) != ["secret", "socket"]:
            found.append("the canary's folder was changed")
        elif (self.folder / "secret").read_text() != self.secret:
            found.append("the canary's file was changed")
        try:
            os.kill(self.pid, 0)
        except OSError:
            found.append("the canary's process is gone")
        return found


@contextlib.contextmanager
def world(folder: Path) -> Iterator[World]:
    """The canaries, alive until the end of the block."""
    made = World(folder)
    (folder / "secret").write_text(made.secret)
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    made.pid = process.pid
    with contextlib.ExitStack() as stack:
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        made.port = tcp.getsockname()[1]
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", made.port))
        unix = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2)]
        for one, name in zip(unix, (str(folder / "socket"), f"\0{made.abstract}"), strict=True):
            one.bind(name)
            one.listen()
        stack.enter_context(_environment("SANDBOX_CANARY", made.secret))
        for server, name in (
            (tcp, "TCP"),
            (udp, "UDP"),
            (unix[0], "the unix socket"),
            (unix[1], "the abstract socket"),
        ):
            threading.Thread(target=_note_visitors, args=(server, name, made.visitors), daemon=True).start()
        try:
            yield made
        finally:
            process.kill()
            process.communicate()
            for server in (tcp, udp, *unix):
                with contextlib.suppress(OSError):
                    server.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _note_visitors(server: socket.socket, name: str, visitors: list[str]) -> None:
    with contextlib.suppress(OSError):
        while True:
            if server.type == socket.SOCK_DGRAM:
                if not server.recv(1024):
                    return
            else:
                server.accept()[0].close()
            visitors.append(name)


def all_processes() -> dict[int, int]:
    """Each process of this machine and its parent."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                after_name = (entry / "stat").read_text(errors="replace").rpartition(")")[2]
                found[int(entry.name)] = int(after_name.split()[1])
    return found


def processes_below(ancestor: int) -> set[int]:
    """The children of a process, their children, and so on."""
    parents, found, added = all_processes(), {ancestor}, True
    while added:
        new = {child for child, parent in parents.items() if parent in found} - found
        found |= new
        added = bool(new)
    return found - {ancestor}
