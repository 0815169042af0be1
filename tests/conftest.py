"""What holds for every test, before anything is imported.

Threads that wait spin only briefly, as under the command line (read when torch loads). And Ctrl-C reaches the commands
that tests start: a shell without job control lets what it runs in the background ignore it, children included. Where
DeepSpeed is installed it is told of a CPU, or it says at each start that it found nothing else.
"""

import os
import signal
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "1000")
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
