"""A resumed run is bitwise the uninterrupted one, on one process and two, with everything that draws random numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.resume_grid import POINTS, WAYS, Way, difference, make_world, train_in_parts, train_whole
from distill.recipe.schema import Recipe
from distill.runs import Run
from distill.track import read_metrics
from tests.train import forks, tiny


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    make_world(folder)
    return folder


@pytest.fixture(scope="module")
def wholes() -> dict[Way, Recipe]:
    """Uninterrupted runs that were made already."""
    return {}


SOME = (
    *(Way("sft", False, 2), Way("kd", True, 1), Way("kd", False, 1), Way("dpo", True, 1)),
    *(Way("on_policy", True, 2), Way("replay", False, 2)),
)


@pytest.mark.parametrize("way", SOME, ids=str)
def test_killed_after_two_checkpoints_and_resumed_equals_uninterrupted(world: Path, way: Way) -> None:
    ours = train_in_parts(world, way, [2, 5])
    assert difference(ours, train_whole(world, way), way.objective) == ""


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_the_whole_grid(world: Path, wholes: dict[Way, Recipe], way: Way, point: int) -> None:
    if way not in wholes:
        wholes[way] = train_whole(world, way)
    assert difference(train_in_parts(world, way, [point]), wholes[way], way.objective) == ""


@pytest.mark.slow
def test_other_random_numbers_would_show(world: Path) -> None:
    """The grid would not see a lost generator's state if nothing dropped out."""
    way = Way("sft", False, 1)
    calm = world / "calm"
    calm.mkdir()
    tiny.save_model(calm / "teacher")
    tiny.save_data(calm)
    with_dropout, without = train_whole(world, way), train_whole(calm, way)
    assert difference(with_dropout, without, "sft") == "the weights differ"


def test_another_number_of_processes_goes_on_and_says_so(world: Path) -> None:
    from benchmarks.resume_grid import recipe_of, train_and_die

    way = Way("sft", False, 2)
    recipe = recipe_of(world, way, "fewer")
    log = world / "fewer.log"
    forks.start(train_and_die, recipe, 3, log=log, processes=2).wait()
    job = forks.start(forks.train, recipe, log=log)
    assert job.wait() == [0], job.text()
    assert "sft: going on from step 3, which 2 processes wrote: not bitwise" in job.text()
    assert len(read_metrics(Run(recipe).stage("train", "sft").path / "metrics.jsonl")) == 7
