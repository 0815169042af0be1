"""A trained model's folder says the type its weights are stored in, whatever the type it was trained in."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

from distill.train.export import _save


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_config_and_weights_name_the_stored_type(tmp_path: Path, device: str) -> None:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).to(device, torch.float32)
    _save(model, model.state_dict(), tmp_path, "bfloat16")
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["dtype"] == "bfloat16" and written["architectures"] == ["LlamaForCausalLM"]
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys(), "tied weights are written once"  # noqa: SIM118
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    assert LlamaForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16
