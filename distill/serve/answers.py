"""OpenAI answers: completions and pieces of them as JSON objects."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from distill.engine.types import Completion, StepOutput, TokenLogprob


class Answers:
    """The shapes of one endpoint's answers to one request."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, model_name: str, chat: bool) -> None:
        self._tokenizer = tokenizer
        self._chat = chat
        self._offsets: dict[int, int] = {}  # characters streamed so far, by choice
        self._object = "chat.completion" if chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model_name,
        }

    def whole(self, completions: Sequence[Completion], n: int) -> dict[str, Any]:
        """Everything at once; `n` choices a prompt."""
        choices = []
        for index, completion in enumerate(completions):
            choice: dict[str, Any] = {"index": index, "finish_reason": completion.finish_reason}
            if self._chat:
                choice["message"] = {"role": "assistant", "content": completion.text}
            else:
                choice["text"] = completion.text
            choice["logprobs"] = self._logprobs(index, completion.logprobs)
            choices.append(choice)
        return {**self._head, "object": self._object, "choices": choices, "usage": usage(completions, n)}

    def opening(self, index: int, include_usage: bool) -> dict[str, Any]:
        """A chat's first chunk: who speaks."""
        choice = {
            "index": index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        return self._chunk([choice], include_usage)

    def piece(self, index: int, output: StepOutput, include_usage: bool) -> dict[str, Any]:
        """New text of one choice, with the reason where it ends."""
        reason = output.completion.finish_reason if output.completion is not None else None
        choice: dict[str, Any] = {"index": index, "finish_reason": reason}
        if self._chat:
            choice["delta"] = {"content": output.text} if output.text or reason is None else {}
        else:
            choice["text"] = output.text
        choice["logprobs"] = self._logprobs(index, output.logprobs) if output.logprobs else None
        return self._chunk([choice], include_usage)

    def closing(self, completions: Sequence[Completion], n: int) -> dict[str, Any]:
        """The chunk with the usage and no choice."""
        return {**self._chunk([], False), "usage": usage(completions, n)}

    def _chunk(self, choices: list[dict[str, Any]], include_usage: bool) -> dict[str, Any]:
        chunk = {**self._head, "object": "chat.completion.chunk" if self._chat else self._object, "choices": choices}
        return {**chunk, "usage": None} if include_usage else chunk

    def _logprobs(self, index: int, logprobs: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
        if logprobs is None:
            return None
        if self._chat:
            content = [
                {
                    **self._token(item.token_id, item.logprob),
                    "top_logprobs": [self._token(t, p) for t, p in item.top],
                }
                for item in logprobs
            ]
            return {"content": content, "refusal": None}
        tokens = [self._text(item.token_id) for item in logprobs]
        offsets = []
        for token in tokens:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [item.logprob for item in logprobs],
            "top_logprobs": [{self._text(t): p for t, p in item.top} for item in logprobs],
            "text_offset": offsets,
        }

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        text = self._text(token_id)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    def _text(self, token_id: int) -> str:
        return str(self._tokenizer.decode([token_id], clean_up_tokenization_spaces=False))


def usage(completions: Sequence[Completion], n: int) -> dict[str, int]:
    """Tokens of the request; a prompt counts once however many choices it has."""
    prompt = sum(c.prompt_tokens for c in completions[::n])
    completion = sum(len(c.token_ids) for c in completions)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
