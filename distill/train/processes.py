"""The processes of one training run, as a launcher started them; one process is the plain case and imports nothing."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from accelerate import PartialState

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process's rank, and how many there are."""

    rank: int
    size: int

    @classmethod
    def from_environment(cls) -> Processes:
        """What `accelerate launch` or `torchrun` set; (0, 1) without a launcher."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    @property
    def is_first(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def agree(self, value: bool) -> bool:
        """The first process's value, on all of them: one of them decides, before any of them writes."""
        return self.first_says(lambda: value)

    def first_says(self, ask: Callable[[], T]) -> T:
        """What `ask` returns in the first process, on all of them; only the first calls it."""
        if self.size == 1:
            return ask()
        from accelerate.utils import broadcast_object_list

        self._connect()
        box: list[Any] = [ask() if self.is_first else None]
        broadcast_object_list(box, from_process=0)
        value: T = box[0]
        return value

    @property
    def command(self) -> str:
        """What to type to start this run again: the launcher's command line where there is a launcher."""
        if self.size == 1:
            return _as_typed(sys.orig_argv)
        try:
            words = Path(f"/proc/{os.getppid()}/cmdline").read_text().split("\0")[:-1]
        except OSError:  # a system without /proc
            words = sys.orig_argv
        return _as_typed(words)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            self._connect().wait_for_everyone()

    def _connect(self) -> PartialState:
        import torch
        from accelerate import PartialState

        return PartialState(cpu=not torch.cuda.is_available())


def _as_typed(words: list[str]) -> str:
    """Without the interpreter that a script's first line names, and with commands on the PATH by name."""
    if len(words) > 1 and os.access(words[1], os.X_OK) and Path(words[1]).is_file():
        words = words[1:]
    name = Path(words[0]).name
    if shutil.which(name) == words[0]:
        words = [name, *words[1:]]
    return shlex.join(words)
