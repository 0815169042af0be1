"""Tiny random models of many architectures, and a tokenizer made on the spot."""

from __future__ import annotations

import copy
import json

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

VOCAB = 128
_BASE: dict[str, object] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,  # large enough that greedy choices are no near ties
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def _config(name: str) -> hf.PretrainedConfig:
    base = dict(_BASE)
    if name.startswith("llama"):
        return hf.LlamaConfig(**base, num_key_value_heads={"mha": 4, "gqa": 2, "mqa": 1}[name.split("-")[1]])
    if name == "mistral":
        return hf.MistralConfig(**base, num_key_value_heads=2, sliding_window=11)
    if name == "qwen2":
        return hf.Qwen2Config(**base, num_key_value_heads=2)
    if name.endswith("-mixed"):  # layers 0 and 2 see all, as the first of Qwen2's do, and the others 10 tokens
        base["num_hidden_layers"] = 5
        kinds = [("full", "sliding")[i % 2] + "_attention" for i in range(4)] + ["sliding_attention"]
        own = {**base, "num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 10, "layer_types": kinds}
        return hf.Qwen2Config(**own) if name == "qwen2-mixed" else hf.Qwen3Config(**own, head_dim=16)
    if name == "qwen3":
        return hf.Qwen3Config(**base, num_key_value_heads=2, head_dim=16)
    if name == "gemma2":
        return hf.Gemma2Config(
            **base,
            num_key_value_heads=2,
            head_dim=8,
            sliding_window=9,
            query_pre_attn_scalar=8,
            attn_logit_softcapping=2.0,
        )
    if name == "phi3":
        return hf.Phi3Config(**base, num_key_value_heads=2, sliding_window=None)
    if name == "mixtral":
        return hf.MixtralConfig(**base, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2)
    if name == "gpt-neox":
        return hf.GPTNeoXConfig(**base)
    assert name == "opt"
    base["ffn_dim"] = base.pop("intermediate_size")
    base["init_std"] = base.pop("initializer_range")
    return hf.OPTConfig(**base, word_embed_proj_dim=32)


ARCHITECTURES = (
    "llama-mha",
    "llama-gqa",
    "llama-mqa",
    "mistral",
    "qwen2",
    "qwen3",
    "qwen2-mixed",
    "qwen3-mixed",
    "gemma2",
    "phi3",
    "mixtral",
    "gpt-neox",
    "opt",
)


def tiny_model(name: str, seed: int = 0) -> hf.PreTrainedModel:
    """A float32 model with random weights."""
    torch.manual_seed(seed)
    # eager: sdpa leaves out Gemma's soft-capping in some versions
    return hf.AutoModelForCausalLM.from_config(_config(name), attn_implementation="eager").float().eval()


def reference(model: hf.PreTrainedModel, prompt: list[int], max_tokens: int) -> tuple[int, ...]:
    """What transformers' own generate() continues the prompt with, EOS included."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False, pad_token_id=0
    )
    return tuple(out[0, len(prompt) :].tolist())


def byte_tokenizer() -> hf.PreTrainedTokenizerFast:
    """A byte-level BPE trained on a few lines, with chat template; ids below VOCAB... plus the 256 bytes."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(["the cat sat on the mat and the dog ran to the door"] * 4, trainer)
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=256
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    return tokenizer


def sentence_piece_tokenizer() -> hf.PreTrainedTokenizerFast:
    """Llama 2's way: a space is a part of the word after it, and decoding takes the first one away."""
    core = Tokenizer(models.BPE(fuse_unk=True, byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    core.decoder = decoders.Sequence(steps)
    tokens = ["<pad>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=tokens, show_progress=False)
    core.train_from_iterator(["the cat sat on the mat and the dog ran to the door"] * 4, trainer)
    parts = json.loads(core.to_str())
    parts["added_tokens"] = parts["added_tokens"][:3]  # bytes are text, and not special
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(parts)),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=256,
    )


def chat_model(tokenizer: hf.PreTrainedTokenizerFast, seed: int = 0, **overrides: object) -> hf.PreTrainedModel:
    """A GQA Llama over the tokenizer's vocabulary."""
    torch.manual_seed(seed)
    config = {**_BASE, "vocab_size": len(tokenizer), "num_key_value_heads": 2, **overrides}
    config["eos_token_id"] = tokenizer.eos_token_id
    return hf.LlamaForCausalLM(hf.LlamaConfig(**config)).float().eval()


def nearby(model: hf.PreTrainedModel, noise: float, seed: int = 0) -> hf.PreTrainedModel:
    """The model with noise on its weights, as a share of each tensor's spread: a draft that is right now and then."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.dim() > 1:
                parameter += noise * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return other
