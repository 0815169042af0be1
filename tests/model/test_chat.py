"""Labels cover what the assistant says, through its end of turn, under several kinds of template."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from distill.errors import DataError
from distill.model.chat import encode_completion, encode_preference, render
from distill.records import Message
from tests.train import tiny

CHAT: list[Message] = [
    {"role": "user", "content": "reverse red blue"},
    {"role": "assistant", "content": "blue red"},
    {"role": "user", "content": "count green"},
    {"role": "assistant", "content": "1"},
]


@pytest.fixture
def tokens() -> PreTrainedTokenizerFast:
    return tiny.tokenizer()


def trained_text(tokens: PreTrainedTokenizerFast, ids: list[int], labels: list[int]) -> str:
    assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))
    return tokens.decode([label for label in labels if label != -100])


def test_every_assistant_turn_and_its_end_is_trained(tokens: PreTrainedTokenizerFast) -> None:
    ids, labels = encode_completion(tokens, CHAT, 100)
    assert trained_text(tokens, ids, labels) == "blue red<|end|>1<|end|>"
    assert labels[-1] == tokens.eos_token_id


def test_prompt_is_what_generation_sees(tokens: PreTrainedTokenizerFast) -> None:
    ids, labels = encode_completion(tokens, CHAT[:2], 100)
    first = next(index for index, label in enumerate(labels) if label != -100)
    assert ids[:first] == render(tokens, CHAT[:1], add_generation_prompt=True)


def test_one_bos_even_from_template_and_tokenizer(tokens: PreTrainedTokenizerFast) -> None:
    bos = tokens.bos_token_id
    assert render(tokens, CHAT, False).count(bos) == 1
    tokens.chat_template = "{{ bos_token }}" + tokens.chat_template
    assert render(tokens, CHAT, False).count(bos) == 1


def test_a_template_without_end_of_turn_gets_eos(tokens: PreTrainedTokenizerFast) -> None:
    tokens.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    ids, labels = encode_completion(tokens, CHAT[:2], 100)
    assert labels[-1] == tokens.eos_token_id == ids[-1]
    assert trained_text(tokens, ids, labels).startswith("blue red")


def test_newline_after_the_end_of_turn_is_not_trained(tokens: PreTrainedTokenizerFast) -> None:
    """ChatML (Qwen) renders `<|im_end|>` and a newline that generation never reaches."""
    tokens.chat_template = (
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    ids, labels = encode_completion(tokens, CHAT, 100)
    assert trained_text(tokens, ids, labels) == "blue red<|end|>1<|end|>"
    assert tokens.decode(ids[-1:]) == "\n" and labels[-1] == -100


def test_tokens_that_merge_across_the_prompt_are_kept_apart(tokens: PreTrainedTokenizerFast) -> None:
    """`re` + `d` is one token of the whole text and two at generation; training must see generation's."""
    tokens.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% else %}"
        "{% generation %}{{ m['content'] }}<|end|>{% endgeneration %}{% endif %}{% endfor %}"
    )
    chat: list[Message] = [{"role": "user", "content": "blue re"}, {"role": "assistant", "content": "d"}]
    prompt = render(tokens, chat[:1], True)
    assert render(tokens, chat, False)[: len(prompt)] != prompt
    ids, labels = encode_completion(tokens, chat, 100)
    assert ids[: len(prompt)] == prompt
    assert trained_text(tokens, ids, labels) == "d<|end|>"


def test_a_template_that_rewrites_history_needs_generation_marks(tokens: PreTrainedTokenizerFast) -> None:
    body = (
        "{% for m in messages %}{% if m['role'] == 'user' %}<|user|>{{ m['content'] }}"
        "{% if loop.last %} now{% endif %}<|end|>"
    )
    marked = (
        "{% else %}<|assistant|>{% generation %}{{ m['content'] }}<|end|>{% endgeneration %}{% endif %}{% endfor %}"
    )
    tail = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    tokens.chat_template = body + marked + tail
    ids, labels = encode_completion(tokens, CHAT, 100)
    assert trained_text(tokens, ids, labels) == "blue red<|end|>1<|end|>"
    tokens.chat_template = body + marked.replace("{% generation %}", "").replace("{% endgeneration %}", "") + tail
    with pytest.raises(DataError, match="does not render a prompt as the beginning"):
        encode_completion(tokens, CHAT, 100)


def test_cut_at_max_length_and_no_answer(tokens: PreTrainedTokenizerFast) -> None:
    ids, labels = encode_completion(tokens, CHAT, 4)
    assert len(ids) == len(labels) == 4 and set(labels) == {-100}
    with pytest.raises(DataError, match="no assistant turn"):
        encode_completion(tokens, CHAT[:1], 100)


def test_preference_shares_the_prompt_and_ends_both(tokens: PreTrainedTokenizerFast) -> None:
    answers: list[list[Message]] = [[{"role": "assistant", "content": text}] for text in ("blue red", "red blue green")]
    pair = encode_preference(tokens, CHAT[:1], *answers, 100)
    assert pair is not None
    assert pair.prompt_ids == render(tokens, CHAT[:1], True)
    assert (
        tokens.decode(pair.chosen_ids) == "blue red<|end|>"
        and tokens.decode(pair.rejected_ids) == "red blue green<|end|>"
    )
    assert encode_preference(tokens, CHAT[:1], *answers, 4) is None
