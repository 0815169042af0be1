"""Which texts of ours a job's requests are made from, and their hashes: other words, other data."""

from __future__ import annotations

import hashlib
import json

from distill.generate import (
    alpaca,
    educational,
    evol_instruct,
    exercises,
    multi_turn,
    oss_instruct,
    personas,
    self_instruct,
    topics,
    written_tests,
)
from distill.generate.inputs import AnyJob, samples_of
from distill.generate.principles import WORDINGS
from distill.judge import aspects, pairwise
from distill.recipe.generate import CodeJob, Feedback, FilePrompts, InstructionJob, PreferenceJob
from distill.recipe.prompts import PersonaPrompts

_OF_SOURCES: dict[str, dict[str, str]] = {
    "self_instruct": {"new tasks": self_instruct.ASK},
    "alpaca": {"new tasks": alpaca.ASK},
    "topics": {"new tasks": topics.ASK},
    "oss_instruct": {"new problems": oss_instruct.ASK},
    "exercises": {"new exercises": exercises.ASK, "their completion": exercises.COMPLETE},
    "evol_instruct": {
        "evolution in depth": evol_instruct.DEPTH_ASK + "\n".join(evol_instruct.DEPTH.values()),
        "evolution in breadth": evol_instruct.BREADTH_ASK,
        "information gain": evol_instruct.EQUAL_ASK,
    },
}


def templates_of(job: AnyJob) -> dict[str, str]:
    """The texts by what they ask for. A prompt of a file is asked as it stands: it has none."""
    found = dict(_OF_SOURCES.get(job.prompts.source, {}))
    if isinstance(job.prompts, PersonaPrompts):
        found["by persona"] = personas.ASKS[job.prompts.ask]
        if job.prompts.written:
            found["more personas"] = personas.OF_A_PERSON if job.prompts.seeds == "personas" else personas.OF_A_TEXT
    if isinstance(job, InstructionJob) and job.chat is not None:
        found["the user's turns"] = multi_turn.USER_ASK + multi_turn.PERSONA + "\n".join(multi_turn.MOVES)
    if isinstance(job, PreferenceJob) and job.rank == "judge":
        found["comparison of two answers"] = pairwise.FRAMINGS[0]
    if isinstance(job, PreferenceJob) and job.rank == "feedback":
        section = job.feedback or Feedback()
        found |= {f"rating: {aspect}": aspects.RATE + scale for aspect, scale in aspects.SCALES.items()}
        if isinstance(job.prompts, FilePrompts) and job.prompts.reference is not None:
            found["world knowledge"] = aspects.KNOWLEDGE
        if section.binarize == "h4":
            found["overall score"] = aspects.SCORE
        if section.principles is not None:
            found["principles"] = json.dumps(WORDINGS)
    if isinstance(job, CodeJob) and job.write_tests:
        found["tests"] = written_tests.ASK
    if samples_of(job) or (isinstance(job, CodeJob) and job.educational):
        found["educational value"] = educational.ASK
    return found


def hashes_of(job: AnyJob) -> dict[str, str]:
    """The first 16 hex digits of each text's SHA-256."""
    return {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in templates_of(job).items()}
