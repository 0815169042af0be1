"""Next-token training from the text of `distill.tasks`: how the embedded teacher and the student base are made."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.masking_utils import AttentionMaskInterface

from distill.errors import DistillError
from distill.model.tokenizer import train_tokenizer
from distill.recipe.teacher import Scratch
from distill.recipe.train import LmEntry
from distill.train.checkpoints import flush
from distill.train.corpus import IGNORED, PackedCorpus, loader, tokenizer_texts

_TOKENIZER_SAMPLES = 60_000
Log = Callable[[dict[str, float]], None]


def make_scratch(scratch: Scratch) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A Llama with random weights and tied embeddings, and its tokenizer, both from the recipe's seed."""
    tokenizer = train_tokenizer(
        tokenizer_texts(scratch.seed, _TOKENIZER_SAMPLES),
        vocab_size=scratch.vocab_size,
        max_positions=scratch.max_positions,
    )
    config = LlamaConfig(
        vocab_size=scratch.vocab_size,
        hidden_size=scratch.hidden_size,
        num_hidden_layers=scratch.layers,
        num_attention_heads=scratch.heads,
        num_key_value_heads=scratch.kv_heads,
        intermediate_size=scratch.intermediate_size,
        max_position_embeddings=scratch.max_positions,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(scratch.seed)
    return LlamaForCausalLM(config), tokenizer


def train_lm(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, entry: LmEntry, *, checkpoint: Path, log: Log
) -> dict[str, float]:
    """Train in place; resumes from `checkpoint` where there is one, and leaves it to the caller to remove.

    Returns loss, tokens, seconds and tokens/s.

    fp32 weights, bf16 autocast on CUDA; documents follow each other in a row and attend across their borders.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _use_plain_causal_attention(model)
    torch.nn.Module.to(model, device=device, dtype=torch.float32)
    model.train()
    optimizer = _optimizer(model, entry)
    start = _restore(checkpoint, model, optimizer)
    step_loss = _compiled(model, device)
    dataset = PackedCorpus(
        tokenizer,
        corpus=entry.corpus,
        seed=entry.seed,
        steps=range(start, entry.steps),
        rows=entry.rows,
        row_tokens=entry.row_tokens,
    )
    started, loss_value, tokens = time.monotonic(), float("nan"), 0
    for step, (ids, labels) in enumerate(loader(dataset, workers=entry.workers), start=start):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, entry)
        loss = step_loss(ids.to(device, non_blocking=True), labels.to(device, non_blocking=True))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), entry.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += ids.numel()
        logs = (step + 1) % entry.logging_steps == 0 or step + 1 == entry.steps
        saves = (step + 1) % entry.save_steps == 0 and step + 1 < entry.steps
        if logs or saves:  # NaN stays in the weights: looking before each save keeps it out of the checkpoints
            loss_value = float(loss.detach())
            if not (math.isfinite(loss_value) and math.isfinite(float(norm))):
                raise DistillError(
                    f"the loss is {loss_value}, its gradient's norm {float(norm)} at step {step + 1}",
                    remedy="lower learning_rate",
                )
        if logs:
            seconds = time.monotonic() - started
            log({"step": step + 1, "loss": loss_value, "tokens": tokens, "tokens_per_second": tokens / seconds})
        if saves:
            _save(checkpoint, model, optimizer, step + 1)
    seconds = time.monotonic() - started
    return {"loss": loss_value, "tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds}


def learning_rate(step: int, entry: LmEntry) -> float:
    """Linear warm-up, then a cosine to a hundredth of the peak."""
    if step < entry.warmup_steps:
        return entry.learning_rate * (step + 1) / entry.warmup_steps
    progress = (step - entry.warmup_steps) / max(1, entry.steps - entry.warmup_steps)
    return entry.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def _optimizer(model: PreTrainedModel, entry: LmEntry) -> torch.optim.AdamW:
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    plain = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": entry.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=entry.learning_rate, betas=(0.9, 0.95), fused=torch.cuda.is_available())


def _compiled(model: PreTrainedModel, device: torch.device) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    def step_loss(ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(input_ids=ids, use_cache=False).logits
        flat = labels.flatten()
        total = F.cross_entropy(logits.flatten(0, 1).float(), flat, ignore_index=IGNORED, reduction="sum")
        return total / (flat != IGNORED).sum().clamp(min=1)  # a small batch may hold one long context and no answer

    return torch.compile(step_loss) if device.type == "cuda" else step_loss


def _use_plain_causal_attention(model: PreTrainedModel) -> None:
    """Fused causal attention without a mask tensor, which transformers would build while being compiled."""

    def attend(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        **_: object,
    ) -> tuple[torch.Tensor, None]:
        del module, attention_mask
        grouped = query.shape[1] != key.shape[1]
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped)
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register("distill_causal", attend)
    AttentionMaskInterface.register("distill_causal", lambda *args, **kwargs: None)
    model.set_attn_implementation("distill_causal")


def _save(path: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, step: int) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save({"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, temporary)
    flush(temporary)
    temporary.replace(path)
    flush(path.parent)


def _restore(path: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, map_location=next(model.parameters()).device, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
