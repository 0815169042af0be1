"""Signals of every kind in training: stored against live, packed, resumed, refused; from sidecars and servers."""

from __future__ import annotations

import asyncio
import io
import json
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from distill.engine.runner import Engine, EngineConfig
from distill.errors import DataError, TeacherError
from distill.model.load import load_model, load_tokenizer
from distill.objectives.divergences import Objective
from distill.objectives.head import head_loss
from distill.objectives.sparse import sparse_chunk_loss
from distill.objectives.sparse_head import sparse_head_loss
from distill.recipe.schema import Recipe
from distill.recipe.teacher import OpenAITeacher
from distill.records import read_parquet
from distill.runs import Run
from distill.teacher.client import TeacherClient
from distill.teacher.distributions import SIDECAR, Distributions, write_sidecar
from distill.teacher.endpoint import Endpoint
from distill.teacher.ledger import Ledger
from distill.teacher.logprobs import Position, pack
from distill.teacher.prompt_scores import PromptScorer, ScoreSender
from distill.teacher.stored import DATA, INDEX, About, Fingerprint, Reader, Record
from distill.teacher.tail_draws import encode_with_draws
from distill.teacher.transport import HttpReply
from distill.track import read_metrics
from distill.train import recording, stage
from distill.train.batches import collator, read_sequences
from distill.train.live import LiveTeacher
from distill.train.packed_signals import lay
from distill.train.recording import Row
from distill.train.reductions import drawn_of, systematic, tail_drawn_of, top_of
from distill.train.signals import StoredTeacher
from distill.train.told import aligned
from tests.serve.conftest import start
from tests.teacher.stored_rows import targets_of
from tests.train import tiny

KD: dict[str, Any] = {"objective": "kd", "max_steps": 2}
WHOLE = {"kind": "top_k", "k": 255, "min_probability": 0.0, "tail_draws": 0}


@pytest.fixture
def world(tmp_path: Path) -> Path:
    tiny.save_model(tmp_path / "teacher")
    tiny.save_data(tmp_path, rows=24)
    return tmp_path


def train(recipe: Recipe, url: str | None = None) -> str:
    out = io.StringIO()
    stage.run(recipe, Run(recipe), console=Console(file=out, width=200), base_url=lambda: url)
    return out.getvalue()


def curve(recipe: Recipe, name: str) -> list[float]:
    return [line["divergence"] for line in read_metrics(Run(recipe).stage("train", name).path / "metrics.jsonl")]


def stored(recipe: Recipe) -> list[Path]:
    return sorted(Run(recipe).path.glob("signals-*"))


def test_hidden_states_train_exactly_as_the_live_teacher_and_a_wide_top_k_nearly(world: Path) -> None:
    """Every kind starts from the student, on the same batches; the stored forms are written once and shared."""
    from_start = {**KD, "init": "student", "temperature": 2.0}
    recipe = tiny.recipe(
        world,
        {**from_start, "name": "live"},
        {**from_start, "name": "hidden", "signal": {"kind": "hidden"}},
        {**from_start, "name": "top", "signal": WHOLE},
        {**from_start, "name": "reverse", "divergence": "reverse_kl", "packing": True, "signal": WHOLE},
        {**from_start, "name": "sampled", "signal": {"kind": "sampled", "draws": 255}},
        {**from_start, "name": "tail", "signal": {"kind": "top_k", "k": 8, "tail_draws": 64}},
    )
    out = train(recipe)
    live = curve(recipe, "live")
    assert curve(recipe, "hidden") == pytest.approx(live, rel=1e-4)
    assert all(0.9 * full < known < 1.001 * full for known, full in zip(curve(recipe, "top"), live, strict=True))
    assert curve(recipe, "sampled") == pytest.approx(live, rel=0.25)
    assert curve(recipe, "tail") == pytest.approx(live, rel=0.1)
    assert len(stored(recipe)) == 4 and "reverse: signals-top_k" in out and "written before" in out
    assert all(value > 0 and math.isfinite(value) for value in curve(recipe, "reverse"))


def test_points_at_equal_distances_draw_what_they_should() -> None:
    """By hand: shares 0.5, 0.25, 0, 0.25 and 4 points give 2, 1, 0, 1 wherever the first lies; 2 points give the first
    one once and either of the others with equal chance; of a token without mass nothing counts."""
    weights = torch.tensor([[0.5, 0.25, 0.0, 0.25]]).repeat(400, 1)
    generator = torch.Generator().manual_seed(0)
    every = systematic(3.0 * weights, torch.full((400,), 4), 4, generator)
    assert (every == torch.tensor([0, 0, 1, 3])).all()
    two = systematic(weights, torch.full((400,), 2), 4, generator)[:, :2]
    assert (two[:, 0] == 0).all() and 160 < (two[:, 1] == 1).sum() < 240 and set(two[:, 1].tolist()) == {1, 3}
    ids = systematic(torch.zeros(2, 4), torch.zeros(2, dtype=torch.long), 4, generator)
    assert ids.shape == (2, 4) and ids.max() <= 3


def test_kept_tokens_and_draws_from_the_tail_are_the_distribution_in_expectation() -> None:
    """2,000 records of one distribution, through bytes and back: the mean is within four standard errors of it, the
    variance is that of draws from the tail, and the loss's gradient is that of the dense forward KL in the mean."""
    generator = torch.Generator().manual_seed(0)
    rows, k, draws, records = 40, 10, 20, 2000
    log_p = torch.log_softmax(2.0 * torch.randn(1, rows, generator=generator), -1)
    top, rest = top_of(log_p.expand(records, rows), k, 0.0)
    drawn = tail_drawn_of(rest, log_p.expand(records, rows), draws, generator)
    packed = encode_with_draws(top.fetch(), drawn.fetch(), rows, step_nats=1e-3, draws=draws)
    about = About("top_k", Fingerprint(rows, "", "", ""), step_nats=1e-3, draws=draws)
    targets = lay([Record(0, records, 0, packed)], about, tail_draws=True).targets()
    dense = np.zeros((records, rows))
    token_E = np.repeat(np.arange(records), targets.offsets.diff())
    dense[token_E, targets.ids_E] = targets.logprobs_E.exp()
    np.testing.assert_allclose(dense.sum(-1), 1.0, atol=1e-5)
    p, tail = log_p[0].exp().numpy(), float(rest[0].sum())
    share, used = rest[0].numpy() / tail, min(draws, math.ceil(4 * tail * draws))
    assert 1 < used < draws
    fraction = used * share % 1.0  # a count is the expected one rounded down or up
    deviation = tail * np.sqrt(fraction * (1 - fraction)) / used
    assert (np.abs(dense.mean(0) - p) <= 4 * deviation / math.sqrt(records) + 1e-3 * p).all()
    np.testing.assert_allclose(dense.std(0)[share > 0.01], deviation[share > 0.01], rtol=0.15)
    assert (deviation <= tail * np.sqrt(share * (1 - share) / used) + 1e-9).all()  # of draws independent of each other

    student = torch.randn(1, rows, generator=generator, dtype=torch.float64)
    labels = torch.zeros(records, dtype=torch.long)
    _, gradient = sparse_chunk_loss(student.expand(records, rows), targets, labels, None, Objective(), 0)
    expected = torch.softmax(student[0], -1) - log_p[0].exp()
    bound = 4 * torch.from_numpy(deviation) / math.sqrt(records) + 1e-3
    assert ((gradient.mean(0) - expected).abs() <= bound).all()


def test_rows_are_read_in_a_thread_and_a_damaged_one_stops_training_by_name(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    read = StoredTeacher.read
    monkeypatch.setattr(
        StoredTeacher, "read", lambda *args: (threads.append(threading.current_thread().name), read(*args))[1]
    )
    recipe = tiny.recipe(world, {**KD, "name": "whole", "signal": {"kind": "top_k"}})
    train(recipe)
    assert len(threads) >= 2 and all(name.startswith("signals") for name in threads)
    data = stored(recipe)[0] / DATA
    data.write_bytes(bytes(byte ^ 1 for byte in data.read_bytes()))
    with pytest.raises(DataError, match=r"the bytes of row [0-9a-f]+ at \d+ changed since they were written"):
        train(tiny.recipe(world, {**KD, "name": "damaged", "signal": {"kind": "top_k"}}))


@pytest.mark.parametrize("kind", ["hidden", "top_k", "sampled"])
def test_packed_rows_find_their_signals(world: Path, kind: str) -> None:
    """Sums of loss and gradient are those of the same rows unpacked."""
    settings = {"hidden": {"kind": "hidden"}, "top_k": {"kind": "top_k", "k": 9}, "sampled": {"kind": "sampled"}}[kind]
    recipe = tiny.recipe(world, {**KD, "signal": settings})
    stage.write_signals(recipe, Run(recipe), console=Console(file=io.StringIO()))
    from distill.train.batches import pack as pack_rows
    from distill.train.forward import attach_loss_head

    rows = read_sequences(load_tokenizer(world / "teacher"), [world / "chats.parquet"], 128)
    signal = StoredTeacher(Reader(stored(recipe)[0]), torch.device("cpu"))
    model = load_model(Run(recipe).checkpoint("student"), dtype="float32", device="cpu")
    attach_loss_head(model, Objective(), 64)
    sums = []
    for sequences in (rows, pack_rows(rows, 128, seed=0)):
        examples = [
            {"input_ids": ids, "labels": labels, "seq_lengths": segments, "row_ids": names}
            for ids, labels, segments, names in zip(
                sequences.input_ids, sequences.labels, sequences.segments, sequences.row_ids, strict=True
            )
        ]
        batch = collator(0)(examples)
        teacher = signal(batch)
        del batch["row_ids"]
        model.zero_grad()
        output = model(**batch, with_loss_head=True, teacher=teacher)
        output.loss.backward()
        sums.append((output.loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(sums[1][0], sums[0][0], rtol=1e-4, atol=1e-4)
    for ours, expected in zip(sums[1][1], sums[0][1], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


def test_writing_goes_on_where_it_was_killed(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny.recipe(world, {**KD, "signal": {"kind": "sampled"}})
    monkeypatch.setattr(recording, "_ROWS_A_COMMIT", 5)
    before = recording._record_batch
    calls: list[int] = []

    def dies(batch: Any, *rest: Any) -> Any:
        calls.append(len(batch))
        if sum(calls) > 12:
            raise KeyboardInterrupt
        return before(batch, *rest)

    monkeypatch.setattr(recording, "_record_batch", dies)
    with pytest.raises(KeyboardInterrupt):
        stage.write_signals(recipe, Run(recipe), console=Console(file=io.StringIO()))
    (folder,) = stored(recipe)
    assert (folder / INDEX).stat().st_size == 32 * 10 and not (folder / "manifest.json").exists()
    monkeypatch.setattr(recording, "_record_batch", before)
    stage.write_signals(recipe, Run(recipe), console=Console(file=io.StringIO()))
    whole = Reader(folder)
    rows = read_sequences(load_tokenizer(world / "teacher"), [world / "chats.parquet"], 1024)
    assert not whole.missing([names[0] for names in rows.row_ids])


def test_a_folder_from_elsewhere_is_used_or_refused_by_name(world: Path) -> None:
    made = tiny.recipe(world, {**KD, "signal": {"kind": "top_k"}})
    stage.write_signals(made, Run(made), console=Console(file=io.StringIO()))
    (folder,) = stored(made)
    folder.rename(world / "brought")
    entry = {**KD, "signal": {"kind": "stored", "path": str(world / "brought")}}
    recipe = tiny.recipe(world, entry)
    train(recipe)
    with pytest.raises(DataError, match="at temperature 1, training is at 2"):
        train(tiny.recipe(world, {**entry, "temperature": 2.0}))
    with pytest.raises(DataError, match=r"no signals of \d+ of the rows"):
        train(tiny.recipe(world, {**entry, "max_length": 12}))
    tiny.save_model(world / "other", seed=5)
    other = tiny.recipe(world, entry, teacher={"kind": "embedded", "model": str(world / "other")})
    with pytest.raises(DataError, match="of another teacher"):
        train(other)


@pytest.mark.parametrize("form", ["hidden", "top_k", "sampled"])
@pytest.mark.parametrize("extra", [7, -7], ids=["teacher-padded", "student-padded"])
def test_padded_vocabularies_are_exact(form: str, extra: int) -> None:
    """The teacher has more rows than the student, or fewer: each form equals the live loss over the common rows."""
    generator = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    from distill.objectives.head import Head

    student, teacher = Head(draw(30, 6).requires_grad_()), Head(draw(30 + extra, 5))
    hidden, states, labels = draw(9, 6), draw(9, 5), torch.arange(9)
    live = head_loss(hidden, student, states, teacher, labels, Objective())
    common = min(30, 30 + extra)
    log_p = torch.log_softmax(teacher.logits(states)[:, :common], -1)
    if form == "hidden":
        ours = head_loss(hidden, student, states.clone(), teacher, labels, Objective())
        torch.testing.assert_close(ours.loss, live.loss)
        return
    reduced = top_of(log_p, common - 1, 0.0)[0] if form == "top_k" else drawn_of(log_p, 100_000, generator)
    targets = targets_of(reduced.fetch(), common)
    sums = sparse_head_loss(hidden, student, targets, labels, Objective())
    tolerance = 1e-5 if form == "top_k" else 0.03
    assert sums.loss.item() == pytest.approx(live.loss.item(), rel=tolerance)
    ours_gradient, expected = (torch.autograd.grad(one.loss, student.weight)[0] for one in (sums, live))
    assert (ours_gradient - expected).norm() < 2 * tolerance * expected.norm()
    assert not ours_gradient[common:].any()


def test_offloaded_and_4_bit_teachers_give_signals(world: Path) -> None:
    path, cpu = str(world / "wide"), torch.device("cpu")
    tiny.save_model(world / "wide", width=64)  # bitsandbytes takes whole blocks of 64 on CPUs with avx512_bf16
    batch = {"input_ids": torch.arange(10, 34).view(2, 12)}
    plain, offloaded, small = (
        LiveTeacher.load(path, device=cpu, trust_remote_code=False, precision=precision, offload=offload)(batch)  # type: ignore[arg-type]
        for precision, offload in (("auto", False), ("auto", True), ("nf4", False))
    )
    torch.testing.assert_close(offloaded.hidden, plain.hidden)
    torch.testing.assert_close(offloaded.head.weight, plain.head.weight)
    agreement = torch.nn.functional.cosine_similarity(small.hidden, plain.hidden, dim=-1)
    assert agreement.mean() > 0.8 and not torch.equal(small.hidden, plain.hidden)


def told_by(world: Path) -> list[tuple[list[int], torch.Tensor]]:
    """Of every row: its tokens, and the teacher's log probabilities after each."""
    model = load_model(world / "teacher", dtype="float32", device="cpu")
    rows = read_sequences(load_tokenizer(world / "teacher"), [world / "chats.parquet"], 1024)
    with torch.no_grad():
        return [(ids, torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)) for ids in rows.input_ids]


def test_the_sidecar_of_generate_trains(world: Path) -> None:
    tokenizer = load_tokenizer(world / "teacher")
    rows = read_sequences(tokenizer, [world / "chats.parquet"], 1024)
    table = read_parquet(world / "chats.parquet")
    from distill.records import INSTRUCTION, write_parquet

    named = [{**row, "request_hash": f"r{number}"} for number, row in enumerate(table)]
    write_parquet(world / "chats.parquet", named, INSTRUCTION)
    packed: list[tuple[str, bytes | None]] = []
    for number, ((ids, log_p), labels) in enumerate(zip(told_by(world), rows.labels, strict=True)):
        positions = []
        for place, label in enumerate(labels[1:]):
            if label >= 0:
                values, top = log_p[place].topk(20)
                tops = tuple(
                    (f"token_id:{token}".encode(), value)
                    for token, value in zip(top.tolist(), values.tolist(), strict=True)
                )
                positions.append(Position(f"token_id:{ids[place + 1]}".encode(), 0.0, tops))
        packed.append((f"r{number}", pack(positions[:-1]) if number else None))  # without end of turn, one without all
    write_sidecar(world / SIDECAR, packed)
    signal = {"kind": "top_k", "k": 20, "min_probability": 0.0}
    recipe = tiny.recipe(
        world,
        {**KD, "name": "told", "init": "student", "signal": {**signal, "source": "sidecar"}},
        {**KD, "name": "weights", "init": "student", "signal": {**signal, "tail_draws": 0}},
    )
    train(recipe)
    told, weights = (Reader(path) for path in stored(recipe))
    assert len(told) == len(weights)
    first, expected = curve(recipe, "told")[0], curve(recipe, "weights")[0]
    assert 0.5 * expected < first < 1.02 * expected, "all but one token a row, and one row without"


def test_a_sidecar_counts_up_to_the_first_other_token() -> None:
    row = Row(1, [5, 6, 7, 8, 9], [-100, -100, 7, 8, 9])
    tops = np.array([[7, 1], [8, 2], [9, 3]])
    found = Distributions(np.array([7, 4, 9]), np.zeros(3, "f4"), tops, np.full((3, 2), -1.0, "f4"))
    assert aligned(row, found) == [{7: -1.0, 1: -1.0}, {8: -1.0, 2: -1.0}, None]
    assert aligned(row, None) == [None, None, None]


def test_a_server_is_asked_once_for_its_prompt_log_probabilities(world: Path) -> None:
    signal = {"kind": "top_k", "k": 8, "min_probability": 0.0}
    served = {**KD, "name": "served", "init": "student", "signal": {**signal, "source": "server"}}
    recipe = tiny.recipe(
        world,
        served,
        {**KD, "name": "weights", "init": "student", "signal": {**signal, "tail_draws": 0}},
        teacher={"kind": "embedded", "model": str(world / "teacher"), "dtype": "float32"},
    )
    model, tokenizer = load_model(world / "teacher", dtype="float32", device="cpu"), load_tokenizer(world / "teacher")
    server, url = start(Engine(model, tokenizer, EngineConfig(max_batch=8)), model_name=str(world / "teacher"))
    train(recipe, url)
    server.should_exit = True
    # The server tells tokens by their text: what is less likely than a part of a character goes to the tail.
    assert 0.3 * curve(recipe, "weights")[0] < curve(recipe, "served")[0] < 1.01 * curve(recipe, "weights")[0]
    again = tiny.recipe(world, {**served, "name": "again"}, teacher=recipe.teacher.model_dump())
    assert "written before" in train(again, "http://127.0.0.1:9/v1"), "nobody is asked again"


class ScoringServer:
    """A transport that speaks vLLM's dialect: the same three tokens for each but the first; counts what it is asked."""

    def __init__(self, dies_after: int = 1_000_000) -> None:
        self.asked: list[dict[str, Any]] = []
        self.dies_after = dies_after

    async def request(self, method: str, path: str, body: bytes | None, content_type: str) -> HttpReply:
        if len(self.asked) == self.dies_after:
            raise KeyboardInterrupt
        self.asked.append(json.loads(body or b""))
        one = {
            "5": {"logprob": -0.5, "rank": 1},
            "9": {"logprob": -1.5, "rank": 2},
            "7": {"logprob": -8, "rank": 40},
        }
        length = len(self.asked[-1]["prompt"])
        choice = {"text": "", "prompt_logprobs": [None] + [one] * (length - 1)}
        usage = {"prompt_tokens": length, "completion_tokens": 1}
        return HttpReply(200, {}, json.dumps({"choices": [choice], "usage": usage}).encode())

    async def close(self) -> None: ...


def scored_by(server: ScoringServer, ledger: Path, prompts: list[list[int]], **teacher: Any) -> list[Any]:
    """Scores of prompts, in a session of its own."""

    async def ask() -> list[Any]:
        section = OpenAITeacher(model="m", base_url="http://127.0.0.1:1/v1", **teacher)
        endpoint = Endpoint(section)
        endpoint.transport = server
        with Ledger(ledger) as kept:
            async with TeacherClient(section, kept, sender=ScoreSender(endpoint)) as client:
                return [await PromptScorer(client, {}).score(prompt, 2) for prompt in prompts]

    return asyncio.run(ask())


def test_vllms_dialect_is_read_by_ids(tmp_path: Path) -> None:
    """`prompt_logprobs` of vLLM: a mapping by token id for each token but the first, with its own as one more."""
    server = ScoringServer()
    assert scored_by(server, tmp_path / "ledger", [[3, 7]]) == [[None, {5: -0.5, 9: -1.5, 7: -8.0}]]
    assert server.asked == [{"model": "m", "prompt": [3, 7], "temperature": 0, "max_tokens": 1, "prompt_logprobs": 2}]


def test_a_row_is_paid_once_and_the_budget_holds(tmp_path: Path) -> None:
    """A kill costs what was in flight; earlier answers come from the ledger; the budget counts all sessions."""
    prompts, ledger = [[3, 7, number] for number in range(10, 16)], tmp_path / "ledger"
    killed, going_on = ScoringServer(dies_after=2), ScoringServer()
    with pytest.raises(KeyboardInterrupt):
        scored_by(killed, ledger, prompts)
    found = scored_by(going_on, ledger, prompts)
    assert [body["prompt"] for body in killed.asked + going_on.asked] == prompts and len(found) == 6
    nobody = ScoringServer(dies_after=0)
    assert scored_by(nobody, ledger, prompts) == found and nobody.asked == []
    priced = {
        "price": {"input": 1.0, "output": 0.0},
        "budget_usd": 7e-6,
    }  # 3 dollars a million rows: two rows and a bit
    server = ScoringServer()
    with pytest.raises(TeacherError, match=r"the budget of \$7e-06 is spent"):
        scored_by(server, tmp_path / "other", prompts, **priced)
    with pytest.raises(TeacherError, match=r"the budget of \$7e-06 is spent"):
        scored_by(server, tmp_path / "other", prompts, **priced)
    assert len(server.asked) == 3


def test_what_a_signal_cannot_give_is_refused_in_the_recipe(world: Path) -> None:
    told = {"kind": "top_k", "source": "server"}
    recipe = tiny.recipe(
        world,
        {**KD, "name": "one", "divergence": "reverse_kl", "signal": {"kind": "sampled"}},
        {**KD, "name": "two", "temperature": 2.0, "signal": told},
        {**KD, "name": "three", "divergence": "jsd", "signal": {"kind": "top_k", "tail_draws": 8}},
        {**KD, "name": "four", "signal": {**told, "tail_draws": 8}},
    )
    places = [location for location, _, _ in recipe.cross_problems()]
    assert places == [
        ("train", 0, "divergence"),
        ("train", 1, "temperature"),
        ("train", 2, "divergence"),
        ("train", 3, "signal"),
    ]
    for elsewhere in ({"offload": True}, {"shard": True}):
        small = {"kind": "live", "precision": "nf4"}
        assert not list(tiny.recipe(world, {**KD, "signal": small}).cross_problems())
        problems = tiny.recipe(world, {**KD, "signal": {**small, **elsewhere}}).cross_problems()
        assert [location for location, _, _ in problems] == [("train", 0, "signal")]
    served = {"model": "m", "base_url": "http://127.0.0.1:1/v1"}
    without = tiny.recipe(world, {**KD, "name": "a"}, {**KD, "name": "b", "signal": told}, teacher=served)
    assert [location for location, _, _ in without.cross_problems()] == [("train", 0, "objective")]
    with pytest.raises(DataError, match="no train entry has signals to write"):
        stage.write_signals(tiny.recipe(world, KD), Run(recipe), console=Console(file=io.StringIO()))
