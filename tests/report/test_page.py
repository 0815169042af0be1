"""The page of a whole run, of a run with holes, and of nothing at all."""

from __future__ import annotations

import io
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console
from ruamel.yaml import YAML

from distill.recipe.schema import Recipe
from distill.report import stage
from distill.report.charts import Point, scatter
from distill.report.findings import findings, kept_share
from distill.report.format import bytes_text, dollars, duration, percent, points, quantity
from distill.report.gather import gather
from distill.report.model_card import model_card
from distill.report.page import headline, render_page, smallest_sound, total_cost
from distill.report.samples import choose_samples
from distill.runs import Run
from tests.report.fake_run import make_run, recipe_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Run]:
    return make_run(tmp_path_factory.mktemp("run"), rows=120)


@pytest.fixture(scope="module")
def page(made: tuple[Recipe, Run]) -> str:
    return render_page(gather(*made))


class _Checker(HTMLParser):
    """Whether every element that is opened is closed in its order."""

    VOID = {"meta", "br", "link", "img", "hr"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"


def test_page_is_whole_and_needs_nothing_from_outside(page: str) -> None:
    checker = _Checker()
    checker.feed(page)
    assert not checker.open
    assert not {"script", "link", "img", "iframe"} & set(checker.tags)
    assert not re.search(r"https?://|src=|url\(|@import", page)
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) == 2 + 3 + 2 + 1  # scatter plots, training curves, kinds of families, time
    for drawing in drawings:
        ElementTree.fromstring(drawing)


def test_what_models_wrote_is_escaped(page: str) -> None:
    assert "…&lt;b&gt;&amp;" in page and "…<b>" not in page


def test_page_shows_every_variant_and_number(made: tuple[Recipe, Run], page: str) -> None:
    run = gather(*made)
    for variant in run.variants:
        assert variant.accuracy is not None
        assert f">{variant.name}</span>" in page and percent(variant.accuracy["value"]) in page
    assert "7.34 M" in page and "16 KiB" in page and "12.5%" in page
    assert "wrong answer 131" in page and "truncated 27" in page
    student = run.student
    assert student is not None and student.name == "dpo"
    assert "<th>accept length</th>" in page and f"<td>{student.evaluated('accept_length'):.2f}</td>" in page
    share = kept_share(run)
    assert share is not None
    kept = f"The student keeps {percent(share)} of the teacher's accuracy"
    assert headline(run) == f"{kept} with 47% of its parameters and 12.5% of its KV cache."


def test_findings_are_honest(made: tuple[Recipe, Run]) -> None:
    said = {finding.text: finding.tone for finding in findings(gather(*made))}

    def about(words: str) -> str:
        return next(said[text] for text in said if words in text)

    assert about("sft improves on student-base") == "good"
    assert about("From the same start, kd is better than sft") == "good"
    assert about("dpo did not measurably change accuracy against kd") == "neutral"
    assert about("awq is flagged") == "bad"
    assert about("Quantization within the limit: nf4") == "good"


def test_a_loss_is_called_a_loss(made: tuple[Recipe, Run]) -> None:
    run = gather(*made)
    worse = {"mean": -0.05, "low": -0.08, "high": -0.02, "count": 120}
    pairs = run.pairs | {"dpo": run.pairs["dpo"] | {"kd": {"accuracy": worse, "kl": None}}}
    texts = [f for f in findings(type(run)(**{**vars(run), "pairs": pairs})) if "did not help" in f.text]
    assert len(texts) == 1 and texts[0].tone == "bad" and "−5.0 points" in texts[0].text


def test_smallest_sound_variant_is_not_the_flagged_one(made: tuple[Recipe, Run]) -> None:
    best = smallest_sound(gather(*made))
    assert best is not None and best.name == "gptq"


def test_samples_show_different_outcomes_and_join_equal_answers(made: tuple[Recipe, Run]) -> None:
    samples = choose_samples(gather(*made), 6)
    assert len(samples) == 6 and len({sample.family for sample in samples}) == 6
    assert {sample.kind for sample in samples} == {"instruction", "code"}
    for sample in samples:
        speakers = [speaker.name for said in sample.answers for speaker in said.speakers]
        assert speakers[0] == "reference" and sorted(speakers) == sorted(set(speakers))
        assert len({said.text for said in sample.answers}) == len(sample.answers)
    outcomes = {said.ok for sample in samples for said in sample.answers for who in said.speakers if who.name == "dpo"}
    assert outcomes == {True, False}


def test_missing_stages_are_said_and_never_invented(made: tuple[Recipe, Run], tmp_path: Path) -> None:
    recipe, run = made
    copy = tmp_path / "demo"
    shutil.copytree(run.path, copy)
    for path in copy.glob("evaluate-*/manifest.json"):
        path.write_text(path.read_text().replace("accept_length", "something_else"))
    for path in [*copy.glob("serve-*"), copy / "evaluate-awq", copy / "generate-code", copy / "train-kd"]:
        shutil.rmtree(path)
    found = gather(recipe, Run(recipe.model_copy(update={"output_dir": str(tmp_path)})))
    page = render_page(found)
    texts = [finding.text for finding in findings(found)]
    assert "Speed was not measured in this run." in texts
    assert "Not evaluated: awq." in texts
    assert "Accuracy against decode speed" not in page and "training loss of kd" not in page
    assert 'title="not measured">–</td>' in page
    assert "KV cache." not in headline(found) and "accept length" not in page.lower()


def test_page_of_a_run_that_has_not_begun(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    page = render_page(gather(recipe, Run(recipe)))
    assert "Not evaluated: teacher, student-base, sft" in page
    bare = Recipe(name="bare", output_dir=str(tmp_path))
    assert "No student was trained" in render_page(gather(bare, Run(bare)))


def test_stage_writes_once_and_again_when_something_changed(tmp_path: Path) -> None:
    recipe, run = make_run(tmp_path, rows=40)
    console = Console(file=io.StringIO(), width=200)
    said = console.file
    stage.run(recipe, run, console=console)
    target = run.path / "report.html"
    first = target.stat().st_mtime_ns
    stage.run(recipe, run, console=console)
    assert target.stat().st_mtime_ns == first and "done before" in said.getvalue()  # type: ignore[attr-defined]
    renamed = recipe.model_copy(update={"report": recipe.report.model_copy(update={"title": "Another <title>"})})
    stage.run(renamed, run, console=console)
    assert "Another &lt;title&gt;" in target.read_text()
    target.unlink()
    stage.run(renamed, run, console=console)
    assert target.is_file()
    assert run.stage("report").require().metrics["html"] == "report.html"


def test_model_card_has_valid_front_matter(made: tuple[Recipe, Run]) -> None:
    card = model_card(gather(*made))
    _, front, body = card.split("---\n", 2)
    data = YAML(typ="safe").load(front)
    assert data["base_model"] == "data/student-base" and data["library_name"] == "transformers"
    accuracy = data["model-index"][0]["results"][0]["metrics"][0]["value"]
    assert 0.5 < accuracy < 1 and "| awq (flagged) |" in body


def test_a_point_far_below_does_not_flatten_the_rest() -> None:
    points = [Point(str(i), 1.0 + i, v, v - 0.02, v + 0.02, "trained") for i, v in enumerate((0.05, 0.9, 0.92, 0.94))]
    drawing = str(scatter(points, title="t", x_label="x", x_text=quantity, better_left=True))
    assert "0 ↓ 5.0%" in drawing and ">90%<" in drawing and ">20%<" not in drawing


def test_total_cost_is_unknown_as_soon_as_one_is(made: tuple[Recipe, Run]) -> None:
    run = gather(*made)
    assert total_cost(run.jobs) == 0
    unknown = type(run.jobs[0])(**{**vars(run.jobs[0]), "cost_usd": None})
    assert total_cost([*run.jobs, unknown]) is None


def test_formats() -> None:
    assert [quantity(v) for v in (7_340_000, 1.2e9, 1234, 12.345, 5, None)] == [
        "7.34 M",
        "1.2 B",
        "1,234",
        "12.3",
        "5",
        "not measured",
    ]
    assert [bytes_text(v) for v in (512, 2048, 14.7e6, 3.125 * 2**30)] == ["512 B", "2 KiB", "14 MiB", "3.12 GiB"]
    assert [dollars(v) for v in (None, 0.0, 0.004, 12.5)] == ["price unknown", "free", "$0.004", "$12.50"]
    assert [duration(v) for v in (0.42, 48.2, 200, 7500, 59.7)] == ["0.4 s", "48 s", "3 min 20 s", "2 h 5 min", "1 min"]
    assert points(-0.034) == "−3.4 points" and percent(None) == "not measured"
