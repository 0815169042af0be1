"""Which tokens of one vocabulary could stand where another's tokens end inside of them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from distill.text.spans import Cut
from distill.text.token_bytes import Spelling

Ids = tuple[int, ...]


class Continuations:
    """Tokens of `ours` that the tokenizer of `theirs` would cut as it cuts the one that was said.

    After "un" of "unable" the other side has said its token "un", and not "unr": so of our tokens those are meant that
    begin with "un", but not with "unr" or anything longer that the other side has a token for. Tokenizers are taken to
    say the longest token that fits, which BPE does mostly.
    """

    def __init__(self, ours: Spelling, theirs: Spelling) -> None:
        ordered = sorted((text, index) for index, text in ours.ordinary.items())
        self._texts, self._ids = [text for text, _ in ordered], [index for _, index in ordered]
        self._theirs = set(theirs.ordinary.values())
        self._longest = max(map(len, self._theirs), default=0)
        self._found: dict[tuple[bytes, bytes, tuple[int, ...]], list[int]] = {}
        self._told: dict[tuple[bytes, bytes, tuple[int, ...]], Ids] = {}

    def at(self, cuts: Sequence[Cut], ids: Sequence[int], texts: Sequence[bytes], others: Sequence[bytes]) -> list[Ids]:
        """Of our tokens `ids` of a span, for each of its cuts: what could stand for the one that is cut, up to there.

        It is that token alone where it ends at the cut. `texts`, `others`: the tokens' bytes on our and the other side.
        """
        found: list[Ids] = []
        ends: list[int] = []
        before = b""
        for cut in cuts:
            index, text = ids[cut.token], texts[cut.token]
            if cut.length == len(text):
                found.append((index,))
                ends = []
                continue
            if not ends:  # the other's token that ends here may have begun before ours
                before = others[cut.other_token][: max(0, cut.other_length - cut.length)]
            ends.append(cut.length)
            alike = self.ids(before, text, tuple(ends))
            found.append(alike if index in alike else (*alike, index))
        return found

    def ids(self, before: bytes, text: bytes, ends: tuple[int, ...]) -> Ids:
        """Of a token `text` in which the other side's tokens end after so many bytes (`ends`): what could stand in its
        place through the last of these. `before`: what precedes it of the other's first token."""
        key = (before, text[: ends[-1]], ends)
        if key not in self._told:
            self._told[key] = tuple(self._ids[place] for place in self._places(*key))
        return self._told[key]

    def _places(self, before: bytes, text: bytes, ends: tuple[int, ...]) -> list[int]:
        key = (before, text, ends)
        if key not in self._found:
            start, prefix = (ends[-2], b"") if len(ends) > 1 else (0, before)
            if len(ends) > 1:
                among = [n for n in self._places(before, text[:start], ends[:-1]) if self._texts[n].startswith(text)]
            else:
                among = list(range(*self._beginning(text)))
            said = len(prefix) + len(text) - start
            self._found[key] = [n for n in among if not self._longer(prefix + self._texts[n][start:], said)]
        return self._found[key]

    def _longer(self, text: bytes, length: int) -> bool:
        """Whether the other side has a token of more than `length` bytes that `text` begins with."""
        return any(text[:end] in self._theirs for end in range(length + 1, min(len(text), self._longest) + 1))

    def _beginning(self, text: bytes) -> tuple[int, int]:
        """The half-open range of tokens, in the order of their bytes, that begin with `text`."""
        kept = text.rstrip(b"\xff")
        after = bisect_left(self._texts, kept[:-1] + bytes([kept[-1] + 1])) if kept else len(self._texts)
        return bisect_left(self._texts, text), after
