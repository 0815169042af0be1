"""A model's chat template in Jinja's sandbox, with bounds on its time and on the sizes of what it makes.

A template comes with the weights, so it is somebody else's code. The environment has what transformers gives to
templates; a test compares the two.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from types import BuiltinMethodType, FrameType
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.sandbox
import jinja2.utils
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.filters import do_format, do_indent, do_join, do_replace
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_SOURCE_CHARACTERS = 1 << 20
MAX_NUMBER = 1_000_000  # that a template may write or compute: widths, repetitions, ranges
MAX_CHARACTERS = 16 << 20  # of the rendered chat, and of any string on the way
MAX_SECONDS = 2.0
_FILE_NAME = "<template>"  # what Jinja calls code compiled from a string
_WIDE_FORMAT = re.compile(r"\d{7,}")  # a width or precision of millions
_UNNEEDED = ("center", "wordwrap", "urlize", "xmlattr", "pprint")  # filters of unbounded size, or of no use in a chat


class TemplateLimit(jinja2.TemplateError):
    """A template that takes too long or makes too much."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`: marks what the assistant says; rendering passes it through."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_inner"), [], [], body).set_lineno(line)

    def _inner(self, caller: Callable[[], str]) -> str:
        return caller()


class _Checked(CodeGenerator):
    """Compiles `a ~ b` to a call that the environment checks; Jinja itself would join without asking anybody."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concatenate((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox; numbers and strings stay below our limits."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})
    code_generator_class = _Checked

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "**" and numbers and (abs(left) > MAX_NUMBER or abs(right) > 64):
            raise TemplateLimit(f"a power of more than {MAX_NUMBER}")
        if operator == "*" and not numbers and _length(left) * _length(right) > MAX_CHARACTERS:
            raise TemplateLimit("a repetition that is too long")
        if operator == "+" and not numbers and _length(left) + _length(right) > MAX_CHARACTERS:
            raise TemplateLimit("a sum that is too long")
        if operator == "%" and isinstance(left, str):
            _check_format(left)
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, int) and abs(result) > MAX_NUMBER**2:
            raise TemplateLimit(f"a number above {MAX_NUMBER**2}")
        return result

    def call(self, context: Any, target: Any, /, *args: Any, **kwargs: Any) -> Any:  # Jinja's own signature
        if any(isinstance(value, int) and value > MAX_NUMBER for value in (*args, *kwargs.values())):
            raise TemplateLimit(f"a call with a number above {MAX_NUMBER}")
        if isinstance(target, BuiltinMethodType) and isinstance(target.__self__, str):
            _check_method(target.__self__, target.__name__, args)
        return super().call(context, target, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Any:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_format(value.__self__)
        return wrapped

    def concatenate(self, parts: Sequence[Any]) -> str:
        """`a ~ b`."""
        texts = [str(part) for part in parts]
        if sum(map(len, texts)) > MAX_CHARACTERS:
            raise TemplateLimit("a text that is too long")
        return "".join(texts)


class ChatTemplate:
    """One compiled template. `takes(name)` says whether it reads a variable at all."""

    def __init__(self, source: str, special_tokens: Mapping[str, Any]) -> None:
        if len(source) > MAX_SOURCE_CHARACTERS:
            raise TemplateLimit(f"the chat template has more than {MAX_SOURCE_CHARACTERS} characters")
        environment = _environment()
        tree = environment.parse(source)
        if any(type(c.value) is int and abs(c.value) > MAX_NUMBER for c in tree.find_all(nodes.Const)):
            raise TemplateLimit(f"the chat template holds a number above {MAX_NUMBER}")
        self._variables = jinja2.meta.find_undeclared_variables(tree)
        self._source = source
        self._template = environment.from_string(source)
        self._special_tokens = dict(special_tokens)

    def takes_tools(self) -> bool:
        return "tools" in self._variables

    def takes_tool_calls(self) -> bool:
        return "tool_calls" in self._source

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], add_generation_prompt: bool
    ) -> str:
        """The chat as the model reads it. Raises jinja2.TemplateError, or whatever the template's code runs into."""
        pieces, length = [], 0
        with _deadline(MAX_SECONDS):
            for piece in self._template.generate(
                **self._special_tokens,
                messages=list(messages),
                tools=list(tools) or None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
            ):
                pieces.append(piece)
                length += len(piece)
                if length > MAX_CHARACTERS:
                    raise TemplateLimit(f"the rendered chat has more than {MAX_CHARACTERS} characters")
        return "".join(pieces)


def _environment() -> _Environment:
    """The sandbox with the names that chat templates expect."""
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
    for name in _UNNEEDED:
        del environment.filters[name]
    environment.filters.update(tojson=_to_json, replace=_replace, join=_join, format=_format, indent=_indent)
    del environment.globals["lipsum"]
    environment.globals.update(raise_exception=_raise, strftime_now=_now, dict=_dict, namespace=_Namespace)
    return environment


class _Namespace(jinja2.utils.Namespace):
    """A template's mutable names, none of which may look like Python's own."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that `namespace(self=...)` works, as in Jinja
        _check_names(kwargs)
        jinja2.utils.Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_names((name,))
        super().__setitem__(name, value)


def _check_names(names: Iterable[str]) -> None:
    if any(name.startswith("_") for name in names):
        raise jinja2.sandbox.SecurityError("a chat template's namespace takes no name that starts with an underscore")


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


@jinja2.pass_eval_context
def _replace(context: nodes.EvalContext, text: str, old: str, new: str, count: int | None = None) -> str:
    _check_method(str(text), "replace", (str(old), str(new)))
    return do_replace(context, text, old, new, count)


@jinja2.pass_eval_context
def _join(context: nodes.EvalContext, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    items = list(value)
    if sum(len(item) for item in items if isinstance(item, str)) + len(str(d)) * len(items) > MAX_CHARACTERS:
        raise TemplateLimit("a text that is too long")
    return do_join(context, items, d, attribute)


def _format(text: str, *args: Any, **kwargs: Any) -> str:
    _check_format(str(text))
    return do_format(text, *args, **kwargs)


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    padding = width if isinstance(width, int) else len(width)
    if (text.count("\n") + 1) * padding + len(text) > MAX_CHARACTERS:
        raise TemplateLimit("a text that is too long")
    return do_indent(text, width, first, blank)


def _check_format(text: str) -> None:
    if _WIDE_FORMAT.search(text):
        raise TemplateLimit("a format that is millions wide")


def _check_method(text: str, name: str, args: tuple[Any, ...]) -> None:
    """Refuse a method of strings whose result would be too long."""
    grown = 0
    if name == "replace" and len(args) >= 2 and isinstance(args[0], str) and isinstance(args[1], str):
        grown = text.count(args[0]) * len(args[1])
    elif name == "join" and args and isinstance(args[0], list | tuple):
        grown = sum(len(item) for item in args[0] if isinstance(item, str)) + len(text) * len(args[0])
    elif name == "expandtabs":
        grown = text.count("\t") * (args[0] if args and isinstance(args[0], int) else 8)
    if grown > MAX_CHARACTERS:
        raise TemplateLimit("a text that is too long")


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _length(value: Any) -> int:
    """What a value contributes to the size of a product or a sum."""
    if isinstance(value, str | bytes | list | tuple):
        return len(value)
    return abs(value) if isinstance(value, int) else 1


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """End this thread's template code after so long: its lines are traced, as a loop cannot be stopped from outside."""
    end = time.monotonic() + seconds

    def local(frame: FrameType, event: str, argument: object) -> Any:
        if time.monotonic() > end:
            raise TemplateLimit(f"the chat template takes longer than {seconds:g} s")
        return local

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        return local if frame.f_code.co_filename == _FILE_NAME else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
