"""Code data: functions the teacher writes, kept when their tests pass in the sandbox, and when they teach something."""

from __future__ import annotations

from dataclasses import replace

from distill.generate import educational
from distill.generate.outcome import Outcome, Rejected, Row, Workbench, conversation
from distill.generate.prompts import Prompt
from distill.generate.written_tests import main_function, write_tests
from distill.recipe.generate import CodeJob
from distill.records import user_message
from distill.teacher.requests import Answer
from distill.text.code import extract_code


async def make(job: CodeJob, prompt: Prompt, bench: Workbench) -> Outcome:
    """Rows of `messages` with `entry_point`, `tests` and `verdict`."""
    outcome = Outcome()
    if job.verdict == "tests" and not prompt.tests and not job.write_tests:
        outcome.rejected.append(Rejected(prompt, "no_tests"))
        return outcome
    for answer in await bench.samples(outcome, prompt, job.sampling, job.samples, job.logprobs):
        row = await _row(job, prompt, answer, bench, outcome)
        if row is not None:
            outcome.rows.append(row)
    return outcome


async def _row(job: CodeJob, prompt: Prompt, answer: Answer, bench: Workbench, outcome: Outcome) -> Row | None:
    verdict = "unrun"
    paid: list[Answer] = []
    if job.verdict == "tests":
        if not prompt.tests:
            tested = await _with_tests(job, prompt, answer, bench, outcome, paid)
            if tested is None:
                return None
            prompt = tested
        checked = await bench.checker.check(prompt, answer.text)
        assert checked is not None, "prompts without tests were turned away"
        if not checked.ok:
            outcome.rejected.append(Rejected(prompt, "tests_failed", checked.reason, answer))
            return None
        verdict = "passed"
    if job.educational is True:
        asked = await _affirmed(prompt, answer, bench, outcome)
        if asked is None:
            return None
        paid.append(asked)
    return {
        "messages": conversation(prompt, answer.text),
        "entry_point": prompt.entry_point,
        "tests": list(prompt.tests),
        "verdict": verdict,
        **bench.provenance(prompt, answer, paid),
    }


async def _with_tests(
    job: CodeJob, prompt: Prompt, answer: Answer, bench: Workbench, outcome: Outcome, paid: list[Answer]
) -> Prompt | None:
    """The prompt with tests that the teacher wrote for it; None, with the reason noted, where there are none."""
    code = extract_code(answer.text, prompt.entry_point)
    name = prompt.entry_point or main_function(code)
    if name is None:
        outcome.rejected.append(Rejected(prompt, "no_function", answer=answer))
        return None
    tests, written = await write_tests(job.write_tests, prompt, name, code, bench, outcome)
    if written is None:
        return None  # the failed request is noted
    if not tests:
        outcome.rejected.append(Rejected(prompt, "no_tests_written", written.text[:80], answer))
        return None
    paid.append(written)
    outcome.counts["tests_written"] += len(tests)
    return replace(prompt, tests=tests, entry_point=name)


async def _affirmed(prompt: Prompt, answer: Answer, bench: Workbench, outcome: Outcome) -> Answer | None:
    """The teacher's yes to the educational value of an answer; None otherwise, and the reason is noted."""
    question = user_message(educational.question(extract_code(answer.text, prompt.entry_point)))
    opinion = await bench.ask(outcome, prompt, question, educational.ANSWER)
    if opinion is None:
        return None  # the failed request is noted
    said = educational.read_opinion(opinion.text)
    if said is None:
        outcome.rejected.append(Rejected(prompt, "educational_unclear", opinion.text[:80], answer))
    elif not said:
        outcome.rejected.append(Rejected(prompt, educational.NOT_EDUCATIONAL, answer=answer))
    return opinion if said else None
