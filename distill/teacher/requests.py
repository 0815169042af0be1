"""What is asked of a teacher, what comes back, and the key under which an answer is kept for good."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import urlsplit, urlunsplit

from distill.errors import DistillError
from distill.recipe.generate import Sampling
from distill.recipe.teacher import AzureTeacher, EmbeddedTeacher, Teacher
from distill.records import Message
from distill.runs import digest_of, file_digest
from distill.teacher import azure

PUBLIC_BASE_URL = "https://api.openai.com/v1"
Endpoint = Literal["chat", "completions", "scores"]
_DECISIVE_SUFFIXES = {".safetensors", ".bin", ".gguf", ".json", ".jinja", ".model", ".txt"}


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One question. Every field but `method` and `seed_row` changes the answer and is part of its key.

    `sample` tells apart several draws of the same question; `logprobs` asks for so many of the most likely tokens;
    `method` and `seed_row` only say in the ledger who asked.
    """

    messages: tuple[Message, ...]
    sampling: Sampling
    sample: int = 0
    method: str = ""
    seed_row: str = ""
    stop: tuple[str, ...] = ()
    logprobs: int = 0

    @property
    def path(self) -> str:
        return "/chat/completions"

    @property
    def endpoint(self) -> Endpoint:
        return "chat"

    def question(self) -> object:
        """What is asked, for the key."""
        return [[message["role"], message["content"]] for message in self.messages]

    def body(self, model: str) -> dict[str, object]:
        """The JSON of POST /chat/completions."""
        body = {"model": model, "messages": self.messages, **_sampling_fields(self.sampling, self.stop)}
        if self.logprobs:
            body |= {"logprobs": True, "top_logprobs": self.logprobs}
        return body

    def estimated_tokens(self) -> int:
        """Upper guess at prompt plus completion tokens, for limits declared per minute: a token in three bytes."""
        prompt_bytes = sum(len(message["content"].encode()) for message in self.messages)
        return prompt_bytes // 3 + 4 * len(self.messages) + self.sampling.max_tokens


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """Raw text to go on with, without a chat template; fields as in `ChatRequest`."""

    prompt: str
    sampling: Sampling
    sample: int = 0
    method: str = ""
    seed_row: str = ""
    stop: tuple[str, ...] = ()
    logprobs: int = 0

    @property
    def path(self) -> str:
        return "/completions"

    @property
    def endpoint(self) -> Endpoint:
        return "completions"

    def question(self) -> object:
        """What is asked, for the key."""
        return self.prompt

    def body(self, model: str) -> dict[str, object]:
        """The JSON of POST /completions."""
        body = {"model": model, "prompt": self.prompt, **_sampling_fields(self.sampling, self.stop)}
        if self.logprobs:
            body["logprobs"] = self.logprobs
        return body

    def estimated_tokens(self) -> int:
        """Upper guess at prompt plus completion tokens."""
        return len(self.prompt.encode()) // 3 + self.sampling.max_tokens


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """The log probabilities of a prompt's own tokens, and of the `logprobs` likeliest in the place of each."""

    tokens: tuple[int, ...]
    logprobs: int
    method: str = ""
    seed_row: str = ""
    sample: int = 0
    sampling: Sampling = Sampling(temperature=0.0, max_tokens=1)
    stop: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        return "/completions"

    @property
    def endpoint(self) -> Endpoint:
        return "scores"

    def question(self) -> object:
        """What is asked, for the key."""
        return list(self.tokens)

    def body(self, model: str) -> dict[str, object]:
        """The JSON of POST /completions, as vLLM knows it; it makes one token, for servers refuse to make none."""
        asked = {"model": model, "prompt": list(self.tokens), "temperature": 0}
        return asked | {"max_tokens": 1, "prompt_logprobs": self.logprobs}

    def echo_body(self, model: str) -> dict[str, object]:
        """The same of servers that do not know `prompt_logprobs`: the prompt as a part of the answer."""
        asked = {"model": model, "prompt": list(self.tokens), "temperature": 0}
        return asked | {"max_tokens": 0, "echo": True, "logprobs": self.logprobs}

    def estimated_tokens(self) -> int:
        """Prompt and the one token."""
        return len(self.tokens) + 1


Request = ChatRequest | CompletionRequest | ScoreRequest


def _sampling_fields(sampling: Sampling, stop: tuple[str, ...]) -> dict[str, object]:
    fields: dict[str, object] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
    }
    if stop:
        fields["stop"] = stop
    return fields


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
    reasoning_tokens: int = 0  # among completion_tokens
    logprobs: bytes | None = None  # packed: `logprobs.unpack` reads them
    teacher: str = ""  # label of the one that answered


def resolve_base_url(teacher: Teacher, base_url: str | None) -> str:
    """The URL to ask: the given one (an embedded teacher's), the recipe's, OPENAI_BASE_URL, the public API.

    For Azure: the given one's, the recipe's or AZURE_OPENAI_ENDPOINT's API.
    """
    if isinstance(teacher, AzureTeacher):
        return azure.api_url(teacher, base_url)
    if base_url is not None:
        return base_url
    if isinstance(teacher, EmbeddedTeacher):
        raise DistillError("the embedded teacher is not running", remedy="use a verb of `distill`, which starts it")
    return teacher.base_url or os.environ.get("OPENAI_BASE_URL") or PUBLIC_BASE_URL


def teacher_identity(teacher: Teacher, base_url: str | None = None) -> str:
    """What an answer depends on besides the question: the recipe's `id`, else where the model is and its weights.

    An embedded teacher is its weights: its loopback port is another one at every start. An Azure deployment answers the
    same in either form of the API, whoever asks.
    """
    if teacher.id is not None:
        return f"id:{teacher.id}"
    if isinstance(teacher, EmbeddedTeacher):
        return f"embedded:{weights_fingerprint(teacher.model)}:{teacher.dtype}"
    weights = f":{weights_fingerprint(teacher.weights)}" if teacher.weights is not None else ""
    if isinstance(teacher, AzureTeacher):
        return f"azure:{public_url(azure.resource_url(teacher, base_url))}:{teacher.model}{weights}"
    return f"openai:{public_url(resolve_base_url(teacher, base_url))}:{teacher.model}{weights}"


def weights_fingerprint(model: str) -> str:
    """Digest of what a checkpoint folder answers with: weights, tokenizer, configuration, not its card or notes."""
    folder = Path(model)
    if not folder.is_dir():
        return digest_of(model)
    files = sorted(path for path in folder.rglob("*") if path.suffix in _DECISIVE_SUFFIXES)
    return digest_of({str(path.relative_to(folder)): file_digest(path) for path in files})


def teacher_label(teacher: Teacher) -> str:
    """The teacher's name in datasets and messages."""
    return teacher.id or teacher.model


def public_url(url: str) -> str:
    """A URL without the user, password, query and trailing slash that it may carry: it goes into files."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))


class KeyMaker:
    """Request keys for one teacher: sha256 over its identity, the endpoint, the question and the sample index."""

    def __init__(self, identity: str) -> None:
        self._heads = {
            endpoint: hashlib.sha256(json.dumps([identity, endpoint], ensure_ascii=False).encode())
            for endpoint in get_args(Endpoint)
        }
        self._sampling: dict[Sampling, str] = {}

    def key(self, request: Request) -> str:
        """64 hex digits; equal for equal questions, whoever asks."""
        sampling = self._sampling.get(request.sampling)
        if sampling is None:
            sampling = request.sampling.model_dump_json()
            self._sampling[request.sampling] = sampling
        asked = [request.question(), sampling, request.sample]
        if request.stop or request.logprobs:  # left out where they are not used: older keys stay valid
            asked.append([request.stop, request.logprobs])
        sha = self._heads[request.endpoint].copy()
        sha.update(json.dumps(asked, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        return sha.hexdigest()
