"""What the kernel is told about a process that runs foreign code: namespaces, limits, and a seccomp filter."""

import ctypes
import os
import resource
import signal
import struct

_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWIPC = 0x00020000, 0x10000000, 0x20000000, 0x08000000
_CLONE_THREAD, _CLONE_NEWUTS = 0x00010000, 0x04000000
_MS_NOSUID, _MS_NODEV = 2, 4
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP = 1, 4, 38, 22
_TMP = b"size=16m,nr_inodes=1024,mode=0777"

# Audit architecture, clone, clone3, kill and tgkill (allowed to the process itself only), then what is forbidden:
# fork, vfork, execve, execveat, ptrace, unshare, setns, mount, umount2, pivot_root, chroot, bpf, keyctl, add_key,
# request_key, perf_event_open, userfaultfd, io_uring_*, process_vm_readv, process_vm_writev, socket, fsopen, open_tree,
# move_mount, pidfd_open, pidfd_getfd, and what keeps memory that no limit counts (shmget, msgget, semget), the kernel's
# log (syslog), open_by_handle_at, mount_setattr, and the other ways to signal (tkill, rt_sigqueueinfo,
# rt_tgsigqueueinfo, pidfd_send_signal).
_SYSCALLS = {
    "x86_64": (
        0xC000003E, 56, 435, (62, 234),
        (57, 58, 59, 322, 101, 272, 308, 165, 166, 155, 161, 321, 250, 248, 249, 298, 323, 425, 426, 427, 310, 311, 41,
         430, 428, 429, 434, 438, 29, 68, 64, 103, 304, 442, 200, 129, 297, 424),
    ),
    "aarch64": (
        0xC00000B7, 220, 435, (129, 131),
        (221, 281, 117, 97, 268, 40, 39, 41, 51, 280, 219, 217, 218, 241, 282, 425, 426, 427, 270, 271, 198,
         430, 428, 429, 434, 438, 194, 186, 190, 116, 265, 442, 130, 138, 240, 424),
    ),
}  # fmt: skip


def libc() -> ctypes.CDLL:
    """The C library of this process."""
    return ctypes.CDLL(None, use_errno=True)


def hide(library: ctypes.CDLL) -> None:
    """No process of the same user may read this one's memory or descriptors; children inherit it."""
    library.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def isolate(library: ctypes.CDLL) -> bool:
    """Move to a /tmp of one's own, and the next child to new user, PID, IPC and host name namespaces; False where the
    kernel refuses. /tmp is empty and dies with the last process that sees it."""
    if library.unshare(_CLONE_NEWNS) != 0:
        return False
    if library.mount(b"tmpfs", b"/tmp", b"tmpfs", _MS_NOSUID | _MS_NODEV, _TMP) != 0:
        return False
    os.chdir("/tmp")
    return library.unshare(_CLONE_NEWUSER | _CLONE_NEWPID | _CLONE_NEWIPC | _CLONE_NEWUTS) == 0


def confine(library: ctypes.CDLL, limits: dict[str, float]) -> None:
    """Limits, no capability, no new privilege, no forbidden call; for the calling process, for good."""
    memory = int(limits["memory_bytes"])
    cpu = int(limits["cpu_seconds"])
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))  # SIGKILL; the first of a PID namespace ignores SIGXCPU
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limits["file_bytes"]),) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    # Without a PID namespace of its own, the user's other processes count as well: the filter alone has to do.
    if limits["namespaces"]:
        resource.setrlimit(resource.RLIMIT_NPROC, (int(limits["processes"]),) * 2)
    header, nothing = struct.pack("Ii", 0x20080522, 0), bytes(24)
    library.capset(ctypes.c_char_p(header), ctypes.c_char_p(nothing))
    library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    library.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _filter_syscalls(library)


def _filter_syscalls(library: ctypes.CDLL) -> None:
    """Forbid new processes (threads may start), signals to others, and what could reach out; a no-op on architectures
    not listed."""
    known = _SYSCALLS.get(os.uname().machine)
    if known is None:
        return
    arch, clone, clone3, signals, forbidden = known
    denied, unknown, allowed, killed = 0x00050001, 0x00050026, 0x7FFF0000, 0x80000000  # EPERM, ENOSYS, ...
    program = [(0x20, 0, 0, 4), (0x15, 1, 0, arch), (0x06, 0, 0, killed), (0x20, 0, 0, 0)]
    program += [(0x35, 0, 1, 0x40000000), (0x06, 0, 0, denied)]  # the x32 numbers of x86-64
    for number in forbidden:
        program += [(0x15, 0, 1, number), (0x06, 0, 0, denied)]
    for number in signals:  # or `os.kill(-1, 9)` without a PID namespace would end all that the user runs
        to_itself = [(0x20, 0, 0, 16), (0x15, 0, 1, os.getpid()), (0x06, 0, 0, allowed), (0x06, 0, 0, denied)]
        program += [(0x15, 0, len(to_itself), number), *to_itself]
    program += [(0x15, 0, 1, clone3), (0x06, 0, 0, unknown)]  # the C library falls back to clone, whose flags we see
    program += [(0x15, 0, 3, clone), (0x20, 0, 0, 16), (0x45, 1, 0, _CLONE_THREAD), (0x06, 0, 0, denied)]
    program += [(0x06, 0, 0, allowed)]
    code = b"".join(struct.pack("HBBI", *step) for step in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    library.prctl(_PR_SET_SECCOMP, 2, ctypes.c_char_p(header), 0, 0)
