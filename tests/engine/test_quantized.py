"""Quantized models are just models: greedy text equals generate() over every kind of quantized folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf

from distill.engine.runner import Engine, EngineConfig
from distill.engine.types import SamplingParams
from distill.model.load import load_model
from distill.quantize.export import save_packed
from distill.quantize.sequential import Gptq, Nearest, WeightSettings, quantize_model
from tests.engine.models import reference
from tests.quantize.tiny import tiny_model as quantizable
from tests.quantize.tiny import token_batches


def _llama(folder: Path) -> None:
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
    hf.LlamaForCausalLM(config).save_pretrained(folder)


def _bitsandbytes(quantization: hf.BitsAndBytesConfig) -> Callable[[Path], hf.PreTrainedModel]:
    def load(folder: Path) -> hf.PreTrainedModel:
        _llama(folder)
        return hf.AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=quantization, dtype=torch.float32, device_map={"": "cpu"}
        )

    return load


def _packed(settings: WeightSettings) -> Callable[[Path], hf.PreTrainedModel]:
    def load(folder: Path) -> hf.PreTrainedModel:
        model = quantizable()
        save_packed(model, quantize_model(model, token_batches(), settings).linears, folder)
        return load_model(folder, device="cpu")

    return load


@pytest.mark.parametrize(
    "load",
    [
        _bitsandbytes(
            hf.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
        ),
        _bitsandbytes(hf.BitsAndBytesConfig(load_in_8bit=True)),
        _packed(WeightSettings(Gptq(), group_size=32)),
        _packed(WeightSettings(Nearest(clip=True), group_size=32, symmetric=False, scaling_points=4)),
    ],
    ids=["nf4", "int8", "gptq", "awq"],
)
def test_greedy_equals_generate(tmp_path: Path, load: Callable[[Path], hf.PreTrainedModel]) -> None:
    model = load(tmp_path)
    prompts = [[5, 6, 7, 8], [9, 10], [11, 12, 13, 14, 15, 16, 17], [5, 6, 7, 8, 9, 10]]
    engine = Engine(model, None, EngineConfig(block_size=4))
    assert engine.cache is not None
    for _ in range(2):  # the second time out of the prefix cache
        found = [c.token_ids for c in engine.generate(prompts, SamplingParams(max_tokens=10))]
        assert found == [reference(model, prompt, 10) for prompt in prompts]
    assert engine.stats.cached_tokens > 0
