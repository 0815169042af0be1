"""Quantized models are just models: greedy text equals generate() over bitsandbytes' layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as hf

from distill.engine.runner import Engine, EngineConfig
from distill.engine.types import SamplingParams
from tests.engine.models import reference


@pytest.mark.parametrize(
    "quantization",
    [
        hf.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32),
        hf.BitsAndBytesConfig(load_in_8bit=True),
    ],
    ids=["nf4", "int8"],
)
def test_bitsandbytes(tmp_path: Path, quantization: hf.BitsAndBytesConfig) -> None:
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    hf.LlamaForCausalLM(config).save_pretrained(tmp_path)
    model = hf.AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=quantization, dtype=torch.float32, device_map={"": "cpu"}
    )
    prompts = [[5, 6, 7, 8], [9, 10], [11, 12, 13, 14, 15, 16, 17]]
    engine = Engine(model, None, EngineConfig(block_size=4))
    assert engine.cache is not None
    found = [c.token_ids for c in engine.generate(prompts, SamplingParams(max_tokens=10))]
    assert found == [reference(model, prompt, 10) for prompt in prompts]
