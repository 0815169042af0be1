"""What third parties may not say on the user's terminal. Errors still raise."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import datasets
from transformers.utils import logging as transformers_logging

# (message, why it is no news to the user)
_WARNINGS = (
    # torch: pinned memory is asked for by the DataLoader's default and of no use on a CPU.
    r".*pin_memory.*",
    # torch.utils.checkpoint: we follow transformers' choice of use_reentrant.
    r".*use_reentrant.*",
    # peft: the adapter is saved beside a local base folder, whose config peft looks for on the hub first.
    r".*Could not find a config file in.*",
    # peft: says that the tied LM head is saved with the base, as meant.
    r".*tie_word_embeddings.*",
    # torch: the gloo process group names no device for barriers.
    r".*barrier\(\).*using the device under current context.*",
    # transformers 5.23 renames gradient_checkpointing; 5.17 and TRL know only the old name.
    r".*gradient_checkpointing.* is deprecated.*",
    # TRL keeps the trainer of simpo among its experiments.
    r".*trl\.experimental.*",
    # DeepSpeed calls torch's collectives by the names that they had before.
    r".*torch\.distributed\..*_tensor` is deprecated.*",
    # transformers: FSDP and DDP load the optimizer's state by torch.load with weights_only, as it advises.
    r".*weights_only=.*",
)
# transformers and TRL advise about tokens, caches and columns that our own preparation settled; accelerate about
# launch flags; peft and datasets about hub look-ups.
_LOGGERS = ("transformers", "trl", "accelerate", "peft", "datasets", "torch.distributed", "bitsandbytes")


# DeepSpeed sets its own level when it is imported, as others do where it is installed; a filter stays.
_FILTERED = "DeepSpeed"


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the list above, and restore what was set before."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    dataset_bars = datasets.are_progress_bars_disabled()
    with warnings.catch_warnings():
        for message in _WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        logging.getLogger(_FILTERED).addFilter(_is_error)
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        datasets.disable_progress_bars()
        try:
            yield
        finally:
            logging.getLogger(_FILTERED).removeFilter(_is_error)
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
            transformers_logging.set_verbosity(verbosity)
            if bars:
                transformers_logging.enable_progress_bar()
            if not dataset_bars:
                datasets.enable_progress_bars()
