"""`/tokenize`, `/detokenize` and `/tokenizer_info`, as vLLM defines them and evaluation harnesses use them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from distill.serve.chat import Chat, take_chat
from distill.serve.fields import ApiError, Fields, check_model, token_ids, wrong


@dataclass(frozen=True)
class Tokenize:
    """A text or a chat to cut into tokens."""

    prompt: str
    chat: Chat | None
    add_special_tokens: bool
    add_generation_prompt: bool
    return_token_strs: bool


def parse_tokenize(body: Any, *, model_name: str) -> Tokenize:
    """A body of POST /tokenize: `prompt` or `messages`. Special tokens are added to a text, unless it says no, and to
    a chat only where it asks: templates write their own."""
    fields = Fields(body)
    check_model(fields, model_name, required=False)
    prompt = fields.any("prompt")
    chat = None
    if prompt is None:
        chat = take_chat(fields)
    elif not isinstance(prompt, str):
        raise wrong("prompt", prompt, "a string")
    asked = Tokenize(
        prompt=prompt or "",
        chat=chat,
        add_special_tokens=fields.boolean("add_special_tokens", chat is None),
        add_generation_prompt=fields.boolean("add_generation_prompt", True) if chat is not None else False,
        return_token_strs=fields.boolean("return_token_strs"),
    )
    fields.finish({})
    return asked


def parse_detokenize(body: Any, *, model_name: str, vocab_size: int) -> tuple[int, ...]:
    """The ids of a body of POST /detokenize."""
    fields = Fields(body)
    check_model(fields, model_name, required=False)
    ids = token_ids("tokens", fields.any("tokens"))
    fields.finish({})
    if any(t >= vocab_size for t in ids):
        raise ApiError(400, f"a token is outside the vocabulary of {vocab_size}", param="tokens")
    return ids


def tokenizer_info(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What a client needs to stand in for the tokenizer."""
    return {
        "tokenizer_class": type(tokenizer).__name__,
        "vocab_size": len(tokenizer),
        "model_max_length": tokenizer.model_max_length,
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "pad_token": tokenizer.pad_token,
        "unk_token": tokenizer.unk_token,
        "chat_template": tokenizer.chat_template,
    }
