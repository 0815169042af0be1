"""Cutting a model down: identities where it must not change, and the KV cache that was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from distill.errors import DistillError
from distill.model.load import load_model, load_tokenizer
from distill.model.student import evenly_spaced, make_student, pool_kv_heads, prune_layers
from tests.train import tiny

IDS = torch.arange(7, 31).unsqueeze(0)


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return load_model(folder, dtype="float32", device="cpu")(IDS).logits


def test_keeping_everything_is_identity(tmp_path: Path) -> None:
    tiny.save_model(tmp_path / "teacher")
    made = make_student(tmp_path / "teacher", layers=2, kv_heads=4, out=tmp_path / "student", dtype="float32")
    torch.testing.assert_close(logits(tmp_path / "student"), logits(tmp_path / "teacher"), rtol=0, atol=0)
    assert made.parameters == made.parameters_before and "as they were" in made.summary()
    ours, theirs = load_tokenizer(tmp_path / "student"), load_tokenizer(tmp_path / "teacher")
    assert ours.chat_template == theirs.chat_template and ours.get_vocab() == theirs.get_vocab()


@pytest.mark.parametrize("attention_bias", [False, True])
def test_pooling_equal_heads_preserves_the_function(tmp_path: Path, attention_bias: bool) -> None:
    """8 KV heads that are equal in groups of 4 pooled to 2: the same logits, a quarter of the cache."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=8, initializer_range=0.3, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj):
                projection.bias.normal_() if attention_bias else projection.bias.zero_()
                for parameter in (projection.weight, projection.bias):
                    heads = parameter.unflatten(0, (2, 4, 8))
                    heads.copy_(heads[:, :1].expand_as(heads).clone())
    model.save_pretrained(tmp_path / "mha")
    tiny.tokenizer().save_pretrained(tmp_path / "mha")
    made = make_student(tmp_path / "mha", layers=None, kv_heads=2, out=tmp_path / "gqa", dtype="float32")
    torch.testing.assert_close(logits(tmp_path / "gqa"), logits(tmp_path / "mha"), rtol=1e-5, atol=1e-5)
    assert made.kv_bytes_per_token * 4 == made.kv_bytes_per_token_before == 2 * 2 * 8 * 8 * 4
    assert load_model(tmp_path / "gqa").config.num_key_value_heads == 2


def test_pooling_takes_the_mean_of_neighbours() -> None:
    state = {"model.layers.0.self_attn.k_proj.weight": torch.tensor([[1.0], [3.0], [10.0], [20.0]])}
    pooled = pool_kv_heads(state, kv_heads_before=4, kv_heads=2)
    assert pooled["model.layers.0.self_attn.k_proj.weight"].tolist() == [[2.0], [15.0]]


def test_pruning_keeps_and_renumbers(tmp_path: Path) -> None:
    state = {f"model.layers.{i}.mlp.weight": torch.tensor(float(i)) for i in range(12)} | {
        "lm_head.weight": torch.ones(1)
    }
    pruned = prune_layers(state, [0, 4, 11])
    assert {name: tensor.item() for name, tensor in pruned.items()} == {
        "model.layers.0.mlp.weight": 0.0,
        "model.layers.1.mlp.weight": 4.0,
        "model.layers.2.mlp.weight": 11.0,
        "lm_head.weight": 1.0,
    }
    tiny.save_model(tmp_path / "teacher", layers=4)
    made = make_student(tmp_path / "teacher", layers=2, kv_heads=1, out=tmp_path / "student", dtype="bfloat16")
    student = load_model(tmp_path / "student", dtype="stored")
    assert made.layers == (0, 3) and len(student.model.layers) == 2 and student.dtype == torch.bfloat16
    assert sum(p.numel() for p in student.parameters()) == made.parameters
    teacher = load_model(tmp_path / "teacher", dtype="bfloat16")
    torch.testing.assert_close(student.model.layers[1].mlp.up_proj.weight, teacher.model.layers[3].mlp.up_proj.weight)


def test_evenly_spaced_layers() -> None:
    assert evenly_spaced(8, 4) == [0, 2, 5, 7]
    assert evenly_spaced(8, 8) == list(range(8))
    assert evenly_spaced(8, 1) == [0]
    assert evenly_spaced(32, 16)[0] == 0 and evenly_spaced(32, 16)[-1] == 31
    assert all(len(set(evenly_spaced(n, k))) == k for n in range(1, 40) for k in range(1, n + 1))


def test_numbers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    tiny.save_model(tmp_path / "teacher")
    with pytest.raises(DistillError, match="kv_heads is 3, the model has 4 -> one of 1, 2, 4"):
        make_student(tmp_path / "teacher", layers=None, kv_heads=3, out=tmp_path / "s", dtype="auto")
    with pytest.raises(DistillError, match="layers is 5, the model has 2"):
        make_student(tmp_path / "teacher", layers=5, kv_heads=None, out=tmp_path / "s", dtype="auto")
