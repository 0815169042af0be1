"""Where a job's prompts come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from distill.recipe.base import Section
from distill.recipe.filters import EducationalSample, Profile

TaskKind = Literal["instruction", "code", "judge"]


class Sampling(Section):
    """How the teacher's answers are drawn."""

    temperature: float = Field(default=0.7, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=512, ge=1)


class TaskPrompts(Section):
    """Prompts drawn from the verifiable task families (`distill.tasks`), so that answers can be checked."""

    source: Literal["tasks"]
    kinds: tuple[TaskKind, ...] = Field(default=("instruction",), min_length=1)
    families: tuple[str, ...] | None = None
    count: int = Field(ge=1)
    seed: int = 0


class FilePrompts(Section):
    """Prompts read from a JSONL or Parquet file, a column of texts or of messages."""

    source: Literal["file"]
    path: str
    column: str = "prompt"
    answer: str | None = Field(
        default=None, description="column of answers that are there already: the first sample of each, not asked for"
    )
    reference: str | None = Field(
        default=None, description="column of what is known to be true, for the judge of truthfulness (rank feedback)"
    )
    count: int | None = Field(default=None, ge=1, description="only the first so many")


class Invented(Section):
    """What all sources share in which the teacher writes the prompts."""

    count: int = Field(ge=1)
    seed: int = 0
    sampling: Sampling | None = Field(default=None, description="how prompts are drawn; null: as the job's answers")
    profile: Profile = Field(default="unicode", description="english: the published word-based rules for new prompts")
    language: str | None = Field(default=None, description="in which the prompts are to be, as an English word: Korean")
    likeness: float = Field(default=0.7, gt=0, le=1, description="ROUGE-L F over which a prompt is too like another")


class SelfInstructPrompts(Invented):
    """Tasks that the teacher writes after a few that it is shown (Self-Instruct, 2212.10560)."""

    source: Literal["self_instruct"]
    path: str = "data/seed_tasks.jsonl"
    column: str = "prompt"
    examples: int = Field(default=8, ge=1, le=32, description="tasks shown in each request")
    machine_made: int = Field(default=2, ge=0, description="at most so many of them written by the teacher before")


class AlpacaPrompts(Invented):
    """Twenty tasks a request after three of a person's, each with its input and answer (Stanford Alpaca)."""

    source: Literal["alpaca"]
    path: str = Field(default="data/seed_examples.jsonl", description="rows of instruction, input, output")
    examples: int = Field(default=3, ge=1, le=16)
    tasks: int = Field(default=20, ge=2, le=64, description="in one request, the examples among them")


class EvolInstructPrompts(Invented):
    """Prompts of a file made harder in rounds, in depth or breadth (Evol-Instruct, 2304.12244); all rounds are used."""

    source: Literal["evol_instruct"]
    path: str = "data/seed_tasks.jsonl"
    column: str = "prompt"
    count: int = Field(ge=1, description="prompts of the file that are evolved")
    rounds: int = Field(default=4, ge=1, le=16)


class MagpiePrompts(Invented):
    """Prompts that an aligned model writes itself after the head of a user's turn (Magpie, 2406.08464).

    Needs an endpoint with /completions. Without `template` and `pre_query` the head is read from the chat template in
    the folder of the teacher's weights.
    """

    source: Literal["magpie"]
    template: Literal["llama3", "chatml", "mistral", "gemma"] | None = None
    pre_query: str | None = Field(default=None, description="the text up to where a user's words begin")
    stop: tuple[str, ...] = Field(default=(), description="what ends a user's turn, beside the template's own")


class TopicPrompts(Invented):
    """Tasks about the topics of a file, in turn, several a request."""

    source: Literal["topics"]
    path: str = Field(default="data/topics.txt", description="a topic a line")
    tasks: int = Field(default=10, ge=1, le=50, description="asked for in one request")


class PersonaPrompts(Invented):
    """What a persona would ask, one persona a request (PersonaHub, 2406.20094); the teacher can write more of them."""

    source: Literal["personas"]
    path: str = Field(default="data/personas.txt", description="a persona a line, or JSONL or Parquet with a column")
    column: str = "persona"
    seeds: Literal["personas", "texts"] = Field(
        default="personas", description="what the file holds; texts: personas are those who would read or write them"
    )
    written: int = Field(
        default=0, ge=0, description="so many personas by the teacher: people who know one, or readers of the texts"
    )
    ask: Literal["instruction", "math", "reasoning"] = Field(default="instruction", description="kind of prompt")

    @model_validator(mode="after")
    def _someone(self) -> PersonaPrompts:
        if self.seeds == "texts" and not self.written:
            raise ValueError("seeds: texts needs 'written': texts are no personas")
        return self


class OssInstructPrompts(Invented):
    """Problems inspired by a few lines of somebody's code, with solutions (OSS-Instruct, 2312.02120)."""

    source: Literal["oss_instruct"]
    path: str = Field(description="JSONL or Parquet with a column of code, or a folder of source files")
    column: str = "content"
    least_lines: int = Field(default=1, ge=1, description="consecutive lines shown, at least")
    most_lines: int = Field(default=15, ge=1, description="and at most")
    pattern: str = Field(default="*.py", description="which files of a folder")
    educational: EducationalSample | None = Field(default=None, description="only seeds that teach something (phi-1)")


class ExercisePrompts(Invented):
    """Function heads with docstrings and their bodies; topics and function names vary them (phi-1, 2306.11644)."""

    source: Literal["exercises"]
    path: str = Field(default="data/code_topics.txt", description="a topic a line")
    exercises: int = Field(default=5, ge=1, le=20, description="asked for in one request")


InventedPrompts = (
    SelfInstructPrompts
    | AlpacaPrompts
    | EvolInstructPrompts
    | MagpiePrompts
    | TopicPrompts
    | PersonaPrompts
    | OssInstructPrompts
    | ExercisePrompts
)
Prompts = Annotated[
    TaskPrompts
    | FilePrompts
    | SelfInstructPrompts
    | AlpacaPrompts
    | EvolInstructPrompts
    | MagpiePrompts
    | TopicPrompts
    | PersonaPrompts
    | OssInstructPrompts
    | ExercisePrompts,
    Field(discriminator="source"),
]
