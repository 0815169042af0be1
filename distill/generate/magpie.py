"""Magpie (Xu et al., 2406.08464): given only the head of a user's turn, an aligned model writes what users ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distill.errors import DataError
from distill.generate.filters import Unlike
from distill.generate.invented import unreadable
from distill.generate.outcome import Rejected
from distill.generate.prompts import Prompt, text_prompt
from distill.recipe.prompts import MagpiePrompts, Sampling
from distill.recipe.teacher import EmbeddedTeacher, Teacher
from distill.teacher.requests import Answer, CompletionRequest, Request

_MARK = "THE-WORDS-OF-A-USER"
_LONGEST_STOP = 64


@dataclass(frozen=True)
class Head:
    """The text up to a user's words, and what ends them."""

    pre_query: str
    stop: tuple[str, ...]


TEMPLATES = {
    "llama3": Head("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n", ("<|eot_id|>",)),
    "chatml": Head("<|im_start|>user\n", ("<|im_end|>",)),
    "mistral": Head("<s>[INST] ", ("[/INST]",)),
    "gemma": Head("<bos><start_of_turn>user\n", ("<end_of_turn>",)),
}


class Magpie:
    """Writer of prompts; each request is the same text, told apart by its sample index."""

    def __init__(
        self,
        section: MagpiePrompts,
        *,
        teacher: Teacher,
        system: str | None,
        sampling: Sampling,
        method: str,
    ) -> None:
        self.section = section
        self.system = system
        self.sampling = sampling
        self.method = method
        self.head = head_of(section, teacher)
        self._unlike = Unlike(threshold=section.likeness, profile=section.profile)

    def requests_in_a_round(self, missing: int) -> int:
        return min(1024, missing)

    def request(self, index: int, kept: Sequence[Prompt]) -> Request:
        head, seed = self.head, self.section.seed
        sample = index if not seed else seed * 1_000_000_007 + index
        return CompletionRequest(head.pre_query, self.sampling, sample, self.method, f"magpie:{index}", stop=head.stop)

    def read(self, answer: Answer, index: int) -> list[Prompt | Rejected]:
        """One prompt; one that was cut off, or that the model left empty, is none."""
        if answer.finish_reason == "length":
            return [unreadable(answer, "truncated")]
        text = answer.text
        for end in self.head.stop:
            text = text.split(end, 1)[0]
        text = text.strip()
        return [text_prompt(text, self.system)] if text else [unreadable(answer, "empty")]

    def reason(self, prompt: Prompt) -> str | None:
        return "too_like_another" if self._unlike.too_like(prompt.question) else None

    def keep(self, prompt: Prompt) -> None:
        self._unlike.add(prompt.question)


def head_of(section: MagpiePrompts, teacher: Teacher) -> Head:
    """As the recipe says it, by a template's name, or from the chat template beside the teacher's weights."""
    if section.pre_query is not None:
        return Head(section.pre_query, section.stop)
    if section.template is not None:
        head = TEMPLATES[section.template]
        return Head(head.pre_query, (*head.stop, *section.stop))
    folder = teacher.model if isinstance(teacher, EmbeddedTeacher) else teacher.weights
    if folder is None or not Path(folder).is_dir():
        raise DataError(
            "magpie needs the head of a user's turn",
            remedy="set prompts.template or prompts.pre_query, or teacher.weights to a folder with a chat template",
        )
    head = head_from_folder(folder)
    return Head(head.pre_query, (*head.stop, *section.stop))


def head_from_folder(folder: str) -> Head:
    """Cut the chat template's rendering of one user turn at the user's words."""
    from transformers import AutoTokenizer  # takes a second, and only this way of saying it needs it

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not tokenizer.chat_template:
        raise DataError(f"{folder} has no chat template", remedy="set prompts.template or prompts.pre_query")
    shown = tokenizer.apply_chat_template([{"role": "user", "content": _MARK}], tokenize=False)
    assert isinstance(shown, str), "asked for text"
    before, _, after = shown.partition(_MARK)
    end = after.strip()[:_LONGEST_STOP]
    return Head(before, (end,) if end else ())
