"""The bytes that a tokenizer's tokens stand for, read off their names in its vocabulary."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Spelling:
    """What the tokens of a vocabulary say, by id: `ordinary` ones the bytes of a text, `special` ones their name."""

    ordinary: Mapping[int, bytes]
    special: Mapping[int, bytes]

    def of(self, ids: list[int]) -> list[bytes]:
        """The bytes of some tokens, special ones by their name."""
        return [self.ordinary[index] if index in self.ordinary else self.special[index] for index in ids]


def bytes_of_tokens(vocabulary: Mapping[str, int], added: Collection[str] = ()) -> dict[int, bytes]:
    """Bytes by token id, of a byte-level (GPT-2) or a SentencePiece vocabulary; `added` tokens stand for themselves."""
    to_bytes = _byte_level if any("Ġ" in token for token in vocabulary) else _sentence_piece
    return {index: token.encode() if token in added else to_bytes(token) for token, index in vocabulary.items()}


def ids_by_bytes(vocabulary: Mapping[str, int]) -> dict[bytes, int]:
    """Token ids by the bytes that they stand for, of a byte-level (GPT-2) or a SentencePiece vocabulary.

    Of several tokens for the same bytes an ordinary one wins over SentencePiece's `<0x41>`, and a lower id over others.
    """
    found: dict[bytes, int] = {}
    spelled = bytes_of_tokens(vocabulary)
    by_rank = sorted(vocabulary.items(), key=lambda item: (_is_byte_token(item[0]), item[1]))
    for _, index in by_rank:
        found.setdefault(spelled[index], index)
    return found


def _is_byte_token(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _sentence_piece(token: str) -> bytes:
    return bytes([int(token[3:5], 16)]) if _is_byte_token(token) else token.replace("▁", " ").encode()


def _byte_level(token: str) -> bytes:
    try:
        return bytes(_BYTE_OF[char] for char in token)
    except KeyError:  # an added token stands for itself
        return token.encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's way to write bytes as visible characters: printable Latin-1 as it is, the others from U+0100 on."""
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


_BYTE_OF = _byte_alphabet()
