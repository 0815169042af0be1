"""The server's OpenAPI document: its routes and what each field may hold, under the server's own limits."""

from __future__ import annotations

from typing import Any

import distill
from distill.engine.constrained.grammar import MAX_PATTERN_CHARACTERS
from distill.engine.types import MAX_TOP_LOGPROBS
from distill.serve.chat import ROLES, TOOL_CHOICES
from distill.serve.fields import Limits

Schema = dict[str, Any]
_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}


def document(model_name: str, limits: Limits, vocab_size: int) -> Schema:
    """OpenAPI 3.1."""
    schemas = _schemas(model_name, limits, vocab_size)
    posts = {
        "/v1/chat/completions": ("Chat", "A chat completion, whole or as server-sent events"),
        "/v1/completions": ("Completion", "A completion, whole or as server-sent events"),
        "/tokenize": ("Tokenize", "Token ids of a text or a chat"),
        "/detokenize": ("Detokenize", "The text of token ids"),
    }
    gets = {
        "/health": "Whether the engine lives",
        "/metrics": "Counters in Prometheus' text format",
        "/v1/models": "The model",
        "/tokenizer_info": "Special tokens and the chat template",
    }
    paths: Schema = {path: {"get": _operation(text, None)} for path, text in gets.items()}
    paths |= {path: {"post": _operation(text, name)} for path, (name, text) in posts.items()}
    parameter = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    paths["/v1/models/{name}"] = {"get": {**_operation("The model, by its name", None), "parameters": [parameter]}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "distill", "version": distill.__version__},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(summary: str, body: str | None) -> Schema:
    error = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    responses: Schema = {"200": {"description": summary}}
    refusals = {"400": "a field that is wrong or not supported, named", "404": "another model", "413": "a large body"}
    refusals |= {"401": "a wrong or missing key", "431": "large headers", "503": "a full queue or a stopped engine"}
    responses |= {status: {"description": text, **error} for status, text in refusals.items()}
    operation: Schema = {"summary": summary, "responses": responses}
    if body is not None:
        schema = {"$ref": f"#/components/schemas/{body}"}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation


def _schemas(model_name: str, limits: Limits, vocab_size: int) -> Schema:
    model = {"type": "string", "const": model_name}
    ids = _array({"type": "integer", "minimum": 0, "maximum": vocab_size - 1}, low=1)
    texts = _array({"type": "string", "minLength": 1}, low=1, high=limits.max_choices)
    many = {**_array(ids, low=1, high=limits.max_choices)}
    prompt = {"anyOf": [{"type": "string", "minLength": 1}, texts, ids, many]}
    common = _sampling(limits, vocab_size)
    chat = {
        "model": model,
        "messages": _array({"$ref": "#/components/schemas/Message"}, low=1),
        "tools": _array({"$ref": "#/components/schemas/Tool"}),
        "tool_choice": {"enum": list(TOOL_CHOICES)},
        "max_completion_tokens": _integer(1, limits.max_tokens),
        "max_tokens": _integer(1, limits.max_tokens),
        "logprobs": _FLAG,
        "top_logprobs": _integer(0, MAX_TOP_LOGPROBS),
        **common,
    }
    completion = {
        "model": model,
        "prompt": prompt,
        "echo": _FLAG,
        "add_special_tokens": _FLAG,
        "max_tokens": _integer(0, limits.max_tokens),
        "logprobs": _integer(0, MAX_TOP_LOGPROBS),
        **common,
    }
    shared = {"model": model, "add_special_tokens": _FLAG, "return_token_strs": _FLAG}
    rendered = {name: chat[name] for name in ("messages", "tools", "tool_choice")}
    tokenize_chat = {**shared, **rendered, "add_generation_prompt": _FLAG}
    return {
        "Chat": _object(chat, "model", "messages"),
        "Completion": _object(completion, "model", "prompt"),
        "Tokenize": {"anyOf": [_object({**shared, "prompt": _TEXT}, "prompt"), _object(tokenize_chat, "messages")]},
        "Detokenize": _object({"model": model, "tokens": ids}, "tokens"),
        "Message": _message(),
        "Tool": _object({"type": {"const": "function"}, "function": _function()}, "type", "function"),
        "Error": _object({"error": {"type": "object"}}, "error"),
    }


def _sampling(limits: Limits, vocab_size: int) -> Schema:
    """The fields that both endpoints share."""
    stop = {"type": "string", "minLength": 1}
    return {
        "n": _integer(1, limits.max_choices),
        "temperature": _number(0, 100),
        "top_p": {**_number(0, 1), "exclusiveMinimum": 0},
        "min_p": _number(0, 1),
        "top_k": _integer(-1, 1 << 31),
        "seed": _integer(-(1 << 63) + 1, (1 << 63) - 1),
        "stop": {"anyOf": [stop, _array(stop, high=limits.max_stop)]},
        "stop_token_ids": _array(_integer(0, vocab_size - 1), high=limits.max_stop),
        "ignore_eos": _FLAG,
        "min_tokens": _integer(0, (1 << 63) - 1),
        "repetition_penalty": _number(0.001, 1000),
        "presence_penalty": _number(-2, 2),
        "frequency_penalty": _number(-2, 2),
        "logit_bias": {
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]{1,10}$"},
            "additionalProperties": _number(-100, 100),
            "maxProperties": limits.max_bias,
        },
        "response_format": _response_format(),
        "structured_outputs": {
            "anyOf": [
                _object({"json": {"type": "object", "description": "a JSON schema"}}, "json"),
                _object({"regex": {"type": "string", "maxLength": MAX_PATTERN_CHARACTERS}}, "regex"),
                _object({"json_object": {"const": True}}, "json_object"),
            ]
        },
        "stream": _FLAG,
        "stream_options": _object({"include_usage": _FLAG}),
        "user": _TEXT,
        "metadata": {"type": "object"},
    }


def _response_format() -> Schema:
    """What OpenAI has; which keywords a schema may use is in the refusal of one that uses others."""
    schema = {"type": "object", "description": "a JSON schema; keywords that cannot be enforced are refused"}
    named = _object({"name": _TEXT, "description": _TEXT, "strict": _FLAG, "schema": schema}, "name", "schema")
    plain = _object({"type": {"enum": ["text", "json_object"]}}, "type")
    return {"anyOf": [plain, _object({"type": {"const": "json_schema"}, "json_schema": named}, "type", "json_schema")]}


def _message() -> Schema:
    """What each role may say."""
    part = _object({"type": {"const": "text"}, "text": _TEXT}, "type", "text")
    said = {"content": {"anyOf": [_TEXT, _array(part)]}, "name": _TEXT}
    called = _object({"name": _TEXT, "arguments": {**_TEXT, "description": "a JSON object"}}, "name", "arguments")
    call = _object({"type": {"const": "function"}, "id": _TEXT, "function": called}, "type", "function")
    others = [role for role in ROLES if role not in ("assistant", "tool")]
    return {
        "anyOf": [
            _object({"role": {"enum": others}, **said}, "role", "content"),
            _object({"role": {"const": "assistant"}, **said, "tool_calls": _array(call)}, "role", "content"),
            _object({"role": {"const": "tool"}, **said, "tool_call_id": _TEXT}, "role", "content"),
        ]
    }


def _function() -> Schema:
    return {"type": "object", "required": ["name"], "properties": {"name": _TEXT, "parameters": {"type": "object"}}}


def _object(properties: Schema, *required: str) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _array(items: Schema, *, low: int = 0, high: int | None = None) -> Schema:
    return {"type": "array", "items": items, "minItems": low, **({} if high is None else {"maxItems": high})}


def _integer(low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def _number(low: float, high: float) -> Schema:
    return {"type": "number", "minimum": low, "maximum": high}
