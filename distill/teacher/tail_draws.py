"""A row's likeliest tokens as `top_k_form` writes them, and beside them ids drawn from the rest of each distribution.

Legend: T scored tokens of a row, R rows of the vocabulary, m draws. Numbers are little-endian.

    size of what follows u32, `top_k_form`'s bytes, `forms`' bytes of samples: the tail's ids, and the whole entropy

Of n draws from the tail, whose mass is t, n_i fell on i. The weights t n_i / n are the tail's probabilities in
expectation, so with the kept ones the whole is an unbiased estimate of the distribution. n is ceil(4 t m), at most m: a
draw weighs 1 / 4m at most while t is below a quarter.
"""

from __future__ import annotations

import numpy as np

from distill.teacher.forms import Sparse, decode_sampled, encode_sampled
from distill.teacher.top_k_form import decode_top_k, encode_top_k

_SIZE_BYTES = 4


def encode_with_draws(top: Sparse, drawn: Sparse, rows: int, *, step_nats: float, draws: int) -> bytes:
    """A row's bytes. `drawn`: multiples of 1 / `draws`, of as many draws as there were, none where there is no tail."""
    kept = encode_top_k(top, rows, step_nats)
    return b"".join((len(kept).to_bytes(_SIZE_BYTES, "little"), kept, encode_sampled(drawn, rows, draws)))


def decode_top(packed: bytes, tokens: int, rows: int, step_nats: float) -> Sparse:
    """The likeliest tokens and the tail's mass alone."""
    return decode_top_k(_parts(packed)[0], tokens, rows, step_nats)


def decode_with_draws(packed: bytes, tokens: int, rows: int, *, step_nats: float, draws: int) -> Sparse:
    """Kept tokens and the tail's draws as samples of the whole distribution; each token's entries by id."""
    kept, drawn = _parts(packed)
    return put_together(
        decode_top_k(kept, tokens, rows, step_nats),
        decode_sampled(drawn, tokens, rows, draws),
    )


def put_together(top: Sparse, drawn: Sparse) -> Sparse:
    """`drawn` shares out the tail's mass; a token without draws keeps what it has and has no more."""
    assert top.log_tail_T is not None
    tokens = np.arange(len(top.counts_T))
    of_top, of_drawn = np.repeat(tokens, top.counts_T), np.repeat(tokens, drawn.counts_T)
    total = np.bincount(of_drawn, weights=np.exp(drawn.logprobs_E), minlength=len(tokens))
    tail_E = (top.log_tail_T - np.log(np.maximum(total, 1e-30)))[of_drawn] + drawn.logprobs_E
    ids_E = np.concatenate([top.ids_E, drawn.ids_E])
    order = np.lexsort((ids_E, np.concatenate([of_top, of_drawn])))
    logs = np.concatenate([top.logprobs_E, tail_E]).astype(np.float32)
    return Sparse(top.counts_T + drawn.counts_T, ids_E[order], logs[order], entropy_T=drawn.entropy_T)


def _parts(packed: bytes) -> tuple[bytes, bytes]:
    end = _SIZE_BYTES + int.from_bytes(packed[:_SIZE_BYTES], "little")
    return packed[_SIZE_BYTES:end], packed[end:]
