"""Which files decide a job's rows. Imports nothing that takes time: a finished run asks this and nothing else."""

from __future__ import annotations

from pathlib import Path

from distill.recipe.filters import EducationalSample
from distill.recipe.generate import CodeJob, InstructionJob, PreferenceJob
from distill.recipe.prompts import FilePrompts, MagpiePrompts, OssInstructPrompts, TaskPrompts

AnyJob = InstructionJob | PreferenceJob | CodeJob


def files_of(job: AnyJob) -> dict[str, Path]:
    """The files that decide a job's prompts and filters, by what they are."""
    files: dict[str, Path] = {}
    section = job.prompts
    if not isinstance(section, (TaskPrompts, MagpiePrompts)):
        files["file" if isinstance(section, FilePrompts) else section.source] = Path(section.path)
    if job.filters.decontaminate is not None:
        files |= {f"benchmark:{name}": Path(name) for name in job.filters.decontaminate.files}
    for sample in samples_of(job):
        if sample.model is not None:
            files["embedding"] = Path(sample.model)
    return files


def samples_of(job: AnyJob) -> list[EducationalSample]:
    """The sifting by educational value that a job asks for: of its seeds, of its rows."""
    wanted = [job.educational if isinstance(job, CodeJob) else None]
    wanted.append(job.prompts.educational if isinstance(job.prompts, OssInstructPrompts) else None)
    return [sample for sample in wanted if isinstance(sample, EducationalSample)]
