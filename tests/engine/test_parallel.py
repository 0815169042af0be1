"""A model over two processes: the same text, half of the KV cache in each, and one server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import openai
import pytest
import torch
import transformers as hf

from distill.engine.batch import Work, pack
from distill.engine.buffers import StepBuffers
from distill.engine.kv_cache import LayerShape, PagedKVCache
from distill.engine.parallel import decode, encode
from distill.engine.runner import Engine
from distill.engine.sequence import GONE, Sequence
from distill.engine.types import SamplingParams
from distill.errors import CheckpointError
from distill.model.load import load_model
from distill.model.shards import check_shares
from tests.engine.models import ARCHITECTURES, byte_tokenizer, chat_model, tiny_model
from tests.engine.share_worker import CONFIG, PARAMS, PROMPTS

ROOT = Path(__file__).parents[2]


def _sequence(tokens: list[int], tables: list[list[int]], computed: int, shared: int = 0) -> Sequence:
    sequence = Sequence("x", tokens, len(tokens), SamplingParams(), 0, 99, frozenset())
    sequence.tables, sequence.num_dropped = tables, [table.count(GONE) for table in tables]
    sequence.num_computed, sequence.num_shared = computed, shared
    return sequence


def test_a_step_survives_being_sent() -> None:
    """Two groups of layers, the second with a window of two tokens."""
    works = [
        Work(_sequence(list(range(20, 26)), [[3, 1], [GONE, 9]], 5), 1),
        Work(_sequence(list(range(30, 41)), [[2, 7, 5], [GONE, 8, 12]], 8), 3),
        Work(_sequence(list(range(50, 59)), [[0, 6, 4], [10, 11]], 3, shared=4), 5),
    ]
    cpu = torch.device("cpu")
    cache = PagedKVCache(
        [LayerShape(1, 2, 2)], places=[(0, 0), (1, 0)], num_blocks=13, block_size=4, dtype=torch.float32, device=cpu
    )
    sent, rows = decode(torch.tensor(encode(works, [0, 3, 8])).tolist())
    assert rows == [0, 3, 8]
    ours, theirs = (pack(w, cache, StepBuffers(cpu)) for w in (works, sent))
    for name in ("input_ids", "position_ids", "stored"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert ours.num_decode == theirs.num_decode == 1
    assert len(ours.placements) == len(theirs.placements) == 2
    for own, other, window in zip(ours.placements, theirs.placements, (None, 2), strict=True):
        assert own.slots is not None and other.slots is not None and torch.equal(own.slots, other.slots)
        assert [(s.start, s.end, s.context, s.skipped) for s in own.segments] == [
            (s.start, s.end, s.context, s.skipped) for s in other.segments
        ]
        for a, b in zip(own.segments, other.segments, strict=True):
            assert a.blocks is not None and b.blocks is not None and torch.equal(a.blocks, b.blocks)
        assert own.decode is not None and other.decode is not None
        assert torch.equal(own.decode.view(window).rows, other.decode.view(window).rows)
        assert torch.equal(own.decode.view(window).visible, other.decode.view(window).visible)


@pytest.mark.parametrize(
    "config,shards,named",
    [
        (hf.OPTConfig(), 2, "no tensor-parallel plan for opt"),
        (hf.LlamaConfig(num_attention_heads=8, num_key_value_heads=1), 2, "cannot share 1 KV heads"),
        (hf.LlamaConfig(num_attention_heads=8, num_key_value_heads=8), 3, "cannot share 8 attention heads"),
    ],
)
def test_what_cannot_be_shared_is_refused(config: hf.PretrainedConfig, shards: int, named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        check_shares(config, shards)


def test_a_quantized_model_is_refused(tmp_path: Path) -> None:
    chat_model(byte_tokenizer()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(CheckpointError, match="cannot be cut into shares"):
        load_model(tmp_path, num_shards=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = byte_tokenizer()
    chat_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _launch(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [*command, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
def test_two_processes_write_what_one_writes(tmp_path: Path) -> None:
    names = [name for name in ARCHITECTURES if name not in ("llama-mqa", "opt")]  # those two are refused
    for name in names:
        tiny_model(name).save_pretrained(tmp_path / "models" / name)
    launched = _launch("-m", "tests.engine.share_worker", str(tmp_path))
    output, _ = launched.communicate(timeout=300)
    assert launched.returncode == 0, output
    for name in names:
        first, second = (json.loads((tmp_path / f"{name}.{rank}.json").read_text()) for rank in (0, 1))
        engine = Engine(load_model(tmp_path / "models" / name, dtype="float32"), None, CONFIG)
        alone = engine.generate(PROMPTS, PARAMS)
        assert engine.cache is not None
        shares = 1 if name == "phi3" else 2  # its plan gathers K and V
        for held in (first, second):
            assert held["kv_heads"] * shares == engine.cache.keys[0].shape[1], name
            assert held["bytes_per_token"] * shares == engine.cache.bytes_per_token, name
        assert first["preemptions"] > 0 or name == "mistral", name  # whose window gives blocks back
        assert first["tokens"] == [list(c.token_ids) for c in alone], name
        for found, completion in zip(first["scores"], alone, strict=True):
            expected = [t.logprob for t in completion.prompt_logprobs or () if t is not None]
            assert found == pytest.approx(expected, rel=1e-3, abs=1e-4), name


@pytest.mark.slow
def test_one_of_them_serves(folder: Path, tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    flags = [
        "--tensor-parallel",
        "--port",
        "0",
        "--dtype",
        "float32",
        "--model-name",
        "tiny",
        "--ready-file",
        str(ready),
    ]
    launched = _launch("-m", "distill", "serve", str(folder), *flags)
    try:
        deadline = time.monotonic() + 300
        while not ready.exists():
            assert launched.poll() is None and time.monotonic() < deadline, launched.communicate()[0]
            time.sleep(0.1)
        with openai.OpenAI(base_url=json.loads(ready.read_text())["base_url"], api_key="-", max_retries=0) as client:
            texts = [
                client.completions.create(model="tiny", prompt=prompt, max_tokens=20, temperature=0).choices[0].text
                for prompt in ("the cat", "a dog and a door")
            ]
    finally:
        launched.send_signal(signal.SIGTERM)
        output, _ = launched.communicate(timeout=60)
    assert output.count("serving on") == 1
    assert "the server's process is gone" not in output
    tokenizer = byte_tokenizer()
    engine = Engine(load_model(folder, dtype="float32"), tokenizer, CONFIG)
    prompts = [tokenizer(text)["input_ids"] for text in ("the cat", "a dog and a door")]
    assert texts == [c.text for c in engine.generate(prompts, SamplingParams(max_tokens=20))]
