"""Text of a growing sequence: incremental decoding and stop strings."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "�"  # what an unfinished UTF-8 character decodes to
_WINDOW = 24  # tokens decoded again at every step, at most
_OVERLAP = 6  # tokens kept before the window, of the text or its prompt, so that spaces between words come out right


def decode(tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> str:
    """Text without special tokens, spaces as they are."""
    text = tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def context_of(tokenizer: PreTrainedTokenizerBase, prompt_ids: list[int]) -> list[int]:
    """The last tokens of a prompt, for a text that goes on from it: some tokenizers take the space away that a text
    begins with. None where the prompt ends within a character."""
    last = prompt_ids[-_OVERLAP:]
    return [] if decode(tokenizer, last).endswith(_REPLACEMENT) else last


def decode_after(tokenizer: PreTrainedTokenizerBase, context: list[int], token_ids: list[int]) -> str:
    """Text of tokens after those of a context."""
    return decode(tokenizer, context + token_ids)[len(decode(tokenizer, context)) :]


class TextTail:
    """Decodes token by token over a moving window, so that a step costs the same at any length. Text that may be the
    beginning of a stop string, or half a character, is held back from the reader."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...], context: list[int] | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._context = context or []  # before the window, until that moves
        self._stop = stop
        self._longest = max((len(s) for s in stop), default=0)
        self._start = 0  # first token of the window
        self._window_text = decode(tokenizer, self._context) if self._context else ""
        self._taken = 0  # characters handed out
        self.text = ""
        self.stopped = False

    def push(self, output_ids: list[int], *, may_stop: bool = True, final: bool = False) -> bool:
        """Take note of the newest token; True once a stop string is complete (`text` then ends before it)."""
        window = self._context + output_ids[self._start :]
        text = decode(self._tokenizer, window)
        if text.endswith(_REPLACEMENT) and not final:
            return False
        before = len(self.text)
        self.text += text[len(self._window_text) :]
        self._window_text = text
        if len(window) >= _WINDOW:
            self._start, self._context = len(output_ids) - _OVERLAP, []
            self._window_text = decode(self._tokenizer, output_ids[self._start :])
        if may_stop and self._stop:
            start = max(0, before - self._longest + 1)
            found = [index for index in (self.text.find(stop, start) for stop in self._stop) if index >= 0]
            if found:
                self.text = self.text[: min(found)]
                self.stopped = True
        return self.stopped

    def take(self, *, final: bool = False) -> str:
        """New text that no later token can take back."""
        end = len(self.text)
        if not final and not self.stopped:
            end -= self._held_back()
        piece = self.text[self._taken : end]
        self._taken = max(self._taken, end)
        return piece

    def _held_back(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        for length in range(min(self._longest - 1, len(self.text)), 0, -1):
            end = self.text[-length:]
            if any(stop.startswith(end) for stop in self._stop):
                return length
        return 0
