"""Constrained output: which tokens may come next, so that a text stays within a JSON schema or a regular expression.

The grammars are xgrammar's. Of its view of a vocabulary we change two things: special tokens are never part of a text,
as no reader sees them; and "the text may end here" is a token of its own beyond the vocabulary, which stands for every
token that ends an answer.
"""

from __future__ import annotations

import copy
import json
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from distill.engine.constrained.schema import check_schema
from distill.engine.detokenize import decode
from distill.errors import EngineError

if TYPE_CHECKING:
    import xgrammar

MAX_PATTERN_CHARACTERS = 1024
_MAX_NESTING = 16  # groups of a regular expression
_MAX_WHITESPACE = 32  # between two parts of a JSON value: some indentation, and no endless one
_CACHE_BYTES = 64 << 20
_CACHE_ENTRIES = 256
# processor time that the grammar of one text may take: a hostile pattern must not hold up the other sequences
_START_SECONDS = 2.0
_TOKEN_SECONDS = 0.05
_SAMPLE = '{"a": [1, -2.5e3, "x y"], "b": null}\n'
_ORIGIN = re.compile(r"^\[[\d:]+\] \S+?:\d+: ")  # time and line of xgrammar's source, before its messages
_ANY_OBJECT = '{"type": "object"}'


@dataclass(frozen=True)
class Constraint:
    """What a text has to be: any JSON object, JSON of a schema (`text` as JSON), or a full match of a pattern."""

    kind: Literal["json_object", "json_schema", "regex"]
    text: str = ""


class Grammar:
    """A compiled constraint, for any number of requests at once."""

    def __init__(
        self, compiled: xgrammar.CompiledGrammar, *, banned: np.ndarray, end_ids: Sequence[int], num_bytes: int
    ) -> None:
        self.compiled = compiled
        self.banned = banned  # bool [vocabulary]: tokens that are never text here
        self.end_ids = list(end_ids)
        self.num_bytes = num_bytes

    def start(self, *, may_end: bool = True) -> Progress:
        """An empty text. Without `may_end` no token ends it before nothing else can follow."""
        return Progress(self, may_end)


class Progress:
    """How far one text has come in its grammar."""

    def __init__(self, grammar: Grammar, may_end: bool) -> None:
        import xgrammar

        self._matcher = xgrammar.GrammarMatcher(grammar.compiled, terminate_without_stop_token=False)
        self._grammar = grammar
        self._may_end = may_end
        self._num_taken = 0
        self._seconds = 0.0
        self._bits = xgrammar.allocate_token_bitmask(1, len(grammar.banned) + 1)
        self.ending: Literal["stop", "abort"] | None = None  # nothing can follow: it is complete, or it is given up
        self.allowed = self._look()

    def follow(self, output_ids: Sequence[int]) -> None:
        """Go on to the end of a text that begins with what was seen of it before."""
        if len(output_ids) == self._num_taken:
            return
        started = time.thread_time()
        for token in output_ids[self._num_taken :]:
            self._num_taken += 1
            if token in self._grammar.end_ids:
                self.ending = "stop"
            elif self.ending is None and not self._matcher.accept_token(token):
                self.ending = "abort"  # only a guess that is to be rejected
        self.allowed = self._look()
        self._seconds += time.thread_time() - started
        if self.ending is None and self._seconds > _START_SECONDS + _TOKEN_SECONDS * self._num_taken:
            self.ending = "abort"

    def _look(self) -> np.ndarray:
        """Tokens that may come next, bool [vocabulary]; none where the text is at its end."""
        size = len(self._grammar.banned)
        if self.ending is not None:
            return np.zeros(size, dtype=np.bool_)
        self._matcher.fill_next_token_bitmask(self._bits)
        bits = np.unpackbits(self._bits.numpy().view(np.uint8).ravel(), bitorder="little")[: size + 1].astype(np.bool_)
        allowed, complete = bits[:size] & ~self._grammar.banned, bool(bits[size])
        if not allowed.any():
            self.ending = "stop" if complete else "abort"
        elif complete and self._may_end:
            allowed[self._grammar.end_ids] = True
        return allowed


class Grammars:
    """Compiles constraints for one tokenizer and keeps the latest of them. Any thread may ask."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, *, vocab_size: int, end_ids: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._end_ids = sorted(end_ids)
        self._lock = threading.Lock()
        self._compiler: xgrammar.GrammarCompiler | None = None
        self._special = np.zeros(vocab_size, dtype=np.bool_)
        self._control = np.zeros(vocab_size, dtype=np.bool_)
        self._cache: OrderedDict[Constraint, Grammar] = OrderedDict()

    @property
    def num_cached_bytes(self) -> int:
        return sum(grammar.num_bytes for grammar in self._cache.values())

    def compile(self, constraint: Constraint) -> Grammar:
        """The grammar of a constraint; EngineError says what is wrong with it."""
        with self._lock:
            found = self._cache.get(constraint)
            if found is None:
                found = self._cache[constraint] = self._compile(constraint)
                while len(self._cache) > 1 and (
                    len(self._cache) > _CACHE_ENTRIES or self.num_cached_bytes > _CACHE_BYTES
                ):
                    self._cache.popitem(last=False)
            self._cache.move_to_end(constraint)
            return found

    def _compile(self, constraint: Constraint) -> Grammar:
        if constraint.kind == "json_schema":
            check_schema(constraint.text)
        elif constraint.kind == "regex":
            _check_pattern(constraint.text)
        if self._compiler is None:
            self._compiler = self._read_vocabulary()
        try:
            if constraint.kind == "regex":
                compiled = self._compiler.compile_regex(constraint.text)
            else:
                schema = constraint.text if constraint.kind == "json_schema" else _ANY_OBJECT
                compiled = self._compiler.compile_json_schema(schema, max_whitespace_cnt=_MAX_WHITESPACE)
        except RuntimeError as error:
            raise EngineError(_ORIGIN.sub("", str(error)).strip()) from None
        num_bytes = compiled.memory_size_bytes
        if num_bytes > _CACHE_BYTES // 2:
            raise EngineError(f"its grammar takes {num_bytes >> 20} MiB; at most {_CACHE_BYTES >> 21} are kept")
        banned = self._special if constraint.kind == "regex" else self._special | self._control
        grammar = Grammar(compiled, banned=banned, end_ids=self._end_ids, num_bytes=num_bytes)
        if grammar.start().ending is not None:
            raise EngineError("nothing but the empty text matches, or no token of this vocabulary can begin it")
        return grammar

    def _read_vocabulary(self) -> xgrammar.GrammarCompiler:
        """The compiler for this tokenizer, checked to read its tokens as the text they decode to."""
        if self._tokenizer is None:
            raise EngineError("constrained output needs a tokenizer")
        if find_spec("xgrammar") is None:
            raise EngineError(
                "constrained output needs the package xgrammar", remedy="install it: pip install 'distill[xgrammar]'"
            )
        import xgrammar

        tokenizer = copy.deepcopy(self._tokenizer)  # fast tokenizers change while they encode
        end = self._vocab_size
        try:
            info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=end + 1, stop_token_ids=[end])
        except (ValueError, RuntimeError) as error:
            raise EngineError(f"xgrammar cannot read this tokenizer: {_ORIGIN.sub('', str(error)).strip()}") from None
        texts: list[bytes] = info.decoded_vocab
        ids = [int(token) for token in tokenizer(_SAMPLE, add_special_tokens=False)["input_ids"]]
        if b"".join(texts[token] for token in ids).decode(errors="replace").strip() != decode(tokenizer, ids).strip():
            raise EngineError("xgrammar reads other texts in this tokenizer's tokens than it writes")
        special = {*tokenizer.all_special_ids, *self._end_ids}
        special |= {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        self._special[[token for token in special if token < end]] = True
        # inside strings of bounded length xgrammar lets control characters pass, which JSON does not
        control = [any(byte < 32 and byte not in b"\n\r" for byte in text) for text in texts[:end]]
        self._control[: len(control)] = control
        return xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)


def _check_pattern(pattern: str) -> None:
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        raise EngineError(f"the pattern has {len(pattern)} characters; at most {MAX_PATTERN_CHARACTERS} are compiled")
    depth = deepest = 0
    for character in pattern:
        depth += (character == "(") - (character == ")")
        deepest = max(deepest, depth)
    if deepest > _MAX_NESTING:
        raise EngineError(f"the pattern nests {deepest} groups; at most {_MAX_NESTING} are compiled")


def schema_constraint(schema: object) -> Constraint:
    """The constraint of a schema given as a value; keys keep their order, in which the text will have them."""
    try:
        return Constraint("json_schema", json.dumps(schema, ensure_ascii=False, separators=(",", ":")))
    except RecursionError:
        raise EngineError("the schema is too deep") from None
