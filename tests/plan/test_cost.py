"""Requests, tokens and dollars of each kind of job, by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill.errors import DataError
from distill.plan.cost import (
    job_cost,
    minutes_at_limits,
    optimizer_steps,
    token_counter,
    tokens_per_step,
    training_rows,
)
from distill.recipe.generate import (
    CodeJob,
    Feedback,
    FilePrompts,
    InstructionJob,
    PreferenceJob,
    Sampling,
    SelfInstructPrompts,
)
from distill.recipe.prompts import AlpacaPrompts, PersonaPrompts, TopicPrompts
from distill.recipe.schema import Plan
from distill.recipe.train import DpoEntry, LmEntry, SftEntry
from distill.teacher.pricing import Rates

RATES = Rates(input=2.0, output=10.0)
PLAN = Plan(prompt_tokens=100, completion_tokens=50)


def _file_prompts(tmp_path: Path, rows: int, count: int | None = None) -> FilePrompts:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": "x" * 40}) + "\n" for _ in range(rows)))
    return FilePrompts(source="file", path=str(path), count=count)


def test_instruction_job(tmp_path: Path) -> None:
    job = InstructionJob(name="i", kind="instruction", prompts=_file_prompts(tmp_path, 30), samples=2)
    cost = job_cost(job, plan=PLAN, rates=RATES, count_tokens=len)
    assert (cost.prompts, cost.rows, cost.requests) == (30, 60, 60)
    assert (cost.prompt_tokens, cost.completion_tokens) == (6000, 3000)
    assert cost.dollars == pytest.approx(6000 * 2e-6 + 3000 * 10e-6)


def test_prompts_are_measured_and_answers_are_half_of_the_limit(tmp_path: Path) -> None:
    prompts = _file_prompts(tmp_path, 30, count=10)
    job = InstructionJob(name="i", kind="instruction", prompts=prompts, sampling=Sampling(max_tokens=64), system="abc")
    count_tokens, way = token_counter(tmp_path / "tokenizer.json")
    cost = job_cost(job, plan=Plan(), rates=None, count_tokens=count_tokens)
    assert way == "4 characters a token"
    assert (cost.prompts, cost.prompt_tokens, cost.completion_tokens) == (10, 10 * (10 + 1), 10 * 32)
    assert cost.dollars is None


def test_judged_preference_asks_every_pair_in_both_orders(tmp_path: Path) -> None:
    job = PreferenceJob(name="p", kind="preference", prompts=_file_prompts(tmp_path, 10), samples=4, rank="judge")
    cost = job_cost(job, plan=PLAN, rates=RATES, count_tokens=len)
    assert cost.rows == 10
    assert cost.requests == 10 * 4 + 10 * 6 * 2
    assert cost.prompt_tokens == 40 * 100 + 120 * 200
    many = job_cost(job.model_copy(update={"samples": 8}), plan=PLAN, rates=RATES, count_tokens=len)
    assert many.requests == 10 * 8 + 10 * 8 * 2  # beyond four answers they meet in a ring
    verified = job.model_copy(update={"rank": "verifier"})
    assert job_cost(verified, plan=PLAN, rates=RATES, count_tokens=len).requests == 40


def test_ultrafeedback_asks_four_aspects_in_each_order(tmp_path: Path) -> None:
    job = PreferenceJob(name="p", kind="preference", prompts=_file_prompts(tmp_path, 10), rank="feedback")
    cost = job_cost(job, plan=PLAN, rates=RATES, count_tokens=len)
    assert cost.requests == 10 * 4 + 10 * 4 * 2
    assert cost.prompt_tokens == 10 * 4 * 100 + 10 * 8 * (100 + 4 * 50 + 250)
    h4 = job.model_copy(update={"feedback": Feedback(binarize="h4", orders=3)})
    assert job_cost(h4, plan=PLAN, rates=RATES, count_tokens=len).requests == 10 * 4 + 10 * 4 * 3 + 10 * 4


def test_educational_code_asks_once_more_a_row(tmp_path: Path) -> None:
    job = CodeJob(name="c", kind="code", prompts=_file_prompts(tmp_path, 10), educational=True)
    cost = job_cost(job, plan=PLAN, rates=RATES, count_tokens=len)
    assert cost.requests == 20
    assert cost.prompt_tokens == 10 * 100 + 10 * 150


def test_self_instruct_pays_for_the_writing_of_prompts() -> None:
    prompts = SelfInstructPrompts(source="self_instruct", count=10, examples=4, path="nowhere.jsonl")
    job = InstructionJob(name="s", kind="instruction", prompts=prompts)
    cost = job_cost(job, plan=PLAN, rates=None, count_tokens=len)
    assert (cost.requests, cost.prompt_tokens, cost.completion_tokens) == (20, 1000 + 4000, 500 + 1000)


def test_answers_that_come_with_their_prompts_are_not_asked_again() -> None:
    """Alpaca at 3 of 20: 17 new tasks a request, answers among them; the second sample of each is asked for."""
    prompts = AlpacaPrompts(source="alpaca", count=170)
    once = InstructionJob(name="a", kind="instruction", prompts=prompts)
    twice = once.model_copy(update={"samples": 2})
    assert job_cost(once, plan=PLAN, rates=None, count_tokens=len).requests == 10
    assert job_cost(twice, plan=PLAN, rates=None, count_tokens=len).requests == 180


def test_written_tests_ask_once_more_a_row(tmp_path: Path) -> None:
    job = CodeJob(name="c", kind="code", prompts=_file_prompts(tmp_path, 10), samples=2, write_tests=3)
    assert job_cost(job, plan=PLAN, rates=None, count_tokens=len).requests == 40


def test_topics_bring_several_prompts_a_request() -> None:
    job = InstructionJob(name="t", kind="instruction", prompts=TopicPrompts(source="topics", count=100, tasks=10))
    assert job_cost(job, plan=PLAN, rates=None, count_tokens=len).requests == 110


def test_a_chat_sends_all_that_was_said_again(tmp_path: Path) -> None:
    """Three rounds: answers after 100, 190 and 280 tokens; the user's two turns after 150 and 240, with 100 of ours."""
    fields = {"name": "x", "kind": "instruction", "prompts": _file_prompts(tmp_path, 10)}
    job = InstructionJob.model_validate({**fields, "chat": {"least_rounds": 3, "most_rounds": 3}})
    cost = job_cost(job, plan=PLAN, rates=RATES, count_tokens=len)
    assert (cost.rows, cost.requests) == (10, 50)
    assert (cost.prompt_tokens, cost.completion_tokens) == (10 * (570 + 250 + 340), 10 * (3 * 50 + 2 * 40))
    one = InstructionJob.model_validate({**fields, "chat": {"least_rounds": 1, "most_rounds": 1}})
    five = InstructionJob.model_validate({**fields, "chat": {"least_rounds": 1, "most_rounds": 5}})
    assert job_cost(one, plan=PLAN, rates=RATES, count_tokens=len).requests == 10
    assert job_cost(five, plan=PLAN, rates=RATES, count_tokens=len).requests == 50  # 2 x 3 - 1 a chat on average


def test_personas_are_written_once_and_asked_one_a_request() -> None:
    prompts = PersonaPrompts(source="personas", count=10, written=5)
    cost = job_cost(
        InstructionJob(name="x", kind="instruction", prompts=prompts), plan=PLAN, rates=RATES, count_tokens=len
    )
    assert (cost.requests, cost.prompt_tokens, cost.completion_tokens) == (10 + 15, 1000 + 15 * 160, 500 + 1000 + 300)


def test_missing_file_is_unknown_and_a_bad_line_is_named(tmp_path: Path) -> None:
    absent = FilePrompts(source="file", path=str(tmp_path / "no.jsonl"))
    job = InstructionJob(name="i", kind="instruction", prompts=absent)
    cost = job_cost(job, plan=PLAN, rates=RATES, count_tokens=len)
    assert cost.prompts is None and cost.dollars is None
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a"}\n{"text": "b"}\n')
    job = InstructionJob(name="i", kind="instruction", prompts=FilePrompts(source="file", path=str(bad)))
    with pytest.raises(DataError, match=r"bad\.jsonl:2"):
        job_cost(job, plan=Plan(), rates=RATES, count_tokens=len)


def test_rate_limits_bound_the_time(tmp_path: Path) -> None:
    job = InstructionJob(name="i", kind="instruction", prompts=_file_prompts(tmp_path, 30))
    costs = [job_cost(job, plan=PLAN, rates=RATES, count_tokens=len)]
    assert minutes_at_limits(costs, requests_per_minute=None, tokens_per_minute=None) is None
    assert minutes_at_limits(costs, requests_per_minute=10, tokens_per_minute=None) == 3
    assert minutes_at_limits(costs, requests_per_minute=10, tokens_per_minute=900) == 5


def test_steps_follow_rows_epochs_and_batch(tmp_path: Path) -> None:
    job = InstructionJob(name="i", kind="instruction", prompts=_file_prompts(tmp_path, 30))
    costs = {"i": job_cost(job, plan=PLAN, rates=RATES, count_tokens=len)}
    entry = SftEntry(name="s", objective="sft", data=("i",), epochs=2.0, batch_size=8, micro_batch_size=8)
    assert training_rows(entry, costs) == 30
    assert optimizer_steps(entry, 30) == 8
    assert optimizer_steps(entry.model_copy(update={"max_steps": 3}), None) == 3
    assert training_rows(entry.model_copy(update={"data": ("absent.parquet",)}), costs) is None


def test_tokens_of_a_step() -> None:
    entry = SftEntry(name="s", objective="sft", data=("i",), batch_size=8, micro_batch_size=8, max_length=16)
    assert tokens_per_step(entry) == 128
    pairs = DpoEntry(name="d", objective="dpo", data=("i",), batch_size=8, micro_batch_size=8, max_length=16)
    assert tokens_per_step(pairs) == 256
    text = LmEntry(name="l", objective="lm", corpus="chats", steps=3, rows=4, row_tokens=32)
    assert (tokens_per_step(text), optimizer_steps(text, None), training_rows(text, {})) == (128, 3, 12)
