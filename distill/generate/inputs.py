"""What decides a job's rows: itself, its teachers, its files. Imports nothing that takes time, for a finished run asks
this and nothing else."""

from __future__ import annotations

from pathlib import Path

from distill import tasks
from distill.generate.shards import Shard
from distill.recipe.filters import EducationalSample, EmbeddingDuplicates
from distill.recipe.generate import CodeJob, InstructionJob, PreferenceJob
from distill.recipe.prompts import FilePrompts, MagpiePrompts, OssInstructPrompts, TaskPrompts
from distill.recipe.schema import Recipe
from distill.runs import digest_of, file_digest, path_digest
from distill.teacher.requests import teacher_identity

AnyJob = InstructionJob | PreferenceJob | CodeJob
NOT_OF_THE_ROWS = {"push", "executor"}  # where a job is made and where it goes: no other dataset


def job_inputs(recipe: Recipe, job: AnyJob, shard: Shard | None = None) -> dict[str, str]:
    """Everything that decides a job's dataset, or its shard's."""
    inputs = {
        **({} if shard is None else {"shard": str(shard)}),
        "job": digest_of(job.model_dump(mode="json", exclude=NOT_OF_THE_ROWS)),
        "teacher": digest_of(teacher_identity(recipe.teacher)),
        **_answering_inputs(recipe, job),
        **{name: path_digest(path) for name, path in files_of(job).items()},
    }
    if isinstance(job.prompts, TaskPrompts):
        inputs["tasks"] = _digest_of_sources(Path(next(iter(tasks.__path__))))
    return inputs


def _answering_inputs(recipe: Recipe, job: AnyJob) -> dict[str, str]:
    if job.teachers is None:
        return {}
    known = recipe.teachers_by_label()
    return {"teachers": digest_of([teacher_identity(known[name]) for name in job.teachers.names])}


def _digest_of_sources(package: Path) -> str:
    """The task families are code: other code, other prompts."""
    return digest_of({str(path.relative_to(package)): file_digest(path) for path in sorted(package.rglob("*.py"))})


def files_of(job: AnyJob) -> dict[str, Path]:
    """The files that decide a job's prompts and filters, by what they are."""
    files: dict[str, Path] = {}
    section = job.prompts
    if not isinstance(section, (TaskPrompts, MagpiePrompts)):
        files["file" if isinstance(section, FilePrompts) else section.source] = Path(section.path)
    if job.filters.decontaminate is not None:
        files |= {f"benchmark:{name}": Path(name) for name in job.filters.decontaminate.files}
    if (same := same_meaning(job)) is not None:
        files["embedding of duplicates"] = Path(same.model)
    for sample in samples_of(job):
        if sample.model is not None:
            files["embedding"] = Path(sample.model)
    return files


def samples_of(job: AnyJob) -> list[EducationalSample]:
    """The sifting by educational value that a job asks for: of its seeds, of its rows."""
    wanted = [job.educational if isinstance(job, CodeJob) else None]
    wanted.append(job.prompts.educational if isinstance(job.prompts, OssInstructPrompts) else None)
    return [sample for sample in wanted if isinstance(sample, EducationalSample)]


def same_meaning(job: AnyJob) -> EmbeddingDuplicates | None:
    """The search for rows that repeat another in other words, where a job asks for it."""
    return None if job.filters.duplicates is None else job.filters.duplicates.embedding
