"""The fields of a JSON body, taken out one by one and checked; errors in OpenAI's form name the one at fault."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LABELS = ("user", "metadata")  # say who asks; change nothing


class ApiError(Exception):
    """An answer in OpenAI's error form: status, message and the parameter at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
        self.headers = {} if retry_after_seconds is None else {"retry-after": str(retry_after_seconds)}


@dataclass(frozen=True)
class Limits:
    """What clients may ask of the server."""

    max_body_bytes: int = 4 << 20
    max_header_bytes: int = 32 << 10
    max_choices: int = 128  # n, times the prompts of a completion request
    max_tokens: int = 1 << 20  # of one completion; the model's context is a limit as well
    max_queue: int = 1024  # choices accepted and not answered; beyond it 503
    max_stop: int = 64
    max_bias: int = 1024  # entries of logit_bias
    grammar_seconds: float = 10.0  # for a schema or pattern to be compiled, those before it included
    body_seconds: float = 30.0  # for a body to arrive
    send_seconds: float = 60.0  # for a stalled reader to take the next piece


class Fields:
    """Takes fields out of a JSON object; what is left in the end is unknown and refused by name."""

    def __init__(self, body: Any) -> None:
        if not isinstance(body, dict):
            raise ApiError(400, "the body must be a JSON object")
        self._left = dict(body)

    def number(self, name: str, default: float) -> float:
        value = self._left.pop(name, None)
        if value is None:
            return default
        return finite(name, value)

    def integer(self, name: str, *, low: int | None = None, high: int | None = None) -> int | None:
        value = self._left.pop(name, None)
        if value is None:
            return None
        value = whole(value)
        if type(value) is not int:
            raise wrong(name, value, "an integer")
        if (low is not None and value < low) or (high is not None and value > high):
            span = f"at least {low}" if high is None else f"from {low} to {high}"
            raise wrong(name, value, f"an integer {span}")
        return value

    def boolean(self, name: str, default: bool = False) -> bool:
        value = self._left.pop(name, None)
        if value is not None and not isinstance(value, bool):
            raise wrong(name, value, "true or false")
        return default if value is None else value

    def any(self, name: str) -> Any:
        return self._left.pop(name, None)

    def finish(self, neutral: Mapping[str, Sequence[object]]) -> None:
        """Refuse what nobody took, except for null and `neutral` values: those that ask for nothing."""
        for name, value in self._left.items():
            if value is None or name in LABELS or (name in neutral and value in neutral[name]):
                continue
            if name in neutral:
                raise ApiError(400, f"'{name}' is not supported with this value", param=name, code="unsupported_value")
            raise ApiError(400, f"unsupported field '{name}'", param=name, code="unsupported_parameter")


def check_model(fields: Fields, model_name: str, *, required: bool = True) -> None:
    """Refuse a request for another model than the server's."""
    asked = fields.any("model")
    if asked is None and not required:
        return
    if not isinstance(asked, str):
        raise wrong("model", asked, f"the name of a model, here '{model_name}'")
    if asked != model_name:
        raise unknown_model(asked, model_name)


def unknown_model(asked: str, model_name: str) -> ApiError:
    return ApiError(404, f"no model '{asked}'; this server has '{model_name}'", param="model", code="model_not_found")


def finite(name: str, value: Any) -> float:
    """A number that a float holds: no boolean, no infinity, no integer of 400 digits."""
    largest = sys.float_info.max
    if isinstance(value, bool) or not isinstance(value, int | float) or not -largest <= value <= largest:
        raise wrong(name, value, "a finite number")
    return float(value)


def token_ids(name: str, value: Any) -> tuple[int, ...]:
    """A list of integers, each of which fits a tensor; whether the vocabulary has them is the engine's to say."""
    ids = value if isinstance(value, list) else [None]
    if any(type(t) is float for t in ids):
        ids = [whole(t) for t in ids]
    if not all(type(t) is int and 0 <= t < 1 << 31 for t in ids):
        raise wrong(name, value, "a list of token ids")
    return tuple(ids)


def whole(value: Any) -> Any:
    """7.0 is 7: JSON has numbers alone, and some writers give every one a point. Anything else stays as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def refuse_others(where: str, value: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse unknown keys of an object inside the body."""
    for name in value:
        if name not in known and value[name] is not None:
            raise ApiError(
                400, f"unsupported field '{where}.{name}'", param=f"{where}.{name}", code="unsupported_parameter"
            )


def wrong(name: str, value: Any, wanted: str) -> ApiError:
    """The error for a value that a field cannot have."""
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:60] + "..."
    return ApiError(400, f"'{name}' must be {wanted}, not {shown}", param=name)
