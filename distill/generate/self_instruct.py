"""Self-Instruct (Wang et al., 2212.10560): the teacher goes on with a list of tasks, some human, a few its own."""

from __future__ import annotations

from collections.abc import Sequence

from distill.generate.filters import SELF_INSTRUCT_WORDS, Unlike, bad_instruction
from distill.generate.invented import drawn, in_language, numbered_items, unreadable
from distill.generate.outcome import Rejected
from distill.generate.prompts import Prompt, open_prompts, text_prompt
from distill.recipe.prompts import FilePrompts, Sampling, SelfInstructPrompts
from distill.records import user_message
from distill.teacher.requests import Answer, ChatRequest, Request

ASK = """\
Come up with a series of tasks. Each one is a single instruction that can be answered in text alone; they differ in \
subject, verb and form. Go on with the list, one task a line, numbered, for {new} more tasks.{language}

{shown}
{next}."""
_NEW_IN_A_REQUEST = 8
_REQUESTS_IN_A_ROUND = 16


class SelfInstruct:
    """Writer of tasks: `examples` shown, at most `machine_made` of them written by the teacher itself."""

    def __init__(self, section: SelfInstructPrompts, *, system: str | None, sampling: Sampling, method: str) -> None:
        self.section = section
        self.system = system
        self.sampling = sampling
        self.method = method
        source = FilePrompts(source="file", path=section.path, column=section.column)
        self.seeds = [prompt.question for prompt in open_prompts(source, None).prompts]
        self._unlike = Unlike(threshold=section.likeness, profile=section.profile)
        for seed in self.seeds:
            self._unlike.add(seed)

    def requests_in_a_round(self, missing: int) -> int:
        return _REQUESTS_IN_A_ROUND

    def shown(self, index: int, kept: Sequence[Prompt]) -> list[str]:
        """The tasks of request number `index`, shuffled."""
        rng, section = drawn(self.section.seed, index), self.section
        num_machine = min(section.machine_made, len(kept), section.examples - 1)
        shown = rng.sample(self.seeds, min(section.examples - num_machine, len(self.seeds)))
        shown += [prompt.question for prompt in rng.sample(kept, num_machine)]
        rng.shuffle(shown)
        return shown

    def request(self, index: int, kept: Sequence[Prompt]) -> Request:
        shown = self.shown(index, kept)
        lines = "\n".join(f"{number}. {' '.join(text.split())}" for number, text in enumerate(shown, 1))
        question = ASK.format(
            new=_NEW_IN_A_REQUEST, shown=lines, next=len(shown) + 1, language=in_language(self.section.language)
        )
        return ChatRequest(tuple(user_message(question)), self.sampling, index, self.method, f"self_instruct:{index}")

    def read(self, answer: Answer, index: int) -> list[Prompt | Rejected]:
        """The tasks of a numbered list; a list that was cut off is left whole, as the paper's code does."""
        if answer.finish_reason == "length":
            return [unreadable(answer, "truncated")]
        found = numbered_items(answer.text)
        return [text_prompt(text, self.system) for text in found] or [unreadable(answer, "unreadable")]

    def reason(self, prompt: Prompt) -> str | None:
        text = prompt.question
        bad = bad_instruction(text, profile=self.section.profile, words=SELF_INSTRUCT_WORDS)
        return bad or ("too_like_another" if self._unlike.too_like(text) else None)

    def keep(self, prompt: Prompt) -> None:
        self._unlike.add(prompt.question)
