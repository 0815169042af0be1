"""Parameter counts against the published ones, and what a broken folder says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill.errors import CheckpointError
from distill.plan.shapes import KNOWN, pruned, read_size
from distill.recipe.prune import Prune
from distill.recipe.teacher import Student


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("mistralai/Mistral-7B-v0.1", 7_241_732_096),
        ("meta-llama/Llama-2-7b-hf", 6_738_415_616),
        ("meta-llama/Llama-2-13b-hf", 13_015_864_320),
        ("meta-llama/Llama-2-70b-hf", 68_976_648_192),
        ("meta-llama/Meta-Llama-3-8B", 8_030_261_248),
        ("Qwen/Qwen2.5-0.5B", 494_032_768),
        ("Qwen/Qwen2.5-7B", 7_615_616_512),
        ("microsoft/phi-1", 1_418_270_720),
    ],
)
def test_parameters_are_the_published_ones(model: str, parameters: int) -> None:
    assert KNOWN[model].parameters == parameters


def _config(**more: object) -> dict[str, object]:
    config: dict[str, object] = {
        "model_type": "llama",
        "num_hidden_layers": 3,
        "hidden_size": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 24,
        "vocab_size": 50,
        "tie_word_embeddings": True,
    }
    return config | more


def test_folder_is_counted_from_its_safetensors_header(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(_config()))
    header = json.dumps({"w": {"dtype": "BF16", "shape": [7, 3], "data_offsets": [0, 42]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(42))
    size = read_size(str(tmp_path))
    assert size is not None
    assert (size.parameters, size.weight_bytes) == (21, 42)


def test_folder_without_weights_is_counted_by_its_shape(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(_config()))
    size = read_size(str(tmp_path))
    assert size is not None and size.weight_bytes is None
    # layer: q 256, k and v 128 each, o 256, three of 384, two norms of 16; then embedding 800 and the last norm 16
    assert size.parameters == 3 * (256 + 128 + 128 + 256 + 3 * 384 + 32) + 800 + 16


def test_shape_equals_the_model_that_transformers_builds(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

    for kind in (LlamaConfig, Qwen2Config, Qwen3Config):
        config = kind(**{k: v for k, v in _config(head_dim=8).items() if k != "model_type"})
        config.save_pretrained(tmp_path)
        size = read_size(str(tmp_path))
        model = AutoModelForCausalLM.from_config(config)
        assert size is not None
        assert size.parameters == sum(p.numel() for p in model.parameters()), kind.__name__


def test_pruned_keeps_the_rest() -> None:
    llama, mistral = KNOWN["meta-llama/Llama-2-7b-hf"], KNOWN["mistralai/Mistral-7B-v0.1"]
    shape = pruned(llama, Student(model="m", layers=16, kv_heads=8))
    assert (shape.layers, shape.kv_heads, shape.heads, shape.hidden) == (16, 8, 32, 4096)
    narrow = Student(model="m", heads=24, intermediate_size=9216, hidden_size=3072, prune=Prune())
    shape = pruned(llama, narrow)
    assert (shape.heads, shape.kv_heads, shape.head_size, shape.ffn, shape.hidden) == (24, 24, 128, 9216, 3072)
    assert pruned(mistral, narrow).kv_heads == 8


def test_unknown_hub_id_is_unknown_and_broken_folders_say_why(tmp_path: Path) -> None:
    assert read_size("nobody/no-such-model") is None
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        read_size(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(CheckpointError, match="does not describe"):
        read_size(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(_config()))
    (tmp_path / "model.safetensors").write_bytes(b"\x09\0\0\0\0\0\0\0not json")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        read_size(str(tmp_path))
