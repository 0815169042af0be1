"""What holds for every test: threads that wait do not spin, as under the command line (read when torch loads)."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
