"""Which files decide a job's rows. Imports nothing that takes time: a finished run asks this and nothing else."""

from __future__ import annotations

from pathlib import Path

from distill.recipe.generate import CodeJob, InstructionJob, PreferenceJob
from distill.recipe.prompts import FilePrompts, MagpiePrompts, TaskPrompts

AnyJob = InstructionJob | PreferenceJob | CodeJob


def files_of(job: AnyJob) -> dict[str, Path]:
    """The files that decide a job's prompts and filters, by what they are."""
    files: dict[str, Path] = {}
    section = job.prompts
    if not isinstance(section, (TaskPrompts, MagpiePrompts)):
        files["file" if isinstance(section, FilePrompts) else section.source] = Path(section.path)
    if job.filters.decontaminate is not None:
        files |= {f"benchmark:{name}": Path(name) for name in job.filters.decontaminate.files}
    return files
