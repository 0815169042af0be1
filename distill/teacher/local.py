"""A teacher in this process: a checkpoint under the engine, in a thread of its own, without HTTP between."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from distill.engine.runner import Engine
from distill.engine.types import Completion, EngineConfig, SamplingParams, StepOutput
from distill.errors import EngineError, TeacherError
from distill.model.chat import render
from distill.model.load import load_model, load_tokenizer
from distill.recipe.teacher import EmbeddedTeacher
from distill.teacher.endpoint import Attempt, AttemptFailed, Reply
from distill.teacher.logprobs import Position, pack
from distill.teacher.requests import ChatRequest, Request, ScoreRequest


@dataclass(eq=False)
class _Asked:
    """One request on its way through the engine."""

    number: int
    prompt_ids: Sequence[int]
    params: SamplingParams
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[Completion]


class LocalTeacher:
    """Loads the checkpoint at once. Requests may come from any event loop; `stop` ends the thread."""

    def __init__(self, teacher: EmbeddedTeacher, *, kv_gib: float = 1.0) -> None:
        self.name = teacher.model
        self._tokenizer: PreTrainedTokenizerBase = load_tokenizer(teacher.model)
        config = EngineConfig(max_batch=teacher.max_concurrency, kv_bytes=int(kv_gib * (1 << 30)))
        self._engine = Engine(load_model(teacher.model, dtype=teacher.dtype), self._tokenizer, config)
        self._numbers = itertools.count()
        self._new: deque[_Asked] = deque()
        self._unwanted: deque[_Asked] = deque()
        self._running: dict[str, _Asked] = {}
        self._wake = threading.Event()
        self._stopping = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="local-teacher", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the step at hand."""
        self._stopping = True
        self._wake.set()
        self._thread.join()

    async def close(self) -> None:
        """Nothing: the weights stay for the next job; `stop` lets go of them."""

    async def send(self, request: Request) -> Reply:
        """One answer. AttemptFailed: for good where the request can never run, fatally where the engine broke."""
        ids = self._ids(request)
        params = self._params(request)
        try:
            self._engine.check(ids, params)
        except EngineError as error:
            raise _refused(str(error)) from None
        if self._failure is not None:
            raise self._broken(self._failure)
        loop = asyncio.get_running_loop()
        asked = _Asked(next(self._numbers), ids, params, loop, loop.create_future())
        self._new.append(asked)
        self._wake.set()
        try:
            completion = await asked.done
        except asyncio.CancelledError:
            self._unwanted.append(asked)
            self._wake.set()
            raise
        except EngineError as error:
            raise self._broken(error) from None
        return Reply(
            text=completion.text,
            refusal=None,
            finish_reason=completion.finish_reason,
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=len(completion.token_ids),
            cached_tokens=0,
            logprobs=self._logprobs(completion) if request.logprobs else None,
        )

    def _ids(self, request: Request) -> list[int]:
        assert not isinstance(request, ScoreRequest), "whoever has the weights here asks them"
        if not isinstance(request, ChatRequest):
            return [int(token) for token in self._tokenizer(request.prompt)["input_ids"]]
        if self._tokenizer.chat_template is None:
            error = TeacherError(f"{self.name} has no chat template", remedy="put a chat_template.jinja beside it")
            raise AttemptFailed(Attempt(error, fatal=True))
        try:
            return render(self._tokenizer, request.messages, True)
        except (TemplateError, TypeError, ValueError) as error:
            raise _refused(f"the chat template refuses these messages: {error}") from None

    def _params(self, request: Request) -> SamplingParams:
        sampling = request.sampling
        return SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            stop=request.stop,
            logprobs=request.logprobs or None,
        )

    def _logprobs(self, completion: Completion) -> bytes:
        return pack(
            [
                Position(self._text(one.token_id), one.logprob, tuple((self._text(t), p) for t, p in one.top))
                for one in completion.logprobs or ()
            ]
        )

    def _text(self, token_id: int) -> bytes:
        return str(self._tokenizer.decode([token_id], clean_up_tokenization_spaces=False)).encode()

    def _broken(self, error: BaseException) -> AttemptFailed:
        message = f"the engine of {self.name} failed: {error}"
        return AttemptFailed(Attempt(TeacherError(message, remedy="lower teacher.max_concurrency"), fatal=True))

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._take()
                if self._engine.has_work:
                    self._deliver(self._engine.step())
                else:
                    self._wake.wait()
                    self._wake.clear()
        except Exception as error:  # whatever it is, those who wait must hear it: this thread has nobody else to tell
            self._failure = error
            for asked in [*self._running.values(), *self._new]:
                _resolve(asked, EngineError(str(error)))

    def _take(self) -> None:
        while self._new:
            asked = self._new.popleft()
            self._running[str(asked.number)] = asked
            self._engine.add(str(asked.number), asked.prompt_ids, asked.params)
        while self._unwanted:
            name = str(self._unwanted.popleft().number)
            self._engine.abort(name)
            self._running.pop(name, None)

    def _deliver(self, outputs: Sequence[StepOutput]) -> None:
        for output in outputs:
            if output.completion is not None:
                _resolve(self._running.pop(output.request_id), output.completion)


def _resolve(asked: _Asked, result: Completion | EngineError) -> None:
    """Hand over to the event loop that waits."""

    def put() -> None:
        if asked.done.done():  # cancelled
            return
        if isinstance(result, EngineError):
            asked.done.set_exception(result)
        else:
            asked.done.set_result(result)

    if not asked.loop.is_closed():
        asked.loop.call_soon_threadsafe(put)


def _refused(why: str) -> AttemptFailed:
    return AttemptFailed(Attempt(TeacherError(why)))
