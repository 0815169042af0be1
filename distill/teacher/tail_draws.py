"""A row's likeliest tokens as `top_k_form` writes them, and beside them ids drawn from the rest of each distribution.

Legend: T scored tokens of a row, R rows of the vocabulary, m draws. Numbers are little-endian.

    size of what follows u32, `top_k_form`'s bytes, `forms`' bytes of samples: the tail's ids, and the whole entropy

Of n draws from the tail, whose mass is t, n_i fell on i. The weights t n_i / n are the tail's probabilities in
expectation, so with the kept ones the whole is an unbiased estimate of the distribution. n is ceil(4 t m), at most m: a
draw weighs 1 / 4m at most while t is below a quarter.
"""

from __future__ import annotations

from distill.teacher.forms import Sparse, encode_sampled
from distill.teacher.top_k_form import encode_top_k

_SIZE_BYTES = 4


def encode_with_draws(top: Sparse, drawn: Sparse, rows: int, *, step_nats: float, draws: int) -> bytes:
    """A row's bytes. `drawn`: multiples of 1 / `draws`, of as many draws as there were, none where there is no tail."""
    kept = encode_top_k(top, rows, step_nats)
    return b"".join((len(kept).to_bytes(_SIZE_BYTES, "little"), kept, encode_sampled(drawn, rows, draws)))


def parts_of(packed: bytes) -> tuple[bytes, bytes]:
    """Bytes of the likeliest tokens, and of the tail's draws."""
    end = _SIZE_BYTES + int.from_bytes(packed[:_SIZE_BYTES], "little")
    return packed[_SIZE_BYTES:end], packed[end:]
