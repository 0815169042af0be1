"""The processes of one training run, as a launcher started them; one process is the plain case and imports nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import PartialState


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
        if self.size == 1:
            return value
        from accelerate.utils import broadcast_object_list

        self._connect()
        box = [value]
        broadcast_object_list(box, from_process=0)
        return box[0]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            self._connect().wait_for_everyone()

    def _connect(self) -> PartialState:
        import torch
        from accelerate import PartialState

        return PartialState(cpu=not torch.cuda.is_available())
