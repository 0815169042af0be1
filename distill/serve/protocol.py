"""OpenAI requests: from JSON to values of ours. Whatever is not understood is refused by name, never dropped."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from distill.engine.types import MAX_TOP_LOGPROBS, SamplingParams
from distill.errors import EngineError
from distill.records import Message

ROLES = ("system", "developer", "user", "assistant", "tool")
# fields of the OpenAI API whose other values we do not implement
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none",),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
}
_LABELS = ("user", "metadata")  # say who asks; change nothing


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
        self.retry_after_seconds = retry_after_seconds
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True)
class Limits:
    """What one client may ask of the server."""

    max_body_bytes: int = 4 << 20
    max_choices: int = 128  # n, times the prompts of a completion request
    max_queue: int = 4096  # requests accepted and not finished; beyond it 503
    max_stop: int = 64


@dataclass(frozen=True)
class Request:
    """One request of either endpoint. `max_tokens` None: up to the end of the context."""

    prompts: tuple[str | tuple[int, ...], ...]  # completions
    messages: tuple[Message, ...]  # chat
    sampling: dict[str, Any]  # keywords of SamplingParams, max_tokens left out
    max_tokens: int | None
    n: int
    stream: bool
    include_usage: bool

    def params(self, room: int) -> SamplingParams:
        """Sampling for a prompt that leaves `room` tokens of context."""
        wanted = room if self.max_tokens is None else self.max_tokens
        return SamplingParams(max_tokens=max(1, wanted), **self.sampling)


class _Fields:
    """Takes fields out of a JSON object, checking each; what is left in the end is unknown."""

    def __init__(self, body: Any) -> None:
        if not isinstance(body, dict):
            raise ApiError(400, "the body must be a JSON object")
        self._left = dict(body)

    def number(self, name: str, default: float | None = None) -> float | None:
        value = self._left.pop(name, None)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong(name, value, "a number")
        return value

    def integer(self, name: str, *, low: int | None = None, high: int | None = None) -> int | None:
        value = self._left.pop(name, None)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong(name, value, "an integer")
        if (low is not None and value < low) or (high is not None and value > high):
            span = f"at least {low}" if high is None else f"from {low} to {high}"
            raise _wrong(name, value, f"an integer {span}")
        return value

    def boolean(self, name: str) -> bool | None:
        value = self._left.pop(name, None)
        if value is not None and not isinstance(value, bool):
            raise _wrong(name, value, "true or false")
        return value

    def any(self, name: str) -> Any:
        return self._left.pop(name, None)

    def finish(self) -> None:
        """Refuse what nobody took."""
        for name, value in self._left.items():
            if name in _LABELS or (name in _NEUTRAL and (value is None or value in _NEUTRAL[name])):
                continue
            if name in _NEUTRAL:
                raise ApiError(400, f"'{name}' is not supported with this value", param=name, code="unsupported_value")
            raise ApiError(400, f"unsupported field '{name}'", param=name, code="unsupported_parameter")


def parse_chat(body: Any, *, model_name: str, limits: Limits) -> Request:
    """A body of POST /v1/chat/completions."""
    fields = _Fields(body)
    _check_model(fields, model_name)
    messages = _messages(fields.any("messages"))
    wanted, top = fields.boolean("logprobs"), fields.integer("top_logprobs", low=0, high=MAX_TOP_LOGPROBS)
    if top is not None and not wanted:
        raise ApiError(400, "'top_logprobs' needs 'logprobs': true", param="top_logprobs")
    limit = fields.integer("max_completion_tokens", low=1)
    older = fields.integer("max_tokens", low=1)
    return _common(
        fields,
        limits,
        prompts=(),
        messages=messages,
        logprobs=(top or 0) if wanted else None,
        max_tokens=older if limit is None else limit,
    )


def parse_completion(body: Any, *, model_name: str, limits: Limits) -> Request:
    """A body of POST /v1/completions."""
    fields = _Fields(body)
    _check_model(fields, model_name)
    prompts = _prompts(fields.any("prompt"))
    logprobs = fields.integer("logprobs", low=0, high=MAX_TOP_LOGPROBS)
    max_tokens = fields.integer("max_tokens", low=1)
    return _common(
        fields,
        limits,
        prompts=prompts,
        messages=(),
        logprobs=logprobs,
        max_tokens=16 if max_tokens is None else max_tokens,
    )


def _common(
    fields: _Fields,
    limits: Limits,
    *,
    prompts: tuple[str | tuple[int, ...], ...],
    messages: tuple[Message, ...],
    logprobs: int | None,
    max_tokens: int | None,
) -> Request:
    """The fields both endpoints share."""
    n = fields.integer("n", low=1)
    n = 1 if n is None else n
    if n * max(1, len(prompts)) > limits.max_choices:
        raise _wrong("n", n, f"so that there are at most {limits.max_choices} choices")
    stream = fields.boolean("stream") or False
    sampling: dict[str, Any] = {
        "temperature": fields.number("temperature", 1.0),
        "top_p": fields.number("top_p", 1.0),
        "min_p": fields.number("min_p", 0.0),
        "top_k": max(0, fields.integer("top_k", low=-1) or 0),
        "seed": fields.integer("seed"),
        "stop": _stop(fields.any("stop"), limits),
        "stop_token_ids": _token_ids("stop_token_ids", fields.any("stop_token_ids") or []),
        "ignore_eos": fields.boolean("ignore_eos") or False,
        "min_tokens": fields.integer("min_tokens", low=0) or 0,
        "repetition_penalty": fields.number("repetition_penalty", 1.0),
        "presence_penalty": fields.number("presence_penalty", 0.0),
        "frequency_penalty": fields.number("frequency_penalty", 0.0),
        "logprobs": logprobs,
    }
    include_usage = _include_usage(fields.any("stream_options"), stream)
    fields.finish()
    try:
        SamplingParams(**sampling)
    except EngineError as error:
        name = error.message.partition(":")[0]
        raise ApiError(400, error.message, param=name if name in sampling else None) from None
    return Request(prompts, messages, sampling, max_tokens, n, stream, include_usage)


def _check_model(fields: _Fields, model_name: str) -> None:
    asked = fields.any("model")
    if not isinstance(asked, str):
        raise _wrong("model", asked, f"the name of a model, here '{model_name}'")
    if asked != model_name:
        raise ApiError(
            404, f"no model '{asked}'; this server has '{model_name}'", param="model", code="model_not_found"
        )


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise _wrong("messages", value, "a list of at least one message")
    messages: list[Message] = []
    for index, item in enumerate(value):
        where = f"messages[{index}]"
        if not isinstance(item, dict):
            raise _wrong(where, item, "an object with role and content")
        if item.get("role") not in ROLES:
            raise _wrong(f"{where}.role", item.get("role"), f"one of {', '.join(ROLES)}")
        for name in item:
            if name not in ("role", "content", "name") and item[name] is not None:
                raise ApiError(400, f"unsupported field '{where}.{name}'", param=f"{where}.{name}")
        messages.append({"role": item["role"], "content": _content(item.get("content"), f"{where}.content")})
    return tuple(messages)


def _content(value: Any, where: str) -> str:
    """Text, or a list of text parts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise _wrong(where, value, "a string or a list of text parts")
    for index, part in enumerate(value):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ApiError(400, f"only text parts are supported in {where}", param=f"{where}[{index}]")
    return "".join(part["text"] for part in value)


def _prompts(value: Any) -> tuple[str | tuple[int, ...], ...]:
    """A string, token ids, or a list of either."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            return tuple(value)
        if isinstance(value[0], list):
            return tuple(_token_ids("prompt", item) for item in value)
        return (_token_ids("prompt", value),)
    raise _wrong("prompt", value, "a string, a list of strings, a list of token ids or a list of such lists")


def _token_ids(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(isinstance(t, int) and not isinstance(t, bool) for t in value):
        raise _wrong(name, value, "a list of token ids")
    return tuple(value)


def _stop(value: Any, limits: Limits) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(s, str) and s for s in stops):
        raise _wrong("stop", value, "a string or a list of non-empty strings")
    if len(stops) > limits.max_stop:
        raise _wrong("stop", f"a list of {len(stops)}", f"at most {limits.max_stop} strings")
    return tuple(stops)


def _include_usage(value: Any, stream: bool) -> bool:
    if value is None:
        return False
    if not stream:
        raise ApiError(400, "'stream_options' needs 'stream': true", param="stream_options")
    if not isinstance(value, dict):
        raise _wrong("stream_options", value, "an object")
    _refuse_others("stream_options", value, ("include_usage",))
    wanted = value.get("include_usage")
    if wanted is not None and not isinstance(wanted, bool):
        raise _wrong("stream_options.include_usage", wanted, "true or false")
    return bool(wanted)


def _refuse_others(where: str, value: dict[str, Any], known: Collection[str]) -> None:
    for name in value:
        if name not in known:
            raise ApiError(400, f"unsupported field '{where}.{name}'", param=f"{where}.{name}")


def _wrong(name: str, value: Any, wanted: str) -> ApiError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:60] + "..."
    return ApiError(400, f"'{name}' must be {wanted}, not {shown}", param=name)
