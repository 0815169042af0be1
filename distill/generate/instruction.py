"""Instruction data: the teacher answers each prompt, once, several times or over several rounds of a chat."""

from __future__ import annotations

from distill.generate import multi_turn
from distill.generate.outcome import Outcome, Rejected, Workbench, conversation
from distill.generate.prompts import Prompt
from distill.recipe.generate import InstructionJob
from distill.tasks.types import Verdict


async def make(job: InstructionJob, prompt: Prompt, bench: Workbench) -> Outcome:
    """Rows of `messages`, one for each distinct usable answer that `keep` lets through."""
    if job.chat is not None:
        return await multi_turn.make(job, job.chat, prompt, bench)
    outcome = Outcome()
    for answer in await bench.samples(outcome, prompt, job.sampling, job.samples, job.logprobs):
        verdict = await _verdict(job, prompt, answer.text, bench)
        if job.keep == "verified" and (verdict is None or not verdict.ok):
            reason = "no_verifier" if verdict is None else "wrong"
            detail = "" if verdict is None else verdict.reason
            outcome.rejected.append(Rejected(prompt, reason, detail, answer))
            continue
        outcome.rows.append(
            {
                "messages": conversation(prompt, answer.text),
                "verdict": "unchecked" if verdict is None else ("right" if verdict.ok else "wrong"),
                **bench.provenance(prompt, answer),
            }
        )
    return outcome


async def _verdict(job: InstructionJob, prompt: Prompt, text: str, bench: Workbench) -> Verdict | None:
    """Programs are run only where the verdict decides: running them costs far more than reading an answer."""
    if prompt.is_code and job.keep == "all":
        return None
    return await bench.checker.check(prompt, text)
