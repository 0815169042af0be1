"""From a job's `prompts` section to prompts: which method writes them, and which files decide what they are."""

from __future__ import annotations

from distill.errors import DataError
from distill.generate.alpaca import Alpaca
from distill.generate.educational import NOT_EDUCATIONAL, sift
from distill.generate.evol_instruct import EvolInstruct
from distill.generate.exercises import Exercises
from distill.generate.invented import Invented, Writer, invent
from distill.generate.magpie import Magpie
from distill.generate.oss_instruct import OssInstruct, read_seeds
from distill.generate.outcome import Rejected
from distill.generate.personas import by_personas
from distill.generate.prompts import PromptSource, open_prompts, text_prompt
from distill.generate.self_instruct import SelfInstruct
from distill.generate.topics import Topics
from distill.recipe.filters import EducationalSample
from distill.recipe.generate import CodeJob, InstructionJob, PreferenceJob
from distill.recipe.prompts import (
    AlpacaPrompts,
    EvolInstructPrompts,
    ExercisePrompts,
    FilePrompts,
    InventedPrompts,
    MagpiePrompts,
    OssInstructPrompts,
    PersonaPrompts,
    SelfInstructPrompts,
    TaskPrompts,
    TopicPrompts,
)
from distill.teacher.client import TeacherClient

AnyJob = InstructionJob | PreferenceJob | CodeJob


async def open_source(
    job: AnyJob, client: TeacherClient, *, method: str, limit: int | None
) -> tuple[PromptSource, Invented]:
    """The prompts of a job (only the first `limit` of them are asked for), and what it took to have them written."""
    section = job.prompts
    if isinstance(section, (TaskPrompts, FilePrompts)):
        return open_prompts(section, job.system), Invented()
    made = await _written(job, section, client, f"{method}:{section.source}", limit)
    total = section.count
    if isinstance(section, EvolInstructPrompts):  # how many come of its rounds is known afterwards only
        total = len(made.prompts)
        if limit is not None and limit < section.count:  # a preview: as many from each of the others
            total = round(total * section.count / limit)
    return PromptSource(made.prompts, total), made


async def _written(
    job: AnyJob, section: InventedPrompts, client: TeacherClient, method: str, limit: int | None
) -> Invented:
    count = section.count if limit is None else min(limit, section.count)
    sampling = section.sampling or job.sampling
    if isinstance(section, EvolInstructPrompts):
        fewer = section.model_copy(update={"count": count})
        evolution = EvolInstruct(
            fewer,
            system=job.system,
            sampling=sampling,
            answering=job.sampling,
            method=method,
            logprobs=0 if isinstance(job, PreferenceJob) else job.logprobs,
        )
        return await evolution.evolve(client)
    if isinstance(section, PersonaPrompts):
        return await by_personas(section, client, count, system=job.system, sampling=sampling, method=method)
    if isinstance(section, OssInstructPrompts) and section.educational is not None:
        return await _from_sifted_seeds(job, section, section.educational, client, method, count)
    return await invent(_writer(job, section, client, method), client, count)


async def _from_sifted_seeds(
    job: AnyJob,
    section: OssInstructPrompts,
    sample: EducationalSample,
    client: TeacherClient,
    method: str,
    count: int,
) -> Invented:
    """OSS-Instruct on the seeds that teach something; the others are set aside with the reason."""
    seeds = read_seeds(section)
    sifted, opinions = await sift(sample, client, len(seeds), lambda: [seeds], method=method)
    kept: list[str] = []
    removed: list[Rejected] = []
    for seed, opinion in zip(seeds, opinions(), strict=True):
        if opinion.keep:
            kept.append(seed)
        else:
            removed.append(Rejected(text_prompt(seed, None), f"seed_{NOT_EDUCATIONAL}", opinion.detail))
    if not kept:
        raise DataError("no seed is of educational value", remedy="lower educational.threshold, or bring other seeds")
    sampling = section.sampling or job.sampling
    writer = OssInstruct(section, system=job.system, sampling=sampling, method=method, seeds=kept)
    made = await invent(writer, client, count)
    made.answers += sifted.answers
    made.rejected = [*sifted.rejected, *removed, *made.rejected]
    made.sifted = sifted.metrics()
    return made


def _writer(job: AnyJob, section: InventedPrompts, client: TeacherClient, method: str) -> Writer:
    sampling, system = section.sampling or job.sampling, job.system
    match section:
        case SelfInstructPrompts():
            return SelfInstruct(section, system=system, sampling=sampling, method=method)
        case AlpacaPrompts():
            return Alpaca(section, system=system, sampling=sampling, method=method)
        case MagpiePrompts():
            return Magpie(section, teacher=client.teacher, system=system, sampling=sampling, method=method)
        case TopicPrompts():
            return Topics(section, system=system, sampling=sampling, method=method)
        case OssInstructPrompts():
            return OssInstruct(section, system=system, sampling=sampling, method=method)
        case ExercisePrompts():
            return Exercises(section, system=system, sampling=sampling, method=method)
        case EvolInstructPrompts() | PersonaPrompts():
            raise AssertionError("has rounds of its own")
