"""The whole recipe and the references between its sections."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from distill.recipe.base import Section
from distill.recipe.generate import Isolation, Job, TaskKind, why_no_shards
from distill.recipe.quantize import Quantizer
from distill.recipe.teacher import Dtype, EmbeddedTeacher, Student, Teacher, weights_of
from distill.recipe.train import Entry, FakeQuantization, KdEntry, LmEntry, OnPolicyEntry, why_not_aligned


class Serve(Section):
    """The engine's limits, for serving, evaluation and the embedded teacher."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    api_key_env: str | None = Field(default=None, description="variable with the key clients must send")
    max_batch: int = Field(default=128, ge=1, description="sequences decoded together")
    kv_gib: float = Field(default=1.0, gt=0, description="memory for the KV cache, in GiB")
    kv_dtype: Literal["auto", "int8", "fp8"] = Field(
        default="auto", description="of the KV cache; auto: the model's own"
    )
    block_size: int = Field(default=32, ge=1, description="tokens in a KV block")
    prefill_tokens: int = Field(
        default=512, ge=1, description="prompt tokens prefilled in one step; left out, a GPU takes 8192"
    )
    max_queue: int = Field(default=1024, ge=1, description="choices accepted and not answered; beyond it 503")
    dtype: Dtype = "auto"
    draft: str | None = Field(default=None, description="model whose guesses the served one checks; null: none")
    draft_tokens: int = Field(default=4, ge=1, le=64, description="guessed at a time")


class Evaluate(Section):
    """Held-out questions for every variant."""

    kinds: tuple[TaskKind, ...] = Field(default=("instruction", "code"), min_length=1)
    splits: tuple[Literal["values", "phrasings"], ...] = Field(default=("values", "phrasings"), min_length=1)
    rows: int = Field(default=500, ge=1, description="held-out tasks in all, shared by splits and kinds")
    seed: int = 1_000
    max_tokens: int = Field(default=384, ge=1)
    divergence_rows: int = Field(default=128, ge=1, description="reference answers for perplexity, agreement and KL")
    isolation: Isolation = "bubblewrap"
    draft_tokens: int | None = Field(
        default=None, ge=1, le=64, description="guesses at a time of students as drafts of the teacher; null: none"
    )
    variants: tuple[str, ...] | None = Field(default=None, description="null: all there are")


class Plan(Section):
    """What the look ahead assumes."""

    gpu: str = Field(default="H100-80GB", description="a name from `distill plan --gpus`")
    context_tokens: int = Field(default=4096, ge=1)
    prompt_tokens: int | None = Field(default=None, ge=1, description="mean prompt; null: estimated from the source")
    completion_tokens: int | None = Field(default=None, ge=1, description="mean answer; null: half of max_tokens")


class Report(Section):
    """The HTML page."""

    title: str | None = None
    samples: int = Field(default=8, ge=0, description="held-out prompts shown side by side")


class Track(Section):
    """Metrics always go to JSONL; Weights & Biases when asked."""

    wandb: Literal["online", "offline", "off"] = "off"
    project: str = "distill"


class Recipe(Section):
    """One experiment, its sections in the order in which the stages run."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    output_dir: str = "runs"
    teacher: Teacher = EmbeddedTeacher()
    teachers: tuple[Teacher, ...] = Field(default=(), description="further ones, for jobs that name several")
    student: Student | None = None
    generate: tuple[Job, ...] = ()
    train: tuple[Entry, ...] = ()
    quantize: tuple[Quantizer, ...] = ()
    serve: Serve = Serve()
    evaluate: Evaluate | None = None
    plan: Plan = Plan()
    report: Report = Report()
    track: Track = Track()

    def teacher_weights(self) -> str | None:
        """Folder or hub id of the teacher's weights, where they can be had."""
        return weights_of(self.teacher)

    def scoring_weights(self, entry: KdEntry | OnPolicyEntry) -> dict[str, str]:
        """Of the teachers that an entry names, each once: folder or hub id of its weights, by name."""
        known = self.teachers_by_label()
        named = {} if entry.teachers is None else {name: weights_of(known[name]) for name in entry.teachers.names}
        return {name: weights for name, weights in named.items() if weights is not None}

    def teachers_by_label(self) -> dict[str, Teacher]:
        """Every teacher by its id, else its model."""
        return {teacher.id or teacher.model: teacher for teacher in (self.teacher, *self.teachers)}

    @property
    def from_scratch(self) -> bool:
        """Whether the student begins as random weights, which are no variant: they have nothing to say."""
        return self.student is not None and self.student.scratch is not None

    def init_of(self, entry_name: str) -> str:
        """Name of the entry that `entry_name` starts from, or 'student'."""
        names = [entry.name for entry in self.train]
        index = names.index(entry_name)
        return self.train[index].init or (names[index - 1] if index else "student")

    def trained_grid(self, entry_name: str) -> FakeQuantization | None:
        """The grid on which a train entry rounds its student's weights."""
        entry = next(entry for entry in self.train if entry.name == entry_name)
        return entry.quantize if isinstance(entry, KdEntry) else None

    def _teacher_problems(self) -> Iterator[tuple[tuple[str | int, ...], str, tuple[str, ...]]]:
        """Mistakes between teachers and the jobs that name them."""
        labels = [self.teacher.id or self.teacher.model]
        for index, teacher in enumerate(self.teachers):
            label = teacher.id or teacher.model
            if label in labels:
                yield ("teachers", index), f"'{label}' is the name of another teacher: give it an id of its own", ()
            labels.append(label)
            if isinstance(teacher, EmbeddedTeacher) and teacher.backend == "server":
                problem = "only 'teacher' is served by the program: set backend: transformers, or give a URL"
                yield ("teachers", index, "kind"), problem, ()
        for index, job in enumerate(self.generate):
            if job.teachers is None:
                continue
            names, weights = job.teachers.names, job.teachers.weights
            for place, name in enumerate(names):
                if name not in labels:
                    yield ("generate", index, "teachers", "names", place), f"no teacher '{name}'", tuple(labels)
                elif name in names[:place]:
                    yield ("generate", index, "teachers", "names", place), f"'{name}' is named twice", ()
            if weights is not None and len(weights) != len(names):
                problem = f"needs a weight for each of the {len(names)} names; got {len(weights)}"
                yield ("generate", index, "teachers", "weights"), problem, ()

    def calibration_of_student(self) -> str | None:
        """Name of the job or path of the rows on which the student's model is measured before it is cut."""
        if self.student is None or self.student.prune is None:
            return None
        named = self.student.prune.calibration.data
        trained = (name for entry in self.train if not isinstance(entry, LmEntry) for name in entry.data)
        return named or next(trained, None)

    def _student_problems(self) -> Iterator[tuple[tuple[str | int, ...], str, tuple[str, ...]]]:
        """Mistakes inside the student's section, and between it and its calibration rows."""
        if self.student is None:
            return
        for key, problem in self.student.problems():
            yield ("student", key) if key else ("student",), problem, ()
        if self.student.measures:
            place = ("student", "prune", "calibration", "data")
            jobs = tuple(job.name for job in self.generate)
            data = self.calibration_of_student()
            if data is None:
                yield place, "no rows to measure the model on: name a generate job or a .parquet path", ()
            elif data not in jobs and not _is_path(data):
                yield place, f"no generate job '{data}'", jobs

    def _kd_problems(
        self, index: int, entry: KdEntry | OnPolicyEntry
    ) -> Iterator[tuple[tuple[str | int, ...], str, tuple[str, ...]]]:
        """Mistakes between an entry that distils, its signal and the teacher."""
        if entry.teachers is not None:
            known = self.teachers_by_label()
            for place, name in enumerate(entry.teachers.names):
                named = ("train", index, "teachers", "names", place)
                if name not in known:
                    yield named, f"no teacher '{name}'", tuple(known)
                elif weights_of(known[name]) is None:
                    yield named, f"the distributions of '{name}' are read: set its weights to a folder or hub id", ()
            for key, problem in entry.teachers.problems(entry):
                yield ("train", index, "teachers", key), problem, ()
        elif (isinstance(entry, OnPolicyEntry) or entry.needs_weights) and self.teacher_weights() is None:
            name = entry.objective
            problem = (
                f"{name} reads the teacher's distributions: set teacher.weights to a folder or hub id of its weights"
            )
            yield ("train", index, "objective"), problem, ()
        unaligned = why_not_aligned(entry)
        if unaligned is not None:
            yield ("train", index, "alignment"), unaligned, ()
        unkept = entry.replay_problem() if isinstance(entry, OnPolicyEntry) else None
        if unkept is not None:
            yield ("train", index, "rollout", "replay", unkept[0]), unkept[1], ()
        unsound = entry.signal_problem() if isinstance(entry, KdEntry) else None
        if unsound is not None:
            yield ("train", index, unsound[0]), unsound[1], ()

    def _executor_problems(self) -> Iterator[tuple[tuple[str | int, ...], str, tuple[str, ...]]]:
        """Jobs that cannot run as shards on a cluster."""
        known = self.teachers_by_label()
        for index, job in enumerate(self.generate):
            if job.executor is None:
                continue
            place = ("generate", index, "executor")
            indivisible = why_no_shards(job)
            if indivisible is not None:
                yield place, f"{indivisible}; leave 'executor' out", ()
            named = job.teachers.names if job.teachers is not None else ()
            asked = [self.teacher, *(known[name] for name in named if name in known)]
            embedded = [teacher for teacher in asked if isinstance(teacher, EmbeddedTeacher)]
            if any(teacher.backend == "transformers" for teacher in embedded):
                yield place, "each shard would load the teacher's weights: set its backend to server", ()
            elif embedded and job.executor.address is not None:
                problem = "an embedded teacher listens on this machine alone: give a teacher with a URL, or no address"
                yield place, problem, ()

    def cross_problems(self) -> Iterator[tuple[tuple[str | int, ...], str, tuple[str, ...]]]:
        """Mistakes between sections: (location, problem, valid names)."""
        jobs = tuple(job.name for job in self.generate)
        seen: dict[str, tuple[str | int, ...]] = {}
        reserved = ("teacher", "student", "student-base")
        for section, entries in (("generate", self.generate), ("train", self.train), ("quantize", self.quantize)):
            for index, entry in enumerate(entries):
                location = (section, index, "name")
                key = entry.name if section != "generate" else f"generate/{entry.name}"
                if key in seen:
                    yield location, f"'{entry.name}' is already the name of {_dotted(seen[key])}", ()
                if section != "generate" and entry.name in reserved:
                    yield location, f"'{entry.name}' is reserved", ()
                seen[key] = location
        yield from self._teacher_problems()
        yield from self._executor_problems()
        if self.train and self.student is None:
            yield ("train",), "needs a 'student' section that says which model to train", ()
        yield from self._student_problems()
        earlier: list[str] = ["student"]
        for index, entry in enumerate(self.train):
            if entry.init is not None and entry.init not in earlier:
                yield ("train", index, "init"), f"no earlier entry '{entry.init}'", tuple(earlier)
            earlier.append(entry.name)
            if isinstance(entry, LmEntry):
                continue
            unheard = entry.lora.head_problem() if entry.lora is not None else None
            if unheard is not None:
                yield ("train", index, "lora", "target_modules", unheard[0]), f"{unheard[1]}; leave it out", ()
            for position, name in enumerate(entry.data):
                if name not in jobs and not _is_path(name):
                    yield (
                        ("train", index, "data", position),
                        f"no generate job '{name}' (a path ends in .parquet)",
                        jobs,
                    )
            if isinstance(entry, KdEntry | OnPolicyEntry):
                yield from self._kd_problems(index, entry)
            if entry.batch_size % entry.micro_batch_size:
                yield (
                    ("train", index, "batch_size"),
                    f"must be a multiple of micro_batch_size {entry.micro_batch_size}",
                    (),
                )
        trained = tuple(entry.name for entry in self.train)
        for index, quantizer in enumerate(self.quantize):
            if not trained:
                yield ("quantize", index), "there is no train entry to quantize", ()
            elif quantizer.of is not None and quantizer.of not in trained:
                yield ("quantize", index, "of"), f"no train entry '{quantizer.of}'", trained
            if quantizer.method == "qat" and trained:
                name = quantizer.of or trained[-1]
                if name in trained and self.trained_grid(name) is None:
                    yield ("quantize", index, "method"), f"'{name}' was not trained on a grid: set its quantize", ()
            if quantizer.method in ("gptq", "awq"):
                data = quantizer.calibration.data
                if data is not None and data not in jobs and not _is_path(data):
                    yield ("quantize", index, "calibration", "data"), f"no generate job '{data}'", jobs
        if self.evaluate is not None and self.evaluate.variants is not None:
            base = () if self.from_scratch else ("student-base",)
            known = ("teacher", *base, *trained, *(q.name for q in self.quantize))
            for index, name in enumerate(self.evaluate.variants):
                if name not in known:
                    yield ("evaluate", "variants", index), f"no variant '{name}'", known


def _is_path(name: str) -> bool:
    return name.endswith(".parquet") or "/" in name


def _dotted(location: tuple[str | int, ...]) -> str:
    return ".".join(str(part) for part in location)
