"""The routes: what each one does with a request, from its body to the engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from distill.engine.constrained.grammar import Grammar
from distill.engine.runner import Engine
from distill.engine.types import SamplingParams
from distill.errors import EngineError
from distill.serve import metrics
from distill.serve.admission import Admission, Slot
from distill.serve.answers import Answers, TokenTexts
from distill.serve.body import parse_json, read_body
from distill.serve.fields import ApiError, Limits, unknown_model
from distill.serve.footprint import footprint
from distill.serve.loop import EngineLoop
from distill.serve.protocol import Request, parse_chat, parse_completion
from distill.serve.streaming import Answering, Delivery
from distill.serve.tokenizing import parse_detokenize, parse_tokenize, tokenizer_info
from distill.serve.tokens import Tokens


class Service:
    """The routes' common state."""

    def __init__(self, engine: Engine, model_name: str, limits: Limits) -> None:
        assert engine.tokenizer is not None
        self.engine = engine
        self.loop = EngineLoop(engine)
        self.tokens = Tokens(engine.tokenizer, engine.max_model_len)
        self.model_name = model_name
        self.limits = limits
        self.admission = Admission(limits.max_queue)
        self.traffic = metrics.Traffic()
        self._compiling = ThreadPoolExecutor(1, thread_name_prefix="grammars")
        self._footprint = footprint(engine.model)
        self._texts = TokenTexts(engine.tokenizer)
        self._created = int(time.time())

    def stop(self) -> None:
        self.loop.stop()
        if self.loop.failure is None:
            self.engine.dismiss()
        self.tokens.stop()
        self._compiling.shutdown(wait=False, cancel_futures=True)

    async def health(self, request: HttpRequest) -> Response:
        """200 while the engine's thread lives."""
        if self.loop.failure is not None:
            return JSONResponse({"status": "failed", "reason": str(self.loop.failure)}, status_code=503)
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: HttpRequest) -> Response:
        text = metrics.render(self.engine, self._footprint, self.traffic, self.admission)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def models(self, request: HttpRequest) -> Response:
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def model(self, request: HttpRequest) -> Response:
        name = request.path_params["name"]
        if name != self.model_name:
            raise unknown_model(name, self.model_name)
        return JSONResponse(self._card())

    async def chat(self, request: HttpRequest) -> Response:
        received = time.perf_counter()
        body, slot = await self._enter(request)
        with _Given(slot) as given:
            asked = parse_chat(body, model_name=self.model_name, limits=self.limits)
            slot.grow(asked.num_choices)
            assert asked.chat is not None
            prompts = [await self.tokens.chat(asked.chat)]
            params = self._checked(asked, prompts, await self._grammar(asked))
            return given.to(self._submit(asked, prompts, params, None, slot, received))

    async def completions(self, request: HttpRequest) -> Response:
        received = time.perf_counter()
        body, slot = await self._enter(request)
        with _Given(slot) as given:
            asked = parse_completion(body, model_name=self.model_name, limits=self.limits)
            slot.grow(asked.num_choices)
            prompts = [
                await self.tokens.prompt(prompt, add_special_tokens=asked.add_special_tokens)
                for prompt in asked.prompts
            ]
            params, echoes = self._checked(asked, prompts, await self._grammar(asked)), None
            if asked.echo:
                echoes = [p if isinstance(p, str) else await self.tokens.text(p) for p in asked.prompts]
            return given.to(self._submit(asked, prompts, params, echoes, slot, received))

    async def tokenize(self, request: HttpRequest) -> Response:
        body, slot = await self._enter(request)
        with _Given(slot):
            asked = parse_tokenize(body, model_name=self.model_name)
            if asked.chat is not None:
                ids = await self.tokens.chat(
                    asked.chat,
                    add_generation_prompt=asked.add_generation_prompt,
                    add_special_tokens=asked.add_special_tokens,
                )
            else:
                ids = await self.tokens.prompt(
                    asked.prompt, add_special_tokens=asked.add_special_tokens, unbounded=True
                )
            strings = await self.tokens.strings(ids) if asked.return_token_strs else None
        return JSONResponse(
            {"count": len(ids), "max_model_len": self.engine.max_model_len, "tokens": ids, "token_strs": strings}
        )

    async def detokenize(self, request: HttpRequest) -> Response:
        body, slot = await self._enter(request)
        with _Given(slot):
            ids = parse_detokenize(body, model_name=self.model_name, vocab_size=self.engine.vocab_size)
            return JSONResponse({"prompt": await self.tokens.text(ids)})

    async def tokenizer_info(self, request: HttpRequest) -> Response:
        assert self.engine.tokenizer is not None
        return JSONResponse(tokenizer_info(self.engine.tokenizer))

    async def _enter(self, request: HttpRequest) -> tuple[Any, Slot]:
        """The body of a request that there is room for; a full queue refuses it before anything is parsed."""
        self.admission.check()
        data = await read_body(request, self.limits)
        slot = self.admission.enter()
        try:
            return parse_json(data), slot
        except ApiError:
            slot.leave()
            raise

    def _submit(
        self,
        asked: Request,
        prompts: Sequence[Sequence[int]],
        params: Sequence[SamplingParams],
        echoes: Sequence[str] | None,
        slot: Slot,
        received: float,
    ) -> Response:
        """Hand an accepted request to the engine; what is returned waits for it and sends the answer."""
        chat = asked.chat is not None
        answers = Answers(self._texts, model_name=self.model_name, chat=chat, prompts=prompts, echoes=echoes, n=asked.n)
        try:
            ticket = self.loop.submit(prompts, params, n=asked.n, stream=asked.stream, continues=not chat)
        except EngineError as error:
            raise ApiError(503, str(error), kind="server_error") from None
        delivery = Delivery(
            slot=slot,
            received=received,
            include_usage=asked.include_usage,
            opens=chat or asked.echo,
            send_seconds=self.limits.send_seconds,
        )
        return Answering(self.loop, ticket, answers, delivery, self.traffic)

    async def _grammar(self, asked: Request) -> Grammar | None:
        """The compiled form of what the answer has to be; a wrong or too costly one is the client's error."""
        if asked.structure is None:
            return None
        field, constraint = asked.structure.field, asked.structure.constraint
        try:
            async with asyncio.timeout(self.limits.grammar_seconds):
                return await asyncio.get_running_loop().run_in_executor(
                    self._compiling, self.engine.grammar, constraint
                )
        except EngineError as error:
            raise ApiError(400, f"'{field}': {error}", param=field) from None
        except TimeoutError:
            seconds = self.limits.grammar_seconds
            raise ApiError(400, f"'{field}' was not compiled within {seconds:g} s", param=field) from None

    def _checked(
        self, asked: Request, prompts: Sequence[Sequence[int]], grammar: Grammar | None
    ) -> list[SamplingParams]:
        """Sampling for each prompt; one that the engine can never run is refused."""
        each = []
        for ids in prompts:
            params = asked.params(min(self.engine.max_model_len - len(ids), self.limits.max_tokens), grammar)
            try:
                self.engine.check(ids, params)
            except EngineError as error:
                code = "context_length_exceeded" if len(ids) >= self.engine.max_model_len else None
                param = "messages" if asked.chat is not None else "prompt"
                raise ApiError(400, str(error), param=param, code=code) from None
            each.append(params)
        return each

    def _card(self) -> dict[str, Any]:
        return {
            "id": self.model_name,
            "object": "model",
            "created": self._created,
            "owned_by": "distill",
            "max_model_len": self.engine.max_model_len,
        }


class _Given:
    """A slot leaves with the block, unless it is given to the answer, which then gives it back."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._kept = False

    def __enter__(self) -> _Given:
        return self

    def to(self, answer: Response) -> Response:
        self._kept = True
        return answer

    def __exit__(self, *exception: object) -> None:
        if not self._kept:
            self._slot.leave()
