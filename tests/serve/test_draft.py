"""A server with a draft model: the same answers, counts in /metrics, and pairs that do not go together."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from distill.engine.runner import Engine
from distill.engine.speculative.speculation import Draft
from distill.engine.types import SamplingParams
from distill.errors import DistillError, EngineError
from distill.recipe.schema import Serve
from distill.serve.server import load_draft, serve_model
from distill.serve.target import resolve
from distill.serve.vllm import command
from tests.engine.models import byte_tokenizer, chat_model, nearby
from tests.serve.conftest import MODEL, start

ROOT = Path(__file__).parents[2]


def test_answers_streams_and_metrics() -> None:
    tokenizer = byte_tokenizer()
    model = chat_model(tokenizer)
    engine = Engine(model, tokenizer, draft=Draft(nearby(model, 0.02), tokenizer, 4))
    greedy = SamplingParams(max_tokens=40, ignore_eos=True)
    (expected,) = Engine(model, tokenizer).generate([tokenizer("the cat").input_ids], greedy)
    server, url = start(engine)
    body = {"model": MODEL, "prompt": "the cat", "max_tokens": 40, "temperature": 0, "ignore_eos": True, "logprobs": 1}
    try:
        answer = httpx.post(f"{url}/completions", json=body).json()["choices"][0]
        streamed = httpx.post(f"{url}/completions", json={**body, "stream": True}).text
        metrics = httpx.get(f"{url.removesuffix('/v1')}/metrics").text
    finally:
        server.should_exit = True
    pieces = [json.loads(line[6:])["choices"][0] for line in streamed.splitlines() if line.startswith("data: {")]
    assert answer["text"] == "".join(piece["text"] for piece in pieces) == expected.text
    several = [piece for piece in pieces if piece["logprobs"] and len(piece["logprobs"]["tokens"]) > 1]
    assert several  # a piece may hold all that a verification yields
    values = dict(line.split(" ") for line in metrics.splitlines() if line.startswith("distill_draft_"))
    stats = engine.stats
    assert float(values["distill_draft_tokens_total"]) == stats.draft_tokens > 0
    assert float(values["distill_draft_accepted_tokens_total"]) == stats.accepted_tokens > 0
    assert float(values["distill_draft_accept_length"]) == stats.accept_length > 1
    assert float(values["distill_draft_acceptance_rate"]) == stats.acceptance_rate
    assert float(values["distill_draft_kv_blocks_used"]) == 0


def test_a_draft_of_another_tokenizer_is_refused_at_the_start(tmp_path: Path) -> None:
    tokenizer, longer = byte_tokenizer(), byte_tokenizer()
    longer.add_tokens(["<more>"])
    for name, own in (("target", tokenizer), ("draft", longer)):
        chat_model(own, vocab_size=len(longer)).save_pretrained(tmp_path / name)
        own.save_pretrained(tmp_path / name)
    settings = Serve(draft=str(tmp_path / "draft"), draft_tokens=3)
    found = load_draft(settings, dtype="float32", device="cpu")
    assert found is not None and found.num_tokens == 3 and load_draft(Serve(), dtype="auto", device="cpu") is None
    with pytest.raises(EngineError, match=f"draft {tmp_path}/draft cannot guess for {tmp_path}/target: its tokenizer"):
        serve_model(tmp_path / "target", port=0, dtype="float32", device="cpu", settings=settings)
    with pytest.raises(DistillError, match="nowhere"):
        load_draft(Serve(draft=str(tmp_path / "nowhere")), dtype="auto", device="cpu")


def test_a_recipe_may_name_a_variant_as_draft(tmp_path: Path) -> None:
    smoke = str(ROOT / "recipes" / "smoke.yaml")
    changes = (f"output_dir={tmp_path}/runs", "serve.draft=teacher", "serve.draft_tokens=6")
    found = resolve(smoke, overrides=changes, variant="teacher", model_name=None, flags={}).settings
    assert (found.draft, found.draft_tokens) == ("data/teacher", 6)
    flags = {"draft": "some/folder"}
    assert resolve(smoke, overrides=changes, variant="teacher", model_name=None, flags=flags).settings.draft == (
        "some/folder"
    )
    with pytest.raises(DistillError, match="--draft-tokens without a draft"):
        resolve("m", overrides=(), variant=None, model_name=None, flags={"draft_tokens": 6})
    with pytest.raises(DistillError, match="student-base is not made yet"):
        resolve(smoke, overrides=changes, variant="teacher", model_name=None, flags={"draft": "student-base"})
    with pytest.raises(DistillError, match=r"serve\.draft cannot go to vLLM"):
        command("m", model_name="m", settings=Serve(draft="d"))
