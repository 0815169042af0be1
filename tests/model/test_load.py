"""Bad checkpoint folders are named, with the file and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distill.errors import CheckpointError
from distill.model import load
from distill.model.load import load_model, load_tokenizer, require_chat_template
from tests.train import tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.save_model(tmp_path / "model")
    return tmp_path / "model"


def test_loads_in_eval_mode_and_the_dtype_asked_for(folder: Path) -> None:
    assert load_model(folder, device="cpu").dtype == torch.float32
    model = load_model(folder, dtype="bfloat16", device="cpu")
    assert model.dtype == torch.bfloat16 and not model.training
    assert load_tokenizer(folder).pad_token == "<|pad|>"


@pytest.mark.parametrize("fast", [True, False])
def test_auto_is_float32_where_the_cpu_has_no_bfloat16(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    load_model(folder, dtype="bfloat16", device="cpu").save_pretrained(folder)
    monkeypatch.setattr(load, "has_fast_bfloat16", lambda device: fast)
    assert load_model(folder, device="cpu").dtype == (torch.bfloat16 if fast else torch.float32)
    assert load_model(folder, dtype="stored", device="cpu").dtype == torch.bfloat16
    assert load_model(folder, dtype="float16", device="cpu").dtype == torch.float16


def test_missing_parts_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model folder .*nowhere"):
        load_model(tmp_path / "nowhere")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match="no chat template"):
        require_chat_template(load_tokenizer(folder), folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="no tokenizer"):
        load_tokenizer(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match="no safetensors weights .only pytorch_model.bin, and pickles"):
        load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="no config.json"):
        load_model(folder)
    with pytest.raises(CheckpointError, match="is a file"):
        load_model(folder / "pytorch_model.bin")


def test_torn_weights_are_named(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(CheckpointError, match=rf"model.safetensors is torn: {len(whole) - 10} bytes, its header says"):
        load_model(folder)
    weights.write_bytes(whole[:5])
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_model(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    with pytest.raises(CheckpointError, match="model-00001-of-00002.safetensors is missing"):
        load_model(folder)
