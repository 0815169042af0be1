"""A bounded queue: how many choices are accepted and not answered, and the refusal beyond that."""

from __future__ import annotations

from distill.serve.fields import ApiError

_RETRY_AFTER_SECONDS = 1


class Admission:
    """Counts open choices; used from the event loop alone."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.num_open = 0
        self.num_refused = 0

    def check(self, num_choices: int = 1) -> None:
        """Refuse at once what there is no room for."""
        if self.num_open + num_choices > self.limit:
            self.num_refused += 1
            raise ApiError(
                503, "too many requests are waiting", kind="server_error", retry_after_seconds=_RETRY_AFTER_SECONDS
            )

    def enter(self) -> Slot:
        """Room for one choice, before anything is parsed."""
        self.check()
        return Slot(self)


class Slot:
    """One request's part of the queue, given back once."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._held = 1
        admission.num_open += 1

    def grow(self, num_choices: int) -> None:
        """Room for all choices of the request, now that they are known."""
        self._admission.check(num_choices - self._held)
        self._admission.num_open += num_choices - self._held
        self._held = num_choices

    def leave(self) -> None:
        self._admission.num_open -= self._held
        self._held = 0
