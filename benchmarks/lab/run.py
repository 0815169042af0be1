"""Trains the lab's teacher and its students and reports what each way of learning gains.

    python -m benchmarks.lab.text --source ../shared/data/lm/eltec_train.parquet --out runs/lab/text
    python -m benchmarks.lab.run --case novels --text runs/lab/text --out runs/lab/novels --json PATH
    python -m benchmarks.lab.run --case stories --teacher ../shared/weights/stories260k --out runs/lab/stories

Every training is an entry of a recipe in a process of its own, forked; several share the device. Recovered gap: of the
nats a token between the cross-entropy student and the teacher, the share that a method gains; means over equal seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Row, envelope, write_json
from benchmarks.lab.cases import CASES, CE, COMMON, Case, Method, methods, sweep
from benchmarks.lab.entry import RESULT, Spec, in_child, run, sample_and_run, start_method
from benchmarks.lab.models import make_random, perplexity, sample
from benchmarks.lab.text import PART, PROMPTED, TEMPLATE, TOKENIZER, TRAIN, VALIDATION, prompted
from distill.model.load import load_tokenizer
from distill.quiet import quiet
from distill.records import INSTRUCTION, read_parquet, write_parquet

GAP_BAR, STORED_BAR = 0.3, 0.005
TEACHER = "teacher"


@dataclass
class Job:
    """A training under way."""

    name: str
    process: BaseProcess
    started: float
    gpu: int


class Lab:
    """A case in a folder: random students, a folder a training. Nothing computes in this process."""

    def __init__(
        self, case: Case, out: Path, text: Path, *, parallel: int, deadline: float, kernel: str, method: str = "fork"
    ) -> None:
        self.case, self.out, self.text, self.method = case, out, text, method
        self.parallel, self.deadline, self.kernel = parallel, deadline, kernel
        self.validation = text / VALIDATION
        self.free_from = [0.0]  # the time from which each GPU may be used
        self.running: list[Job] = []

    def folder(self, name: str) -> Path:
        """Of a method."""
        return self.out / name.replace(" ", "-").replace(",", "")

    def make_students(self, seeds: int) -> dict[str, str]:
        """Folders of random weights, by seed."""
        tokenizer = load_tokenizer(self.text / TOKENIZER)
        folders = {str(seed): self.out / f"student-{seed}" for seed in range(1, seeds + 1)}
        for seed, folder in folders.items():
            make_random(self.case.student, tokenizer, folder, int(seed))
        return {seed: str(folder) for seed, folder in folders.items()}

    def start_teacher(self) -> None:
        """Of the case's own shape, from random weights, on the training rows."""
        assert self.case.teacher is not None
        make_random(self.case.teacher, load_tokenizer(self.text / TOKENIZER), self.out / "random-teacher", 0)
        entry = {**COMMON, **self.case.teacher_entry, "objective": "sft"}
        self._start(self._spec(TEACHER, entry, TRAIN, "", {"0": str(self.out / "random-teacher")}, "bfloat16"), 0)

    @property
    def teacher(self) -> Path:
        """Where the trained one lies."""
        return self.out / "teacher" / "lab" / "train-seed-0" / "model"

    def _spec(
        self, name: str, entry: dict[str, Any], rows: str, teacher: str, students: dict[str, str], dtype: str
    ) -> Spec:
        if entry["objective"] == "kd" and entry.get("signal", {}).get("kind", "live") in ("live", "hidden"):
            entry = {**entry, "kernel": self.kernel}
        return Spec(
            name,
            entry,
            str(self.text / rows),
            str(self.validation),
            str(self.text / TOKENIZER),
            self.case.row_tokens,
            teacher,
            students,
            dtype,
            str(self.folder(name)),
        )

    def _start(self, spec: Spec, gpu: int, *, sampled: bool = False) -> None:
        log = Path(spec.output) / "log"
        if sampled:
            sizes = (self.case.sampled, self.case.sample_batch)
            process = in_child(self.method, sample_and_run, log, spec, *sizes, gpu=gpu)
        else:
            process = in_child(self.method, run, log, spec, gpu=gpu)
        self.running.append(Job(spec.name, process, time.monotonic(), gpu))

    def _free_gpu(self) -> int | None:
        """The one with the fewest trainings; the teacher has its own for itself."""
        taken = {job.gpu for job in self.running if job.name == TEACHER}
        loads = [
            (sum(job.gpu == gpu for job in self.running), gpu)
            for gpu, since in enumerate(self.free_from)
            if gpu not in taken and time.monotonic() >= since
        ]
        return min(loads)[1] if loads and min(loads)[0] < self.parallel else None

    def collect(self) -> int:
        """Say which trainings have ended, and how many; after the deadline all are."""
        over, before = time.monotonic() >= self.deadline, len(self.running)
        for job in list(self.running):
            if job.process.is_alive() and not over:
                continue
            if job.process.is_alive():
                job.process.kill()
            job.process.join()
            self.running.remove(job)
            code, seconds = job.process.exitcode, time.monotonic() - job.started
            print(
                f"{job.name}: {'ended with ' + str(code) if not over else 'stopped'} after {seconds:.0f} s", flush=True
            )
            if code:
                lines = (self.folder(job.name) / "log").read_text(errors="replace").splitlines()
                print("\n".join(lines[-8:]), flush=True)
        return before - len(self.running)

    def train(
        self,
        todo: Sequence[Method],
        students: dict[str, str],
        *,
        teacher: Path,
        given: bool,
        after: Callable[[], object],
    ) -> None:
        """The teacher, unless it is `given`, and as many students as asked for at once; `after` some have ended.

        What another run finished in the folder is not trained again. The seeds of a method that stores signals stay in
        one process, which writes them once.
        """
        waiting: list[tuple[Method, dict[str, str]]] = []
        for method in todo:
            there = self.results(method.name)
            seeds = {s: folder for s, folder in students.items() if int(s) <= method.seeds and s not in there}
            if not seeds:
                continue
            waiting += [(method, seeds)] if method.live else [(method, {s: f}) for s, f in seeds.items()]
        given = given or bool(self.results(TEACHER))
        if not given:
            self.start_teacher()
        while (waiting or self.running) and time.monotonic() < self.deadline:
            if self.collect():
                after()
            ready = given or (self.teacher.parent / "manifest.json").exists()
            for method, seeds in list(waiting):
                gpu = self._free_gpu()
                if gpu is not None and (ready or method.needs_no_teacher):
                    waiting.remove((method, seeds))
                    self._start_student(method, seeds, str(teacher), gpu)
            if not ready and not any(job.name == TEACHER for job in self.running):
                break
            time.sleep(0.1)
        self.collect()
        for method, _ in waiting:
            print(f"{method.name}: not started", flush=True)

    def _start_student(self, method: Method, seeds: dict[str, str], teacher: str, gpu: int) -> None:
        entry = {**COMMON, **self.case.student_entry, "max_steps": self.case.steps, **method.entry}
        name = method.name if method.seeds == 1 or len(seeds) > 1 else f"{method.name}/{next(iter(seeds))}"
        rows = PROMPTED if entry["objective"] == "on_policy" else PART
        spec = self._spec(name, entry, rows, "" if method.needs_no_teacher else teacher, seeds, "float32")
        self._start(spec, gpu, sampled=method.sampled)

    def results(self, method: str) -> dict[str, Any]:
        """By seed: what the trainings of a method wrote."""
        found: dict[str, Any] = {}
        for path in [self.folder(method) / RESULT, *sorted(self.folder(method).glob(f"*/{RESULT}"))]:
            if path.exists():
                found |= json.loads(path.read_text())["seeds"]
        return found


def score(folder: Path, lab: Lab) -> None:
    """A given teacher's perplexity, as if it had been trained here."""
    found = perplexity(folder, lab.validation, lab.case.row_tokens, lab.text / TOKENIZER)
    out = lab.folder("teacher")
    out.mkdir(parents=True, exist_ok=True)
    (out / RESULT).write_text(json.dumps({"seeds": {"0": found}}))


def import_trainers() -> None:
    """What every training imports, before the processes are forked."""
    with quiet():
        from distill.train import entry, live, signal_stage  # noqa: F401


def stories_text(teacher: Path, out: Path, case: Case) -> None:
    """Rows that the teacher samples, an eighth of them for validation; its tokenizer with a plain chat template."""
    text = out / "text"
    text.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(teacher)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(text / TOKENIZER)
    everything = text / "sampled.parquet"
    sample(teacher, None, everything, rows=case.sampled, tokens=case.row_tokens, batch=case.sample_batch, seed=0)
    rows = read_parquet(everything)
    validation, training = rows[::8], [row for place, row in enumerate(rows) if place % 8]
    split = [prompted(tokenizer, row) for row in training]
    for name, content in ((TRAIN, training), (PART, training), (PROMPTED, split), (VALIDATION, validation)):
        write_parquet(text / name, content, INSTRUCTION)


def table(lab: Lab, todo: Sequence[Method]) -> tuple[list[Row], dict[str, Any]]:
    """Perplexities, recovered gaps and the bars; and everything that was measured."""
    teacher = next(iter(lab.results(TEACHER).values()))
    found = {method.name: lab.results(method.name) for method in todo}
    rows = [Row("teacher, perplexity", teacher["perplexity"], "")]
    recovered = {}
    for name, seeds in found.items():
        if not seeds:
            continue
        values = [result["perplexity"] for result in seeds.values()]
        spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
        rows.append(Row(f"{name}, perplexity of {len(values)} seeds{spread}", statistics.mean(values), ""))
        same = sorted(set(seeds) & set(found.get(CE, {})))
        if same and name != CE:
            mine, plain = (statistics.mean(found[which][seed]["nats"] for seed in same) for which in (name, CE))
            recovered[name] = (plain - mine) / (plain - teacher["nats"])
            rows.append(Row(f"{name}, recovered gap, {len(same)} seeds", recovered[name], "share"))
    if recovered:
        best = max((name for name in recovered if name.startswith("kd")), key=lambda name: recovered[name])
        rows.append(Row(f"best kd: {best}", recovered[best], "share", bar=GAP_BAR, ok=recovered[best] >= GAP_BAR))
    for method in todo:
        if method.live is not None and found[method.name] and found[method.live]:
            same = sorted(set(found[method.name]) & set(found[method.live]))
            mine, live = (
                statistics.mean(found[name][seed]["perplexity"] for seed in same) for name in (method.name, method.live)
            )
            away = abs(mine / live - 1.0)
            name = f"{method.name}, perplexity away from live, {len(same)} seeds"
            rows.append(Row(name, away, "share", peer=live, ratio=mine / live, bar=STORED_BAR, ok=away <= STORED_BAR))
    return rows, found


def main() -> None:
    """Trains what is asked for, prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--case", choices=tuple(CASES), default="novels")
    parser.add_argument("--text", type=Path, help="folder of `benchmarks.lab.text`; none where a teacher is given")
    parser.add_argument("--teacher", type=Path, help="a folder; none: trained here")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--stored-seeds", type=int, default=1, help="of stored signals and of what they compare with")
    parser.add_argument("--steps", type=int, help="of a student, other than the case's")
    parser.add_argument("--teacher-steps", type=int)
    parser.add_argument("--without", nargs="+", default=(), help="parts of names of methods to leave out")
    parser.add_argument("--rate", type=float, help="of a student, other than the case's")
    parser.add_argument("--rates", type=float, nargs="+", default=(), help="only a sweep of learning rates")
    parser.add_argument("--parallel", type=int, default=1, help="trainings at once, on each GPU")
    parser.add_argument("--gpus", type=int, choices=(1, 2), default=1)
    parser.add_argument("--second-after", type=float, default=0.0, help="seconds before the second GPU is used")
    parser.add_argument("--seconds", type=float, default=86_400.0, help="after which nothing goes on")
    parser.add_argument(
        "--kernel", choices=("auto", "torch", "triton"), default="auto", help="of the trainings' losses"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    started = time.monotonic()
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    torch.set_num_threads(1)
    import_trainers()
    method = start_method()
    case = CASES[options.case]
    changes: dict[str, Any] = {} if options.steps is None else {"steps": options.steps}
    if options.rate is not None:
        changes["student_entry"] = {**case.student_entry, "learning_rate": options.rate}
    if options.teacher_steps is not None:
        changes["teacher_entry"] = {**case.teacher_entry, "max_steps": options.teacher_steps}
    case = Case(**{**vars(case), **changes})
    options.out.mkdir(parents=True, exist_ok=True)
    given = options.teacher is not None
    if options.text is None and not (options.out / "text" / VALIDATION).exists():
        in_child(method, stories_text, options.out / "text.log", options.teacher, options.out, case).join()
    text = options.text or options.out / "text"
    lab = Lab(
        case,
        options.out,
        text,
        parallel=options.parallel,
        deadline=started + options.seconds,
        kernel=options.kernel,
        method=method,
    )
    if given:
        in_child(method, score, options.out / "score.log", options.teacher, lab).join()
    todo = sweep(options.rates) if options.rates else methods(case, options.seeds, options.stored_seeds)
    todo = [method for method in todo if all(part not in method.name for part in options.without)]
    students = lab.make_students(1 if options.rates else options.seeds)
    print(f"trainings begin after {time.monotonic() - started:.0f} s, by {method}", flush=True)
    second = [started + options.second_after] if options.gpus == 2 else []
    lab.free_from += second

    def write() -> None:
        if options.json is not None and lab.results(TEACHER):
            write_json(options.json, result_of(lab, todo, options.seeds, started))

    def write_apart() -> None:
        """Naming the GPU would touch it, after which nothing can be forked."""
        if method == "fork":
            in_child(method, write, options.out / "write.log")
        else:
            write()

    lab.train(todo, students, teacher=options.teacher or lab.teacher, given=given, after=write_apart)
    if not lab.results(TEACHER):
        sys.exit("the teacher was not trained in time")
    for row in table(lab, todo)[0]:
        bar = "" if row.bar is None else f"  bar {row.bar:g}: {'met' if row.ok else 'MISSED'}"
        print(f"{row.name:<80} {row.value:9.4f} {row.unit}{bar}")
    write()
    print(f"{time.monotonic() - started:.0f} s in all")


def result_of(lab: Lab, todo: Sequence[Method], seeds: int, started: float) -> dict[str, Any]:
    """What there is so far, as it is written."""
    rows, found = table(lab, todo)
    about = lab.text / "about.json"
    details = {
        "case": json.loads(json.dumps(asdict(lab.case))),
        "text": json.loads(about.read_text()) if about.exists() else None,
        "teacher": lab.results(TEACHER),
        "methods": found,
        "seconds": time.monotonic() - started,
    }
    command = f"python -m benchmarks.lab.run --case {lab.case.name} --seeds {seeds}"
    return envelope(what=f"lab: {lab.case.name}", command=command, rows=rows, details=details)


if __name__ == "__main__":
    main()
