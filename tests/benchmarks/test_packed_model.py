"""The random packed model is whole, packed, and answers with numbers."""

import torch
import transformers as hf
from torch import nn

from benchmarks.packed_model import random_packed_model
from distill.kernels.w4a16 import PackedLinear


def test_a_small_qwen() -> None:
    config = hf.Qwen2Config(
        vocab_size=96,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = random_packed_model(config, "cpu", dtype=torch.float32, group_size=32)
    assert sum(isinstance(module, PackedLinear) for module in model.modules()) == 14
    assert [type(model.get_output_embeddings())] == [nn.Linear]
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    with torch.no_grad():
        logits = model(torch.arange(10)[None]).logits
    assert logits.isfinite().all() and logits.std() > 0.01
