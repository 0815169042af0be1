"""Training in processes of their own, forked from a server that has imported everything: a start costs no ten seconds.

Several processes of one job find each other as under a launcher: by the environment.
"""

from __future__ import annotations

import faulthandler
import gc
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from rich.console import Console

from distill.recipe.schema import Recipe
from distill.runs import Run

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "tests.train.tiny",
        "distill.train.entry",
        "distill.model.student",
        "peft.tuners.lora.bnb",
        "torch.distributed.fsdp",
    ]
)
SECONDS, NAP_SECONDS = 120.0, 0.005


@dataclass
class Job:
    """The processes of one job; what they said is in `log`."""

    processes: Sequence[ForkServerProcess]
    log: Path

    def wait(self) -> list[int | None]:
        """Exit codes by rank: of a killed process the negative signal. When one fails, the others are killed, as a
        launcher does."""
        naps = 0  # counted, not measured: a machine that stands still is no reason to kill
        while any(process.is_alive() for process in self.processes):
            failed = any(process.exitcode for process in self.processes)
            naps += 1
            if failed or naps * NAP_SECONDS > SECONDS:
                for process in self.processes:
                    process.join(timeout=2.0 if failed else 0.0)
                    process.kill()
            time.sleep(NAP_SECONDS)
        for process in self.processes:
            process.join()
        return [process.exitcode for process in self.processes]

    def text(self) -> str:
        return self.log.read_text()


def start(target: Callable[..., None], *arguments: Any, log: Path, processes: int = 1) -> Job:
    """Run `target(*arguments)` in `processes` processes."""
    port = _free_port()
    log.write_text("")
    made = [
        _SERVER.Process(target=_child, args=(rank, processes, port, log, target, arguments))
        for rank in range(processes)
    ]
    for process in made:
        process.start()
    return Job(made, log)


def train(recipe: Recipe, entry: str | None = None) -> None:
    """A target: the train stage, speaking to stdout."""
    from distill.train import stage

    stage.run(recipe, Run(recipe), console=Console(file=sys.stdout, width=200), entry=entry)


def _child(rank: int, size: int, port: int, log: Path, target: Callable[..., None], arguments: Sequence[Any]) -> None:
    import torch

    gc.freeze()  # what was imported before the fork is not looked through, nor copied, by each collection
    torch.set_num_threads(1)
    faulthandler.enable()
    with open(log, "a", buffering=1) as handle:
        os.dup2(handle.fileno(), 1)
        os.dup2(handle.fileno(), 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    if size > 1:
        os.environ.update(
            RANK=str(rank),
            WORLD_SIZE=str(size),
            LOCAL_RANK=str(rank),
            LOCAL_WORLD_SIZE=str(size),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            TOKENIZERS_PARALLELISM="false",
        )
    try:
        target(*arguments)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    if size > 1:
        from distill.train.processes import Processes

        Processes(rank, size).wait()
        torch.distributed.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
