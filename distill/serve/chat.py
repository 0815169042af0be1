"""Chats as requests bring them: messages and tools, checked, in the form that chat templates read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from distill.serve.fields import ApiError, Fields, refuse_others, wrong

ROLES = ("system", "developer", "user", "assistant", "tool")
_ONLY = {"tool_calls": "assistant", "tool_call_id": "tool"}  # keys of a message, and the role that may have them
TOOL_CHOICES = ("none", "auto")


@dataclass(frozen=True)
class Chat:
    """What the chat template gets."""

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def has_tool_calls(self) -> bool:
        return any("tool_calls" in message for message in self.messages)


def take_chat(fields: Fields) -> Chat:
    """`messages`, `tools` and `tool_choice` of a body; "none" keeps the tools from the model."""
    messages, tools = _messages(fields.any("messages")), _tools(fields.any("tools"))
    choice = fields.any("tool_choice")
    if choice is not None and choice not in TOOL_CHOICES:
        raise ApiError(
            400,
            '\'tool_choice\' is supported as "none" and "auto": the chat template describes the tools, nothing forces'
            " the model to call one",
            param="tool_choice",
            code="unsupported_value",
        )
    return Chat(messages, () if choice == "none" else tools)


def _messages(value: Any) -> tuple[dict[str, Any], ...]:
    if not isinstance(value, list) or not value:
        raise wrong("messages", value, "a list of at least one message")
    return tuple(_message(item, f"messages[{index}]") for index, item in enumerate(value))


def _message(item: Any, where: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise wrong(where, item, "an object with role and content")
    role = item.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise wrong(f"{where}.role", role, f"one of {', '.join(ROLES)}")
    refuse_others(where, item, ("role", "content", "name", *(key for key, only in _ONLY.items() if role == only)))
    message: dict[str, Any] = {"role": role}
    calls = item.get("tool_calls")
    if calls:
        message["tool_calls"] = _tool_calls(calls, f"{where}.tool_calls")
    content = item.get("content")
    message["content"] = None if content is None and calls else _content(content, f"{where}.content")
    for key in ("name", "tool_call_id"):
        if item.get(key) is not None:
            if not isinstance(item[key], str):
                raise wrong(f"{where}.{key}", item[key], "a string")
            message[key] = item[key]
    return message


def _content(value: Any, where: str) -> str:
    """Text, or a list of text parts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise wrong(where, value, "a string or a list of text parts")
    for index, part in enumerate(value):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ApiError(400, f"only text parts are supported in {where}", param=f"{where}[{index}]")
        refuse_others(f"{where}[{index}]", part, ("type", "text"))
    return "".join(part["text"] for part in value)


def _tool_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Calls that the assistant made; their arguments become objects, which is what templates expect."""
    if not isinstance(value, list):
        raise wrong(where, value, "a list of tool calls")
    calls = []
    for index, item in enumerate(value):
        here = f"{where}[{index}]"
        function = _function(item, here, ("id", "type", "function"))
        refuse_others(f"{here}.function", function, ("name", "arguments"))
        try:
            arguments = json.loads(function.get("arguments") or "{}")
        except (TypeError, ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            raise wrong(f"{here}.function.arguments", function.get("arguments"), "a JSON object in a string")
        calls.append({**item, "function": {"name": function["name"], "arguments": arguments}})
    return calls


def _tools(value: Any) -> tuple[dict[str, Any], ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise wrong("tools", value, "a list of functions")
    for index, item in enumerate(value):
        _function(item, f"tools[{index}]", ("type", "function"))
    return tuple(value)


def _function(item: Any, where: str, known: tuple[str, ...]) -> dict[str, Any]:
    """The `function` object of a tool or a call, with a name."""
    if not isinstance(item, dict) or item.get("type") != "function":
        raise wrong(where, item, 'an object of type "function"')
    refuse_others(where, item, known)
    function = item.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise wrong(f"{where}.function", function, "an object with a name")
    return function
