"""Incremental text equals the text of the whole, and stop strings cut it wherever tokens break."""

from __future__ import annotations

import pytest

from distill.engine.detokenize import TextTail, decode
from tests.engine.models import byte_tokenizer

TEXT = (
    "the cat sat – on the mat; größe 漢字 🙂 and then the dog ran to the door and the cat sat on the mat again, twice"
)


def _feed(text: str, stop: tuple[str, ...]) -> tuple[str, list[str], bool]:
    tokenizer = byte_tokenizer()
    ids = tokenizer(text).input_ids
    tail, pieces, stopped = TextTail(tokenizer, stop), [], False
    for count in range(1, len(ids) + 1):
        stopped = tail.push(ids[:count], final=count == len(ids))
        pieces.append(tail.take(final=count == len(ids)))
        if stopped:
            break
    return tail.text, pieces, stopped


def test_pieces_make_the_text() -> None:
    text, pieces, stopped = _feed(TEXT, ())
    assert text == TEXT == "".join(pieces) and not stopped
    assert all("�" not in piece for piece in pieces)
    assert sum(map(bool, pieces)) > 20


@pytest.mark.parametrize("stop", ["dog", "g ran", "🙂 and", "字", "again, twice", "t"])
def test_stop(stop: str) -> None:
    text, pieces, stopped = _feed(TEXT, ("not here", stop))
    assert stopped
    assert text == TEXT[: TEXT.index(stop)] == "".join(pieces)


def test_the_earliest_stop_wins() -> None:
    text, _, _ = _feed(TEXT, ("on the mat", "sat"))
    assert text == "the cat "


def test_half_a_stop_string_is_released_in_the_end() -> None:
    text, pieces, stopped = _feed("the cat sat on", ("on the",))
    assert not stopped and text == "".join(pieces) == "the cat sat on"


def test_special_tokens_are_no_text() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer("the cat").input_ids
    assert decode(tokenizer, [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]) == "the cat"
