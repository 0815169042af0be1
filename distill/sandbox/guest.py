"""The program inside the sandbox: it forks a fresh process for each candidate and sends back what its calls return.

Standard library only, and nothing of this project: it runs as a script under `python -I -S -E`. It reads a job a line
(JSON) from stdin and writes a reply a line to stdout. Three processes stand behind each other:

- the loop in `main` never runs foreign code;
- for each job it forks a supervisor, which moves into new user and PID namespaces (where that is possible), starts the
  candidate there, reads its results up to a limit of time and bytes, and kills it with all that it started;
- the candidate has no capability, no descriptor but /dev/null and its result pipe, resource limits, and a seccomp
  filter against new processes, programs, sockets, mounts and tracing. It cannot even name a process outside.
"""

import contextlib
import ctypes
import errno
import json
import os
import platform
import resource
import select
import shutil
import signal
import struct
import sys
import time

_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWIPC, _CLONE_THREAD = 0x10000000, 0x20000000, 0x08000000, 0x00010000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP = 1, 4, 38, 22
_FORBIDDEN = (errno.EPERM, errno.EACCES, errno.EAGAIN, errno.EROFS, errno.ENETUNREACH)
_RESULTS = 3  # the candidate's only descriptor besides /dev/null

# Audit architecture, clone, clone3, then what is forbidden: fork, vfork, execve, execveat, ptrace, unshare, setns,
# mount, umount2, pivot_root, chroot, bpf, keyctl, add_key, request_key, perf_event_open, userfaultfd, io_uring_*,
# process_vm_readv, process_vm_writev, socket, fsopen, open_tree, move_mount, pidfd_open, pidfd_getfd.
_SYSCALLS = {
    "x86_64": (
        0xC000003E, 56, 435,
        (57, 58, 59, 322, 101, 272, 308, 165, 166, 155, 161, 321, 250, 248, 249, 298, 323, 425, 426, 427, 310, 311, 41,
         430, 428, 429, 434, 438),
    ),
    "aarch64": (
        0xC00000B7, 220, 435,
        (221, 281, 117, 97, 268, 40, 39, 41, 51, 280, 219, 217, 218, 241, 282, 425, 426, 427, 270, 271, 198,
         430, 428, 429, 434, 438),
    ),
}  # fmt: skip


def encode(value: object) -> list[object]:
    """A value as a tree of tagged lists, types exact; anything but plain data becomes its type's name."""
    kind = type(value)
    if value is None:
        return ["none"]
    if kind is bool:
        return ["bool", value]
    if kind is int:
        return ["int", format(value, "x")]
    if kind is float:
        return ["float", (value + 0.0).hex()]  # type: ignore[operator]  # -0.0 equals 0.0
    if kind is str:
        return ["str", value]
    if kind is bytes:
        return ["bytes", value.hex()]  # type: ignore[attr-defined]
    if kind in (list, tuple, set):
        return [kind.__name__, *(encode(item) for item in value)]  # type: ignore[attr-defined]
    if kind is dict:
        return ["dict", *([encode(key), encode(item)] for key, item in value.items())]  # type: ignore[attr-defined]
    return ["other", kind.__name__]


def _explain(error: BaseException) -> list[object]:
    name = type(error).__name__
    if isinstance(error, OSError) and error.errno in _FORBIDDEN:
        return ["forbidden", name]
    if isinstance(error, MemoryError):
        return ["memory"]
    try:
        text = f"{name}: {error}"
    except BaseException:  # the candidate's own exception may fail to print
        text = name
    return ["error", text[:200]]


def _run_candidate(job: dict[str, object], nonce: str) -> None:
    """Execute the candidate and its calls; each outcome is one line on the result pipe."""

    def send(index: int, outcome: list[object]) -> None:
        line = json.dumps([nonce, index, outcome]).encode() + b"\n"
        while line:
            line = line[os.write(_RESULTS, line) :]

    scope: dict[str, object] = {"__name__": "candidate"}
    try:
        exec(compile(str(job["code"]), "<candidate>", "exec"), scope)
    except BaseException as error:
        send(-1, _explain(error))
        return
    if job["entry_point"] is not None and not callable(scope.get(str(job["entry_point"]))):
        send(-1, ["missing"])
        return
    for index, (mode, source) in enumerate(job["checks"]):  # type: ignore[arg-type, var-annotated]
        try:
            if mode == "value":
                send(index, ["value", encode(eval(source, scope))])
            else:
                exec(source, scope)
                send(index, ["value", encode(True)])
        except BaseException as error:
            send(index, _explain(error))


def _filter_syscalls(libc: ctypes.CDLL) -> None:
    """Forbid new processes (threads may start) and what could reach out; a no-op on architectures not listed."""
    known = _SYSCALLS.get(platform.machine())
    if known is None:
        return
    arch, clone, clone3, forbidden = known
    denied, unknown, allowed, killed = 0x00050001, 0x00050026, 0x7FFF0000, 0x80000000  # EPERM, ENOSYS, ...
    program = [(0x20, 0, 0, 4), (0x15, 1, 0, arch), (0x06, 0, 0, killed), (0x20, 0, 0, 0)]
    program += [(0x35, 0, 1, 0x40000000), (0x06, 0, 0, denied)]  # the x32 numbers of x86-64
    for number in forbidden:
        program += [(0x15, 0, 1, number), (0x06, 0, 0, denied)]
    program += [(0x15, 0, 1, clone3), (0x06, 0, 0, unknown)]  # the C library falls back to clone, whose flags we see
    program += [(0x15, 0, 3, clone), (0x20, 0, 0, 16), (0x45, 1, 0, _CLONE_THREAD), (0x06, 0, 0, denied)]
    program += [(0x06, 0, 0, allowed)]
    code = b"".join(struct.pack("HBBI", *step) for step in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    libc.prctl(_PR_SET_SECCOMP, 2, ctypes.c_char_p(header), 0, 0)


def _confine(libc: ctypes.CDLL, limits: dict[str, float]) -> None:
    """Limits, no capability, no new privilege, no forbidden call; for the calling process, for good."""
    memory = int(limits["memory_bytes"])
    cpu = int(limits["cpu_seconds"])
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limits["file_bytes"]),) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    # Without a PID namespace of its own, the user's other processes count as well: the filter alone has to do.
    if limits["namespaces"]:
        resource.setrlimit(resource.RLIMIT_NPROC, (int(limits["processes"]),) * 2)
    header, nothing = struct.pack("Ii", 0x20080522, 0), bytes(24)
    libc.capset(ctypes.c_char_p(header), ctypes.c_char_p(nothing))
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _filter_syscalls(libc)


def _become_candidate(libc: ctypes.CDLL, job: dict[str, object], results: int) -> None:
    """Close everything but the results, confine this process and run; never returns."""
    try:
        os.setsid()
        os.dup2(results, 9)
        os.dup2(9, _RESULTS)
        null = os.open("/dev/null", os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        os.closerange(_RESULTS + 1, 4096)
        _confine(libc, job["limits"])  # type: ignore[arg-type]
        _run_candidate(job, str(job["nonce"]))
    finally:
        os._exit(0)


def _collect(results: int, limits: dict[str, float]) -> tuple[bytes, str]:
    """(what the candidate sent, "" or why we stopped listening)."""
    received = bytearray()
    deadline = time.monotonic() + limits["wall_seconds"]
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([results], [], [], left)[0]:
            continue
        part = os.read(results, 65536)
        if not part:
            return bytes(received), ""
        received += part
        if len(received) > limits["output_bytes"]:
            return b"", "output"
    return bytes(received), "timeout"


def _clean(folder: str) -> bool:
    """Remove what a candidate left behind; False where that is not possible."""
    with contextlib.suppress(OSError, RecursionError):
        for name in os.listdir(folder):
            path = os.path.join(folder, name)
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
    return not os.listdir(folder)


def _supervise(libc: ctypes.CDLL, job: dict[str, object], namespaces: bool) -> dict[str, object]:
    """Run one candidate to its end and report; called in a process of its own."""
    if namespaces and libc.unshare(_CLONE_NEWUSER | _CLONE_NEWPID | _CLONE_NEWIPC) != 0:
        return {"raw": "", "stopped": "broken", "signal": 0, "seconds": 0.0}
    limits: dict[str, float] = job["limits"]  # type: ignore[assignment]
    limits["namespaces"] = namespaces
    start = time.monotonic()
    receiving, sending = os.pipe()
    candidate = os.fork()
    if candidate == 0:
        _become_candidate(libc, job, sending)
    os.close(sending)
    raw, stopped = _collect(receiving, limits)
    for kill in (os.kill, os.killpg):  # the first process of a PID namespace takes all others with it
        with contextlib.suppress(OSError):
            kill(candidate, signal.SIGKILL)
    _, status, usage = os.wait4(candidate, 0)
    if not stopped and usage.ru_utime + usage.ru_stime >= limits["cpu_seconds"]:
        stopped = "timeout"  # the first process of a namespace ignores SIGXCPU and ends by SIGKILL
    return {
        "raw": raw.decode(errors="replace"),
        "stopped": stopped,
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
        "seconds": time.monotonic() - start,
    }


def _can_nest(libc: ctypes.CDLL) -> bool:
    """Whether a process of ours may create user and PID namespaces and start another process there."""
    probe = os.fork()
    if probe == 0:
        ok = libc.unshare(_CLONE_NEWUSER | _CLONE_NEWPID | _CLONE_NEWIPC) == 0
        if ok:
            inner = os.fork()
            if inner == 0:
                os._exit(0)
            ok = os.waitpid(inner, 0)[1] == 0
        os._exit(0 if ok else 1)
    return os.waitpid(probe, 0)[1] == 0


def _reply(message: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Answer jobs until stdin ends. The first line out says whether candidates get namespaces of their own."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    contained = sys.argv[1] == "contained"  # in bubblewrap, where /tmp is ours to clean
    namespaces = contained and _can_nest(libc)
    _reply({"namespaces": namespaces})
    for line in sys.stdin:
        supervisor = os.fork()
        if supervisor == 0:
            report = _supervise(libc, json.loads(line), namespaces)
            report["clean"] = _clean("/tmp") if contained else True
            _reply(report)
            os._exit(0)
        os.waitpid(supervisor, 0)


if __name__ == "__main__":
    main()
