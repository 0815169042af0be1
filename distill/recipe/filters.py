"""What happens to a job's rows before they are written; each removed row is kept beside them with the reason."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from distill.recipe.base import Section

Profile = Literal["unicode", "english"]
Compared = Literal["row", "prompt", "answer"]


class EmbeddingDuplicates(Section):
    """Rows that say what a kept one says, in other words: by the cosine of their mean hidden states."""

    model: str = Field(description="folder or hub id of a local model that reads the texts")
    threshold: float = Field(default=0.95, gt=0, le=1, description="cosine from which a row repeats another")
    max_tokens: int = Field(default=512, ge=1, description="of a text that the model reads")


class Duplicates(Section):
    """Rows that came before, exactly or nearly (MinHash with LSH), or in other words (embeddings)."""

    on: Compared = Field(default="row", description="the text that is compared")
    near: bool = True
    threshold: float = Field(default=0.7, gt=0, le=1, description="Jaccard similarity of n-grams, estimated")
    ngram: int = Field(default=5, ge=1, description="units in an n-gram: words, or characters of Hangul, Kana, Han")
    permutations: int = Field(default=256, ge=16, le=4096)
    embedding: EmbeddingDuplicates | None = Field(
        default=None, description="also those alike in meaning, when all rows are there; null: not"
    )


class Length(Section):
    """Bounds of an answer: characters without white space, or words in the english profile."""

    min: int = Field(default=1, ge=0)
    max: int | None = Field(default=None, ge=1)


class Decontaminate(Section):
    """Rows that contain a benchmark's question, answer or program."""

    files: tuple[str, ...] = Field(min_length=1, description="JSONL or Parquet files of benchmarks")
    columns: tuple[str, ...] = Field(
        default=(), description="the columns with texts; empty: every column whose values are texts of 8 units or more"
    )
    share: float = Field(default=0.7, gt=0, le=1, description="of a benchmark text's 8-grams; any 13-gram is enough")
    ast_threshold: float = Field(default=0.9, gt=0, le=1, description="likeness of programs' syntax trees")


class Filters(Section):
    """In this order: length, language, refusals, boilerplate, personal data, benchmarks, duplicates."""

    profile: Profile = Field(default="unicode", description="english: the published word-based rules")
    length: Length | None = None
    languages: tuple[str, ...] = Field(default=(), description="ISO codes of answers to keep; unclear ones stay")
    refusals: bool = False
    boilerplate: bool = False
    personal_data: bool = False
    decontaminate: Decontaminate | None = None
    duplicates: Duplicates | None = None


class EducationalSample(Section):
    """phi-1's filter (2306.11644): the teacher judges a sample, a forest the rest. Needs the extra `filters`."""

    sample: int = Field(default=1000, ge=32, description="programs that the teacher is asked about")
    threshold: float = Field(default=0.5, gt=0, lt=1, description="of the forest's value, below which a program goes")
    held_out: float = Field(default=0.25, gt=0, lt=1, description="share of the sample that measures the forest")
    trees: int = Field(default=200, ge=1)
    model: str | None = Field(
        default=None, description="local model whose mean hidden state is the features; null: hashed n-grams"
    )
    max_tokens: int = Field(default=512, ge=1, description="of a program that the model reads")
    seed: int = 0
