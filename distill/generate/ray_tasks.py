"""Orders as tasks on a Ray cluster: the one that the recipe names, or one on this machine while the tasks run."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from distill.errors import DistillError
from distill.recipe.generate import RayExecutor

if TYPE_CHECKING:
    from distill.generate.orders import End, Order

_Handler = Callable[[int, FrameType | None], Any] | int | None
_TICK_SECONDS = 5.0
_KNOCK_SECONDS = 10.0
_TRIES_AFTER_A_DEATH = 3  # of a worker or its machine; the next one goes on where it was
_OBJECTS_BYTES = 100 << 20  # orders and ends are small, and Ray would reserve a third of the memory


def require_ray() -> None:
    """Raise where Ray is missing: better before the teacher is paid than after."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        import ray  # noqa: F401
    except ImportError:
        raise DistillError("executor: ray needs Ray", remedy="pip install 'distill[ray]'") from None
    _restore(handler)


def carry_out_all(
    executor: RayExecutor, orders: Sequence[Order], *, tell: Callable[[str], None], tick: Callable[[], None]
) -> Iterator[End]:
    """The ends as they come. `tick` is called every few seconds; whoever stops listening stops the tasks."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    from distill.generate.orders import End, carry_out

    with _connected(executor, len(orders)) as slots:
        if slots < len(orders):
            tell(f"the cluster has room for {slots} of {len(orders)} shards at once, each with its part of the rates")
        task = ray.remote(num_cpus=executor.cpus, max_retries=_TRIES_AFTER_A_DEATH)(carry_out)
        shards = {task.remote(order): order.shard for order in orders}
        pending = list(shards)
        while pending:
            done, pending = ray.wait(pending, timeout=_TICK_SECONDS)
            tick()
            for ended in done:
                try:
                    yield ray.get(ended)
                except RayTaskError:
                    raise  # a bug of ours, with the worker's traceback
                except RayError as error:
                    problem = f"its worker died: {_first_line(error)}"
                    yield End(shards[ended], problem=problem, remedy="run again: what was answered is kept")


@contextmanager
def _connected(executor: RayExecutor, num_orders: int) -> Iterator[int]:
    """Connected to the cluster; how many shards it runs at once by its size now."""
    import ray
    from ray.exceptions import RayError

    handler = signal.getsignal(signal.SIGTERM)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read by ray.init: else it reports to its makers
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of a change to come
    try:
        if executor.address is None:
            # Shards wait for the teacher rather than compute: all of them run, or their part of the rates lies idle.
            ray.init(
                address="local",
                num_cpus=math.ceil(num_orders * executor.cpus),
                object_store_memory=_OBJECTS_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        else:
            _knock(executor.address)
            ray.init(address=executor.address, log_to_driver=False, logging_level=logging.ERROR)
    except (RayError, ImportError, RuntimeError, ValueError, OSError) as error:
        where = executor.address or "a local one"
        raise DistillError(
            f"no Ray cluster at '{where}': {_first_line(error)}",
            remedy="mend executor.address, start the cluster with `ray start`, or leave the address out",
        ) from error
    finally:
        _restore(handler)
    try:
        yield int(ray.cluster_resources().get("CPU", 0) / executor.cpus)
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError where nobody listens at a `host:port`: Ray tries it for minutes."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.hostname is not None and parts.port is not None:
        socket.create_connection((parts.hostname, parts.port), timeout=_KNOCK_SECONDS).close()


def _restore(handler: _Handler) -> None:
    """Ray takes SIGTERM for itself, and then nothing unwinds."""
    if handler is not None:  # None: set from outside Python
        signal.signal(signal.SIGTERM, handler)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
