"""What holds for every test, before anything is imported.

Threads that wait spin only briefly, as under the command line (read when torch loads). And Ctrl-C reaches the commands
that tests start: a shell without job control lets what it runs in the background ignore it, children included.
"""

import os
import signal

os.environ.setdefault("GOMP_SPINCOUNT", "1000")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
