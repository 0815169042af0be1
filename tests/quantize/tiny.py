"""Tiny models and token batches for the quantize tests."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from distill.model.calibration import Batch, pad_batches

VOCABULARY = 96
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def configs() -> dict[str, PreTrainedConfig]:
    """A small configuration of each architecture family."""
    plain = {key: value for key, value in _SIZES.items() if key not in ("num_key_value_heads", "head_dim")}
    return {
        "llama": LlamaConfig(**_SIZES, tie_word_embeddings=True),
        "mistral": MistralConfig(**_SIZES, sliding_window=8),
        "qwen2": Qwen2Config(**_SIZES),
        "qwen3": Qwen3Config(**_SIZES),
        "gemma2": Gemma2Config(**_SIZES),
        "phi3": Phi3Config(**plain, num_key_value_heads=2),
        "opt": OPTConfig(**plain, ffn_dim=96, word_embed_proj_dim=64, max_position_embeddings=128),
        "gpt_neox": GPTNeoXConfig(**plain),
    }


def tiny_model(architecture: str = "llama", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random model whose norms have a few loud channels, as trained ones do."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(configs()[architecture], dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and "norm" in name and name.endswith("weight"):
                loud = torch.rand(parameter.shape, generator=generator) < 0.1
                parameter.mul_(0.5 + torch.rand(parameter.shape, generator=generator))
                parameter[loud] = 8.0
            elif parameter.ndim == 2:
                parameter.mul_(4)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1, generator=generator)
    assert isinstance(model, PreTrainedModel)
    return model.to(dtype).eval()


def token_batches(rows: int = 24, seed: int = 0) -> list[Batch]:
    """Rows of different lengths in several padded batches."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(8, 30, (rows,), generator=generator).tolist()
    ids = [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    return pad_batches(ids, max_length=24, tokens=200)


def probe_ids() -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(7))


def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """A word-level tokenizer of `VOCABULARY` words w3, w4, ... with a chat template."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{index}": index for index in range(3, VOCABULARY)}
    inner = Tokenizer(WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokenizer.chat_template = "{% for m in messages %}<s> {{ m['content'] }} </s> {% endfor %}"
    return tokenizer
