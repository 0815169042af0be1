"""The lab's text: novels split by author, cut into passages of as many tokens as a row has, and their own tokenizer.

    python -m benchmarks.lab.text --source ../shared/data/lm/eltec_train.parquet --out runs/lab/text

A passage is a chat of an empty question and the passage as its answer; the chat template adds nothing but BOS.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from distill.model.tokenizer import train_tokenizer
from distill.records import INSTRUCTION, read_parquet, write_parquet

TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
TRAIN, PART, VALIDATION, TOKENIZER = "train.parquet", "part.parquet", "validation.parquet", "tokenizer"
PROMPTED = "prompted.parquet"  # the part, of each passage the beginning as the question
PROMPT_SHARE = 8  # of a passage one part in so many
SHARE = 0.1  # of the text, at least, for validation
PART_EVERY = 4  # of the training rows, for students
VALIDATION_ROWS = 2000  # evenly spread over the held-out novels
_PIECE = 50_000  # characters tokenised at once


def split(novels: Sequence[dict[str, Any]], share: float = SHARE) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(training, validation): authors in the order of a hash of their names until `share` of all characters is out."""
    authors = sorted({novel["author"] for novel in novels}, key=lambda name: hashlib.sha256(name.encode()).digest())
    total, held, out = sum(len(novel["text"]) for novel in novels), 0, set()
    for author in authors:
        if held >= share * total:
            break
        out.add(author)
        held += sum(len(novel["text"]) for novel in novels if novel["author"] == author)
    return [n for n in novels if n["author"] not in out], [n for n in novels if n["author"] in out]


def passages(tokenizer: PreTrainedTokenizerBase, text: str, tokens: int) -> Iterator[str]:
    """The text in passages of `tokens` tokens; the last piece of a novel that does not fill one is left out."""
    offsets: list[int] = []
    pieces = [text[begin : begin + _PIECE] for begin in range(0, len(text), _PIECE)]
    for number, piece in enumerate(pieces):
        encoded = tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True)
        offsets += [number * _PIECE + begin for begin, _ in encoded["offset_mapping"]]
    for place in range(0, len(offsets) - tokens, tokens):
        yield text[offsets[place] : offsets[place + tokens]]


def chat(question: str, answer: str) -> dict[str, Any]:
    """A row of which the answer is trained."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def prompted(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> dict[str, Any]:
    """A passage cut in two at the end of a token: the beginning is the question, the rest its answer."""
    text = row["messages"][-1]["content"]
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    cut = offsets[len(offsets) // PROMPT_SHARE][0]
    return chat(text[:cut], text[cut:])


def thin(rows: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """At most `count` of the rows, evenly spread."""
    return list(rows) if len(rows) <= count else [rows[place * len(rows) // count] for place in range(count)]


def prepare(
    source: Path, out: Path, *, vocab_size: int, row_tokens: int, max_rows: int, share_of_novels: float = 1.0
) -> dict[str, Any]:
    """Writes tokenizer, train, part and validation; what is there."""
    novels = list(read_parquet(source, columns=("id", "author", "text")))
    training, validation = split(novels)
    training = training[: max(1, round(share_of_novels * len(training)))]
    pieces = (n["text"][i : i + 20_000] for n in training for i in range(0, len(n["text"]), 60_000))
    tokenizer = train_tokenizer(pieces, vocab_size=vocab_size, max_positions=row_tokens)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(out / TOKENIZER)
    tokenizer.model_max_length = 1 << 30
    rows = {
        name: [chat("", passage) for novel in side for passage in passages(tokenizer, novel["text"], row_tokens - 1)]
        for name, side in ((TRAIN, training), (VALIDATION, validation))
    }
    rows[TRAIN], rows[VALIDATION] = thin(rows[TRAIN], max_rows), thin(rows[VALIDATION], VALIDATION_ROWS)
    rows[PART] = rows[TRAIN][::PART_EVERY]
    rows[PROMPTED] = [prompted(tokenizer, row) for row in rows[PART]]
    for name, content in rows.items():
        write_parquet(out / name, content, INSTRUCTION)
    about = {
        "authors": len({novel["author"] for novel in training}),
        "validation_authors": sorted({novel["author"] for novel in validation}),
        "rows": {name: len(content) for name, content in rows.items()},
        "row_tokens": row_tokens,
        "vocab_size": vocab_size,
    }
    (out / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    return about


def main() -> None:
    """Prepares, and prints what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--row-tokens", type=int, default=512)
    parser.add_argument("--rows", type=int, default=1 << 30, help="of the training passages, at most")
    parser.add_argument("--share", type=float, default=1.0, help="of the training novels")
    options = parser.parse_args()
    about = prepare(
        options.source,
        options.out,
        vocab_size=options.vocab_size,
        row_tokens=options.row_tokens,
        max_rows=options.rows,
        share_of_novels=options.share,
    )
    print(json.dumps(about, indent=1))


if __name__ == "__main__":
    main()
