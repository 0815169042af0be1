"""OpenAI answers: completions and pieces of them as JSON objects."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from distill.engine.types import Completion, StepOutput, TokenLogprob


class TokenTexts:
    """What each token says inside a text, looked up once: after another token, as some tokenizers take the space away
    that a text begins with."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._before = [int(t) for t in tokenizer.encode("a", add_special_tokens=False)]
        self._skipped = len(self._decode(self._before))
        self._texts: dict[int, str] = {}

    def __call__(self, token_id: int) -> str:
        text = self._texts.get(token_id)
        if text is None:
            text = self._decode([*self._before, token_id])[self._skipped :]
            self._texts[token_id] = text
        return text

    def _decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, clean_up_tokenization_spaces=False))


class Answers:
    """The shapes of one endpoint's answers to one request. With `echoes`, one a prompt, each choice begins with its
    prompt: the text, and the tokens where they were scored."""

    def __init__(
        self,
        texts: TokenTexts,
        *,
        model_name: str,
        chat: bool,
        prompts: Sequence[Sequence[int]],
        echoes: Sequence[str] | None = None,
        n: int = 1,
    ) -> None:
        self._text = texts
        self._chat = chat
        self._prompts = prompts
        self._echoes = echoes
        self._n = n
        self._offsets: dict[int, int] = {}  # characters of the tokens so far, by choice
        self._object = "chat.completion" if chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model_name,
        }

    def whole(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """Everything at once."""
        choices = []
        for index, completion in enumerate(completions):
            choice: dict[str, Any] = {"index": index, "finish_reason": completion.finish_reason}
            if self._chat:
                choice["message"] = {"role": "assistant", "content": completion.text}
            else:
                choice["text"] = self.echo(index) + completion.text
            choice["logprobs"] = self._all_logprobs(index, completion)
            choices.append(choice)
        return {**self._head, "object": self._object, "choices": choices, "usage": usage(completions, self._n)}

    def echo(self, index: int) -> str:
        """What a choice begins with."""
        return "" if self._echoes is None else self._echoes[index // self._n]

    def opening(self, index: int, include_usage: bool) -> dict[str, Any]:
        """A choice's first chunk: who speaks, or the prompt."""
        choice: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": None}
        if self._chat:
            choice["delta"] = {"role": "assistant", "content": ""}
        else:
            choice["text"] = self.echo(index)
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

    def closing(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """The chunk with the usage and no choice."""
        return {**self._chunk([], False), "usage": usage(completions, self._n)}

    def _chunk(self, choices: list[dict[str, Any]], include_usage: bool) -> dict[str, Any]:
        chunk = {**self._head, "object": "chat.completion.chunk" if self._chat else self._object, "choices": choices}
        return {**chunk, "usage": None} if include_usage else chunk

    def _all_logprobs(self, index: int, completion: Completion) -> dict[str, Any] | None:
        """Of the sampled tokens, and of the prompt's before them where it was scored."""
        if completion.logprobs is None:
            return None
        first = self._prompts[index // self._n][0]
        scored = completion.prompt_logprobs or ()
        return self._logprobs(index, [*(item or first for item in scored), *completion.logprobs])

    def _logprobs(self, index: int, items: Sequence[TokenLogprob | int]) -> dict[str, Any]:
        """A token id stands for a token without a probability: a prompt's first."""
        if self._chat:
            content = [
                {**self._token(item.token_id, item.logprob), "top_logprobs": [self._token(t, p) for t, p in item.top]}
                for item in items
                if isinstance(item, TokenLogprob)
            ]
            return {"content": content, "refusal": None}
        tokens = [self._text(item if isinstance(item, int) else item.token_id) for item in items]
        offsets = []
        for token in tokens:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [None if isinstance(item, int) else item.logprob for item in items],
            "top_logprobs": [None if isinstance(item, int) else self._top(item) for item in items],
            "text_offset": offsets,
        }

    def _top(self, item: TokenLogprob) -> dict[str, float]:
        """The likeliest tokens by their text, the token itself among them. Of two tokens with the same text (parts of a
        character have none of their own) the likelier counts, so that the largest value is always the likeliest's."""
        top: dict[str, float] = {}
        for token_id, logprob in (*item.top, (item.token_id, item.logprob)):
            top.setdefault(self._text(token_id), logprob)
        return top

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        text = self._text(token_id)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def usage(completions: Sequence[Completion], n: int) -> dict[str, Any]:
    """Tokens of the request; a prompt counts once however many choices it has."""
    prompt = sum(c.prompt_tokens for c in completions[::n])
    completion = sum(len(c.token_ids) for c in completions)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
