"""Chats over several rounds (UltraChat, Ding et al., 2305.14233): one model answers, another plays the user.

The published rule: an opening line, then the two are asked in turn, the user by prompts of its own that make a model
behave like a person, for 3 to 7 rounds (where it is about the world; its other two parts have 2 to 4). Every turn is an
answer in the ledger: a chat goes on where it was killed.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from distill.generate.filters import unusable
from distill.generate.outcome import NEXT_TRY, Outcome, Rejected, Row, Workbench
from distill.generate.prompts import Prompt
from distill.recipe.generate import Chat, InstructionJob
from distill.records import Message, user_message
from distill.teacher.requests import Answer
from distill.text.refusals import boilerplate_in, refusal_in
from distill.text.units import normalize

USER_ASK = """\
You play the person in a chat between a person and an AI assistant. Write what the person says next: one message, as \
people type, short and to the point, in the language of the chat. It goes on from the last answer. {move} The person \
does not answer it themselves, does not speak as the assistant, and neither thanks nor says goodbye.{persona}

{transcript}

Reply with the person's next message only."""
PERSONA = " The person is: {persona}"
MOVES = (
    "The person asks about something in it that they would like to know more about.",
    "The person asks for an example, or for a case in which it is otherwise.",
    "The person did not understand a part of it and asks about that part.",
    "The person doubts a part of it and says why, or asks how that is known.",
    "The person adds a circumstance of their own and asks what changes.",
    "The person asks how to do something of it in practice.",
    "The person asks for it in another form: shorter, as steps, as a table, for a child.",
    "The person turns to a related matter.",
)
_LABEL = re.compile(r"^[\s*#]*(?:person|user|human)\s*:[\s*]*", re.IGNORECASE)
_OTHER_VOICE = re.compile(r"^\W*(?:assistant|ai|ai assistant|chatbot)\s*:", re.IGNORECASE | re.MULTILINE)
_QUOTES = {'"': '"', "“": "”", "「": "」", "«": "»"}
_THANKS = re.compile(
    r"\b(?:thank you|thanks|you're welcome|goodbye|good bye|bye|have a (?:great|nice|good) day|danke|merci|gracias|"
    r"grazie|obrigad[oa])\b|감사|고마워|고맙|ありがとう|谢谢|謝謝|спасибо",
    re.IGNORECASE,
)
_LONGEST_FAREWELL = 80  # characters; longer turns that thank also ask something
_ASKS = ("?", "？")
Flaw = Literal["plays_assistant", "repeats", "thanks"]


@dataclass
class _Talk:
    """One chat under way: its turns, and how many rounds of it are whole."""

    turns: list[Message]
    rounds: int = 0
    whole: int = 0  # turns of the whole rounds
    last: Answer | None = None  # of the last whole round


async def make(job: InstructionJob, chat: Chat, prompt: Prompt, bench: Workbench) -> Outcome:
    """A row for each of the job's samples whose chat came to enough rounds; no chat twice."""
    outcome = Outcome()
    tries = [Outcome() for _ in range(job.samples)]
    rows = await asyncio.gather(
        *(_row(job, chat, prompt, sample, bench, own) for sample, own in enumerate(tries)),
    )
    for own in tries:  # in the order of the samples, whichever ended first
        outcome.add(own)
    for row in rows:
        if row is not None and all(row["messages"] != earlier["messages"] for earlier in outcome.rows):
            outcome.rows.append(row)
        elif row is not None:
            outcome.rejected.append(Rejected(prompt, "duplicate_answer", row=row))
    return outcome


def rounds_of(chat: Chat, seed_row: str, sample: int) -> int:
    """How many rounds this chat is to have: each number as likely, the same whenever asked."""
    return random.Random(f"{chat.seed}:{seed_row}:{sample}").randint(chat.least_rounds, chat.most_rounds)


async def _row(
    job: InstructionJob, chat: Chat, prompt: Prompt, sample: int, bench: Workbench, outcome: Outcome
) -> Row | None:
    wanted = rounds_of(chat, prompt.seed_row, sample)
    given = prompt.given if sample == 0 else None
    talk = _Talk(list(prompt.messages))
    while talk.rounds < wanted:
        if talk.rounds and not await _user_speaks(job, chat, prompt, sample, talk, bench, outcome):
            break
        asked = replace(prompt, messages=tuple(talk.turns))
        answer = given if not talk.rounds else None
        if answer is None:
            answer = await bench.draw(outcome, asked, asked.messages, job.sampling, sample)
        found = bench.usable(outcome, asked, [answer])
        if not found:
            break
        talk.turns.append({"role": "assistant", "content": found[0].text})
        talk.rounds, talk.whole, talk.last = talk.rounds + 1, len(talk.turns), found[0]
    if talk.rounds < wanted and (chat.broken == "drop" or talk.rounds < chat.least_rounds):
        broken = replace(prompt, messages=tuple(talk.turns))
        outcome.rejected.append(Rejected(broken, "chat_broken", f"{talk.rounds} of {wanted} rounds"))
        return None
    assert talk.last is not None, "a whole round has an answer"
    outcome.counts["chats_ended_early"] += talk.rounds < wanted
    outcome.counts["chat_rounds"] += talk.rounds
    paid = {one.key: one for one in (*([given] if given else []), *outcome.answers) if one.key != talk.last.key}
    return {
        "messages": talk.turns[: talk.whole],
        "verdict": "unchecked",
        **bench.provenance(prompt, talk.last, list(paid.values())),
    }


async def _user_speaks(
    job: InstructionJob, chat: Chat, prompt: Prompt, sample: int, talk: _Talk, bench: Workbench, outcome: Outcome
) -> bool:
    """Append the user's next turn. One that is none is noted and drawn again, a few times; False: there is none."""
    asked = replace(prompt, messages=tuple(talk.turns))
    question = user_message(user_question(chat, prompt, sample, talk.turns))
    earlier = [turn["content"] for turn in talk.turns if turn["role"] == "user"]
    for number in range(bench.policy.retries + 1):
        reply = await bench.ask(outcome, asked, question, chat.user or job.sampling, sample + number * NEXT_TRY)
        if reply is None:
            return False  # the failed request is noted
        text = clean_turn(reply.text)
        flaw = unusable(reply) or ("empty" if not text else flaw_of(text, earlier))
        if flaw is None:
            talk.turns.append({"role": "user", "content": text})
            return True
        outcome.rejected.append(Rejected(asked, f"user_{flaw}", answer=reply))
    return False


def user_question(chat: Chat, prompt: Prompt, sample: int, turns: Sequence[Message]) -> str:
    """What the model that plays the user is asked; the same whenever asked."""
    rng = random.Random(f"{chat.seed}:{prompt.seed_row}:{sample}:{len(turns)}")
    persona = "" if prompt.persona is None else PERSONA.format(persona=prompt.persona)
    return USER_ASK.format(move=rng.choice(MOVES), persona=persona, transcript=transcript(turns))


def transcript(turns: Sequence[Message]) -> str:
    """A chat as text, without its system message."""
    names = {"user": "Person", "assistant": "Assistant"}
    return "\n\n".join(f"{names[turn['role']]}: {turn['content']}" for turn in turns if turn["role"] != "system")


def asked_and_said(messages: Sequence[Message]) -> tuple[str, str]:
    """A row's messages in two cells: the question and its answer, or a chat's first turn and all the others."""
    turns = [turn for turn in messages if turn["role"] != "system"]
    if len(turns) <= 2:
        return turns[0]["content"], turns[-1]["content"]
    return turns[0]["content"], transcript(turns[1:])


def clean_turn(text: str) -> str:
    """A turn without the label and the quotation marks that models put around it."""
    text = _LABEL.sub("", text.strip(), count=1).strip()
    if len(text) > 1 and _QUOTES.get(text[0]) == text[-1]:
        text = text[1:-1].strip()
    return text


def flaw_of(text: str, earlier: Sequence[str]) -> Flaw | None:
    """Why a turn is none of a person who goes on with the chat; None: it is one."""
    if _OTHER_VOICE.search(text) or boilerplate_in(text) is not None or refusal_in(text) is not None:
        return "plays_assistant"
    if normalize(text) in {normalize(one) for one in earlier}:
        return "repeats"
    asks = any(mark in text for mark in _ASKS)
    if _THANKS.search(text) and len(text) <= _LONGEST_FAREWELL and not asks:
        return "thanks"
    return None
