"""Text to token ids in a thread of its own, chats through the model's template; what cannot fit is refused before."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jinja2
from transformers import PreTrainedTokenizerBase

from distill.serve.chat import Chat
from distill.serve.fields import ApiError
from distill.serve.protocol import Prompt
from distill.serve.template import ChatTemplate

T = TypeVar("T")
_LONGEST_TOKEN = 16  # characters, at least


class Tokens:
    """The tokenizer's side of requests. Its thread has a copy, as fast tokenizers change while they encode and the
    engine decodes with the original at the same time."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_model_len: int) -> None:
        self._tokenizer = copy.deepcopy(tokenizer)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tokens")
        self.max_model_len = max_model_len
        self._max_characters = max_model_len * max(_LONGEST_TOKEN, *map(len, tokenizer.get_vocab()))
        self._template, self._problem = _template(tokenizer, None)
        self._tool_template, _ = _template(tokenizer, [{}])

    def stop(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def prompt(self, prompt: Prompt, *, add_special_tokens: bool = True, unbounded: bool = False) -> list[int]:
        """Token ids as they are; text with the tokenizer's own special tokens, where they are asked for."""
        if isinstance(prompt, tuple):
            return list(prompt)
        if not unbounded and len(prompt) > self._max_characters:
            raise ApiError(
                400,
                f"the prompt has {len(prompt)} characters; {self.max_model_len} tokens hold {self._max_characters}",
                param="prompt",
                code="context_length_exceeded",
            )
        return await self._apart(lambda: self._encode(prompt, add_special_tokens))

    async def chat(
        self, chat: Chat, *, add_generation_prompt: bool = True, add_special_tokens: bool = False
    ) -> list[int]:
        """Token ids of a chat; the template alone decides on BOS."""
        template = self._tool_template if chat.tools else self._template
        if template is None:
            raise ApiError(400, self._problem, code="no_chat_template", param="messages")
        if chat.tools and not template.takes_tools():
            raise ApiError(400, "this model's chat template knows no tools", param="tools", code="unsupported_value")
        if chat.has_tool_calls and not template.takes_tool_calls():
            raise ApiError(400, "this model's chat template knows no tool calls", param="messages")
        return await self._apart(lambda: self._render(template, chat, add_generation_prompt, add_special_tokens))

    async def text(self, ids: tuple[int, ...]) -> str:
        """What the ids say, special tokens included."""
        return await self._apart(lambda: str(self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)))

    async def strings(self, ids: list[int]) -> list[str]:
        """The vocabulary's own names of the ids."""
        return await self._apart(lambda: [str(t) for t in self._tokenizer.convert_ids_to_tokens(ids)])

    async def _apart(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [int(t) for t in self._tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]]

    def _render(
        self, template: ChatTemplate, chat: Chat, add_generation_prompt: bool, add_special_tokens: bool
    ) -> list[int]:
        try:
            text = template.render(chat.messages, chat.tools, add_generation_prompt)
        except (
            Exception
        ) as error:  # the template is the model's own code: whatever it raises, it refuses these messages
            raise ApiError(400, f"the chat template refuses these messages: {error}", param="messages") from None
        ids = self._encode(text, add_special_tokens)
        bos = self._tokenizer.bos_token_id
        return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids


def _template(
    tokenizer: PreTrainedTokenizerBase, tools: list[dict[str, Any]] | None
) -> tuple[ChatTemplate | None, str]:
    """The template for chats with or without tools, and why there is none."""
    if tokenizer.chat_template is None:
        return None, "this model has no chat template"
    try:
        return ChatTemplate(tokenizer.get_chat_template(tools=tools), tokenizer.special_tokens_map), ""
    except (jinja2.TemplateError, ValueError) as error:
        return None, f"this model's chat template cannot be used: {error}"
