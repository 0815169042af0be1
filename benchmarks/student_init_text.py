"""The rows of `benchmarks.student_init`: a text cut into rows of equal length, rows that the teacher writes, or the
chats that the embedded teacher was trained on, of which the answers count."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from distill.errors import DataError
from distill.model.tokenizer import END, ROLES
from distill.objectives.divergences import IGNORED
from distill.records import read_parquet
from distill.train.corpus import PackedCorpus

_PIECE = 20_000  # characters tokenised at once
_BATCH = 128  # rows that the teacher writes together


Labels = Callable[[Tensor], Tensor]
"""Of token rows (N, T) the next tokens (N, T - 1), -100 where the prediction does not count."""


def every_token(ids_NT: Tensor) -> Tensor:
    """Labels of running text."""
    return ids_NT[:, 1:]


@dataclass(frozen=True)
class Text:
    """Token rows (N, T): to train on, to choose a learning rate by, and to report."""

    of: str
    train: Tensor
    tune: Tensor
    held_out: Tensor
    labels: Labels = every_token


def read_text(path: Path, tokenizer: PreTrainedTokenizerBase, *, row_tokens: int, rows: int, held_out: int) -> Text:
    """At most `rows` rows, spread evenly over a folder's train.parquet and validation.parquet (columns `text` or
    `messages`), or over a Parquet file, every tenth of whose texts is held out; `held_out` of each of the other parts.
    """
    if path.is_dir():
        training, others = _texts(path / "train.parquet"), _texts(path / "validation.parquet")
    else:
        texts = _texts(path)
        training = [text for number, text in enumerate(texts) if number % 10]
        others = texts[::10]
    ours = _rows(training, tokenizer, row_tokens, rows)
    theirs = _rows(others, tokenizer, row_tokens, 2 * held_out)
    if len(ours) < 2 or len(theirs) < 2:
        raise DataError(f"{path} has too little text for rows of {row_tokens} tokens", remedy="give a longer text")
    return Text(str(path.name), ours, theirs[0::2], theirs[1::2])


@torch.no_grad()
def sampled_text(teacher: Any, tokenizer: PreTrainedTokenizerBase, *, rows: int, row_tokens: int) -> Text:
    """Rows that the teacher samples at temperature 1 after BOS, going on after an end; a fifth of them held out."""
    torch.manual_seed(0)
    begin = torch.full((1, 1), int(tokenizer.bos_token_id), device=teacher.device)
    written = []
    for done in range(0, rows, _BATCH):
        asked = begin.expand(min(_BATCH, rows - done), 1)
        written.append(
            teacher.generate(
                asked,
                attention_mask=torch.ones_like(asked),
                do_sample=True,
                top_k=0,
                min_length=row_tokens,
                max_length=row_tokens,
                eos_token_id=None,
            ).cpu()
        )
    found = torch.cat(written)
    apart = max(1, rows // 10)
    return Text("sampled by the teacher", found[2 * apart :], found[:apart], found[apart : 2 * apart])


def chats(tokenizer: PreTrainedTokenizerFast, *, rows: int, row_tokens: int, held_out: int) -> Text:
    """Packed chats of `distill.tasks`; `held_out` rows of each of the other parts."""
    batches = PackedCorpus(
        tokenizer, corpus="chats", seed=1, steps=range(1), rows=rows + 2 * held_out, row_tokens=row_tokens
    )
    ids, vocabulary = batches[0][0], tokenizer.get_vocab()
    labels = answers(vocabulary[ROLES["assistant"]], vocabulary[END])
    return Text("chats", ids[2 * held_out :], ids[:held_out], ids[held_out : 2 * held_out], labels)


def answers(assistant: int, end: int) -> Labels:
    """Labels of what follows the token `assistant`, to the next `end` with it; a row that begins inside an answer does
    not say so, and its first answer does not count."""

    def last(found_NT: Tensor) -> Tensor:
        places = torch.arange(found_NT.shape[1], device=found_NT.device)
        return torch.where(found_NT, places, -1).cummax(1).values

    def labels(ids_NT: Tensor) -> Tensor:
        inside = last(ids_NT == assistant) > last(ids_NT == end)
        return ids_NT[:, 1:].masked_fill(~inside[:, :-1], IGNORED)

    return labels


def _texts(path: Path) -> list[str]:
    rows = read_parquet(path)
    if rows and "text" in rows[0]:
        return [str(row["text"]) for row in rows]
    if rows and "messages" in rows[0]:
        return [str(message["content"]) for row in rows for message in row["messages"] if message["content"]]
    raise DataError(f"{path} has neither a column text nor messages", remedy="give another file")


def _rows(texts: list[str], tokenizer: PreTrainedTokenizerBase, row_tokens: int, wanted: int) -> Tensor:
    """(N, T): BOS and T - 1 tokens of running text, at most `wanted`, from pieces spread over all texts."""
    pieces = [text[at : at + _PIECE] for text in texts for at in range(0, len(text), _PIECE)]
    found = list(_pieces(pieces[:: max(1, len(pieces) // wanted)], tokenizer, row_tokens, wanted, len(pieces)))
    return torch.tensor(found[:wanted])


def _pieces(
    pieces: list[str], tokenizer: PreTrainedTokenizerBase, row_tokens: int, wanted: int, of: int
) -> Iterator[list[int]]:
    bos = int(tokenizer.bos_token_id)
    share = -(-wanted // max(1, len(pieces)))  # rows of a piece
    for piece in pieces:
        ids = tokenizer(piece, add_special_tokens=False)["input_ids"]
        width = row_tokens - 1
        for number in range(min(share, len(ids) // width)):
            yield [bos, *ids[number * width : (number + 1) * width]]
