"""UltraFeedback's preference data: the published rules by hand, and whole jobs on a scripted teacher."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest

from distill.generate.binarize import pick
from distill.generate.feedback import draws, guided, length_counts, order_counts, orders_of
from distill.generate.principles import WORDINGS, draw_principle, note_for_critic
from distill.judge.aspects import ASPECTS, Rating
from distill.recipe.generate import BinarizeRule, Feedback, PreferenceJob, Principles, Sampling
from distill.recipe.schema import Recipe
from tests.generate.conftest import Project
from tests.teacher.mock import Body, MockTeacher, Reply, Respond, completion

MEANS = [Fraction(7, 2), Fraction(9, 2), Fraction(2), Fraction(9, 2), Fraction(3)]
OVERALL = [7, 8, 2, 8, 10]


def picked(rule: BinarizeRule, means: list[Fraction], overall: list[int]) -> set[tuple[int, int] | None]:
    return {pick(rule, means, overall, random.Random(seed)) for seed in range(200)}


def test_argilla_takes_the_best_mean_against_any_strictly_lower_one() -> None:
    assert picked("argilla", MEANS, []) == {(1, 0), (1, 2), (1, 4)}  # 3 is as good as 1: never the rejected one
    assert picked("argilla", [Fraction(4)] * 3, []) == {None}


def test_h4_takes_the_best_overall_score_against_any_other_answer() -> None:
    assert picked("h4", MEANS, OVERALL) == {(4, 0), (4, 1), (4, 2), (4, 3)}
    assert picked("h4", MEANS, [6] * 5) == {(0, 1), (0, 2), (0, 3), (0, 4)}  # ties stay, as published


def test_max_min_takes_the_extremes() -> None:
    assert picked("max_min", MEANS, []) == {(1, 2)}
    assert picked("max_min", [Fraction(4)] * 3, []) == {None}


def test_principles_have_the_published_shares() -> None:
    rng = random.Random(0)
    drawn = Counter(draw_principle(Principles(), rng)[0] for _ in range(20_000))
    published = {"helpfulness": 0.6, "truthfulness": 0.2, "honesty": 0.18, "verbalized_calibration": 0.02}
    assert {name: count / 20_000 for name, count in drawn.items()} == pytest.approx(published, abs=0.015)
    assert set(WORDINGS) == set(published)
    only = Principles(helpfulness=0, truthfulness=0, honesty=0, verbalized_calibration=1)
    principle, wording = draw_principle(only, rng)
    assert principle == "verbalized_calibration" and "Confidence: 80%" in wording
    assert note_for_critic(principle, wording).endswith("as a percentage.")  # the example is kept from the critic


def test_a_principle_joins_the_system_message() -> None:
    asked = {"role": "user", "content": "q"}
    assert guided([asked], "Be true.") == [{"role": "system", "content": "Be true."}, asked]  # type: ignore[list-item]
    own = {"role": "system", "content": "Be brief."}
    assert guided([own, asked], "Be true.")[0]["content"] == "Be brief.\n\nBe true."  # type: ignore[list-item]
    assert guided([asked], "") == [asked]  # type: ignore[list-item]


def test_draws_depend_on_the_prompt_and_the_seed_alone() -> None:
    section = Feedback(temperatures=(0.2, 1.0))
    drawn = draws(section, Sampling(max_tokens=7), "row", 4)
    assert drawn == draws(section, Sampling(max_tokens=7), "row", 4)
    assert [draw.sampling.temperature for draw in drawn] == [0.2, 1.0, 0.2, 1.0]
    assert [draw.sample for draw in drawn] == [0, 1, 2, 3] and drawn[0].sampling.max_tokens == 7
    wordings = {draw.wording for row in range(20) for draw in draws(section, Sampling(), str(row), 4)}
    assert len(wordings) > 8
    assert draws(Feedback(principles=None), Sampling(), "row", 1)[0].wording == ""


def test_orders_are_distinct_and_balanced() -> None:
    for count in (2, 3, 4):
        first, second = orders_of(count, 2, random.Random(1))
        assert second == first[::-1] and sorted(first) == list(range(count))
    assert len(set(orders_of(4, 6, random.Random(1)))) == 6
    assert sorted(orders_of(2, 6, random.Random(1))) == [(0, 1), (1, 0)]  # two texts have no more


def test_flips_and_length_by_hand() -> None:
    def rated(*grades: int | None) -> list[Rating]:
        return [Rating(grade, "so") for grade in grades]

    ratings = {
        "helpfulness": [rated(5, 3, 1), rated(4, 4, 5)],  # 1-3 and 2-3 flip; 1-2 ties in the second order
        "honesty": [rated(None, 2, 3), rated(5, 1, 2)],  # only 2-3 is there in both orders, and agrees
    }
    assert order_counts(ratings) == {"pairs_judged": 3, "judge_flips": 2}  # type: ignore[arg-type]
    scored = [(Fraction(4), 100), (Fraction(3), 50), (Fraction(5), 10), (Fraction(4), 80)]
    # 1>2 longer, 3>1 shorter, 1=4, 3>2 shorter, 4>2 longer, 3>4 shorter
    assert length_counts(scored) == {"longer_preferred": 2, "shorter_preferred": 3}


def judge(grade: Callable[[str, str, int], str], overall: Callable[[str], str] = lambda text: "5") -> Respond:
    """A teacher that answers s1, s2 ... and rates: `grade(aspect's first word, text, place)`; `overall(text)`."""
    drawn = 0

    def respond(body: Body, number: int) -> Reply:
        nonlocal drawn
        asked = str(body["messages"][-1]["content"])
        if asked.startswith("Give feedback"):
            assert body["temperature"] == 0
            return completion(f"Hm.\nOverall Score: {overall(asked.split('### Answer')[1].split()[0])}")
        if not asked.startswith("Rate "):
            drawn += 1
            return completion(f"s{drawn}" + "!" * drawn)
        assert body["temperature"] == 0
        aspect = asked.split("\n\n")[1].split()[0]
        texts = re.findall(r"<text \d+>\n(\w+)!*\n</text", asked)
        return completion(
            "\n\n".join(
                f"#### Text {place}\nRationale: {aspect} of {text}.\nRating: {grade(aspect, text, place)}"
                for place, text in enumerate(texts, 1)
            )
        )

    return respond


def feedback_job(project: Project, *texts: str, **feedback: Any) -> dict[str, Any]:
    job = {"name": "uf", "kind": "preference", "rank": "feedback", "samples": 3, "prompts": project.prompts(texts)}
    return {**job, "feedback": feedback} if feedback else job


def run(project: Project, respond: Respond, job: dict[str, Any]) -> tuple[MockTeacher, str]:
    with MockTeacher(respond) as mock:
        printed = project.run(project.recipe(mock.base_url, job, max_concurrency=1))
    return mock, printed


GRADES = {"s1": "2", "s2": "5", "s3": "4"}


def test_a_whole_job(project: Project) -> None:
    """Every aspect gives s1 2, s2 5, s3 4, but for helpfulness, which finds s2 worth 1: means 2, 4, 4."""
    respond = judge(lambda aspect, text, place: "1" if (aspect, text) == ("Helpfulness:", "s2") else GRADES[text])
    mock, printed = run(project, respond, feedback_job(project, "Name a river."))
    (row,) = project.data("uf")
    assert row["prompt"] == [{"role": "user", "content": "Name a river."}]  # the principle is not part of it
    assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == ("s2!!", "s1!")
    assert (row["chosen_score"], row["rejected_score"]) == (4.0, 2.0)
    assert len(mock.requests) == 3 + 4 * 2  # all texts in one call an aspect and order
    systems = [body["messages"][0] for body in mock.requests[:3]]
    assert all(message["role"] == "system" for message in systems)
    wordings = {wording: principle for principle, known in WORDINGS.items() for wording in known}
    assert [wordings[message["content"]] for message in systems] == [c["principle"] for c in row["completions"]]
    second = row["completions"][1]
    assert (second["text"], second["score"], second["overall_score"]) == ("s2!!", 4.0, None)
    assert [second[aspect] for aspect in ASPECTS] == [5.0, 5.0, 5.0, 1.0]
    assert second["rationales"][3] == "Helpfulness: of s2."
    metrics = project.manifest("uf")["metrics"]
    # of the pairs 1-2, 1-3, 2-3 with other means: s2 and s3 are longer than s1, and better
    assert metrics["rates"] == {"judge_flip_rate": 0.0, "longer_preferred_rate": 1.0, "chosen_longer_rate": 1.0}
    assert "judge flip rate 0.0%" in printed and row["prompt_tokens"] == 11 * 10
    assert (
        "| longer preferred rate | 100.0% |"
        in (project.path / "runs" / "test" / "generate-uf" / "README.md").read_text()
    )


def test_another_rule_pays_nothing_again(project: Project) -> None:
    respond = judge(lambda aspect, text, place: GRADES[text])
    with MockTeacher(respond) as mock:
        project.run(project.recipe(mock.base_url, feedback_job(project, "q"), max_concurrency=1))
        paid = len(mock.requests)
        job = feedback_job(project, "q", binarize="max_min")
        project.run(project.recipe(mock.base_url, job, max_concurrency=1))
        assert len(mock.requests) == paid
    assert project.data("uf")[0]["rejected"][0]["content"] == "s1!"


def test_h4_asks_for_overall_scores_and_keeps_1_and_10_apart(project: Project) -> None:
    """The aspects say s2; the critic says s1, and gives s3 a 1."""
    overall = {"s1!": "10", "s2!!": "9", "s3!!!": "1"}
    respond = judge(lambda aspect, text, place: GRADES[text], lambda text: overall[text])
    mock, _ = run(project, respond, feedback_job(project, "q", binarize="h4"))
    (row,) = project.data("uf")
    assert (row["chosen"][0]["content"], row["chosen_score"]) == ("s1!", 10.0)
    assert [one["overall_score"] for one in row["completions"]] == [10, 9, 1]
    assert len(mock.requests) == 3 + 4 * 2 + 3
    critics = [text for text in mock.prompts() if text.startswith("Give feedback")]
    assert all("\nNote: " in text for text in critics)


def test_a_judge_that_looks_at_places_flips(project: Project) -> None:
    respond = judge(lambda aspect, text, place: str(6 - place))
    _, printed = run(project, respond, feedback_job(project, "q", binarize="h4"))
    assert project.manifest("uf")["metrics"]["counts"]["judge_flips"] == 12  # three pairs on four aspects
    assert "judge flip rate 100.0%" in printed


def test_ties_are_dropped(project: Project) -> None:
    grades = {"s4": "1", "s5": "2", "s6": "3"}
    respond = judge(lambda aspect, text, place: grades.get(text, str(6 - place)))
    run(project, respond, feedback_job(project, "tie", "no tie"))
    assert [row["prompt"][0]["content"] for row in project.data("uf")] == ["no tie"]
    assert [row["reason"] for row in project.rejected("uf")] == ["tie"]


def test_a_grade_of_10_is_asked_again_and_then_recorded(project: Project) -> None:
    """Honesty of the first prompt's answers is "10" every time; one rating of the second is broken once."""
    broken = {"Helpfulness:": 1}

    def grade(aspect: str, text: str, place: int) -> str:
        if text in GRADES:
            return "10" if aspect == "Honesty:" and text == "s1" else GRADES[text]
        if text == "s4" and broken.get(aspect):
            broken[aspect] -= 1
            return "4.5"
        return {"s4": "1", "s5": "2", "s6": "3"}[text]

    run(project, judge(grade), feedback_job(project, "bad", "good"))
    assert [row["prompt"][0]["content"] for row in project.data("uf")] == ["good"]
    rejected = project.rejected("uf")
    assert Counter(row["reason"] for row in rejected) == {"judgement_unreadable": 3 * 2 + 1, "not_judged": 1}
    assert any("Rating: 10" in (row["answer"] or "") and "honesty" in row["detail"] for row in rejected)
    assert project.manifest("uf")["metrics"]["counts"]["judge_unreadable"] == 7


def test_a_judgement_that_was_cut_off_does_not_count(project: Project) -> None:
    """Its form is whole, but what it left unsaid is unknown."""
    cut = 0

    def respond(body: Body, number: int) -> Reply:
        nonlocal cut
        reply = graded(body, number)
        if str(body["messages"][-1]["content"]).startswith("Rate ") and not cut:
            cut += 1
            assert reply.body is not None
            reply.body["choices"][0]["finish_reason"] = "length"
        return reply

    graded = judge(lambda aspect, text, place: GRADES[text])
    run(project, respond, feedback_job(project, "q"))
    assert len(project.data("uf")) == 1
    assert [row["reason"] for row in project.rejected("uf")] == ["judgement_unreadable"]


def test_equal_answers_make_equal_datasets_in_whatever_order_they_come(project: Project) -> None:
    """Replies of random delays, with some judgements broken: the second making is from the ledger, at once."""
    slow = random.Random(3)
    graded = judge(lambda aspect, text, place: "10" if slow.random() < 0.05 else str(1 + int(text[1:]) % 5))

    def respond(body: Body, number: int) -> Reply:
        reply = graded(body, number)
        return Reply(body=reply.body, delay=slow.random() / 50)

    job = feedback_job(project, "a", "b", "c", "d")
    with MockTeacher(respond) as mock:
        recipe = project.recipe(mock.base_url, job, price={"input": 0.1, "output": 0.7})
        project.run(recipe)
        made = [project.manifest("uf")["outputs"][name] for name in ("data.parquet", "rejected.parquet", "README.md")]
        (project.path / "runs/test/generate-uf/manifest.json").unlink()
        project.run(recipe)
        again = project.manifest("uf")["outputs"]
    assert made == [again[name] for name in ("data.parquet", "rejected.parquet", "README.md")]


def test_several_models_answer_and_the_recipes_own_judges(project: Project) -> None:
    """Four samples of two models in turn; the stronger one's texts are the better ones, wherever they are shown."""
    judging = judge(lambda aspect, text, place: "1" if text.startswith("weak") else GRADES["s2"])

    def respond(body: Body, number: int) -> Reply:
        asked = str(body["messages"][-1]["content"])
        return judging(body, number) if asked.startswith("Rate ") else completion(f"{body['model']}{number}")

    job = {**feedback_job(project, "q", "r"), "samples": 4, "teachers": {"names": ["strong", "weak"]}}
    with MockTeacher(respond) as mock:
        fields = project.recipe(mock.base_url, job, model="strong", max_concurrency=1).model_dump(mode="json")
        fields["teachers"] = [{"model": "weak", "base_url": mock.base_url, "max_concurrency": 1}]
        project.run(Recipe.model_validate(fields, strict=False))
        judges = {body["model"] for body in mock.requests if "Rate " in str(body["messages"][-1]["content"])}
    assert judges == {"strong"}
    for row in project.data("uf"):
        assert sorted(one["teacher"] for one in row["completions"]) == ["strong", "strong", "weak", "weak"]
        assert all(one["text"].startswith(one["teacher"]) for one in row["completions"])
        assert row["chosen"][0]["content"].startswith("strong") and row["rejected"][0]["content"].startswith("weak")
        assert row["teacher"] == "strong"
    card = (project.path / "runs/test/generate-uf/README.md").read_text()
    assert "| `strong` | 20 |" in card and "| `weak` | 4 |" in card  # 2 x 2 answers and 2 x 8 judgements


def test_a_reference_column_reaches_the_judge_of_truthfulness(project: Project) -> None:
    """A text, a list of texts, nothing: only truthfulness sees it, and the teacher that answers never does."""
    rows = [
        {"prompt": "one", "truth": "It is 7."},
        {"prompt": "two", "truth": ["It is 8.", "It is eight."]},
        {"prompt": "three", "truth": None},
    ]
    job = feedback_job(project)
    job["prompts"] = {**project.prompts(rows), "reference": "truth"}
    mock, _ = run(project, judge(lambda aspect, text, place: str(1 + int(text[1:]) % 3)), job)
    told = [text for text in mock.prompts() if "### World knowledge" in text]
    assert len(told) == 2 * 2 and all("\n\nTruthfulness:" in text for text in told)
    assert {text.rsplit("see it.\n", 1)[1] for text in told} == {"It is 7.", "It is 8.\nIt is eight."}
    assert sum("\n\nTruthfulness:" in text for text in mock.prompts()) == 3 * 2
    card = (project.path / "runs/test/generate-uf/README.md").read_text()
    assert "| template: world knowledge |" in card


def test_settings_belong_to_their_rank() -> None:
    prompts = {"source": "file", "path": "p.jsonl"}
    with pytest.raises(ValueError, match="belongs to rank: feedback"):
        PreferenceJob.model_validate({"name": "x", "kind": "preference", "prompts": prompts, "feedback": {}})
    with pytest.raises(ValueError, match="all shares are 0"):
        Principles(helpfulness=0, truthfulness=0, honesty=0, verbalized_calibration=0)
