"""The teachers of one job: who answers which row, and what all of them did together."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

from distill.errors import TeacherError
from distill.teacher.accounts import Usage
from distill.teacher.client import TeacherClient
from distill.teacher.requests import Answer

_DRAWS = 1 << 53


class Panel:
    """`main` writes prompts and judges; rows are answered by whom their key picks among `answering`.

    Without weights the teachers take turns: a row's samples go round all of them, from a place that its key says. With
    weights each sample is drawn by them. Both depend on names and key alone, so that a resume asks the same teacher,
    and a teacher that leaves gives away its own rows only.
    """

    def __init__(
        self,
        main: TeacherClient,
        answering: Sequence[TeacherClient] = (),
        *,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.main = main
        self.answering = list(answering) or [main]
        self.weights = weights
        self.clients = list({id(client): client for client in (main, *self.answering)}.values())
        self._by_label = {client.label: client for client in self.answering}

    def of_row(self, key: str, sample: int) -> TeacherClient:
        """Who answers this sample of the row."""
        labels = list(self._by_label)
        if len(labels) == 1:
            return self.answering[0]
        if self.weights is None:
            return self._by_label[in_turn(key, sample, labels)]
        return self._by_label[by_weight(key, sample, labels, self.weights)]

    def usual_cost_usd(self, answer: Answer) -> float | None:
        """What such an answer costs in the whole job; None where the price is unknown."""
        client = next((one for one in self.clients if one.label == answer.teacher), None)
        return answer.cost_usd if client is None else client.usual_cost_usd(answer)

    def shares(self) -> list[tuple[TeacherClient, float]]:
        """Each answering teacher and its part of the rows."""
        weights = self.weights or [1.0] * len(self.answering)
        return [(client, weight / sum(weights)) for client, weight in zip(self.answering, weights, strict=True)]

    @property
    def label(self) -> str:
        """The teachers' names, for cards and summaries."""
        return ", ".join(client.label for client in self.answering)

    @property
    def usage(self) -> Usage:
        """What all did in this session."""
        return sum((client.usage for client in self.clients), Usage())

    @property
    def width(self) -> int:
        """Prompts to work on at once, so that no teacher waits for one."""
        return sum(client.width for client in self.clients)

    @property
    def in_flight(self) -> int:
        return sum(client.limits.in_flight for client in self.clients)

    @property
    def in_batches(self) -> int:
        return sum(client.in_batches for client in self.clients)

    @property
    def priced(self) -> bool:
        """Whether every teacher's price is known."""
        return all(client.rates is not None for client in self.clients)

    @property
    def stopped(self) -> TeacherError | None:
        """Why a teacher answers no more, where one does."""
        return next((client.stopped for client in self.clients if client.stopped is not None), None)


def in_turn(key: str, sample: int, names: Sequence[str]) -> str:
    """Sample after sample another name, in an order that the key shuffles."""
    order = sorted(names, key=lambda name: _draw(key, name))
    return order[sample % len(order)]


def by_weight(key: str, sample: int, names: Sequence[str], weights: Sequence[float]) -> str:
    """Rendezvous hashing: the name whose exponential waiting time of rate `weight` is the shortest."""
    waits = {
        name: -math.log(_draw(f"{key}:{sample}", name)) / weight for name, weight in zip(names, weights, strict=True)
    }
    return min(waits, key=waits.__getitem__)


def _draw(key: str, name: str) -> float:
    """A number in (0, 1] that depends on both."""
    digest = hashlib.blake2b(f"{name}\0{key}".encode("utf-8", "replace"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") % _DRAWS + 1) / _DRAWS
