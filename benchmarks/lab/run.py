"""Trains the lab's teacher and its students and reports what each way of learning gains.

    python -m benchmarks.lab.text --source ../shared/data/lm/eltec_train.parquet --out runs/lab/text
    python -m benchmarks.lab.run --case novels --text runs/lab/text --out runs/lab/novels --json PATH
    python -m benchmarks.lab.run --case stories --teacher ../shared/weights/stories260k --out runs/lab/stories

Every training is an entry of a recipe in a process of its own; several share the device. Recovered gap: (perplexity's
logarithm of the cross-entropy student - that of the method) / (the same - the teacher's), means over seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.common import Row, envelope, write_json
from benchmarks.lab.cases import CASES, CE, COMMON, Case, Method, methods, sweep
from benchmarks.lab.entry import RESULT, Spec
from benchmarks.lab.models import make_random, perplexity, sample
from benchmarks.lab.text import PART, PART_EVERY, TEMPLATE, TOKENIZER, TRAIN, VALIDATION
from distill.model.load import load_tokenizer
from distill.records import INSTRUCTION, read_parquet, write_parquet

GAP_BAR, STORED_BAR = 0.3, 0.005


class Lab:
    """A case in a folder: `text/` or what was given, random students, one folder a training."""

    def __init__(self, case: Case, out: Path, text: Path, *, parallel: int, deadline: float, kernel: str) -> None:
        self.case, self.out, self.text = case, out, text
        self.parallel, self.deadline, self.kernel = parallel, deadline, kernel
        self.validation = text / VALIDATION

    def files(self) -> dict[str, Path]:
        """Rows by the names that methods use."""
        return {"train": self.text / TRAIN, "part": self.text / PART, "sampled": self.out / "sampled.parquet"}

    def make_students(self, seeds: int) -> dict[str, str]:
        """Folders of random weights, by seed."""
        tokenizer = load_tokenizer(self.text / TOKENIZER)
        folders = {str(seed): self.out / f"student-{seed}" for seed in range(1, seeds + 1)}
        for seed, folder in folders.items():
            make_random(self.case.student, tokenizer, folder, int(seed))
        return {seed: str(folder) for seed, folder in folders.items()}

    def train_teacher(self) -> Path:
        """Of the case's own shape, from random weights, on the training rows."""
        assert self.case.teacher is not None
        make_random(self.case.teacher, load_tokenizer(self.text / TOKENIZER), self.out / "random-teacher", 0)
        entry = {**COMMON, **self.case.teacher_entry, "objective": "sft"}
        students = {"0": str(self.out / "random-teacher")}
        self.wait([self.start("teacher", entry, self.text / TRAIN, "", students, "bfloat16")])
        return self.out / "teacher" / "lab" / "train-seed-0" / "model"

    def start(
        self, name: str, entry: dict[str, Any], rows: Path, teacher: str, students: dict[str, str], dtype: str
    ) -> tuple[str, subprocess.Popen[bytes]]:
        """A training in a process of its own; its output goes to `log` in its folder."""
        folder = self.folder(name)
        folder.mkdir(parents=True, exist_ok=True)
        if entry["objective"] == "kd" and entry.get("signal", {}).get("kind", "live") in ("live", "hidden"):
            entry = {**entry, "kernel": self.kernel}
        spec = Spec(
            name,
            entry,
            str(rows),
            str(self.validation),
            str(self.text / TOKENIZER),
            self.case.row_tokens,
            teacher,
            students,
            dtype,
            str(folder),
        )
        (folder / "spec.json").write_text(json.dumps(asdict(spec), indent=1))
        with open(folder / "log", "wb") as log:
            command = [sys.executable, "-m", "benchmarks.lab.entry", str(folder / "spec.json")]
            return name, subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def folder(self, name: str) -> Path:
        """Of a method."""
        return self.out / name.replace(" ", "-").replace(",", "")

    def wait(self, running: list[tuple[str, subprocess.Popen[bytes]]]) -> None:
        """Until all have ended, or the time is over."""
        for name, process in running:
            try:
                code = process.wait(max(1.0, self.deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                print(f"{name}: stopped, the time is over", flush=True)
                continue
            print(f"{name}: ended with {code}", flush=True)
            if code:
                print("\n".join((self.folder(name) / "log").read_text(errors="replace").splitlines()[-12:]), flush=True)

    def train_students(self, todo: Sequence[Method], teacher: Path, students: dict[str, str]) -> None:
        """As many at once as asked for, the first ones first; methods with rows of a part keep their seeds together."""
        waiting: list[tuple[Method, dict[str, str]]] = []
        for method in todo:
            seeds = {seed: folder for seed, folder in students.items() if int(seed) <= method.seeds}
            if method.rows == "part":
                waiting.append((method, seeds))
            else:
                waiting += [(method, {seed: folder}) for seed, folder in seeds.items()]
        running: list[tuple[str, subprocess.Popen[bytes]]] = []
        while waiting and time.monotonic() < self.deadline:
            ended = [item for item in running if item[1].poll() is not None]
            self.wait(ended)
            running = [item for item in running if item not in ended]
            while waiting and len(running) < self.parallel:
                method, seeds = waiting.pop(0)
                steps = self.case.steps // 2 if method.rows == "part" else self.case.steps
                entry = {**COMMON, **self.case.student_entry, "max_steps": steps, **method.entry}
                name = method.name if len(seeds) > 1 or method.seeds == 1 else f"{method.name}/{next(iter(seeds))}"
                running.append(self.start(name, entry, self.files()[method.rows], str(teacher), seeds, "float32"))
            time.sleep(0.2)
        self.wait(running)
        for method, _ in waiting:
            print(f"{method.name}: not started, the time is over", flush=True)

    def results(self, method: str) -> dict[str, Any]:
        """By seed: what the trainings of a method wrote."""
        found: dict[str, Any] = {}
        for path in [self.folder(method) / RESULT, *sorted(self.folder(method).glob(f"*/{RESULT}"))]:
            if path.exists():
                found |= json.loads(path.read_text())["seeds"]
        return found


def stories_text(teacher: Path, out: Path, case: Case) -> Path:
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
    return text


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
    parser.add_argument("--steps", type=int, help="of a student, other than the case's")
    parser.add_argument("--teacher-steps", type=int)
    parser.add_argument("--rates", type=float, nargs="+", default=(), help="only a sweep of learning rates")
    parser.add_argument("--parallel", type=int, default=1, help="trainings at once")
    parser.add_argument("--seconds", type=float, default=86_400.0, help="after which nothing goes on")
    parser.add_argument("--kernel", choices=("torch", "triton"), default="torch")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    case = CASES[options.case]
    changes: dict[str, Any] = {} if options.steps is None else {"steps": options.steps}
    if options.teacher_steps is not None:
        changes["teacher_entry"] = {**case.teacher_entry, "max_steps": options.teacher_steps}
    case = Case(**{**vars(case), **changes})
    options.out.mkdir(parents=True, exist_ok=True)
    text = options.text or stories_text(options.teacher, options.out, case)
    lab = Lab(case, options.out, text, parallel=options.parallel, deadline=deadline, kernel=options.kernel)
    started = time.monotonic()
    teacher = options.teacher or lab.train_teacher()
    teacher_score = perplexity(teacher, lab.validation, case.row_tokens, text / TOKENIZER)
    print(f"teacher: {teacher_score} after {time.monotonic() - started:.0f} s", flush=True)
    todo = sweep(options.rates) if options.rates else methods(case, options.seeds)
    students = lab.make_students(1 if options.rates else options.seeds)
    if any(method.rows == "sampled" for method in todo):
        out = lab.files()["sampled"]
        sizes = {"rows": case.sampled, "tokens": case.row_tokens, "batch": case.sample_batch}
        sample(teacher, text / TRAIN, out, seed=0, **sizes)
        print(f"samples after {time.monotonic() - started:.0f} s", flush=True)
    lab.train_students(todo, teacher, students)
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
            "teacher_training": lab.results("teacher"),
            "methods": found,
            "seconds": seconds,
        }
        command = f"python -m benchmarks.lab.run --case {case.name} --seeds {options.seeds}"
        write_json(options.json, envelope(what=f"lab: {case.name}", command=command, rows=rows, details=details))


if __name__ == "__main__":
    main()
