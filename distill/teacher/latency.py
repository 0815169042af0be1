"""Whether a server queues what it is sent (vLLM does, and never refuses): latency grows, throughput does not."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

_TOLERANCE = 2.0  # a server may be twice as slow as at its best: batching does that too
_FEWEST_SAMPLES = 16
_OVERHEAD_TOKENS = 32  # what prompt and network cost, in tokens of answer
_DEEPEST_CUT = 0.5
_SMALLEST_CUT = 0.8  # what a smaller one does could not be told from noise


@dataclass
class QueueSense:
    """Watches the median latency a token, a window of a round of answers at a time.

    Where it is over twice its best while all the room allowed is in use, the requests beyond twice the
    bandwidth-delay product only wait there: fewer are allowed. A cut after which latency stays what it was has hit no
    queue (the answers have become other ones): it is taken back, and the new latency is the one to compare with.
    """

    best: float | None = None
    _samples: list[float] = field(default_factory=list)
    _skip: int = 0  # answers still to come of requests that were under way at a cut
    _cut: tuple[float, float] | None = None  # what was allowed before the cut, and the most that latency may be after

    @property
    def testing(self) -> bool:
        """Whether what a cut does is being measured: nothing else should change meanwhile."""
        return self._cut is not None

    def answered(self, seconds: float, completion_tokens: int, *, in_flight: int, allowed: float) -> float | None:
        """Note an answer. The number of requests to allow from now on, or None: as before."""
        if self._skip:
            self._skip -= 1
            return None
        self._samples.append(seconds / (completion_tokens + _OVERHEAD_TOKENS))
        if len(self._samples) < (_FEWEST_SAMPLES if self.best is None else max(_FEWEST_SAMPLES, allowed)):
            return None
        current = median(self._samples[-max(_FEWEST_SAMPLES, len(self._samples) // 4) :])  # a queue may be growing
        self._samples.clear()
        if self._cut is not None:
            allowed_before, latency_expected = self._cut
            self._cut = None
            if current > latency_expected:
                self.best = current
                return allowed_before
        if self.best is None or current < self.best:
            self.best = current
            return None
        share = max(_DEEPEST_CUT, _TOLERANCE * self.best / current)
        if share > _SMALLEST_CUT or in_flight < 0.9 * allowed - 1:
            return None
        self._cut = (allowed, current * (1 + share) / 2)  # a queue would get shorter by the whole share
        self._skip = in_flight
        return max(1.0, allowed * share)
