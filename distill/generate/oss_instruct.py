"""OSS-Instruct (Wei et al., Magicoder, 2312.02120): a few lines of real code inspire a problem and its solution."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from distill.errors import DataError
from distill.generate.filters import Unlike
from distill.generate.invented import drawn, in_language, share, unreadable
from distill.generate.outcome import Rejected
from distill.generate.prompts import Prompt, read_rows, text_prompt
from distill.recipe.prompts import OssInstructPrompts, Sampling
from distill.records import user_message
from distill.teacher.requests import Answer, ChatRequest, Request

ASK = """\
Take inspiration from the code below and write a high-quality programming problem in Python with its solution. Reply \
in two parts with these headings:

[Problem Description]
The problem, complete in itself: whoever reads it has not seen the code below.

[Solution]
A correct and complete solution in one Python code block.{language}

Code for inspiration:
```
{snippet}
```"""
_PARTS = re.compile(
    r"\A[\s#*]*\[Problem Description\][\s:*]*(?P<problem>.+?)^[\s#*]*\[Solution\][\s:*]*(?P<solution>.+)\Z",
    re.DOTALL | re.MULTILINE | re.IGNORECASE,
)


class OssInstruct:
    """Writer of problems; request i shows lines of seed i modulo their number."""

    def __init__(
        self,
        section: OssInstructPrompts,
        *,
        system: str | None,
        sampling: Sampling,
        method: str,
        seeds: Sequence[str] | None = None,
    ) -> None:
        self.section = section
        self.system = system
        self.sampling = sampling
        self.method = method
        self.seeds = [text.splitlines() for text in (read_seeds(section) if seeds is None else seeds)]
        self._unlike = Unlike(threshold=section.likeness, profile=section.profile)

    def requests_in_a_round(self, missing: int) -> int:
        return min(1024, missing)

    def request(self, index: int, kept: Sequence[Prompt]) -> Request:
        question = ASK.format(snippet=self.snippet(index), language=in_language(self.section.language))
        return ChatRequest(tuple(user_message(question)), self.sampling, index, self.method, f"oss_instruct:{index}")

    def snippet(self, index: int) -> str:
        """1 to 15 (by default) consecutive lines, number and place drawn."""
        rng = drawn(self.section.seed, index)
        lines = self.seeds[index % len(self.seeds)]
        most = max(self.section.least_lines, self.section.most_lines)
        size = min(rng.randint(self.section.least_lines, most), len(lines))
        start = rng.randint(0, len(lines) - size)
        return "\n".join(lines[start : start + size])

    def read(self, answer: Answer, index: int) -> list[Prompt | Rejected]:
        """The problem with its solution given; a reply that was cut off, or lacks a part, is none."""
        if answer.finish_reason == "length":
            return [unreadable(answer, "truncated")]
        parts = _PARTS.match(answer.text)
        if parts is None:
            return [unreadable(answer, "unreadable")]
        solution = share(answer, parts["solution"].strip(), index=0, parts=1)
        return [text_prompt(parts["problem"].strip(), self.system, given=solution)]

    def reason(self, prompt: Prompt) -> str | None:
        return "too_like_another" if self._unlike.too_like(prompt.question) else None

    def keep(self, prompt: Prompt) -> None:
        self._unlike.add(prompt.question)


def read_seeds(section: OssInstructPrompts) -> list[str]:
    """Every seed's text, empty seeds left out, in a fixed order."""
    path = Path(section.path)
    if path.is_dir():
        texts = [file.read_text(encoding="utf-8", errors="replace") for file in sorted(path.rglob(section.pattern))]
    elif path.is_file():
        texts = [str(row[section.column]) for row in read_rows(path)[0] if section.column in row]
    else:
        raise DataError(f"no code at {path}", remedy="mend prompts.path; it is relative to the working folder")
    seeds = [text for text in texts if text.strip()]
    if not seeds:
        what = f"no file like {section.pattern}" if path.is_dir() else f"no column '{section.column}'"
        raise DataError(f"{path} has {what}", remedy="set prompts.pattern or prompts.column")
    return seeds
