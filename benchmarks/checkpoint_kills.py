"""SIGKILL at random points inside a checkpoint's save, ours and the stock trainer's: what can be resumed from after.

    python -m benchmarks.checkpoint_kills [--quick] [--kills N] [--stock N] [--json PATH]

A chain is one training run whose processes are killed in one save after another and started again by the same command.
Points are drawn over the bytes of a checkpoint and over the moments after them (seal, rename, removal of the oldest),
and the folder is watched to kill there; a kill that came too late to fall inside a save does not count. Each start must
go on from the newest checkpoint that was whole, and the weights and the curve of the end must be those of a run that
was left alone, bitwise. Half of the chains run on two processes. The stock trainer is transformers' `Trainer` on the
same model, resumed with `resume_from_checkpoint=True`.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.checkpoint_kills_stock import kill_and_resume_stock
from benchmarks.common import Row, at_least, envelope, write_json
from distill.recipe.schema import Recipe
from distill.runs import Run, file_digest
from distill.track import read_metrics
from distill.train.checkpoints import SEAL, newest_whole
from tests.train import forks, tiny

WIDTH = 256  # a checkpoint of some megabytes, so that its writing can be hit in the middle
OBJECTIVES = ("sft", "kd", "dpo")


@dataclass(frozen=True)
class Kill:
    """One kill: where it fell, and what was wrong with the start after it ("" for nothing)."""

    processes: int
    objective: str
    step: int
    place: str
    written_bytes: int
    failure: str


@dataclass
class Chain:
    """One training run and its kills; `failure` is what is wrong with its end."""

    kills: list[Kill] = field(default_factory=list)
    late: int = 0
    failure: str = ""

    @property
    def failures(self) -> int:
        """Kills after which something was wrong; all of them where the end is."""
        return len(self.kills) if self.failure else sum(bool(kill.failure) for kill in self.kills)


def make_world(folder: Path) -> None:
    """A teacher, a student's settings and rows."""
    tiny.save_model(folder / "teacher", width=WIDTH)
    tiny.save_data(folder)


def run_chain(world: Path, name: str, *, objective: str, processes: int, kills: int, rng: random.Random) -> Chain:
    """Kill one run inside its saves, `kills` times, and let it end; compare with a run that is left alone."""
    whole, killed = (_recipe(world, objective, f"{name}-{kind}", steps=kills + 3) for kind in ("whole", "killed"))
    log = world / f"{name}.log"
    assert not any(forks.start(forks.train, whole, log=log, processes=processes).wait()), log.read_text()
    chain = Chain()
    folder = Run(killed).stage("train", objective).path / "checkpoints"
    while len(chain.kills) < kills:
        before = newest_whole(folder)
        job = forks.start(forks.train, killed, log=log, processes=processes)
        ended, inside = _kill_inside_a_save(job, folder, before.step, rng)
        failure = _failure(log.read_text(), objective, before.step, ended=ended)
        if inside is None:
            chain.late += 1
            if ended or Run(killed).stage("train", objective).manifest() is not None:
                break
            continue
        step, place, written = inside
        chain.kills.append(Kill(processes, objective, step, place, written, failure))
    codes = forks.start(forks.train, killed, log=log, processes=processes).wait()
    chain.failure = log.read_text() if any(codes) else _difference(killed, whole, objective)
    return chain


def _recipe(world: Path, objective: str, name: str, *, steps: int) -> Recipe:
    entry = {"objective": objective, "max_steps": steps, "save_steps": 1, "batch_size": 4, "micro_batch_size": 2}
    return tiny.recipe(world, entry, name=name)


def _kill_inside_a_save(
    job: forks.Job, folder: Path, done: int, rng: random.Random
) -> tuple[bool, tuple[int, str, int] | None]:
    """Kill at a point drawn for the first or second save. Whether a process had ended by itself with an error, and
    (step, place, bytes written), None where the kill came too late."""
    step = done + rng.randint(1, 2)
    partial, place = folder / f".partial-checkpoint-{step}", folder / f"checkpoint-{step}"
    reached = _point(partial / place.name, place, rng)
    while any(process.is_alive() for process in job.processes) and list(folder.glob(".*-checkpoint-*")):
        time.sleep(0.0002)  # the start removes what the kill before it left
    while any(process.is_alive() for process in job.processes) and not reached():
        if place.exists() and not list(folder.glob(".*-checkpoint-*")):
            break
        time.sleep(0.0002)
    ended = any(process.exitcode for process in job.processes)
    victims = list(job.processes)
    rng.shuffle(victims)
    for process in victims:
        process.kill()
    for process in victims:
        process.join()
    written = _bytes_in(partial / place.name)
    if partial.exists() and not place.exists():
        where = "sealed" if (partial / place.name / SEAL).exists() else "writing"
        return ended, (step, where, written)
    if list(folder.glob(".*-checkpoint-*")):
        return ended, (step, "renamed", written)
    return ended, None


def _point(partial: Path, place: Path, rng: random.Random) -> Callable[[], bool]:
    """Whether the moment to kill has come: bytes written in eight of ten draws, the seal or the rename in two."""
    draw = rng.random()
    if draw < 0.8:
        size = rng.randint(0, _whole_size(place.parent))
        return lambda: partial.exists() and _bytes_in(partial) >= size
    if draw < 0.9:
        return (partial / SEAL).exists
    return place.exists


def _whole_size(folder: Path) -> int:
    """Bytes of a checkpoint: of one that is there, else about that of the weights and Adam's two moments."""
    sizes = [_bytes_in(path) for path in folder.glob("checkpoint-*")]
    return max(sizes, default=3 * 4 * 740_000)


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.glob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # renamed while we looked
            continue
    return total


def _failure(said: str, objective: str, step: int, *, ended: bool) -> str:
    """What is wrong with a start that had to go on from `step`, and that was to live until it was killed."""
    if ended:
        return said
    wanted = f"{objective}: going on from step {step}\n"
    return f"no '{wanted.strip()}' in: {said}" if step and wanted not in said else ""


def _difference(ours: Recipe, whole: Recipe, objective: str) -> str:
    folders = [Run(recipe).stage("train", objective).path for recipe in (ours, whole)]
    if len({file_digest(folder / "model/model.safetensors") for folder in folders}) > 1:
        return "the weights differ from those of an uninterrupted run"
    curves = [
        [{k: v for k, v in line.items() if "second" not in k} for line in read_metrics(folder / "metrics.jsonl")]
        for folder in folders
    ]
    return "" if curves[0] == curves[1] else "the curve differs from that of an uninterrupted run"


def chains(world: Path, kills: int, *, each: int = 10) -> Iterator[Chain]:
    """Chains of `each` kills, in turn on one process and on two, until there are `kills`."""
    rng = random.Random(0)
    done = 0
    for number in range(10 * kills):
        if done >= kills:
            return
        objective, processes = OBJECTIVES[number // 2 % 3], 1 + number % 2
        chain = run_chain(
            world,
            f"chain{number}",
            objective=objective,
            processes=processes,
            kills=min(each, kills - done),
            rng=rng,
        )
        done += len(chain.kills)
        yield chain


def main(arguments: Sequence[str]) -> int:
    """Print and write the result; 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10 kills of ours and 4 of the stock trainer")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--stock", type=int, default=40)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    kills, stock = (10, 4) if options.quick else (options.kills, options.stock)
    made: list[Chain] = []
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder)
        make_world(world)
        for chain in chains(world, kills, each=5 if options.quick else 10):
            made.append(chain)
            killed = [kill for one in made for kill in one.kills]
            print(f"{len(killed)} kills, {sum(one.failures for one in made)} failures", chain.failure[-500:])
        peer = [kill_and_resume_stock(world, number) for number in range(stock)]
    rows = _rows(made, peer)
    for row in rows:
        print(f"{row.name}: {row.value:g} {row.unit}" + ("" if row.ok is None else f" (bar {row.bar:g}: {row.ok})"))
    if options.json is not None:
        command = " ".join(["python -m benchmarks.checkpoint_kills", *arguments])
        details = {
            "kills": [asdict(kill) for chain in made for kill in chain.kills],
            "ends": [chain.failure for chain in made],
            "stock": peer,
        }
        write_json(options.json, envelope(what="checkpoint kills", command=command, rows=rows, details=details))
    return 0 if all(row.ok is not False for row in rows) else 1


def _rows(made: Sequence[Chain], peer: Sequence[str]) -> list[Row]:
    kills = [kill for chain in made for kill in chain.kills]
    failures = sum(chain.failures for chain in made)
    places = Counter(f"{kill.processes} processes, {kill.place}" for kill in kills)
    failed = sum(bool(problem) for problem in peer)
    rows: list[Any] = [
        at_least("kills inside saves", len(kills), len(kills), "kills"),
        Row("failures", failures, "kills", peer=failed, bar=0, ok=failures == 0),
        Row("stock trainer: kills inside saves", len(peer), "kills"),
        Row("stock trainer: resumes that failed", failed, "kills"),
        Row("kills that came after a save and were not counted", sum(chain.late for chain in made), "kills"),
    ]
    return rows + [Row(f"kills: {place}", count, "kills") for place, count in sorted(places.items())]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
