"""Chats over several rounds: the published rule by hand, whole jobs on a teacher with two faces, and kills."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from typing import Any

import pytest
from pydantic import ValidationError

from distill.generate.multi_turn import (
    MOVES,
    asked_and_said,
    clean_turn,
    flaw_of,
    rounds_of,
    transcript,
    user_question,
)
from distill.generate.prompts import text_prompt
from distill.recipe.generate import Chat, InstructionJob
from distill.records import Message
from tests.generate.conftest import Project
from tests.generate.test_methods import question, reasons
from tests.generate.test_resume import start
from tests.teacher.mock import Body, MockTeacher, Reply, completion, error

ASKED = "You play the person in a chat"


def turns(*texts: str) -> list[Message]:
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


def test_three_to_seven_rounds_each_as_likely() -> None:
    drawn = Counter(rounds_of(Chat(), f"row {number}", 0) for number in range(5000))
    assert set(drawn) == {3, 4, 5, 6, 7} and max(drawn.values()) < 1.15 * min(drawn.values())
    assert rounds_of(Chat(), "row", 1) == rounds_of(Chat(), "row", 1)
    with pytest.raises(ValidationError, match="least_rounds 5 is over most_rounds 4"):
        Chat(least_rounds=5, most_rounds=4)


def test_the_user_has_prompts_of_its_own_with_the_whole_chat() -> None:
    prompt = text_prompt("What is rust?", "Be brief.", persona="a welder")
    chat = [{"role": "system", "content": "Be brief."}, *turns("What is rust?", "Iron oxide.", "And gold?", "None.")]
    asked = user_question(Chat(), prompt, 0, chat)  # type: ignore[arg-type]
    shown = "Person: What is rust?\n\nAssistant: Iron oxide.\n\nPerson: And gold?\n\nAssistant: None."
    assert asked.startswith(ASKED) and f"\n\n{shown}\n\n" in asked and "Be brief." not in asked
    assert asked.count("The person is: a welder") == 1 and sum(move in asked for move in MOVES) == 1
    assert asked == user_question(Chat(), prompt, 0, chat)  # type: ignore[arg-type]
    moves = {user_question(Chat(seed=seed), prompt, 0, chat) for seed in range(200)}  # type: ignore[arg-type]
    assert len(moves) == len(MOVES)


@pytest.mark.parametrize(
    ("text", "flaw"),
    [
        ("Why is that?", None),
        ("Thanks! And why is gold different?", None),
        ("Thank you so much, that helps.", "thanks"),
        ("감사합니다!", "thanks"),
        ("what IS  rust?", "repeats"),
        ("As an AI language model, I have no feelings.", "plays_assistant"),
        ("Why?\nAssistant: Because.", "plays_assistant"),
        ("Thanks to the long rain of last week my bike rusted everywhere, so tell me how I get it off again.", None),
    ],
)
def test_what_is_no_turn_of_a_person(text: str, flaw: str | None) -> None:
    assert flaw_of(text, ["What is rust?"]) == flaw


def test_labels_and_quotes_are_taken_off() -> None:
    assert clean_turn(' Person: "And gold?" ') == "And gold?"
    assert clean_turn("“Why?”") == "Why?" and clean_turn('Is "so" a word?') == 'Is "so" a word?'
    assert asked_and_said(turns("q", "a")) == ("q", "a")
    assert asked_and_said(turns("q", "a", "r", "b")) == ("q", "Assistant: a\n\nPerson: r\n\nAssistant: b")
    assert transcript(turns("q")) == "Person: q"


def talking(body: Body, number: int) -> Reply:
    """The user asks numbered questions, the assistant answers with how many turns it was shown."""
    text = question(body)
    if text.startswith(ASKED):
        assert [message["role"] for message in body["messages"]] == ["user"]
        return completion(f"Person: question {text.count('Person: ')}?")
    assert not any(ASKED in message["content"] for message in body["messages"])
    return completion(f"answer {len(body['messages'])} to {text}")


def chat_job(project: Project, texts: list[Any], rounds: int = 3, **more: Any) -> dict[str, Any]:
    section = {"least_rounds": rounds, "most_rounds": rounds, **more.pop("chat", {})}
    return {"name": "chat", "kind": "instruction", "prompts": project.prompts(texts), "chat": section, **more}


def seed_for(chat: Chat, rows: tuple[str, ...], rounds: int) -> int:
    """A seed with which all these rows are to have so many rounds."""
    tries = (chat.model_copy(update={"seed": seed}) for seed in range(10_000))
    return next(one.seed for one in tries if all(rounds_of(one, row, 0) == rounds for row in rows))


def test_a_chat_is_a_row_with_everything_that_it_took(project: Project) -> None:
    job = chat_job(project, ["Why?"], system="Be kind.")
    with MockTeacher(talking) as mock:
        project.run(project.recipe(mock.base_url, job, price={"input": 1.0, "output": 2.0}))
        assert len(mock.requests) == 5  # three answers, two turns of the user
    (row,) = project.data("chat")
    assert row["messages"] == [
        {"role": "system", "content": "Be kind."},
        *turns("Why?", "answer 2 to Why?", "question 1?", "answer 4 to question 1?"),
        *turns("question 2?", "answer 6 to question 2?"),
    ]
    assert (row["method"], row["verdict"], row["prompt_tokens"]) == ("instruction:chat", "unchecked", 50)
    assert row["cost_usd"] == pytest.approx(5 * 20e-6)
    assert project.manifest("chat")["metrics"]["counts"] == {"chat_rounds": 3}
    card = (project.path / "runs/test/generate-chat/README.md").read_text()
    assert "| template: the user's turns |" in card


def test_the_opening_line_comes_with_its_persona(project: Project) -> None:
    job = chat_job(project, [{"prompt": "Why?", "persona": "a diver"}], 2)
    with MockTeacher(talking) as mock:
        project.run(project.recipe(mock.base_url, job))
        (asked,) = [text for text in mock.prompts() if text.startswith(ASKED)]
    assert "The person is: a diver" in asked


def test_bad_turns_of_the_user_are_drawn_again_and_then_the_chat_ends(project: Project) -> None:
    """`thanks` says thanks once; `robot` speaks as the assistant for ever from its second turn on, `mute` from its
    first."""
    seen: Counter[str] = Counter()

    def respond(body: Body, number: int) -> Reply:
        text = question(body)
        if not text.startswith(ASKED):
            return talking(body, number)
        seed = text.split("Person: ")[1].split("?")[0]
        seen[seed] += 1
        if seed == "thanks" and seen[seed] == 1:
            return completion("Thank you!")
        if seed == "robot" and text.count("Person: ") > 1:
            return completion("Assistant: As I said.")
        return completion("") if seed == "mute" else talking(body, number)

    names = ("thanks?", "robot?", "mute?")
    job = chat_job(
        project, [{"prompt": name, "id": name} for name in names], chat={"least_rounds": 2, "most_rounds": 9}
    )
    job["chat"]["seed"] = seed_for(Chat(least_rounds=2, most_rounds=9), names, 4)
    with MockTeacher(respond) as mock:
        project.run(project.recipe(mock.base_url, job))
    rounds = {row["messages"][0]["content"]: len(row["messages"]) // 2 for row in project.data("chat")}
    assert rounds == {"thanks?": 4, "robot?": 2}
    assert reasons(project, "chat") == {
        "user_thanks": 1,
        "user_plays_assistant": 3,  # drawn, and twice again
        "user_empty": 3,
        "chat_broken": 1,
    }
    assert project.manifest("chat")["metrics"]["counts"]["chats_ended_early"] == 1


@pytest.mark.parametrize("broken", ["end", "drop"])
@pytest.mark.parametrize("policy", ["drop", "keep", "retry"])
def test_truncated_and_refused_answers_follow_both_policies(policy: str, broken: str, project: Project) -> None:
    """The second answer of `long` is cut off, the third of `no` is refused: always."""

    def respond(body: Body, number: int) -> Reply:
        chat = [message["content"] for message in body["messages"]]
        if chat[0] == "long" and len(chat) == 3:
            return completion("half", finish_reason="length")
        if chat[0] == "no" and len(chat) == 5:
            return completion(None, refusal="I will not")
        return talking(body, number)

    unusable = {"truncated": policy, "refused": policy, "retries": 1}
    job = chat_job(project, ["good", "long", "no"], 4, unusable=unusable, chat={"least_rounds": 2, "broken": broken})
    job["chat"]["seed"] = seed_for(Chat(least_rounds=2, most_rounds=4), ("good", "long", "no"), 4)
    job["prompts"] = project.prompts([{"prompt": text, "id": text} for text in ("good", "long", "no")])
    with MockTeacher(respond) as mock:
        recipe = project.recipe(mock.base_url, job)
        project.run(recipe)
        asked = len(mock.requests)
        (project.path / "runs/test/generate-chat/manifest.json").unlink()
        project.run(recipe)
        assert len(mock.requests) == asked  # what is no answer was paid for too, and is not asked again
    found = {
        row["messages"][0]["content"]: [turn["content"] for turn in row["messages"]] for row in project.data("chat")
    }
    if policy == "keep":
        assert [len(chat) for chat in found.values()] == [8, 8, 8]
        assert found["long"][3] == "half" and found["no"][5] == "I will not"
        return
    assert len(found["good"]) == 8 and "long" not in found  # one round is fewer than two
    assert len(found["no"]) == 4 if broken == "end" else "no" not in found
    again = {"truncated_retried": 1, "refused_retried": 1} if policy == "retry" else {}
    lost = {"chat_broken": 1 if broken == "end" else 2}
    assert reasons(project, "chat") == {"truncated": 1, "refused": 1, **again, **lost}


def test_samples_are_chats_of_their_own(project: Project) -> None:
    def respond(body: Body, number: int) -> Reply:
        return completion(f"{'question' if question(body).startswith(ASKED) else 'answer'} {number}?")

    with MockTeacher(respond) as mock:
        project.run(project.recipe(mock.base_url, chat_job(project, ["Why?"], 2, samples=3)))
        assert len(mock.requests) == 9
    assert len({row["messages"][1]["content"] for row in project.data("chat")}) == 3
    with MockTeacher(talking) as mock:
        project.run(project.recipe(mock.base_url, chat_job(project, ["Why?"], 2, samples=3), id="other"))
    assert len(project.data("chat")) == 1 and reasons(project, "chat") == {"duplicate_answer": 2}


def test_filters_look_at_every_answer_of_a_chat(project: Project) -> None:
    def respond(body: Body, number: int) -> Reply:
        if question(body).startswith(ASKED):
            return talking(body, number)
        first = body["messages"][0]["content"]
        refuses = first == "bad" and len(body["messages"]) == 3
        return completion("I'm sorry, but I can't help with that." if refuses else f"answer to {question(body)}")

    job = chat_job(project, ["good", "bad"], filters={"refusals": True})
    with MockTeacher(respond) as mock:
        project.run(project.recipe(mock.base_url, job))
    assert [row["messages"][0]["content"] for row in project.data("chat")] == ["good"]
    assert reasons(project, "chat") == {"refusal": 1}  # in the middle of the chat


def test_a_failed_request_ends_a_chat_and_is_asked_again(project: Project) -> None:
    sick = True

    def respond(body: Body, number: int) -> Reply:
        return error(500, "oops") if sick and len(body["messages"]) == 5 else talking(body, number)

    with MockTeacher(respond) as mock:
        recipe = project.recipe(mock.base_url, chat_job(project, ["Why?", "How?"]), max_attempts=1)
        assert "kept none" in str(project.run_badly(recipe))
        sick, asked = False, len(mock.requests)
        project.run(recipe)
        assert len(mock.requests) == asked + 2 and len(project.data("chat")) == 2


def test_killed_in_the_middle_of_chats_nothing_paid_is_asked_again(project: Project) -> None:
    """Thirty chats of five rounds, nine requests each; at each kill at most the requests in flight are lost."""
    in_flight, chats = 8, 30

    def slowly(body: Body, number: int) -> Reply:
        reply = talking(body, number)
        return Reply(body=reply.body, delay=0.005)

    with MockTeacher(slowly) as mock:
        job = chat_job(project, [f"q{number}?" for number in range(chats)], 5)
        recipe = project.recipe(mock.base_url, job, max_concurrency=in_flight)
        kills = sorted(random.Random(1).sample(range(20, 9 * chats), 2))
        for at in kills:
            process = start(recipe)
            while mock.finished < at and process.poll() is None:
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            time.sleep(0.05)  # what was in flight arrives
        project.run(recipe)
        assert 9 * chats <= len(mock.requests) <= 9 * chats + in_flight * len(kills)
    rows = project.data("chat")
    assert [row["messages"][0]["content"] for row in rows] == [f"q{number}?" for number in range(chats)]
    assert all(
        len(row["messages"]) == 10 and row["messages"][-1]["content"] == "answer 9 to question 4?" for row in rows
    )


def test_what_does_not_go_with_a_chat_is_refused() -> None:
    fields = {"name": "x", "kind": "instruction", "prompts": {"source": "file", "path": "p"}, "chat": {}}
    for more in ({"keep": "verified"}, {"logprobs": 4}):
        with pytest.raises(ValidationError, match="leave 'chat' out"):
            InstructionJob.model_validate({**fields, **more})
