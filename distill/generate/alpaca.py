"""Stanford Alpaca's variant of Self-Instruct: whole tasks, twenty a request after three of a person's, answers too."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.errors import DataError
from distill.generate.filters import ALPACA_WORDS, Unlike, bad_instruction
from distill.generate.invented import drawn, in_language, share, unreadable
from distill.generate.outcome import Rejected
from distill.generate.prompts import Prompt, read_rows, text_prompt
from distill.recipe.prompts import AlpacaPrompts, Sampling
from distill.records import user_message
from distill.teacher.requests import Answer, ChatRequest, Request

ASK = """\
Continue a list of {tasks} diverse tasks for a language model. Every task has an instruction of one or two sentences, \
an input it works on, and the output that solves it.

- Use another verb for each task; mix questions and commands.
- Mix kinds of tasks: open writing, classification, editing, explaining, reasoning and so on.
- A language model must be able to do it with text alone.
- The input is a specific, realistic example of at most 100 words. Where a task needs none, write <noinput>.
- The output is under 100 words.
- Keep to the form of the tasks below, with ### between them.{language}

{shown}###
{next}. Instruction:"""
_NO_INPUT = "<noinput>"
_REQUESTS_IN_A_ROUND = 16


class Alpaca:
    """Writer of tasks with their answers; only a person's tasks are shown."""

    def __init__(self, section: AlpacaPrompts, *, system: str | None, sampling: Sampling, method: str) -> None:
        self.section = section
        self.system = system
        self.sampling = sampling
        self.method = method
        path = Path(section.path)
        if not path.is_file():
            raise DataError(f"no tasks at {path}", remedy="mend prompts.path; it is relative to the working folder")
        self.seeds = [_seed(row, f"{path}:{number}") for number, row in enumerate(read_rows(path)[0], 1)]
        self._unlike = Unlike(threshold=section.likeness, profile=section.profile)
        for instruction, _, _ in self.seeds:
            self._unlike.add(instruction)

    def requests_in_a_round(self, missing: int) -> int:
        return _REQUESTS_IN_A_ROUND

    def request(self, index: int, kept: Sequence[Prompt]) -> Request:
        section = self.section
        seeds = drawn(section.seed, index).sample(self.seeds, min(section.examples, len(self.seeds)))
        shown = "".join(_shown(number, *seed) for number, seed in enumerate(seeds, 1))
        question = ASK.format(
            tasks=section.tasks, shown=shown, next=len(seeds) + 1, language=in_language(section.language)
        )
        return ChatRequest(tuple(user_message(question)), self.sampling, index, self.method, f"alpaca:{index}")

    def read(self, answer: Answer, index: int) -> list[Prompt | Rejected]:
        """Every whole task of the reply; the last of one that was cut off is none."""
        first = min(self.section.examples, len(self.seeds)) + 1
        found, broken = parse_tasks(answer.text, first=first, cut_off=answer.finish_reason == "length")
        prompts: list[Prompt | Rejected] = []
        for place, (instruction, given, output) in enumerate(found):
            question = f"{instruction}\n\n{given}" if given else instruction
            part = share(answer, output, index=place, parts=len(found))
            prompts.append(text_prompt(question, self.system, given=part))
        return prompts + [unreadable(answer, "unreadable")] * broken

    def reason(self, prompt: Prompt) -> str | None:
        text = _instruction(prompt)
        bad = bad_instruction(text, profile=self.section.profile, words=ALPACA_WORDS)
        return bad or ("too_like_another" if self._unlike.too_like(text) else None)

    def keep(self, prompt: Prompt) -> None:
        self._unlike.add(_instruction(prompt))


def parse_tasks(text: str, *, first: int, cut_off: bool) -> tuple[list[tuple[str, str, str]], int]:
    """(instruction, input, output) of every whole task in a reply that begins inside task `first`; the broken ones."""
    start = f"{first}. Instruction:"
    whole = text.strip() if re.match(r"\s*\d+\.\s*Instruction:", text) else f"{start} {text.strip()}"
    pieces = [piece for piece in re.split(r"^\s*###+\s*$|###", whole, flags=re.MULTILINE) if piece.strip()]
    if cut_off:
        pieces = pieces[:-1]
    tasks = []
    for piece in pieces:
        parts = re.split(r"\d+\.\s*(Instruction|Input|Output):", piece)
        if len(parts) == 7 and parts[1::2] == ["Instruction", "Input", "Output"]:
            instruction, given, output = (part.strip() for part in parts[2::2])
            tasks.append((" ".join(instruction.split()), "" if given.lower() == _NO_INPUT else given, output))
    return tasks, len(pieces) - len(tasks)


def _instruction(prompt: Prompt) -> str:
    """Rules and likeness look at the instruction without its input."""
    return prompt.question.split("\n\n", 1)[0]


def _seed(row: Mapping[str, Any], where: str) -> tuple[str, str, str]:
    texts = [row.get(name) for name in ("instruction", "input", "output")]
    instruction, given, output = (text if isinstance(text, str) else "" for text in texts)
    if not instruction or not output:
        raise DataError(f"{where}: a task has the texts instruction, input (may be empty) and output")
    return instruction, given, output


def _shown(number: int, instruction: str, given: str, output: str) -> str:
    line = " ".join(instruction.split()).rstrip(":")
    return f"###\n{number}. Instruction: {line}\n{number}. Input:\n{given or _NO_INPUT}\n{number}. Output:\n{output}\n"
