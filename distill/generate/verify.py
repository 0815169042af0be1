"""Whether an answer is right: by its task's verifier, or by running its tests in the sandbox, many at a time."""

from __future__ import annotations

import asyncio
import os
from collections import deque

from distill.generate.prompts import Prompt
from distill.recipe.generate import Isolation
from distill.sandbox.run import Job, check_available, run_many
from distill.tasks.registry import verify
from distill.tasks.types import Verdict
from distill.text.code import extract_code

_PROGRAMS_AT_ONCE = 256  # starting the sandbox's workers for a batch takes as long as some ten programs


class Checker:
    """Verdicts on answers. Programs gather while a batch runs and go into the sandbox as the next one."""

    def __init__(self, isolation: Isolation) -> None:
        self.isolation = isolation
        self._waiting: deque[tuple[Job, asyncio.Future[Verdict]]] = deque()
        self._runner: asyncio.Task[None] | None = None

    def require_sandbox(self) -> None:
        """Raise where programs cannot be run on this machine: better before the teacher is paid than after."""
        check_available(self.isolation)

    async def check(self, prompt: Prompt, text: str) -> Verdict | None:
        """The verdict, or None for a prompt that has neither tests nor a verifier."""
        if prompt.is_code:
            return await self._run(Job(extract_code(text, prompt.entry_point), prompt.tests, prompt.entry_point))
        return None if prompt.task is None else verify(prompt.task, text)

    async def _run(self, job: Job) -> Verdict:
        done: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._waiting.append((job, done))
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run_waiting())
        return await done

    async def _run_waiting(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(_PROGRAMS_AT_ONCE, len(self._waiting)))]
            jobs = [job for job, _ in batch]
            try:
                verdicts = await asyncio.to_thread(
                    run_many, jobs, workers=os.cpu_count() or 1, isolation=self.isolation
                )
            except Exception as error:  # those who wait raise it
                for _, done in batch:
                    if not done.done():
                        done.set_exception(error)
                continue
            for (_, done), verdict in zip(batch, verdicts, strict=True):
                if not done.done():
                    done.set_result(Verdict(verdict.ok, verdict.reason))
