"""OpenAI requests: from JSON to values of ours. Whatever is not understood is refused by name, never dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distill.engine.constrained.grammar import Grammar
from distill.engine.types import MAX_TOP_LOGPROBS, SamplingParams
from distill.errors import EngineError
from distill.serve.chat import Chat, take_chat
from distill.serve.fields import ApiError, Fields, Limits, check_model, finite, refuse_others, token_ids, wrong
from distill.serve.structured import Structure, take_structure

_LARGEST = (1 << 63) - 1
_COLDEST = 1e-4  # a lower temperature is greedy: dividing by it would overflow
_PENALTIES = (1e-3, 1e3)  # further out, logits overflow
# fields of the OpenAI API whose other values we do not implement
NEUTRAL: dict[str, tuple[object, ...]] = {
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
Prompt = str | tuple[int, ...]


@dataclass(frozen=True)
class Request:
    """One request of either endpoint. `max_tokens` None: up to the end of the context."""

    prompts: tuple[Prompt, ...]  # completions
    chat: Chat | None
    sampling: dict[str, Any]  # keywords of SamplingParams, max_tokens left out
    max_tokens: int | None
    n: int
    stream: bool
    include_usage: bool
    echo: bool = False
    add_special_tokens: bool = True  # to prompts that are text
    structure: Structure | None = None  # what the answer has to be

    @property
    def num_choices(self) -> int:
        return self.n * max(1, len(self.prompts))

    def params(self, room: int, grammar: Grammar | None = None) -> SamplingParams:
        """Sampling for a prompt that leaves `room` tokens of context; `grammar` is that of `structure`."""
        limit = max(1, room) if self.max_tokens is None else self.max_tokens
        return SamplingParams(max_tokens=limit, grammar=grammar, **self.sampling)


def parse_chat(body: Any, *, model_name: str, limits: Limits) -> Request:
    """A body of POST /v1/chat/completions."""
    fields = Fields(body)
    check_model(fields, model_name)
    chat = take_chat(fields)
    wanted, top = fields.boolean("logprobs"), fields.integer("top_logprobs", low=0, high=MAX_TOP_LOGPROBS)
    if top is not None and not wanted:
        raise ApiError(400, "'top_logprobs' needs 'logprobs': true", param="top_logprobs")
    limit = fields.integer("max_completion_tokens", low=1, high=limits.max_tokens)
    older = fields.integer("max_tokens", low=1, high=limits.max_tokens)
    n, stream, include_usage = _shape(fields, limits, num_prompts=1)
    structure = take_structure(fields)
    sampling = _sampling(fields, limits, logprobs=(top or 0) if wanted else None, prompt_logprobs=None)
    max_tokens = older if limit is None else limit
    return Request((), chat, sampling, max_tokens, n, stream, include_usage, structure=structure)


def parse_completion(body: Any, *, model_name: str, limits: Limits) -> Request:
    """A body of POST /v1/completions. With `echo` the prompt is part of the answer; with `logprobs` as well it is
    scored, and `max_tokens` may be 0."""
    fields = Fields(body)
    check_model(fields, model_name)
    prompts = _prompts(fields.any("prompt"))
    echo = fields.boolean("echo")
    logprobs = fields.integer("logprobs", low=0, high=MAX_TOP_LOGPROBS)
    scores = echo and logprobs is not None
    max_tokens = fields.integer("max_tokens", low=0 if scores else 1, high=limits.max_tokens)
    add_special_tokens = fields.boolean("add_special_tokens", True)
    n, stream, include_usage = _shape(fields, limits, num_prompts=len(prompts))
    if stream and scores:
        raise ApiError(400, "'echo' with 'logprobs' is not supported in a stream", param="echo")
    structure = take_structure(fields)
    sampling = _sampling(fields, limits, logprobs=logprobs, prompt_logprobs=logprobs if scores else None)
    return Request(
        prompts=prompts,
        chat=None,
        sampling=sampling,
        max_tokens=min(16, limits.max_tokens) if max_tokens is None else max_tokens,
        n=n,
        stream=stream,
        include_usage=include_usage,
        echo=echo,
        add_special_tokens=add_special_tokens,
        structure=structure,
    )


def _shape(fields: Fields, limits: Limits, *, num_prompts: int) -> tuple[int, bool, bool]:
    """(n, stream, include_usage): how many choices, and how they are sent."""
    n = fields.integer("n", low=1) or 1
    if n * num_prompts > limits.max_choices:
        raise wrong("n", n, f"so that there are at most {limits.max_choices} choices")
    stream = fields.boolean("stream")
    return n, stream, _include_usage(fields.any("stream_options"), stream)


def _sampling(fields: Fields, limits: Limits, *, logprobs: int | None, prompt_logprobs: int | None) -> dict[str, Any]:
    """The fields both endpoints share, as keywords of SamplingParams; the last to take any."""
    temperature = fields.number("temperature", 1.0)
    repetition = fields.number("repetition_penalty", 1.0)
    if not _PENALTIES[0] <= repetition <= _PENALTIES[1]:
        raise wrong("repetition_penalty", repetition, f"from {_PENALTIES[0]} to {_PENALTIES[1]:g}")
    stop_ids = token_ids("stop_token_ids", fields.any("stop_token_ids") or [])
    if len(stop_ids) > limits.max_stop:
        raise wrong("stop_token_ids", f"a list of {len(stop_ids)}", f"at most {limits.max_stop} token ids")
    sampling: dict[str, Any] = {
        "temperature": 0.0 if 0.0 <= temperature < _COLDEST else temperature,
        "top_p": fields.number("top_p", 1.0),
        "min_p": fields.number("min_p", 0.0),
        "top_k": max(0, fields.integer("top_k", low=-1, high=1 << 31) or 0),
        "seed": fields.integer("seed", low=-_LARGEST, high=_LARGEST),
        "stop": _stop(fields.any("stop"), limits),
        "stop_token_ids": stop_ids,
        "ignore_eos": fields.boolean("ignore_eos"),
        "min_tokens": fields.integer("min_tokens", low=0, high=_LARGEST) or 0,
        "repetition_penalty": repetition,
        "presence_penalty": fields.number("presence_penalty", 0.0),
        "frequency_penalty": fields.number("frequency_penalty", 0.0),
        "logit_bias": _logit_bias(fields.any("logit_bias"), limits),
        "logprobs": logprobs,
        "prompt_logprobs": prompt_logprobs,
    }
    fields.finish(NEUTRAL)
    try:
        SamplingParams(**sampling)
    except EngineError as error:
        name = error.message.partition(":")[0]
        raise ApiError(400, error.message, param=name if name in sampling else None) from None
    return sampling


def _prompts(value: Any) -> tuple[Prompt, ...]:
    """A string, token ids, or a list of either."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            return tuple(value)
        if isinstance(value[0], list):
            return tuple(token_ids("prompt", item) for item in value)
        return (token_ids("prompt", value),)
    raise wrong("prompt", value, "a string, a list of strings, a list of token ids or a list of such lists")


def _stop(value: Any, limits: Limits) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(s, str) and s for s in stops):
        raise wrong("stop", value, "a string or a list of non-empty strings")
    if len(stops) > limits.max_stop:
        raise wrong("stop", f"a list of {len(stops)}", f"at most {limits.max_stop} strings")
    return tuple(stops)


def _logit_bias(value: Any, limits: Limits) -> tuple[tuple[int, float], ...]:
    """{"token id": bias}, sorted."""
    if value is None:
        return ()
    if not isinstance(value, dict) or len(value) > limits.max_bias:
        raise wrong("logit_bias", value, f"an object of at most {limits.max_bias} entries, token id to number")
    biases: dict[int, float] = {}
    for key, bias in value.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise wrong("logit_bias", key, "an object whose keys are token ids")
        biases[int(key)] = finite("logit_bias", bias)
    return tuple(sorted(biases.items()))


def _include_usage(value: Any, stream: bool) -> bool:
    if value is None:
        return False
    if not stream:
        raise ApiError(400, "'stream_options' needs 'stream': true", param="stream_options")
    if not isinstance(value, dict):
        raise wrong("stream_options", value, "an object")
    refuse_others("stream_options", value, ("include_usage",))
    wanted = value.get("include_usage")
    if wanted is not None and not isinstance(wanted, bool):
        raise wrong("stream_options.include_usage", wanted, "true or false")
    return bool(wanted)
