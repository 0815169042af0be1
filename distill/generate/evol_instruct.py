"""Evol-Instruct (Xu et al., 2304.12244): prompts made harder in rounds by five operations in depth and one in breadth.

What brings nothing is eliminated by the paper's four rules, and the prompt is tried again in the next round.
"""

from __future__ import annotations

import asyncio
import re

from distill.errors import TeacherError
from distill.generate.invented import Invented, drawn, in_language, try_to_ask
from distill.generate.outcome import Rejected
from distill.generate.prompts import Prompt, open_prompts, text_prompt
from distill.recipe.filters import Profile
from distill.recipe.prompts import EvolInstructPrompts, FilePrompts, Sampling
from distill.records import user_message
from distill.teacher.client import TeacherClient
from distill.teacher.requests import Answer, ChatRequest
from distill.text.language import SMALL_WORDS
from distill.text.refusals import refusal_in
from distill.text.units import length, units

DEPTH = {
    "constraints": "Add one more constraint or requirement to #Given Prompt#.",
    "deepening": "If #Given Prompt# asks about some matter, ask about it in more depth and breadth.",
    "concretizing": "Replace general concepts in #Given Prompt# by more specific ones.",
    "reasoning": "If a few simple steps of thought solve #Given Prompt#, make it ask for reasoning in several steps.",
    "complicate_input": "Add input in some form of data (a table, JSON, code, a formula) that the answer has to use.",
}
OPERATIONS = (*DEPTH, "breadth")
DEPTH_ASK = """\
Rewrite a prompt into a harder version that people can still understand and answer. {operation} Leave out no part of \
it that is not plain text, such as tables and code. Add at most 10 to 20 words. The words "given prompt", "rewritten \
prompt", "#Given Prompt#" and "#Rewritten Prompt#" must not occur in it. Reply with the new prompt only.{language}

#Given Prompt#:
{prompt}

#Rewritten Prompt#:"""
BREADTH_ASK = """\
Take inspiration from a prompt and create a brand new one, of the same domain but rarer. It is about as long and as \
hard, and people can understand and answer it. The words "given prompt", "created prompt", "#Given Prompt#" and \
"#Created Prompt#" must not occur in it. Reply with the new prompt only.{language}

#Given Prompt#:
{prompt}

#Created Prompt#:"""
EQUAL_ASK = """\
Do these two instructions to a language model have the same constraints and requirements, and the same depth and \
breadth of inquiry? Answer with one word, Equal or Different.

First:
{first}

Second:
{second}"""
_EQUAL = re.compile(r"\W*(equal|different|not equal)\b\W*\Z", re.IGNORECASE)
_LEAKED = re.compile(r"#?\b(?:given|rewritten|created|new) prompt\b#?", re.IGNORECASE)
_SHORT_REFUSAL = {"english": 80, "unicode": 400}  # words; characters
_OF_A_WORD = Sampling(temperature=0.0, max_tokens=16)


class EvolInstruct:
    """All rounds over the prompts of a file. `answering` and `logprobs` are the job's own: the answers that the rules
    look at are those that become rows, paid for once.
    """

    def __init__(
        self,
        section: EvolInstructPrompts,
        *,
        system: str | None,
        sampling: Sampling,
        answering: Sampling,
        method: str,
        logprobs: int = 0,
    ) -> None:
        self.section = section
        self.system = system
        self.sampling = sampling
        self.answering = answering
        self.logprobs = logprobs
        self.method = method
        source = FilePrompts(source="file", path=section.path, column=section.column, count=section.count)
        self.seeds = [prompt.question for prompt in open_prompts(source, None).prompts]

    async def evolve(self, client: TeacherClient) -> Invented:
        """The prompts of the file and everything that came of them, round by round."""
        made = Invented([text_prompt(text, self.system, family="evol:seed") for text in self.seeds])
        current = list(self.seeds)
        for number in range(self.section.rounds):
            steps = await asyncio.gather(
                *(self._step(client, text, number, place) for place, text in enumerate(current))
            )
            for place, (found, answers) in enumerate(steps):
                made.answers += answers
                if isinstance(found, Rejected):
                    made.rejected.append(found)
                    continue
                current[place] = found.question
                made.prompts.append(found)
        return made

    def operation(self, number: int, place: int) -> str:
        """Which operation a prompt meets in a round: each of the six is as likely."""
        return drawn(self.section.seed, number * 1_000_003 + place).choice(OPERATIONS)

    async def _step(
        self, client: TeacherClient, text: str, number: int, place: int
    ) -> tuple[Prompt | Rejected, list[Answer]]:
        operation = self.operation(number, place)
        answers: list[Answer] = []

        async def ask(question: str, sampling: Sampling, sample: int = 0) -> Answer | Rejected:
            request = ChatRequest(
                tuple(user_message(question)), sampling, sample, self.method, f"evol:{number}:{place}"
            )
            return _noted(await try_to_ask(client, request), text, answers)

        evolved = await ask(self._question(text, operation), self.sampling, number)
        if isinstance(evolved, Rejected):
            return evolved, answers
        new = text_prompt(evolved.text.strip(), self.system, family=f"evol:{operation}")
        if evolved.finish_reason == "length" or not new.question:
            return Rejected(new, "prompt_truncated" if new.question else "prompt_empty", answer=evolved), answers
        if _LEAKED.search(new.question):
            return Rejected(new, "prompt_leaked_words", answer=evolved), answers
        judged = await ask(EQUAL_ASK.format(first=text, second=new.question), _OF_A_WORD)
        if isinstance(judged, Rejected):
            return judged, answers
        said = _EQUAL.match(judged.text)
        if said is None or said.group(1).lower() == "equal":
            why = "prompt_unclear_gain" if said is None else "prompt_no_information_gain"
            return Rejected(new, why, judged.text[:80]), answers
        request = ChatRequest(new.messages, self.answering, 0, self.method, new.seed_row, logprobs=self.logprobs)
        answered = _noted(await try_to_ask(client, request), text, [])  # it is counted where it becomes a row
        if isinstance(answered, Rejected):
            return answered, answers
        reason = bad_response(answered.text, self.section.profile)
        if reason is not None:
            answers.append(answered)
            return Rejected(new, f"prompt_{reason}", answer=answered), answers
        return new, answers

    def _question(self, text: str, operation: str) -> str:
        language = in_language(self.section.language)
        if operation == "breadth":
            return BREADTH_ASK.format(prompt=text, language=language)
        return DEPTH_ASK.format(operation=DEPTH[operation], prompt=text, language=language)


def bad_response(text: str, profile: Profile = "unicode") -> str | None:
    """Why an answer shows that its prompt is no good: a short refusal ("sorry" in under 80 words), or no content."""
    refuses = "sorry" in text.lower() or (profile == "unicode" and refusal_in(text) is not None)
    if refuses and length(text, profile) < _SHORT_REFUSAL[profile]:
        return "answer_refuses"
    return "answer_says_nothing" if all(unit in SMALL_WORDS for unit in units(text)) else None


def _noted(answer: Answer | TeacherError, text: str, answers: list[Answer]) -> Answer | Rejected:
    if isinstance(answer, TeacherError):
        return Rejected(text_prompt(text, None), "prompt_request_failed", answer.message)
    answers.append(answer)
    return answer
