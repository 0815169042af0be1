"""From a finished trainer to a plain Hugging Face folder (or, unmerged, an adapter beside its base's tokenizer)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from distill.model.fake_quant import round_weight, save_grid
from distill.model.load import DtypeName, load_model
from distill.model.scales import Grid
from distill.recipe.train import Lora
from distill.train.checkpoints import flush, flush_tree
from distill.train.lora import merge_adapter
from distill.train.saving import PROJECTIONS


def save_student(
    trainer: Trainer,
    tokenizer: PreTrainedTokenizerBase,
    *,
    init: Path,
    out: Path,
    dtype: DtypeName,
    lora: Lora | None,
    trust_remote_code: bool,
    grids: Mapping[str, Grid] = MappingProxyType({}),
) -> None:
    """Write the trained model in `dtype`; the linears named in `grids` on these, with their codes beside.

    Every process takes part in gathering it; the first one writes.
    """
    partial = out.with_name(out.name + ".partial")
    if trainer.is_world_process_zero():
        shutil.rmtree(partial, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    if lora is not None:
        trainer.save_model(str(partial))
    state = None if lora is not None else trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        if lora is not None and lora.merge:
            base = load_model(init, dtype="float32", device="cpu", trust_remote_code=trust_remote_code)
            merged = merge_adapter(base, partial)
            shutil.rmtree(partial)
            _save(merged, merged.state_dict(), partial, dtype)
        elif state is not None:
            model = trainer.accelerator.unwrap_model(trainer.model)
            assert isinstance(model, PreTrainedModel)
            stored = stored_dtype(model, dtype)
            rounded = {name: round_weight(state[f"{name}.weight"], grid, stored) for name, grid in grids.items()}
            state |= {f"{name}.weight": linear.weight() for name, linear in rounded.items()}
            _save(model, state, partial, dtype)
            if rounded:
                save_grid(rounded, partial)
        tokenizer.save_pretrained(str(partial))
        for name in ("training_args.bin", PROJECTIONS):
            (partial / name).unlink(missing_ok=True)
        flush_tree(partial)  # before the manifest says that it is there
        shutil.rmtree(out, ignore_errors=True)
        partial.rename(out)
        flush(out.parent)
    trainer.accelerator.wait_for_everyone()


def stored_dtype(model: PreTrainedModel, dtype: DtypeName) -> torch.dtype:
    """In which a trained model is written."""
    found: torch.dtype = model.dtype if dtype == "auto" else getattr(torch, dtype)
    return found


def _save(model: PreTrainedModel, state: dict[str, Tensor], out: Path, dtype: DtypeName) -> None:
    target = stored_dtype(model, dtype)
    model.config.dtype = target
    model.config.use_cache = True
    model.save_pretrained(str(out), state_dict=on_cpu(state, target))
    # save_pretrained notes the type of the live weights; readers (and their KV cache) go by what is on disk.
    model.config.dtype = target
    model.config.save_pretrained(str(out))


def on_cpu(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors on the CPU, floating ones in `dtype`. Tied weights share their storage after as they did before, or
    they would be written twice."""
    moved: dict[tuple[int, torch.Size], Tensor] = {}
    for tensor in state.values():
        key = (tensor.data_ptr(), tensor.shape)
        if key not in moved:
            moved[key] = tensor.to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)
    return {name: moved[tensor.data_ptr(), tensor.shape] for name, tensor in state.items()}
