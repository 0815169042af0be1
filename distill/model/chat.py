"""Chats to token ids through the model's own chat template, with labels on what the assistant says and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from distill.errors import DataError
from distill.records import Message

IGNORED = -100
_GENERATION_TAG = "{% generation %}"


@dataclass(frozen=True)
class Preference:
    """One pair, tokenised: `prompt + chosen` and `prompt + rejected` are the two sequences."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], add_generation_prompt: bool) -> list[int]:
    """Token ids of a chat, as the model reads it; the template alone decides on BOS."""
    ids: Any = tokenizer.apply_chat_template(
        _plain(messages), tokenize=True, add_generation_prompt=add_generation_prompt, return_dict=False
    )
    return _single_bos(tokenizer, list(ids))


def encode_completion(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], max_length: int
) -> tuple[list[int], list[int]]:
    """(input_ids, labels), at most `max_length` long, cut at the end; labels are -100 outside the assistant's turns.

    A turn is trained from the first token after the generation prompt through its end-of-turn token, so that the model
    learns to stop; a last turn that the template leaves open gets the EOS token. Labels are not shifted. Where all
    labels fall beyond `max_length` they are all -100; the caller drops the row. Raises DataError for a chat without
    an assistant turn or that the template refuses.
    """
    return encode_completions(tokenizer, [messages], max_length)[0]


def encode_completions(
    tokenizer: PreTrainedTokenizerBase, chats: Sequence[Sequence[Message]], max_length: int
) -> list[tuple[list[int], list[int]]]:
    """`encode_completion` of each chat. Their texts are tokenised in one call, for which fast tokenizers take all cores
    (where TOKENIZERS_PARALLELISM does not forbid it)."""
    rendered = [_rendered(tokenizer, chat) for chat in chats]
    texts = list(dict.fromkeys(text for chat in rendered for text in chat.texts))
    tokens: list[list[int]] = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    known = {text: _single_bos(tokenizer, ids) for text, ids in zip(texts, tokens, strict=True)}
    special = frozenset(tokenizer.all_special_ids)
    return [_labelled(tokenizer, chat, known, special, max_length) for chat in rendered]


def encode_preference(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[Message],
    chosen: Sequence[Message],
    rejected: Sequence[Message],
    max_length: int,
) -> Preference | None:
    """Prompt and both completions, end of turn included; None where the prompt leaves no room for a completion."""
    sides = []
    start = 0
    for completion in (chosen, rejected):
        ids, labels = encode_completion(tokenizer, [*prompt, *completion], max_length)
        first = next((index for index, label in enumerate(labels) if label != IGNORED), None)
        if first is None:
            return None
        sides.append(ids[: max(index for index, label in enumerate(labels) if label != IGNORED) + 1])
        start = first if start == 0 else min(start, first)
    if sides[0][:start] != sides[1][:start]:
        raise DataError("the chat template renders the prompt of a pair in two ways", remedy="use another template")
    return Preference(sides[0][:start], sides[0][start:], sides[1][start:])


@dataclass(frozen=True)
class _Rendered:
    """A chat as text; of each assistant turn, by its index, the text before it and the text through its end."""

    messages: Sequence[Message]
    whole: str
    turns: dict[int, tuple[str, str]]

    @property
    def texts(self) -> list[str]:
        return [self.whole, *(text for pair in self.turns.values() for text in pair)]


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> _Rendered:
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise DataError("a chat has no assistant turn to train on", remedy="drop the row or give it an answer")
    whole = _text(tokenizer, messages, False)
    pairs = {}
    for index in turns:
        before = _text(tokenizer, messages[:index], True)
        through = whole if index == len(messages) - 1 else _text(tokenizer, messages[: index + 1], False)
        pairs[index] = before, through
    return _Rendered(messages, whole, pairs)


def _labelled(
    tokenizer: PreTrainedTokenizerBase,
    chat: _Rendered,
    known: Mapping[str, list[int]],
    special: frozenset[int],
    max_length: int,
) -> tuple[list[int], list[int]]:
    """See `encode_completion`; `known` has the tokens of the chat's texts."""
    ids, spans = _ids_and_spans(tokenizer, chat, known)
    eos = tokenizer.eos_token_id
    labels = [IGNORED] * len(ids)
    for begin, end in spans:
        stop = _after_end_of_turn(tokenizer, ids, begin, end, special)
        labels[begin:stop] = ids[begin:stop]
    begin, end = spans[-1]
    is_open = max(chat.turns) == len(chat.messages) - 1 and eos is not None
    if is_open and not _stops(tokenizer, ids, begin, end, special):
        ids, labels = [*ids[:end], eos], [*labels[:end], eos]
    return ids[:max_length], labels[:max_length]


def _ids_and_spans(
    tokenizer: PreTrainedTokenizerBase, chat: _Rendered, known: Mapping[str, list[int]]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids of the whole chat and the half-open token span of each assistant turn."""
    ids = known[chat.whole]
    spans = []
    for before, through in ((known[before], known[through]) for before, through in chat.turns.values()):
        if ids[: len(before)] != before or ids[: len(through)] != through:
            return _by_segments(tokenizer, chat)
        spans.append((len(before), len(through)))
    return ids, spans


def _by_segments(tokenizer: PreTrainedTokenizerBase, chat: _Rendered) -> tuple[list[int], list[tuple[int, int]]]:
    """For tokens that merge across the end of a prompt: tokenise prompt and turn apart, as generation would see them.

    Where even the text of the prompt is no prefix of the whole (templates that rewrite history), the template's own
    {% generation %} marks decide.
    """
    whole = chat.whole
    ids: list[int] = []
    spans, position = [], 0
    for before, through in chat.turns.values():
        if not whole.startswith(before) or not whole.startswith(through) or not position <= len(before) <= len(through):
            return _by_generation_marks(tokenizer, chat.messages)
        ids += _tokens(tokenizer, whole[position : len(before)])
        begin = len(ids)
        ids += _tokens(tokenizer, whole[len(before) : len(through)])
        spans.append((begin, len(ids)))
        position = len(through)
    ids += _tokens(tokenizer, whole[position:])
    return ids, spans


def _by_generation_marks(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]
) -> tuple[list[int], list[tuple[int, int]]]:
    if _GENERATION_TAG not in str(tokenizer.chat_template).replace("{%-", "{%").replace("-%}", "%}"):
        raise DataError(
            "the chat template does not render a prompt as the beginning of the whole chat",
            remedy="mark the assistant's text in the template with {% generation %} ... {% endgeneration %}",
        )
    encoded: Any = tokenizer.apply_chat_template(
        _plain(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = list(encoded["input_ids"]), list(encoded["assistant_masks"])
    edges = [index for index in range(len(mask) + 1) if (mask[index - 1] if index else 0) != (mask + [0])[index]]
    spans = list(zip(edges[::2], edges[1::2], strict=True))
    if not spans:
        raise DataError("the chat template's {% generation %} marks enclose no token", remedy="mend the template")
    return ids, spans


def _after_end_of_turn(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], begin: int, end: int, special: frozenset[int]
) -> int:
    """Where training of a turn stops: after its end-of-turn token, which templates often follow by a newline."""
    for index in range(end - 1, begin - 1, -1):
        if ids[index] in special:
            rest = tokenizer.decode(ids[index + 1 : end])
            return index + 1 if not str(rest).strip() else end
    return end


def _stops(tokenizer: PreTrainedTokenizerBase, ids: list[int], begin: int, end: int, special: frozenset[int]) -> bool:
    """Whether a turn's last visible token is a special one, which is how chat models end a turn."""
    last = _after_end_of_turn(tokenizer, ids, begin, end, special) - 1
    return last >= begin and ids[last] in special


def _plain(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], add_generation_prompt: bool) -> str:
    return str(
        tokenizer.apply_chat_template(_plain(messages), tokenize=False, add_generation_prompt=add_generation_prompt)
    )


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]] if text else []


def _single_bos(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """Drop a second BOS, which templates that write one get from tokenizers that add one."""
    bos = tokenizer.bos_token_id
    return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids
