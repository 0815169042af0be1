"""Incremental text equals the text of the whole, and stop strings cut it wherever tokens break."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerFast

from distill.engine.detokenize import TextTail, context_of, decode, decode_after
from tests.engine.models import byte_tokenizer, sentence_piece_tokenizer

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


@pytest.mark.parametrize("make", [byte_tokenizer, sentence_piece_tokenizer])
def test_a_continuation_goes_on_where_its_prompt_ends(make: Callable[[], PreTrainedTokenizerFast]) -> None:
    """At every place: prompt and continuation are the text of all tokens, whole or token by token, but where a
    character is cut in two."""
    tokenizer = make()
    ids = tokenizer("the dog – ran to the door 字 and on", add_special_tokens=False).input_ids
    whole, cuts, spaces = decode(tokenizer, ids), 0, 0
    for place in range(1, len(ids)):
        prompt, rest = ids[:place], ids[place:]
        if "�" in decode(tokenizer, prompt) or "�" in decode(tokenizer, rest):
            cuts += 1
            continue
        context = context_of(tokenizer, prompt)
        assert decode(tokenizer, prompt) + decode_after(tokenizer, context, rest) == whole
        tail, pieces = TextTail(tokenizer, (), context), []
        for count in range(1, len(rest) + 1):
            tail.push(rest[:count], final=count == len(rest))
            pieces.append(tail.take(final=count == len(rest)))
        assert "".join(pieces) == tail.text == decode_after(tokenizer, context, rest)
        spaces += tail.text.startswith(" ")
    assert cuts and spaces > 3


def test_half_a_character_is_no_context() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer("a字b").input_ids
    assert context_of(tokenizer, ids[:2]) == [] and decode(tokenizer, ids[:2]) == "a�"
    assert decode_after(tokenizer, [], ids[2:]) == decode(tokenizer, ids[2:])
