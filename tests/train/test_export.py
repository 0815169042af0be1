"""A trained model's folder says the type its weights are stored in, whatever the type it was trained in."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

from distill.train.export import _save


def test_config_and_weights_name_the_stored_type(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).to(torch.float32)
    _save(model, model.state_dict(), tmp_path, "bfloat16")
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["dtype"] == "bfloat16" and written["architectures"] == ["LlamaForCausalLM"]
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    assert LlamaForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16
