"""lm-eval, unmodified, against the server: the same numbers as its own transformers backend gives in fp32."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers as hf

from distill.engine.runner import Engine, EngineConfig
from tests.engine.models import byte_tokenizer, chat_model
from tests.serve.conftest import Running, start

lm_eval = pytest.importorskip("lm_eval", reason="in the extra `harness`, which `make test-slow` installs")
pytestmark = pytest.mark.slow
QUESTIONS = [
    ("the cat sat on", [" the mat", " a dog", " door the", " the door"], 0),
    ("and the dog", [" ran", " sat on the", " to", " cat"], 1),
    ("ran to the", [" door", " cat ", " mat and the dog", "é"], 2),
    ("the mat", [" and", " the", " on the mat", " dog"], 3),
    ("a naïve café", [" é", " the cat", "\n", " sat"], 0),
]
TASKS = {
    "tiny_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "tiny_rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "tiny_generate": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["\n", " ", "zz", "qq", "xx", "ww"], "max_gen_toks": 24, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and tasks that need no network."""
    root = tmp_path_factory.mktemp("lm-eval")
    tokenizer = byte_tokenizer()
    chat_model(tokenizer).save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    rows = [
        {"question": q, "choices": c, "answer": a, "text": f"{q}{c[a]}. the cat and the dog sat. " * (12 if a else 1)}
        for q, c, a in QUESTIONS
    ]
    (root / "tasks").mkdir()
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, task in TASKS.items():
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(root / "rows.jsonl")}}}
        whole = {"task": name, **source, "test_split": "test", **task}
        (root / "tasks" / f"{name}.yaml").write_text(json.dumps(whole))  # JSON is YAML
    return root


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    tokenizer = hf.AutoTokenizer.from_pretrained(folder / "model")
    model = hf.AutoModelForCausalLM.from_pretrained(folder / "model").float()
    engine = Engine(model, tokenizer, EngineConfig(max_batch=16, block_size=8))
    started, url = start(engine)
    yield Running(url, engine, tokenizer)
    started.should_exit = True


def _evaluate(folder: Path, model: str, arguments: dict[str, Any], tasks: list[str], **options: Any) -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=tasks,
        task_manager=manager,
        bootstrap_iters=0,
        log_samples=True,
        **options,
    )
    assert found is not None
    return found


@pytest.fixture(scope="module")
def reference(folder: Path) -> dict[str, Any]:
    """lm-eval's own backend, in fp32."""
    arguments = {"pretrained": str(folder / "model"), "dtype": "float32", "device": "cpu", "max_length": 256}
    return _evaluate(folder, "hf", arguments, list(TASKS), batch_size=1)


def _arguments(folder: Path, server: Running, **changes: Any) -> dict[str, Any]:
    return {
        "model": "tiny/chat",
        "tokenizer": str(folder / "model"),
        "base_url": f"{server.url}/completions",
        "max_length": 256,
        "max_retries": 1,
        **changes,
    }


def _answers(found: dict[str, Any], task: str) -> list[Any]:
    """Per document, in order: (log likelihood, greedy?) of each choice, a log likelihood, or a text."""
    samples = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
    return [sample["filtered_resps"] for sample in samples]


@pytest.mark.parametrize("concurrent,remote", [(1, False), (4, False), (1, True)])
def test_completions_give_the_numbers_of_the_reference(
    folder: Path, server: Running, reference: dict[str, Any], concurrent: int, remote: bool
) -> None:
    changes: dict[str, Any] = {"num_concurrent": concurrent}
    if remote:  # the harness asks our server to tokenize
        changes |= {"tokenizer": None, "tokenizer_backend": "remote"}
    found = _evaluate(folder, "local-completions", _arguments(folder, server, **changes), list(TASKS), batch_size=2)
    for ours, theirs in zip(_answers(found, "tiny_choice"), _answers(reference, "tiny_choice"), strict=True):
        assert [float(p) for p, _ in ours] == pytest.approx([float(p) for p, _ in theirs], rel=1e-6)
        assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    rolling = [float(p) for (p,) in map(_flat, _answers(found, "tiny_rolling"))]
    assert rolling == pytest.approx([float(p) for (p,) in map(_flat, _answers(reference, "tiny_rolling"))], rel=1e-6)
    assert _answers(found, "tiny_generate") == _answers(reference, "tiny_generate")
    for task, metrics in reference["results"].items():
        for name, value in metrics.items():
            if isinstance(value, float) and "stderr" not in name:
                tolerance = {"rel": 0, "abs": 0} if name.startswith("acc") else {"rel": 1e-6}
                assert found["results"][task][name] == pytest.approx(value, **tolerance), (task, name)
    assert server.engine.blocks_in_use == 0


def _flat(answers: list[Any]) -> list[float]:
    return [a[0] if isinstance(a, list | tuple) else a for a in answers]


def test_chats_give_the_texts_of_the_reference(folder: Path, server: Running) -> None:
    arguments = {"pretrained": str(folder / "model"), "dtype": "float32", "device": "cpu", "max_length": 256}
    theirs = _evaluate(folder, "hf", arguments, ["tiny_generate"], batch_size=1, apply_chat_template=True)
    ours = _evaluate(
        folder,
        "local-chat-completions",
        _arguments(folder, server, base_url=f"{server.url}/chat/completions", tokenizer=None),
        ["tiny_generate"],
        apply_chat_template=True,
    )
    assert _answers(ours, "tiny_generate") == _answers(theirs, "tiny_generate")
    assert any(text for (text,) in _answers(ours, "tiny_generate"))
