"""Trains the lab's teacher and its students and reports what each way of learning gains.

    python -m benchmarks.lab.text --source ../shared/data/lm/eltec_train.parquet --out runs/lab/text
    python -m benchmarks.lab.run --case novels --text runs/lab/text --out runs/lab/novels --json PATH
    python -m benchmarks.lab.run --case stories --teacher ../shared/weights/stories260k --out runs/lab/stories

Every training is an entry of a recipe in a process of its own, forked; several share the device. Recovered gap: of the
nats a token between the cross-entropy student and the teacher, the share that a method gains; means over seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Row, envelope, write_json
from benchmarks.lab.cases import CASES, CE, COMMON, Case, Method, methods, sweep
from benchmarks.lab.entry import RESULT, Spec, in_child, run, sample_and_run, start_method
from benchmarks.lab.models import make_random, perplexity, sample
from benchmarks.lab.text import PART, PART_EVERY, TEMPLATE, TOKENIZER, TRAIN, VALIDATION
from distill.model.load import load_tokenizer
from distill.quiet import quiet
from distill.records import INSTRUCTION, read_parquet, write_parquet

GAP_BAR, STORED_BAR = 0.3, 0.005


@dataclass
class Job:
    """A training under way."""

    name: str
    process: BaseProcess
    started: float


class Lab:
    """A case in a folder: random students, a folder a training. Nothing computes in this process."""

    def __init__(
        self, case: Case, out: Path, text: Path, *, parallel: int, deadline: float, kernel: str, method: str = "fork"
    ) -> None:
        self.case, self.out, self.text, self.method = case, out, text, method
        self.parallel, self.deadline, self.kernel = parallel, deadline, kernel
        self.validation = text / VALIDATION
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
        self._start(self._spec("teacher", entry, TRAIN, "", {"0": str(self.out / "random-teacher")}, "bfloat16"))

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

    def _start(self, spec: Spec, *, sampled: bool = False) -> None:
        log = Path(spec.output) / "log"
        if sampled:
            process = in_child(self.method, sample_and_run, log, spec, self.case.sampled, self.case.sample_batch)
        else:
            process = in_child(self.method, run, log, spec)
        self.running.append(Job(spec.name, process, time.monotonic()))

    def collect(self) -> None:
        """Say which trainings have ended; after the deadline all are."""
        over = time.monotonic() >= self.deadline
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

    def train(self, todo: Sequence[Method], students: dict[str, str], *, teacher: Path | None, given: bool) -> None:
        """The teacher, unless it is `given`, and as many students as asked for at once: first those that need none.

        The seeds of a method that stores signals stay in one process, which writes them once.
        """
        waiting: list[tuple[Method, dict[str, str]]] = []
        for method in todo:
            seeds = {seed: folder for seed, folder in students.items() if int(seed) <= method.seeds}
            together = method.rows == "part"
            waiting += [(method, seeds)] if together else [(method, {s: f}) for s, f in seeds.items()]
        if not given:
            self.start_teacher()
        while (waiting or self.running) and time.monotonic() < self.deadline:
            self.collect()
            ready = given or (self.folder("teacher") / RESULT).exists()
            for method, seeds in list(waiting):
                if len(self.running) >= self.parallel:
                    break
                if ready or method.needs_no_teacher:
                    waiting.remove((method, seeds))
                    self._start_student(method, seeds, str(teacher))
            if not ready and not self.running:
                break
            time.sleep(0.1)
        self.collect()
        for method, _ in waiting:
            print(f"{method.name}: not started", flush=True)

    def _start_student(self, method: Method, seeds: dict[str, str], teacher: str) -> None:
        steps = self.case.steps // 2 if method.rows == "part" else self.case.steps
        entry = {**COMMON, **self.case.student_entry, "max_steps": steps, **method.entry}
        name = method.name if method.seeds == 1 or len(seeds) > 1 else f"{method.name}/{next(iter(seeds))}"
        rows = {"train": TRAIN, "part": PART, "sampled": TRAIN}[method.rows]
        spec = self._spec(name, entry, rows, "" if method.needs_no_teacher else teacher, seeds, "float32")
        self._start(spec, sampled=method.rows == "sampled")

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
    for name, content in ((TRAIN, training), (PART, training[::PART_EVERY]), (VALIDATION, validation)):
        write_parquet(text / name, content, INSTRUCTION)


def table(lab: Lab, todo: Sequence[Method], teacher: dict[str, float]) -> tuple[list[Row], dict[str, Any]]:
    """Perplexities, recovered gaps and the bars; and everything that was measured."""
    found = {method.name: lab.results(method.name) for method in todo}
    nats = {
        name: statistics.mean(result["nats"] for result in seeds.values()) for name, seeds in found.items() if seeds
    }
    rows = [Row("teacher, perplexity", teacher["perplexity"], "")]
    gap = nats[CE] - teacher["nats"] if CE in nats else None
    recovered = {}
    for name, seeds in found.items():
        if not seeds:
            print(f"{name}: no result")
            continue
        values = [result["perplexity"] for result in seeds.values()]
        spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
        rows.append(Row(f"{name}, perplexity of {len(values)} seeds{spread}", statistics.mean(values), ""))
        if gap is not None and name != CE:
            recovered[name] = (nats[CE] - nats[name]) / gap
            rows.append(Row(f"{name}, recovered gap", recovered[name], "share"))
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
    parser.add_argument("--rates", type=float, nargs="+", default=(), help="only a sweep of learning rates")
    parser.add_argument("--parallel", type=int, default=1, help="trainings at once")
    parser.add_argument("--seconds", type=float, default=86_400.0, help="after which nothing goes on")
    parser.add_argument("--kernel", choices=("torch", "triton"), default="torch")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    started = time.monotonic()
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    torch.set_num_threads(1)
    import_trainers()
    method = start_method()
    case = CASES[options.case]
    changes: dict[str, Any] = {} if options.steps is None else {"steps": options.steps}
    if options.teacher_steps is not None:
        changes["teacher_entry"] = {**case.teacher_entry, "max_steps": options.teacher_steps}
    case = Case(**{**vars(case), **changes})
    options.out.mkdir(parents=True, exist_ok=True)
    given = options.teacher is not None
    if options.text is None:
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
    students = lab.make_students(1 if options.rates else options.seeds)
    print(f"trainings begin after {time.monotonic() - started:.0f} s, by {method}", flush=True)
    lab.train(todo, students, teacher=options.teacher or lab.teacher, given=given)
    teacher_score = next(iter(lab.results("teacher").values()), None)
    if teacher_score is None:
        sys.exit("the teacher was not trained in time")
    rows, found = table(lab, todo, teacher_score)
    for row in rows:
        bar = "" if row.bar is None else f"  bar {row.bar:g}: {'met' if row.ok else 'MISSED'}"
        print(f"{row.name:<80} {row.value:9.4f} {row.unit}{bar}")
    seconds = time.monotonic() - started
    print(f"{seconds:.0f} s in all")
    if options.json is not None:
        about = text / "about.json"
        details = {
            "case": json.loads(json.dumps(asdict(case))),
            "text": json.loads(about.read_text()) if about.exists() else None,
            "teacher": teacher_score,
            "methods": found,
            "seconds": seconds,
        }
        command = f"python -m benchmarks.lab.run --case {case.name} --seeds {options.seeds}"
        write_json(options.json, envelope(what=f"lab: {case.name}", command=command, rows=rows, details=details))


if __name__ == "__main__":
    main()
