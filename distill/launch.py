"""`python -m distill.launch` takes what `accelerate launch` takes, and ends as its processes do.

torch's launcher, under accelerate's, ends with 1 after a signal and after any failure, prints its own traceback, and
kills processes that need over 30 seconds to save. Here SIGTERM and Ctrl-C are passed on and waited for, a second one
too, and the exit code is 143, 130, or that of the process which failed first.
"""

from __future__ import annotations

import os
import signal
import subprocess
from types import FrameType

import psutil


class Signals:
    """Passes signals on to the launched processes, which are in sessions of their own; notes the first one."""

    def __init__(self) -> None:
        self.first: int | None = None

    def listen(self) -> None:
        """From now on; torch's launcher is told to leave these two alone."""
        os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGHUP,SIGQUIT"
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self.first = self.first or number
        launched = psutil.Process().children()
        for process in launched:
            # A lone process is in our session: Ctrl-C in a terminal reaches it by itself, and twice would end it.
            if number == signal.SIGTERM or os.getsid(process.pid) != os.getsid(0):
                process.send_signal(number)
        if not launched:
            raise SystemExit(128 + number)


def exit_code(number: int) -> int:
    """A process's status as a shell gives it: 128 + n for one that signal n ended."""
    return 128 - number if number < 0 else number


def main() -> int:
    """Launch, wait, and return the exit code."""
    signals = Signals()
    signals.listen()
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        launch_command(launch_command_parser().parse_args())
        code = 0
    except ChildFailedError as error:
        code = exit_code(error.get_first_failure()[1].exitcode)
    except subprocess.CalledProcessError as error:
        code = exit_code(error.returncode)
    except SignalException as error:  # of the other two, or of all where torch does not know the setting
        code = 128 + error.sigval
    return 128 + signals.first if signals.first is not None and code else code


if __name__ == "__main__":
    raise SystemExit(main())
