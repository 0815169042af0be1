"""What a process in the sandbox says about one check: a line of JSON on its own pipe."""

import errno
import json
import os

RESULTS = 3  # the descriptor of the pipe
_FORBIDDEN = (errno.EPERM, errno.EACCES, errno.EAGAIN, errno.EROFS, errno.ENETUNREACH)


def send(index: int, outcome: list[object]) -> None:
    """Send the outcome of the check of an index; -1 is the candidate as a whole."""
    line = json.dumps([index, outcome]).encode() + b"\n"
    while line:
        line = line[os.write(RESULTS, line) :]


def explain(error: BaseException) -> list[object]:
    """An exception as an outcome."""
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
