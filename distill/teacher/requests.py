"""What is asked of a teacher, what comes back, and the key under which an answer is kept for good."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

from distill.errors import DistillError
from distill.recipe.generate import Sampling
from distill.recipe.teacher import EmbeddedTeacher, OpenAITeacher
from distill.records import Message
from distill.runs import digest_of, file_digest

PUBLIC_BASE_URL = "https://api.openai.com/v1"
Endpoint = Literal["chat"]
_DECISIVE_SUFFIXES = {".safetensors", ".bin", ".gguf", ".json", ".jinja", ".model", ".txt"}


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One question. Every field but `method` and `seed_row` changes the answer and is part of its key.

    `sample` tells apart several draws of the same question; `method` and `seed_row` only say in the ledger who asked.
    """

    messages: tuple[Message, ...]
    sampling: Sampling
    sample: int = 0
    method: str = ""
    seed_row: str = ""

    def body(self, model: str) -> dict[str, object]:
        """The JSON of POST /chat/completions."""
        return {
            "model": model,
            "messages": self.messages,
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "max_tokens": self.sampling.max_tokens,
        }

    def estimated_tokens(self) -> int:
        """Upper guess at prompt plus completion tokens, for limits declared per minute: a token in three bytes."""
        prompt_bytes = sum(len(message["content"].encode()) for message in self.messages)
        return prompt_bytes // 3 + 4 * len(self.messages) + self.sampling.max_tokens


@dataclass(frozen=True, slots=True)
class Answer:
    """One committed answer. Tokens are the provider's own count; `cost_usd` is None where the price is unknown."""

    key: str  # 64 hex digits
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    cost_usd: float | None
    attempts: int
    latency_seconds: float  # of the attempt that succeeded
    created_at: float  # Unix seconds
    refusal: str | None = None
    from_ledger: bool = False


def resolve_base_url(teacher: OpenAITeacher | EmbeddedTeacher, base_url: str | None) -> str:
    """The URL to ask: the given one (an embedded teacher's), the recipe's, OPENAI_BASE_URL, the public API."""
    if base_url is not None:
        return base_url
    if isinstance(teacher, EmbeddedTeacher):
        raise DistillError("the embedded teacher is not running", remedy="use a verb of `distill`, which starts it")
    return teacher.base_url or os.environ.get("OPENAI_BASE_URL") or PUBLIC_BASE_URL


def teacher_identity(teacher: OpenAITeacher | EmbeddedTeacher, base_url: str | None = None) -> str:
    """What an answer depends on besides the question: the recipe's `id`, else where the model is and its weights.

    An embedded teacher is its weights: its loopback port is another one at every start.
    """
    if teacher.id is not None:
        return f"id:{teacher.id}"
    if isinstance(teacher, EmbeddedTeacher):
        return f"embedded:{weights_fingerprint(teacher.model)}:{teacher.dtype}"
    weights = f":{weights_fingerprint(teacher.weights)}" if teacher.weights is not None else ""
    return f"openai:{public_url(resolve_base_url(teacher, base_url))}:{teacher.model}{weights}"


def weights_fingerprint(model: str) -> str:
    """Digest of what a checkpoint folder answers with: weights, tokenizer, configuration, not its card or notes."""
    folder = Path(model)
    if not folder.is_dir():
        return digest_of(model)
    files = sorted(path for path in folder.rglob("*") if path.suffix in _DECISIVE_SUFFIXES)
    return digest_of({str(path.relative_to(folder)): file_digest(path) for path in files})


def teacher_label(teacher: OpenAITeacher | EmbeddedTeacher) -> str:
    """The teacher's name in datasets and messages."""
    return teacher.id or teacher.model


def public_url(url: str) -> str:
    """A URL without the user, password, query and trailing slash that it may carry: it goes into files."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))


class KeyMaker:
    """Request keys for one teacher: sha256 over its identity, the endpoint, the question and the sample index."""

    def __init__(self, identity: str, endpoint: Endpoint = "chat") -> None:
        head = json.dumps([identity, endpoint], ensure_ascii=False)
        self._head = hashlib.sha256(head.encode())
        self._sampling: dict[Sampling, str] = {}

    def key(self, request: ChatRequest) -> str:
        """64 hex digits; equal for equal questions, whoever asks."""
        sampling = self._sampling.get(request.sampling)
        if sampling is None:
            sampling = request.sampling.model_dump_json()
            self._sampling[request.sampling] = sampling
        turns = [[message["role"], message["content"]] for message in request.messages]
        sha = self._head.copy()
        sha.update(json.dumps([turns, sampling, request.sample], ensure_ascii=False).encode("utf-8", "surrogatepass"))
        return sha.hexdigest()
