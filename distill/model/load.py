"""Load checkpoint folders (plain, bitsandbytes, compressed-tensors) and say clearly what is wrong with bad ones."""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.utils import logging as transformers_logging

from distill.errors import CheckpointError
from distill.model.packed import has_packable, load_packed
from distill.model.precision import has_fast_bfloat16
from distill.model.shards import sharding

DtypeName = Literal["auto", "stored", "float32", "bfloat16", "float16"]
DeviceName = Literal["auto", "cpu", "cuda"]

INDEX = "model.safetensors.index.json"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_MAX_HEADER_BYTES = 100 << 20
_HALVES = (torch.bfloat16, torch.float16)


def load_model(
    path: str | Path,
    *,
    dtype: DtypeName = "auto",
    device: DeviceName = "auto",
    trust_remote_code: bool = False,
    packed: bool = False,
    num_shards: int = 1,
) -> PreTrainedModel:
    """The causal language model at `path` (folder or hub id) in eval mode on `device`.

    Folders quantized by bitsandbytes or compressed-tensors load as such; `dtype` is then that of what is not quantized,
    and NF4 computes in it.
    "auto" is the checkpoint's dtype, or float32 where that is a 16-bit one and the CPU has no instructions for it;
    "stored" is always the checkpoint's. `packed` keeps the weights of compressed-tensors, GPTQ and AWQ folders packed
    in memory where there is a product for them (distill/kernels/w4a16.py): for answers, not for training. Device "auto"
    is CUDA where there is one. Of `num_shards` processes that all load it, each gets its share as transformers'
    `tp_plan` cuts the model. Raises CheckpointError.
    """
    if Path(path).exists() or _looks_local(path):
        check_weights(Path(path))
    place = _device(device)
    quantized = _quantization(path)
    wanted = _dtype(path, dtype, place, trust_remote_code)
    options: dict[str, Any] = {"dtype": wanted}
    if quantized:
        options["device_map"] = {"": place}
    if num_shards > 1:
        options["distributed_config"] = sharding(path, num_shards, quantized, place, trust_remote_code)
    if quantized == "bitsandbytes":
        _hush_int8()
    elif quantized and packed and has_packable(Path(path)):
        exact = wanted if isinstance(wanted, torch.dtype) else stored_dtype(path, trust_remote_code)
        files = _weight_files(Path(path))
        model = load_packed(Path(path), files, dtype=exact, device=place, trust_remote_code=trust_remote_code)
        if model is not None:
            return model.eval()
    unset_hf_deepspeed_config()  # after an entry under ZeRO-3, transformers would cut what it loads
    with _quiet_transformers():
        try:
            model = AutoModelForCausalLM.from_pretrained(
                str(path), trust_remote_code=trust_remote_code, use_safetensors=True, **options
            )
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            raise CheckpointError(
                f"{path} does not load as a causal language model: {_first_line(error)}", remedy=_remedy(error)
            ) from error
    if not quantized and num_shards == 1:
        torch.nn.Module.to(model, place)
    model.eval()
    assert isinstance(model, PreTrainedModel)
    if quantized == "bitsandbytes":
        from distill.model.recast import keep_exact, recast  # bitsandbytes takes a second to import

        recast(model, wanted) if isinstance(wanted, torch.dtype) else keep_exact(model)
    return model


def load_tokenizer(path: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer at `path`, with a pad token (its EOS where it has none of its own). Raises CheckpointError."""
    folder = Path(path)
    if folder.exists() or _looks_local(path):
        _check_folder(folder)
        if not any((folder / name).exists() for name in _TOKENIZER_FILES):
            raise CheckpointError(
                f"{folder} has no tokenizer ({', '.join(_TOKENIZER_FILES)})",
                remedy="copy the tokenizer files of the model it was made from into the folder",
            )
    with _quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=trust_remote_code)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise CheckpointError(
                f"the tokenizer of {path} does not load: {_first_line(error)}", remedy=_remedy(error)
            ) from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise CheckpointError(
                f"the tokenizer of {path} has neither a pad nor an EOS token",
                remedy="set eos_token in its tokenizer_config.json",
            )
        tokenizer.pad_token = tokenizer.eos_token
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def require_chat_template(tokenizer: PreTrainedTokenizerBase, path: str | Path) -> None:
    """Raise CheckpointError where the tokenizer cannot render a chat."""
    if tokenizer.chat_template is None:
        raise CheckpointError(
            f"the tokenizer of {path} has no chat template",
            remedy="add chat_template.jinja to the folder; instruction-tuned models come with one",
        )


def check_weights(folder: Path) -> None:
    """Raise CheckpointError where a local folder lacks its config or weights, or a safetensors file is torn."""
    _check_folder(folder)
    if not (folder / "config.json").exists():
        raise CheckpointError(f"{folder} has no config.json", remedy="point to a Hugging Face model folder")
    files = _weight_files(folder)
    if not files:
        pickles = sorted(p.name for p in folder.glob("*.bin"))
        found = f" (only {', '.join(pickles)}, and pickles are not read)" if pickles else ""
        raise CheckpointError(
            f"{folder} has no safetensors weights{found}", remedy="save the model with safetensors, or make it again"
        )
    for file in files:
        check_safetensors(file)


def check_safetensors(file: Path) -> None:
    """Raise CheckpointError unless the file is as long as its header says (truncation is the usual damage)."""
    remedy = "copy or make the checkpoint again"
    if not file.exists():
        raise CheckpointError(f"{file} is missing, though {INDEX} names it", remedy=remedy)
    size = file.stat().st_size
    try:
        with open(file, "rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            if length > _MAX_HEADER_BYTES:
                raise ValueError("its header is longer than any real one")
            header = json.loads(handle.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is not a safetensors file: {error}", remedy=remedy) from None
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise CheckpointError(f"{file} is torn: {size} bytes, its header says {expected}", remedy=remedy)


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if index.exists():
        try:
            shards = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{index} is not readable: {error}", remedy="make the checkpoint again") from None
        return [folder / shard for shard in sorted(shards)]
    return sorted(folder.glob("model*.safetensors"))


def _check_folder(folder: Path) -> None:
    if not folder.exists():
        raise CheckpointError(
            f"no model folder {folder}", remedy="mend the path, or run the stage that makes it (`distill train`)"
        )
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file", remedy="point to the model's folder")


def _looks_local(path: str | Path) -> bool:
    """A hub id is `owner/name` (or an old bare `name`) with no folder `owner` here; all else was meant as a folder."""
    text = str(path)
    if isinstance(path, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1:
        return True
    return "/" in text and Path(text).parent.is_dir()


def _quantization(path: str | Path) -> str | None:
    config = Path(path) / "config.json"
    if not config.exists():
        return None
    try:
        quantization = json.loads(config.read_text()).get("quantization_config")
    except ValueError as error:
        raise CheckpointError(f"{config} is not JSON: {error}", remedy="make the checkpoint again") from None
    return str(quantization.get("quant_method", "unknown")) if quantization else None


def _dtype(path: str | Path, dtype: DtypeName, place: str, trust: bool) -> torch.dtype | Literal["auto"]:
    """What transformers is asked for; its own "auto" is the stored one."""
    if dtype not in ("auto", "stored"):
        found = getattr(torch, dtype)
        assert isinstance(found, torch.dtype)
        return found
    half = dtype == "auto" and not has_fast_bfloat16(place) and stored_dtype(path, trust) in _HALVES
    return torch.float32 if half else "auto"


def stored_dtype(path: str | Path, trust: bool) -> torch.dtype:
    """That of the weights, as config.json says; float32 where it says nothing."""
    with _quiet_transformers():
        try:
            dtype = AutoConfig.from_pretrained(str(path), trust_remote_code=trust).dtype
        except (OSError, ValueError, KeyError):  # loading the model says it better
            return torch.float32
    found = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return found if isinstance(found, torch.dtype) else torch.float32


def _device(device: DeviceName) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise CheckpointError("device cuda was asked for and torch sees none", remedy="use device cpu or auto")
    return device


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _remedy(error: BaseException) -> str:
    if "trust_remote_code" in str(error):
        return "set trust_remote_code: true in the recipe if you trust the code in that repository"
    if "gated" in str(error) or "401" in str(error):
        return "log in with `hf auth login`, or download the model and give its folder"
    return "check the path, that the download is whole, and that this transformers version knows the architecture"


def _no_news(record: logging.LogRecord) -> bool:
    """bitsandbytes says before every product of an int8 model that it computes in float16, as LLM.int8() does."""
    return "inputs will be cast" not in str(record.msg)


def _hush_int8() -> None:
    """For good: the line comes from the model's forward, wherever that is called."""
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_no_news)  # the same filter is added once


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No loading bars and advice on the user's terminal; errors still raise."""
    before = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    quantizer = logging.getLogger("bitsandbytes")  # imported with the first model it quantized, and then speaks
    quantizer_level = quantizer.level
    quantizer.setLevel(logging.ERROR)
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        quantizer.setLevel(quantizer_level)
        transformers_logging.set_verbosity(before)
        if bars:
            transformers_logging.enable_progress_bar()
