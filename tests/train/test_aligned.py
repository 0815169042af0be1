"""A teacher of another tokenizer and chat template, in runs: the loss by hand, packing, resume, what is refused."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from distill.errors import CheckpointError, DataError, DistillError
from distill.model.load import load_model, load_tokenizer
from distill.model.tokenizer import train_tokenizer
from distill.objectives.aligned import Tokens, span_distances
from distill.objectives.divergences import Objective
from distill.objectives.events import events_of
from distill.recipe.load import load_recipe
from distill.recipe.schema import Recipe
from distill.records import INSTRUCTION, read_parquet, write_parquet
from distill.runs import Run, file_digest
from distill.text.spans import Span
from distill.track import read_metrics
from distill.train import stage
from distill.train.aligned import align, spelling_of
from distill.train.batches import pack, read_sequences
from tests.objectives.two_vocabularies import cuts_between
from tests.train import tiny

# The answer in lines of its own, another end of turn, no special token for a role.
TEMPLATE = (
    "{% for message in messages %}{{ '### ' + message['role'] + '\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|eot|>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant\n' }}{% endif %}"
)


def tokenizer_of(words: list[str], size: int) -> PreTrainedTokenizerFast:
    rng = random.Random(7)
    return train_tokenizer((" ".join(rng.choices(words, k=20)) for _ in range(300)), vocab_size=size, max_positions=256)


def student_tokenizer() -> PreTrainedTokenizerFast:
    """Whole tokens for the first words of the tiny world; the last ones are pieces."""
    return tokenizer_of(list(tiny.WORDS[:12]), 310)


def teacher_tokenizer() -> PreTrainedTokenizerFast:
    """Whole tokens for the last words; with another chat template and another end of turn."""
    tokens = tokenizer_of([*tiny.WORDS[6:], "### assistant", "### user"], 320)
    tokens.add_special_tokens({"eos_token": "<|eot|>"})
    tokens.chat_template = TEMPLATE
    return tokens


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that learnt its answers, in its own tokens, and a student that has not."""
    folder = tmp_path_factory.mktemp("aligned")
    tiny.save_data(folder, rows=120)
    tiny.save_model(folder / "untaught", width=48, tokens=teacher_tokenizer())
    tiny.save_model(folder / "student", seed=1, tokens=student_tokenizer())
    taught = tiny.recipe(
        folder,
        {"objective": "sft", "max_steps": 150},
        name="taught",
        student={"model": str(folder / "untaught"), "dtype": "float32"},
    )
    train(taught)
    Run(taught).checkpoint("sft").rename(folder / "teacher")
    return folder


def recipe_of(world: Path, name: str, *, student: str = "student", **entry: Any) -> Recipe:
    model = {"model": str(world / student), "dtype": "float32"}
    return tiny.recipe(world, {"objective": "kd", "alignment": {}, **entry}, name=name, student=model)


def train(recipe: Recipe) -> str:
    out = io.StringIO()
    stage.run(recipe, Run(recipe), console=Console(file=out, width=200))
    return out.getvalue()


def curve(recipe: Recipe) -> list[dict[str, Any]]:
    lines = read_metrics(Run(recipe).stage("train", "kd").path / "metrics.jsonl")
    return [{key: value for key, value in line.items() if "second" not in key} for line in lines]


@pytest.mark.parametrize("unmatched", ["prefix", "uld"])
def test_the_student_learns_from_it(world: Path, unmatched: str) -> None:
    """From the distributions alone (ce_weight 0): the divergence falls, and the answers become likelier."""
    recipe = recipe_of(world, f"learns-{unmatched}", alignment={"unmatched": unmatched}, max_steps=120)
    out = train(recipe)
    lines = curve(recipe)
    keys = ("divergence", "cross_entropy", "agreement")
    first, last = ({key: sum(line[key] for line in part) / 5 for key in keys} for part in (lines[:5], lines[-5:]))
    assert last["divergence"] < 0.5 * first["divergence"], (first, last)
    assert last["cross_entropy"] < 0.5 * first["cross_entropy"], (first, last)
    assert last["agreement"] > first["agreement"] + 0.2, (first, last)
    metrics = Run(recipe).stage("train", "kd").require().metrics
    assert metrics["compared_tokens"] == 1.0 and 0.1 < metrics["paired_tokens"] < 0.5
    assert 0.5 < metrics["shared_vocabulary"] < 1.0
    assert "of the student's tokens" in out


def by_offsets(ours: PreTrainedTokenizerFast, theirs: PreTrainedTokenizerFast, text: str) -> list[Span]:
    """Spans of an ASCII text from the tokenizers' character offsets."""
    ends = [
        [end for _, end in tokens(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]]
        for tokens in (ours, theirs)
    ]
    common = sorted(set(ends[0]) & set(ends[1]))
    edges = [[0, *(side.index(end) + 1 for end in common)] for side in ends]
    return [Span(*pair) for pair in zip(edges[0], edges[0][1:], edges[1], edges[1][1:], strict=False)]


@pytest.mark.parametrize("packing", [False, True])
def test_the_loss_of_a_step_by_hand(world: Path, packing: bool) -> None:
    """Reverse KL over spans that the tokenizers' own offsets give, on logits of plain forward passes."""
    name = f"hand-{packing}".lower()
    recipe = recipe_of(
        world, name, divergence="reverse_kl", batch_size=120, micro_batch_size=4, max_steps=1, ce_weight=0.1
    )
    if packing:
        rows = read_sequences(load_tokenizer(world / "student"), [world / "chats.parquet"], 128)
        count = len(pack(rows, 128, 0).input_ids)
        settings = {"packing": True, "max_length": 128, "batch_size": count, "micro_batch_size": 1}
        recipe = recipe_of(world, name, divergence="reverse_kl", max_steps=1, ce_weight=0.1, **settings)
    train(recipe)
    models = [load_model(world / side, dtype="float32", device="cpu") for side in ("student", "teacher")]
    tokenizers: list[Any] = [load_tokenizer(world / side) for side in ("student", "teacher")]
    spellings = [spelling_of(tokens) for tokens in tokenizers]
    ends = tuple(
        tokens.convert_tokens_to_ids(end) for tokens, end in zip(tokenizers, ("<|end|>", "<|eot|>"), strict=True)
    )
    sizes = tuple(model.get_output_embeddings().weight.shape[0] for model in models)
    events = events_of(*spellings, rows=sizes, ends=ends, unmatched="prefix")  # type: ignore[arg-type]
    distance = ce = scored = 0.0
    for row in read_parquet(world / "chats.parquet", columns=("messages",)):
        question, answer = (message["content"] for message in row["messages"])
        prompts = (f"<|bos|><|user|>{question}<|end|><|assistant|>", f"### user\n{question}\n### assistant\n")
        spans = by_offsets(tokenizers[0], tokenizers[1], answer)
        sides = []
        for model, tokens, prompt, end, starts in zip(models, tokenizers, prompts, ends, ((0, 1), (2, 3)), strict=True):
            before, after = (tokens(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer))
            numbers = [n for n, span in enumerate(spans) for _ in range(span[starts[0]], span[starts[1]])]
            with torch.no_grad():
                logits = model(torch.tensor([[*before, *after, end]])).logits[0, len(before) - 1 : -1]
            sides.append(Tokens(logits.double(), torch.tensor([*after, end]), torch.tensor([*numbers, len(spans)])))
        found = [(say, side.ids_C.tolist(), side.spans_C.tolist()) for say, side in zip(spellings, sides, strict=True)]
        distances, _ = span_distances(*sides, cuts_between(*found), events, Objective("reverse_kl"), 1.0)
        distance += float(distances.sum())
        ce += float(torch.nn.functional.cross_entropy(sides[0].logits_CV, sides[0].ids_C, reduction="sum"))
        scored += len(sides[0].ids_C)
    line = curve(recipe)[0]
    assert line["divergence"] == pytest.approx(distance / scored, rel=1e-4)
    assert line["loss"] == pytest.approx((0.9 * distance + 0.1 * ce) / scored, rel=1e-4)


@pytest.mark.parametrize("unmatched", ["prefix", "uld"])
def test_equal_tokenizers_are_ordinary_kd(world: Path, unmatched: str) -> None:
    tiny.save_model(world / "same", width=48, tokens=student_tokenizer())
    curves = []
    for alignment in (None, {"unmatched": unmatched}):
        recipe = recipe_of(world, f"same-{unmatched}-{alignment is None}".lower(), alignment=alignment)
        teacher = recipe.teacher.model_copy(update={"model": str(world / "same")})
        recipe = recipe.model_copy(update={"teacher": teacher})
        train(recipe)
        curves.append(curve(recipe))
    for plain, aligned in zip(*curves, strict=True):
        assert aligned == pytest.approx(plain, rel=2e-4)


OWN: dict[str, Any] = {
    "objective": "on_policy",
    "rollout": {"max_new_tokens": 12, "kv_gib": 0.01},
    "lmbda": 0.4,
    "max_steps": 6,
}


def test_on_policy_with_equal_tokenizers_is_ordinary(world: Path) -> None:
    """The student's own answers, aligned as they come, and the dataset's between them: the plain entry's curve.

    Of a student that writes words as its tokenizer does: the teacher reads texts, and cuts them in its own way.
    """
    tiny.save_model(world / "same-own", width=48, tokens=student_tokenizer())
    model = {"model": str(world / "student"), "dtype": "float32"}
    taught = tiny.recipe(world, {"objective": "sft", "max_steps": 200}, name="writes", student=model)
    train(taught)
    Run(taught).checkpoint("sft").rename(world / "writes")
    curves = []
    for alignment in (None, {}):
        settings = {**OWN, "rollout": {**OWN["rollout"], "temperature": 0.0}, "learning_rate": 1e-4}
        recipe = recipe_of(world, f"own-{alignment is None}".lower(), student="writes", alignment=alignment, **settings)
        teacher = recipe.teacher.model_copy(update={"model": str(world / "same-own")})
        recipe = recipe.model_copy(update={"teacher": teacher})
        train(recipe)
        lines = read_metrics(Run(recipe).stage("train", "on_policy").path / "metrics.jsonl")
        curves.append([{key: value for key, value in line.items() if "second" not in key} for line in lines])
    assert {line["on_policy"] for line in curves[0]} == {0.0, 1.0}
    for plain, aligned in zip(*curves, strict=True):
        assert aligned == pytest.approx(plain, rel=5e-4)


def test_on_policy_with_another_tokenizer(world: Path) -> None:
    """The answers of a student that knows nothing are any bytes, of which little is compared: it is not led astray."""
    recipe = recipe_of(world, "own-other", **{**OWN, "divergence": "forward_kl", "max_steps": 60, "lmbda": 0.5})
    train(recipe)
    lines = read_metrics(Run(recipe).stage("train", "on_policy").path / "metrics.jsonl")
    given, own = ([line for line in lines if line["on_policy"] == share] for share in (0.0, 1.0))
    assert len(own) > 20 and all(line["divergence"] >= 0 for line in own)
    assert sum(line["divergence"] for line in given[-5:]) < 0.7 * sum(line["divergence"] for line in given[:5])


def test_what_the_student_wrote_is_read_by_the_teacher(world: Path) -> None:
    """A broken character and a special token end what is compared; the rest of the answer is in no span."""
    ours, theirs = load_tokenizer(world / "student"), load_tokenizer(world / "teacher")
    rows = read_sequences(ours, [world / "chats.parquet"], 256)
    aligned = align(rows, [world / "chats.parquet"], ours, theirs)
    name, ids, labels = rows.row_ids[0][0], rows.input_ids[0], rows.labels[0]
    start = next(place for place, label in enumerate(labels) if label >= 0)
    assert aligned.row(name, [*ids, 0], [*labels, -100]) == aligned.rows[name]

    def written(*parts: str | list[int]) -> tuple[list[int], list[int]]:
        answer = [
            index
            for part in parts
            for index in (part if isinstance(part, list) else ours(part, add_special_tokens=False)["input_ids"])
        ]
        return [*ids[:start], *answer, 0, 0], [-100] * start + answer + [-100, -100]

    said = ours(" tall red", add_special_tokens=False)["input_ids"]
    whole = aligned.row(name, *written(" tall red", [ours.eos_token_id]))
    assert -1 not in whole.spans and whole.trained == [*said, ours.eos_token_id]
    prompt = theirs.apply_chat_template(
        aligned.chats[name], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert whole.ids == [*prompt, *theirs(" tall red", add_special_tokens=False)["input_ids"], theirs.eos_token_id]
    cut = aligned.row(name, *written(" tall red"))
    assert cut.spans == whole.spans[:-1]
    broken = ours("🙂", add_special_tokens=False)["input_ids"][:-1]
    for end in (broken, [ours.bos_token_id, *said]):
        row = aligned.row(name, *written(" tall red", end))
        assert row.spans == [*cut.spans, *([-1] * len(end))] and row.their_spans == cut.their_spans
    nothing = aligned.row(name, *written([ours.eos_token_id]))
    assert nothing.spans == [0] and [nothing.ids[place] for place in nothing.places] == [theirs.eos_token_id]


@pytest.mark.parametrize("lora", [False, True])
def test_resumed_equals_uninterrupted(world: Path, monkeypatch: pytest.MonkeyPatch, lora: bool) -> None:
    adapters: dict[str, Any] = {"lora": {"rank": 4}} if lora else {}
    whole, parts = (recipe_of(world, f"{name}-{lora}".lower(), **adapters) for name in ("whole", "parts"))
    train(whole)
    with tiny.stopped_after(3, monkeypatch), pytest.raises(SystemExit):
        train(parts)
    assert "going on from step 3" in train(parts)
    assert curve(parts) == curve(whole)
    folders = [Run(recipe).stage("train", "kd").path / "model" for recipe in (whole, parts)]
    assert len({file_digest(folder / "model.safetensors") for folder in folders}) == 1


def chat(*turns: str) -> list[dict[str, str]]:
    return [{"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(turns)]


def test_rows_of_several_turns_cut_and_packed(world: Path, tmp_path: Path) -> None:
    """Spans spell the answers' bytes in both tokenizations, turn by turn; a cut row keeps what is whole of it."""
    chats = [
        chat("count red", "red\n  round 🙂🙂 tall", "and?", " the last ", "so?", ""),
        chat("漢字?", "grün, 漢字 the count of"),
    ]
    rows_written = [{"messages": messages} for messages in chats]
    write_parquet(tmp_path / "turns.parquet", rows_written, INSTRUCTION)
    ours, theirs = load_tokenizer(world / "student"), load_tokenizer(world / "teacher")
    spell, other = spelling_of(ours), spelling_of(theirs)
    for limit in (256, 30, 22):
        rows = read_sequences(ours, [tmp_path / "turns.parquet"], limit)
        aligned = align(rows, [tmp_path / "turns.parquet"], ours, theirs)
        packed = align(pack(rows, 512, 0), [tmp_path / "turns.parquet"], ours, theirs)
        assert packed.rows == aligned.rows and packed.ends == aligned.ends == (ours.eos_token_id, theirs.eos_token_id)
        for ids, labels, names in zip(rows.input_ids, rows.labels, rows.row_ids, strict=True):
            row = aligned.rows[names[0]]
            scored = [token for token, label in zip(ids, labels, strict=True) if label >= 0]
            assert len(scored) == len(row.spans)
            for span in range(max(row.their_spans) + 1):
                mine = [token for token, number in zip(scored, row.spans, strict=True) if number == span]
                yours = [
                    row.ids[place] for place, number in zip(row.places, row.their_spans, strict=True) if number == span
                ]
                if mine == [ours.eos_token_id]:
                    assert yours == [theirs.eos_token_id]
                else:
                    assert b"".join(spell.of(mine)) == b"".join(other.of(yours))
            if limit == 256:
                assert -1 not in row.spans and row.spans == sorted(row.spans)
        if limit == 256:
            assert aligned.shares()["compared_tokens"] == 1.0
            few = align(rows, [tmp_path / "turns.parquet"], ours, theirs, teacher_tokens=40)
            assert 0 < few.shares()["compared_tokens"] < 1 and max(len(row.ids) for row in few.rows.values()) <= 40


def test_what_cannot_be_aligned_is_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="different tokenizers: .* set `alignment: {}` on the entry"):
        train(recipe_of(world, "unasked", alignment=None))
    spoiled = load_tokenizer(world / "teacher")
    spoiled.chat_template = TEMPLATE.replace("message['content'] }}", "message['content'] | upper }}")
    rows = read_sequences(load_tokenizer(world / "student"), [world / "chats.parquet"], 256)
    with pytest.raises(DataError, match="no answer is found in both"):
        align(rows, [world / "chats.parquet"], load_tokenizer(world / "student"), spoiled)
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "hello": 1}, unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    with pytest.raises(CheckpointError, match="do not spell a text byte by byte"):
        spelling_of(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]"))
    for extra, problem in (
        ("signal: {kind: top_k}", "alignment: what is stored or served of a teacher is in the student's tokens"),
        ("signal: {kind: stored, path: x}", "alignment: what is stored or served"),
        (
            "matching: {layers: [{student: 1, teacher: 1}]}",
            "alignment: hidden states of other tokens cannot be matched",
        ),
        ("kernel: triton", "alignment: the kernel compares models of one tokenizer"),
    ):
        (tmp_path / "r.yaml").write_text(
            "name: r\nteacher: {kind: embedded, model: m}\nstudent: {model: m}\n"
            f"train: [{{name: k, objective: kd, data: [a.parquet], alignment: {{}}, {extra}}}]\n"
        )
        with pytest.raises(DistillError, match=problem):
            load_recipe(tmp_path / "r.yaml")
