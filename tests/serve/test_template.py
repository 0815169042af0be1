"""Chat templates: the text that transformers makes of them, and hostile ones that end soon and small."""

from __future__ import annotations

import time
from pathlib import Path

import jinja2
import pytest

from distill.serve.template import ChatTemplate, TemplateLimit
from tests.engine.models import byte_tokenizer

DATA = Path(__file__).parents[2] / "data"
CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "a <b> & 'c' {{ 1 }}\nnaïve"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": ""},
]
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "b": [1, "<é>"]}}}]
HONEST = {
    "shipped": (DATA / "teacher" / "chat_template.jinja").read_text(),
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "tools": "{{ bos_token }}{%- if tools %}{{ tools | tojson(indent=2) }}\n    {%- endif %}\n"
    "{%- for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content | trim ~ eos_token }}"
    "{% endfor %}",
    "state": "{% set ns = namespace(n=0, last='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% if m.role == 'user' %}{% set ns.last = m.content.strip().split('\n') | join('|') %}{% endif %}{% endfor %}"
    "{{ ns.n }}{{ ns.last }}{{ '%03d' % ns.n }}{{ 'x' * ns.n }}{{ messages | length }}"
    "{{ messages[1:] | map(attribute='role') | list }}{{ 'a-b'.replace('-', '+') | indent(3) }}"
    "{{ dict(a=1) }}{{ messages[::-1][0].role | upper }}{{ '{} {}'.format(1, 'b') }}{{ range(3) | join(',') }}",
    "macro": "{% macro say(m) %}[{{ m.role }}: {{ caller() if caller else m.content }}]{% endmacro %}"
    "{% for m in messages %}{{ say(m) }}{% if loop.index == 3 %}{% break %}{% endif %}{% endfor %}",
}


@pytest.mark.parametrize("name", HONEST)
def test_the_text_is_transformers_text(name: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = HONEST[name]
    ours = ChatTemplate(HONEST[name], tokenizer.special_tokens_map)
    for tools in ([], TOOLS):
        for generation in (False, True):
            expected = tokenizer.apply_chat_template(
                CHAT, tools=tools or None, tokenize=False, add_generation_prompt=generation
            )
            assert ours.render(CHAT, tools, generation) == expected


def test_what_a_template_takes() -> None:
    assert ChatTemplate(HONEST["tools"], {}).takes_tools()
    assert not ChatTemplate("{# tools #}{{ messages }}{% set tools = 1 %}", {}).takes_tools()
    assert ChatTemplate("{{ messages[0].tool_calls }}", {}).takes_tool_calls()


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ 'x' * 1000 }}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[1,2]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{{ 'x' * 999999 * 999999 }}",
        "{{ [1] * 999999 * 999999 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ 999999 ** 999999 }}",
        "{{ 'x'.ljust(999999 * 999) }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ '%999999999d' | format(1) }}",
        "{{ ('x' * 999999).replace('x', 'y' * 999999) }}",
        "{{ ('x' * 999999) | replace('x', 'y' * 999999) }}",
        "{{ (['x'] * 999999) | join('y' * 999999) }}",
        "{{ ('y' * 999999).join(['x'] * 999999) }}",
        "{{ ('\n' * 999999) | indent(999999) }}",
        "{{ range(99999999) }}",
        "{{ 99999999999999999999 }}",
        "{{ lipsum(n=999999) }}",
        "{{ 'x' | center(999999999) }}",
    ],
)
def test_hostile_templates_end_soon(source: str) -> None:
    started = time.monotonic()
    with pytest.raises((jinja2.TemplateError, OverflowError, RecursionError)):
        ChatTemplate(source, {}).render(CHAT, [], True)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ ''.__class__() }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{% set n = namespace(__class__=1) %}{{ n }}",
        "{% set n = namespace() %}{% set n.__init__ = 1 %}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ raise_exception('no') }}",
    ],
)
def test_the_sandbox_holds(source: str) -> None:
    with pytest.raises((jinja2.TemplateError, TypeError)):  # TypeError: there is nothing to include from
        rendered = ChatTemplate(source, {}).render(CHAT, [], True)
        raise AssertionError(rendered)


def test_tracing_ends_with_the_rendering() -> None:
    import sys

    before = sys.gettrace()
    with pytest.raises(TemplateLimit):
        ChatTemplate("{{ 9 ** 999 }}", {}).render(CHAT, [], True)
    assert sys.gettrace() is before
