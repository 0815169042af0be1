"""The stage as a whole: self-instruct, preview, the card, the files, and what is refused."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from distill.errors import DataError
from distill.generate.invented import numbered_items
from distill.generate.output import RowWriter
from distill.records import INSTRUCTION, SCHEMAS
from tests.generate.conftest import Project
from tests.teacher.mock import Body, MockTeacher, Reply, completion

SEEDS = Path(__file__).parents[2] / "data" / "seed_tasks.jsonl"


def inventing(body: Body, number: int) -> Reply:
    """Writes eight tasks when asked for tasks (two of them bad), else an answer."""
    text = str(body["messages"][-1]["content"])
    if not text.startswith("Come up with"):
        return completion(f"About {text}")
    shown = int(re.findall(r"^(\d+)\.", text, re.MULTILINE)[-1])
    rng = random.Random(text)
    tasks = ["Explain " + " ".join(f"w{rng.randrange(10**6)}" for _ in range(6)) + "." for _ in range(6)]
    first, *rest = [*tasks, "Draw a big tree.", "Too short"]
    return completion("\n".join([f" {first}", *(f"{shown + i}. {task}" for i, task in enumerate(rest, 1))]))


def test_self_instruct(project: Project) -> None:
    section = {"source": "self_instruct", "path": str(SEEDS), "count": 150}
    job = {"name": "self", "kind": "instruction", "prompts": section}
    with MockTeacher(inventing) as mock:
        recipe = project.recipe(mock.base_url, job)
        project.run(recipe)
        asks = [prompt for prompt in mock.prompts() if prompt.startswith("Come up with")]
        assert len(mock.requests) == len(asks) + 150
        assert all(len(re.findall(r"^\d+\. .", ask, re.MULTILINE)) == 8 for ask in asks)
        seeds = {json.loads(line)["prompt"] for line in SEEDS.read_text().splitlines()}
        own = [sum(line[3:] not in seeds for line in re.findall(r"^\d+\. .*", ask, re.MULTILINE)) for ask in asks]
        assert max(own[:16]) == 0 and set(own[16:]) == {2}  # from the second round on two of eight are machine-made
        rows = project.data("self")
        metrics = project.manifest("self")["metrics"]
        assert len(rows) == metrics["rows"] == 150
        assert metrics["dropped"]["prompt_not_for_text"] >= 16 and metrics["dropped"]["prompt_too_short"] >= 16
        assert metrics["answers"] == len(mock.requests)  # inventing is paid for too
        (project.path / "runs/test/generate-self/manifest.json").unlink()
        asked = len(mock.requests)
        project.run(recipe)
        assert len(mock.requests) == asked and project.data("self") == rows


def test_self_instruct_gives_up_on_a_teacher_without_ideas(project: Project) -> None:
    """Its one idea becomes a row; five rounds without another end it, and the exit code says partial."""
    section = {"source": "self_instruct", "path": str(SEEDS), "count": 150}
    job = {"name": "self", "kind": "instruction", "prompts": section}
    with MockTeacher(lambda body, n: completion("9. Hum a tune about moss.\nThat is all.")) as mock:
        failure = project.run_badly(project.recipe(mock.base_url, job))
    assert failure.exit_code == 3 and "only 1 of 150 prompts" in str(failure)
    assert len(mock.requests) == 6 * 16 + 1
    assert len(project.data("self")) == 1


def test_parse_tasks() -> None:
    text = " Name a river.\n10. Sum 1. and 2.\nchatter\n11) Bake bread.\nTask 12: Sing.\n13.\n"
    assert numbered_items(text) == ["Name a river.", "Sum 1. and 2.", "Bake bread.", "Sing."]


def test_the_seed_tasks_are_well_formed() -> None:
    from distill.generate.filters import Unlike
    from distill.generate.prompts import open_prompts
    from distill.recipe.generate import FilePrompts

    texts = [p.question for p in open_prompts(FilePrompts(source="file", path=str(SEEDS)), None).prompts]
    assert 40 <= len(texts) <= 60
    likeness = Unlike()
    for text in texts:
        assert not likeness.too_like(text), text
        likeness.add(text)


def test_preview_says_what_the_filters_keep_and_drop(project: Project) -> None:
    """Of 10 rows one refuses and three repeat another: 200 prompts will have about 120 rows."""

    def respond(body: Body, number: int) -> Reply:
        place = int(str(body["messages"][-1]["content"]).split()[-1])
        texts = {1: "I'm sorry, but I can't help with that.", 2: "Bread.", 3: "Bread.", 4: "Bread.", 5: "Bread."}
        return completion(texts.get(place % 10, f"{place} times {place * 7919} is {place * place * 7919}"))

    filters = {"refusals": True, "duplicates": {"on": "answer", "near": False}}
    prompts = project.prompts([f"number {place}" for place in range(200)])
    job = {"name": "inst", "kind": "instruction", "prompts": prompts, "filters": filters}
    with MockTeacher(respond) as mock:
        printed = " ".join(project.run(project.recipe(mock.base_url, job), rows=10).split())
    assert "kept 6 rows; dropped: exact_duplicate 3, refusal 1" in printed
    assert "filters keep 6 of 10 rows and remove 4: exact_duplicate 3, about 60 (" in printed
    assert "refusal 1, about 20 (1 to" in printed and "rows about 120 (" in printed
    assert printed.count("kept") >= 6 and "exact_duplicat" in printed.split("kept 6 rows")[0]  # beside each row


def test_preview_asks_for_the_educational_value_of_its_rows(project: Project, sandbox: list[int]) -> None:
    """A forest needs hundreds of labels; the preview has the teacher's own word, and projects the sample's cost."""

    def respond(body: Body, number: int) -> Reply:
        text = str(body["messages"][-1]["content"])
        if text.startswith("Determine the educational value"):
            return completion("no" if "f3" in text else "hm" if "f4" in text else "yes")
        return completion(f"def {text}(): return 1")

    rows = [{"prompt": f"f{n}", "entry_point": f"f{n}", "tests": [f"assert f{n}() == 1"]} for n in range(80)]
    job = {"name": "code", "kind": "code", "prompts": project.prompts(rows), "educational": {"sample": 40}}
    with MockTeacher(respond) as mock:
        recipe = project.recipe(mock.base_url, job, price={"input": 1.0, "output": 1.0})
        printed = " ".join(project.run(recipe, rows=5).split())
        assert len(mock.requests) == 10
    assert "kept 4 rows; dropped: not_educational 1" in printed and "not_educational 1, about 16 (" in printed
    assert "rows about 64 (" in printed
    assert "tokens about 1,800 (1,800 to 1,800)" in printed  # 80 answers and 40 labels of 15 tokens
    assert "cost about $0.0018 ($0.0018 to $0.0018)" in printed.replace("(0", "($0").replace("to 0", "to $0")


def test_preview_shows_rows_and_projects_the_whole(project: Project) -> None:
    """Each request takes 15 tokens and costs $20e-6: 200 prompts are 3,000 tokens and $0.0040."""
    job = {"name": "inst", "kind": "instruction", "prompts": project.prompts([f"q[{i}]" for i in range(200)])}
    with MockTeacher(lambda body, n: completion("echo [bold]x")) as mock:
        recipe = project.recipe(mock.base_url, job, price={"input": 1.0, "output": 2.0})
        printed = project.run(recipe, rows=20)
        assert len(mock.requests) == 20
        assert "q[19]" in printed and "q[20]" not in printed and "echo [bold]x" in printed
        assert "all 200 prompts (95% t-interval over 20)" in printed
        assert "tokens  about 3,000 (3,000 to 3,000)" in printed and "rows    about 200 (200 to 200)" in printed
        assert "cost    about $0.0040 (0.0040 to 0.0040)" in printed and "s at 8 in flight" in printed
        assert not (project.path / "runs/test/generate-inst").exists()
        project.run(recipe)
        assert len(mock.requests) == 200  # the previewed ones are paid already


def test_an_unknown_price_is_said(project: Project) -> None:
    job = {"name": "inst", "kind": "instruction", "prompts": project.prompts(["a"])}
    with MockTeacher() as mock:
        printed = project.run(project.recipe(mock.base_url, job))
    assert "cost unknown" in printed and project.manifest("inst")["cost_usd"] is None
    assert "unknown (no price" in (project.path / "runs/test/generate-inst/README.md").read_text()


def test_a_job_that_keeps_nothing_is_not_done(project: Project) -> None:
    job = {"name": "inst", "kind": "instruction", "prompts": project.prompts(["a", "b"])}
    with MockTeacher(lambda body, n: completion("", finish_reason="length")) as mock:
        failure = project.run_badly(project.recipe(mock.base_url, job))
    assert "kept none of 2 prompts (truncated 2)" in str(failure)
    assert not (project.path / "runs/test/generate-inst/manifest.json").exists()
    assert [row["reason"] for row in project.rejected("inst")] == ["truncated"] * 2


def test_a_bad_line_ends_the_job_but_keeps_what_was_answered(project: Project) -> None:
    job = {"name": "inst", "kind": "instruction", "prompts": project.prompts(["a", "b", {"text": "c"}])}
    with MockTeacher() as mock:
        failure = project.run_badly(project.recipe(mock.base_url, job))
        assert isinstance(failure, DataError) and ":3: no column 'prompt'" in str(failure)
        project.prompts(["a", "b", "c"])
        project.run(project.recipe(mock.base_url, job))
        assert sorted(mock.prompts()) == ["a", "b", "c"]


def test_the_card_tells_the_story(project: Project) -> None:
    job = {"name": "inst", "kind": "instruction", "prompts": project.prompts(["a", "a", "b"])}
    with MockTeacher() as mock:
        project.run(project.recipe(mock.base_url, job, id="the-teacher"))
    card = (project.path / "runs/test/generate-inst/README.md").read_text()
    for line in ("| prompts | 3 |", "| rows kept | 2 |", "| dropped: duplicate_prompt | 1 |", "`the-teacher`"):
        assert line in card
    assert card.startswith("---\npretty_name: inst\n")


def test_datasets_load_as_trl_reads_them(project: Project) -> None:
    datasets = pytest.importorskip("datasets")
    job = {"name": "inst", "kind": "instruction", "prompts": project.prompts(["a", "b"])}
    with MockTeacher() as mock:
        project.run(project.recipe(mock.base_url, job))
    path = project.path / "runs/test/generate-inst/data.parquet"
    loaded = datasets.Dataset.from_parquet(str(path), cache_dir=str(project.path / "cache"))
    assert loaded[0]["messages"][1] == {"role": "assistant", "content": "echo: a"}
    assert pq.read_schema(path).equals(SCHEMAS["instruction"])


def test_a_row_writer_leaves_a_whole_file_or_none(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    row = {"messages": [{"role": "user", "content": "x"}], "verdict": "right"}
    with pytest.raises(ValueError), RowWriter(path, INSTRUCTION) as writer:
        for _ in range(5000):
            writer.add(row)
        raise ValueError
    assert list(tmp_path.iterdir()) == []
    with RowWriter(path, INSTRUCTION) as writer:
        for _ in range(5000):
            writer.add(row)
    assert pq.read_metadata(path).num_rows == 5000 and list(tmp_path.iterdir()) == [path]


def test_a_group_of_rows_is_large_but_not_in_bytes(tmp_path: Path) -> None:
    """Few groups, since every one stays in memory with the footer; and no more of long rows than a group may hold."""
    path = tmp_path / "data.parquet"
    for characters, rows, most_rows in ((8, 17_000, 1 << 14), (4096, 3000, 1 << 11)):
        with RowWriter(path, INSTRUCTION) as writer:
            for number in range(rows):
                content = f"{number:08}" + "x" * (characters - 8)
                writer.add({"messages": [{"role": "user", "content": content}], "verdict": "right"})
        file = pq.ParquetFile(path)
        sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        assert max(sizes) == sizes[0] == most_rows and sum(sizes) == rows
        asked = [turns[0]["content"][:8] for turns in file.read(["messages"])["messages"].to_pylist()]
        assert asked == [f"{number:08}" for number in range(rows)]
