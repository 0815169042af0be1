"""What holds for every test: threads that wait spin only briefly, as under the command line (read when torch loads)."""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "1000")
