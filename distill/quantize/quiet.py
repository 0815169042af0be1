"""Third parties' loading bars and advice, kept off the user's terminal while a model is loaded or saved."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging


@contextmanager
def quiet() -> Iterator[None]:
    """Errors still raise; progress bars and warnings of transformers and bitsandbytes are not shown."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    library = logging.getLogger("bitsandbytes")
    level = library.level
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    library.setLevel(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        library.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()
