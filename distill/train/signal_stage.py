"""Signals of a kd entry as a stage of its own: written once into the run's folder, before training, and found again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoConfig, PreTrainedTokenizerBase

from distill.errors import DataError
from distill.model.load import load_tokenizer, require_chat_template
from distill.recipe.schema import Recipe
from distill.recipe.signals import HiddenSignal, LiveSignal, SampledSignal, StoredSignal, TopKSignal, WrittenSignal
from distill.recipe.train import KdEntry, OnPolicyEntry
from distill.runs import Run, StageFolder, digest_of
from distill.teacher.client import TeacherClient
from distill.teacher.endpoint import Endpoint
from distill.teacher.ledger import Ledger
from distill.teacher.prompt_scores import PromptScorer, ScoreSender
from distill.teacher.requests import teacher_identity, weights_fingerprint
from distill.teacher.stored import About, Reader, Writer, read_about
from distill.text.token_bytes import ids_by_bytes
from distill.train.batches import Sequences, read_sequences
from distill.train.live import LiveTeacher, require_same_tokens
from distill.train.recording import record_rows, rows_to_write
from distill.train.signals import HEAD, Place, fingerprint, write_head
from distill.train.told import record_served, record_sidecars

BaseUrl = Callable[[], str | None]


def place_of(
    recipe: Recipe,
    run: Run,
    entry: KdEntry | OnPolicyEntry,
    init: Path,
    console: Console,
    *,
    base_url: BaseUrl,
    inputs: dict[str, str],
) -> Place:
    """Where the entry finds its teacher; signals that are to be stored and are not yet are written here.

    `inputs` are the train entry's: what of them decides the signals names their folder, so that entries share it.
    """
    weights = recipe.teacher_weights()
    trust = recipe.student.trust_remote_code if recipe.student is not None else False
    if isinstance(entry, OnPolicyEntry) or entry.ce_weight == 1.0 or isinstance(entry.signal, LiveSignal):
        return Place(weights, "", None, trust, recipe.scoring_weights(entry))
    if isinstance(entry.signal, StoredSignal):
        folder = Path(entry.signal.path)
        return Place(weights, _identity_among(recipe, read_about(folder).fingerprint.teacher), folder, trust)
    told = isinstance(entry.signal, TopKSignal) and entry.signal.source != "weights"
    identity = teacher_identity(recipe.teacher) if told or weights is None else weights_fingerprint(weights)
    tokenizer = load_tokenizer(init, trust_remote_code=trust)
    decisive = {name: value for name, value in inputs.items() if name.startswith("data:")}
    decisive["holds"] = digest_of(vars(fingerprint(tokenizer, vocabulary=_vocabulary(init, trust), teacher=identity)))
    temperature = None if isinstance(entry.signal, HiddenSignal) else entry.temperature
    settings = entry.signal.model_dump(mode="json")
    decisive["signal"] = digest_of({**settings, "max_length": entry.max_length, "temperature": temperature})
    folder_name = f"{entry.signal.kind}-{digest_of(decisive)[:8]}"
    stage = run.stage("signals", folder_name)
    place = Place(weights, identity, stage.path, trust)
    if stage.is_done(decisive):
        console.print(f"{entry.name}: {stage.name} written before")
        return place
    stage.begin(decisive)
    metrics, notes = _write(recipe, run, entry, entry.signal, tokenizer, init, place, console, base_url)
    stage.finish(recipe, decisive, metrics=metrics, notes=notes)
    console.print(f"{entry.name}: {_line(stage, metrics)}")
    return place


def _identity_among(recipe: Recipe, found: str) -> str:
    """The recipe's teacher as a stored signal would name it: by its weights, or by where it is served."""
    weights = recipe.teacher_weights()
    known = [weights_fingerprint(weights)] if weights is not None else []
    known.append(teacher_identity(recipe.teacher))
    return found if found in known else known[0]


def _write(
    recipe: Recipe,
    run: Run,
    entry: KdEntry,
    settings: WrittenSignal,
    tokenizer: PreTrainedTokenizerBase,
    init: Path,
    place: Place,
    console: Console,
    base_url: BaseUrl,
) -> tuple[dict[str, Any], list[str]]:
    require_chat_template(tokenizer, init)
    data = [run.dataset(name) for name in entry.data]
    rows = read_sequences(tokenizer, data, entry.max_length)
    assert place.stored is not None
    notes: list[str] = []
    if isinstance(settings, TopKSignal) and settings.source != "weights":
        about = _about(entry, settings, tokenizer, place, vocabulary=_vocabulary(init, place.trust_remote_code))
        writer = Writer(place.stored, about)
        if settings.source == "sidecar":
            known, total = record_sidecars(rows, data, tokenizer.get_vocab(), writer, about, settings)
            if known < total:
                notes.append(f"{total - known:,} of {total:,} tokens have no distribution in the sidecar")
        else:
            with Ledger(run.ledger_path) as ledger:
                served = _serve(
                    recipe, ledger, rows, tokenizer, writer, about, settings, base_url(), console, entry.name
                )
                asyncio.run(served)
    else:
        _from_weights(entry, settings, tokenizer, rows, init, place, console)
    reader = Reader(place.stored)
    return {
        "form": reader.about.form,
        "rows": len(reader),
        "tokens": reader.tokens,
        "size_bytes": reader.size_bytes,
        "bytes_per_token": reader.size_bytes / max(1, reader.tokens),
    }, notes


def _from_weights(
    entry: KdEntry,
    settings: WrittenSignal,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequences,
    init: Path,
    place: Place,
    console: Console,
) -> None:
    assert place.weights is not None and place.stored is not None
    require_same_tokens(tokenizer, place.weights, trust_remote_code=place.trust_remote_code)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher = LiveTeacher.load(
        place.weights,
        device=device,
        trust_remote_code=place.trust_remote_code,
        precision=settings.precision,
        offload=settings.offload,
    )
    vocabulary = teacher.head.weight.shape[0]
    if not isinstance(settings, HiddenSignal):
        vocabulary = min(vocabulary, _vocabulary(init, place.trust_remote_code))
    about = _about(entry, settings, tokenizer, place, vocabulary=vocabulary, teacher=teacher)
    writer = Writer(place.stored, about)
    if isinstance(settings, HiddenSignal) and not (place.stored / HEAD).exists():
        write_head(place.stored, teacher.head)
    todo = rows_to_write(rows, writer)
    progress = _Progress(console, entry.name, len(todo))
    record_rows(todo, teacher, writer, about, settings, device=device, progress=progress)


def _about(
    entry: KdEntry,
    settings: WrittenSignal,
    tokenizer: PreTrainedTokenizerBase,
    place: Place,
    *,
    vocabulary: int,
    teacher: LiveTeacher | None = None,
) -> About:
    holds = fingerprint(tokenizer, vocabulary=vocabulary, teacher=place.identity)
    if isinstance(settings, HiddenSignal):
        assert teacher is not None
        width = teacher.head.weight.shape[1]
        dtype = str(teacher.model.dtype).removeprefix("torch.")
        return About("hidden", holds, width=width, dtype=dtype)
    if isinstance(settings, SampledSignal):
        return About("sampled", holds, temperature=entry.temperature, draws=settings.draws)
    step_nats, draws = settings.step_nats, settings.num_tail_draws
    return About("top_k", holds, temperature=entry.temperature, draws=draws, step_nats=step_nats)


def _vocabulary(init: Path, trust_remote_code: bool) -> int:
    """Rows of the student's head."""
    return int(AutoConfig.from_pretrained(init, trust_remote_code=trust_remote_code).get_text_config().vocab_size)


async def _serve(
    recipe: Recipe,
    ledger: Ledger,
    rows: Sequences,
    tokenizer: PreTrainedTokenizerBase,
    writer: Writer,
    about: About,
    settings: TopKSignal,
    url: str | None,
    console: Console,
    name: str,
) -> None:
    """Ask for the rows that are not written. The run's ledger and budget hold, whatever else they were used for."""
    todo = rows_to_write(rows, writer)
    sender = ScoreSender(Endpoint(recipe.teacher, url))
    shared = bool(recipe.teachers)
    async with TeacherClient(recipe.teacher, ledger, base_url=url, sender=sender, shared=shared) as client:
        scorer = PromptScorer(client, ids_by_bytes(tokenizer.get_vocab()))
        progress = _Progress(console, name, len(todo))
        await record_served(todo, scorer, writer, about, settings, name=name, progress=progress)
        usage = client.usage
        spent = f", ${usage.spent_usd:.4f}" if client.rates is not None else ""
        console.print(f"{name}: {usage.answered:,} rows asked, {usage.from_ledger:,} from the ledger{spent}")


class _Progress:
    """A line every tenth of the rows."""

    def __init__(self, console: Console, name: str, total: int) -> None:
        self._console, self._name, self._total = console, name, total
        self._done = 0

    def __call__(self, rows: int) -> None:
        before, self._done = self._done, self._done + rows
        if self._done * 10 // self._total > before * 10 // self._total:
            self._console.print(f"{self._name}: signals of {self._done:,} of {self._total:,} rows")


def _line(stage: StageFolder, metrics: dict[str, Any]) -> str:
    size = metrics["size_bytes"] / 2**20
    return f"{stage.name}: {metrics['tokens']:,} tokens, {metrics['bytes_per_token']:.1f} bytes each, {size:.1f} MiB"


def require_kd(recipe: Recipe, entry: str | None) -> Sequence[str]:
    """Names of the entries whose signals can be written. Raises DataError where there is none."""
    found = [
        item.name
        for item in recipe.train
        if isinstance(item, KdEntry) and not isinstance(item.signal, LiveSignal | StoredSignal)
    ]
    wanted = found if entry is None else [name for name in found if name == entry]
    if not wanted:
        raise DataError(
            "no train entry has signals to write", remedy="set signal.kind of a kd entry to top_k, sampled or hidden"
        )
    return wanted
