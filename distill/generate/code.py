"""Code data: functions the teacher writes, kept when their tests pass in the sandbox, and when they teach something."""

from __future__ import annotations

import re

from distill.generate.outcome import Outcome, Rejected, Row, Workbench, conversation
from distill.generate.prompts import Prompt
from distill.recipe.generate import CodeJob, Sampling
from distill.records import user_message
from distill.teacher.requests import Answer
from distill.text.code import extract_code

# The question of phi-1 (2306.11644, section 2.1), with an answer that can be read strictly.
_EDUCATIONAL = """\
Determine the educational value of the following code for a student whose goal is to learn basic coding concepts. \
Is it clear, self-contained and instructive? Answer with one word, yes or no.

```python
{code}
```"""
_YES_OR_NO = re.compile(r"\W*(yes|no)\b\W*\Z", re.IGNORECASE)


async def make(job: CodeJob, prompt: Prompt, bench: Workbench) -> Outcome:
    """Rows of `messages` with `entry_point`, `tests` and `verdict`."""
    outcome = Outcome()
    if job.verdict == "tests" and not prompt.tests:
        outcome.rejected.append(Rejected(prompt, "no_tests"))
        return outcome
    for answer in await bench.samples(outcome, prompt, job.sampling, job.samples):
        row = await _row(job, prompt, answer, bench, outcome)
        if row is not None:
            outcome.rows.append(row)
    return outcome


async def _row(job: CodeJob, prompt: Prompt, answer: Answer, bench: Workbench, outcome: Outcome) -> Row | None:
    verdict = "unrun"
    if job.verdict == "tests":
        checked = await bench.checker.check(prompt, answer.text)
        assert checked is not None, "prompts without tests were turned away"
        if not checked.ok:
            outcome.rejected.append(Rejected(prompt, "tests_failed", checked.reason, answer))
            return None
        verdict = "passed"
    opinion: list[Answer] = []
    if job.educational:
        asked = await _affirmed(prompt, answer, bench, outcome)
        if asked is None:
            return None
        opinion.append(asked)
    return {
        "messages": conversation(prompt, answer.text),
        "entry_point": prompt.entry_point,
        "tests": list(prompt.tests),
        "verdict": verdict,
        **bench.provenance(prompt, answer, opinion),
    }


async def _affirmed(prompt: Prompt, answer: Answer, bench: Workbench, outcome: Outcome) -> Answer | None:
    """The teacher's yes to the educational value of an answer; None otherwise, and the reason is noted."""
    question = _EDUCATIONAL.format(code=extract_code(answer.text, prompt.entry_point).strip())
    opinion = await bench.ask(outcome, prompt, user_message(question), Sampling(temperature=0.0, max_tokens=16))
    if opinion is None:
        return None  # the failed request is noted
    said = _YES_OR_NO.match(opinion.text)
    if said is None:
        outcome.rejected.append(Rejected(prompt, "educational_unclear", opinion.text[:80], answer))
        return None
    if said.group(1).lower() == "no":
        outcome.rejected.append(Rejected(prompt, "not_educational", answer=answer))
        return None
    return opinion
