"""Output held to a JSON schema or a pattern: always valid, whatever the model says, and nobody else notices."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import jsonschema_rs
import pytest
import torch

from distill.engine.constrained import grammar as grammars
from distill.engine.constrained.grammar import Constraint, Grammars, schema_constraint
from distill.engine.runner import Engine, EngineConfig
from distill.engine.types import SamplingParams
from distill.errors import EngineError
from tests.engine.models import byte_tokenizer, chat_model

PROMPT = [5, 6, 7]
FREE = SamplingParams(max_tokens=150, temperature=1.5)
_NULL, _FLAG = {"type": "null"}, {"type": "boolean"}
SCHEMAS: dict[str, object] = {
    "integer": {"type": "integer", "minimum": -3, "maximum": 1200},
    "number": {"type": "number", "exclusiveMinimum": 0.5, "maximum": 2.25},
    "string": {"type": "string", "minLength": 2, "maxLength": 12},
    "pattern": {"type": "string", "pattern": "^[a-f]{2,4}-\\d+$"},
    "types": {"type": ["string", "null"], "maxLength": 3},
    "enum": {"enum": ["a", 1, None, {"x": [1, 2]}]},
    "typed enum": {"type": "string", "enum": ["left", "right"]},
    "const": {"const": {"a": [True]}},
    "array": {"type": "array", "items": _FLAG, "minItems": 2, "maxItems": 3},
    "tuple": {"type": "array", "prefixItems": [_FLAG, _NULL], "items": False, "minItems": 2},
    "object": {"type": "object", "properties": {"a": _NULL, "b": _FLAG}, "required": ["b"]},
    "further keys": {"type": "object", "properties": {"a": _NULL}, "additionalProperties": _FLAG},
    "anyOf": {"anyOf": [_NULL, {"type": "array", "items": {"type": "integer"}, "maxItems": 2}]},
    "reference": {
        "$defs": {"x": {"anyOf": [_NULL, {"type": "array", "items": {"$ref": "#/$defs/x"}, "maxItems": 2}]}},
        "title": "a tree",
        "allOf": [{"$ref": "#/$defs/x"}],
    },
    "nested": {
        "type": "object",
        "properties": {
            "place": {
                "type": "object",
                "properties": {"x": {"type": "number"}, "tags": {"type": "array", "items": {"enum": ["ü", '"']}}},
                "required": ["x", "tags"],
            }
        },
        "required": ["place"],
    },
}


def _engine(**config: object) -> Engine:
    tokenizer = byte_tokenizer()
    return Engine(chat_model(tokenizer), tokenizer, EngineConfig(max_batch=16, block_size=8, **config))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return _engine()


def _read(text: str) -> object:
    """JSON; the validator knows no number as large as 7e600."""
    return json.loads(text, parse_float=lambda number: max(-1e300, min(float(number), 1e300)))


def _seeds(params: SamplingParams, count: int) -> list[SamplingParams]:
    return [replace(params, seed=seed) for seed in range(count)]


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_finished_text_is_valid(engine: Engine, name: str) -> None:
    schema = SCHEMAS[name]
    params = replace(FREE, grammar=engine.grammar(schema_constraint(schema)))
    done = engine.generate([PROMPT] * 24, _seeds(params, 24))
    # a random model also writes code points that UTF-8 does not have, which come out as several characters
    finished = [c.text for c in done if c.finish_reason == "stop" and "\ufffd" not in c.text]
    assert len(finished) >= 4
    validator = jsonschema_rs.validator_for(schema)
    assert [text for text in finished if not validator.is_valid(_read(text))] == []
    assert {c.finish_reason for c in done} <= {"stop", "length"}


def test_json_object(engine: Engine) -> None:
    grammar = engine.grammar(Constraint("json_object"))
    done = engine.generate([PROMPT] * 32, _seeds(replace(FREE, grammar=grammar), 32))
    finished = [json.loads(c.text) for c in done if c.finish_reason == "stop"]
    assert finished and all(isinstance(value, dict) for value in finished)
    assert all(c.text.startswith("{") for c in done)


@pytest.mark.parametrize("pattern", ["[a-c]{3}-[0-9]+", "(yes|no|maybe)", "(the |cat )*dog", "[^a-z]{4}"])
def test_regex(engine: Engine, pattern: str) -> None:
    params = replace(FREE, max_tokens=30, grammar=engine.grammar(Constraint("regex", pattern)))
    for params_at in (params, replace(params, temperature=0.0), replace(params, top_k=3), replace(params, top_p=0.5)):
        for completion in engine.generate([PROMPT] * 8, _seeds(params_at, 8)):
            if completion.finish_reason == "stop":
                assert re.fullmatch(pattern, completion.text)
            else:
                assert len(completion.token_ids) == 30


def test_composes_with_bias_penalties_and_min_tokens(engine: Engine) -> None:
    grammar = engine.grammar(Constraint("regex", "[ab]{1,8}"))
    tokenizer = engine.tokenizer
    assert tokenizer is not None
    (b,) = tokenizer("b", add_special_tokens=False)["input_ids"]
    params = SamplingParams(max_tokens=20, temperature=1.0, grammar=grammar)
    for completion in engine.generate([PROMPT] * 6, _seeds(replace(params, logit_bias=((b, 100.0),)), 6)):
        assert completion.text == "b" * 8  # and ends there by itself: nothing can follow
        assert completion.finish_reason == "stop" and len(completion.token_ids) == 8
    for completion in engine.generate([PROMPT] * 6, _seeds(replace(params, min_tokens=8), 6)):
        assert re.fullmatch("[ab]{8}", completion.text)
    for completion in engine.generate([PROMPT] * 6, _seeds(replace(params, ignore_eos=True), 6)):
        assert re.fullmatch("[ab]{8}", completion.text)
    # a stop token that the grammar wants, forbidden by min_tokens: the grammar is the stronger
    forced = engine.grammar(Constraint("regex", "b{3}"))
    both = replace(params, min_tokens=9, stop_token_ids=(b,), grammar=forced)
    assert engine.generate([PROMPT], both)[0].token_ids == (b,)


def test_a_stop_string_and_max_tokens_cut_the_text(engine: Engine) -> None:
    grammar = engine.grammar(Constraint("regex", "aaab[0-9]{5}"))
    stopped = engine.generate([PROMPT], SamplingParams(grammar=grammar, stop=("b",)))[0]
    assert (stopped.text, stopped.finish_reason) == ("aaa", "stop")
    cut = engine.generate([PROMPT], SamplingParams(grammar=grammar, max_tokens=3))[0]
    assert (cut.text, cut.finish_reason) == ("aaa", "length")


def test_the_other_rows_of_a_batch_are_as_before(engine: Engine) -> None:
    free = [SamplingParams(max_tokens=12, logprobs=2), SamplingParams(max_tokens=12, temperature=1.0, seed=3)]
    held = SamplingParams(max_tokens=12, grammar=engine.grammar(Constraint("regex", "[0-9]+")), logprobs=0)
    alone = engine.generate([PROMPT] * 2, free)
    mixed = engine.generate([PROMPT] * 4, [held, free[0], held, free[1]])
    assert [mixed[1].token_ids, mixed[3].token_ids] == [c.token_ids for c in alone]
    assert mixed[1].text == alone[0].text
    assert mixed[0] == mixed[2] and mixed[0].text.isdigit()
    # log probabilities are the model's own, whatever the grammar forbids
    assert mixed[0].logprobs is not None
    assert alone[0].logprobs is not None and mixed[0].logprobs[0].logprob <= alone[0].logprobs[0].logprob


def test_preemption_and_chunks_change_nothing(engine: Engine) -> None:
    grammar = engine.grammar(Constraint("regex", "([0-9]{2}[a-z])+"))
    params = _seeds(SamplingParams(max_tokens=40, temperature=1.0, grammar=grammar), 6)
    expected = engine.generate([PROMPT] * 6, params)
    tight = _engine(num_blocks=14, prefill_tokens=2)
    own = tight.grammar(Constraint("regex", "([0-9]{2}[a-z])+"))
    found = tight.generate([PROMPT] * 6, [replace(p, grammar=own) for p in params])
    assert tight.stats.preemptions > 0
    assert [c.token_ids for c in found] == [c.token_ids for c in expected]
    assert all(re.fullmatch("([0-9]{2}[a-z])*[0-9]{0,2}", c.text) for c in found)


def test_special_tokens_are_no_text(engine: Engine) -> None:
    """The vocabulary has a token for it, which no reader would see."""
    grammar = engine.grammar(Constraint("regex", "<[|]user[|]>"))
    completion = engine.generate([PROMPT], SamplingParams(max_tokens=20, grammar=grammar))[0]
    assert completion.text == "<|user|>" and completion.finish_reason == "stop"


@pytest.mark.parametrize(
    "schema,named",
    [
        ({"type": "object", "propertyNames": {"maxLength": 2}}, "#: 'propertyNames'"),
        ({"type": "array", "items": {"type": "array", "uniqueItems": True}}, "#/items: 'uniqueItems'"),
        ({"not": {"type": "null"}}, "'not'"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "'oneOf'"),
        ({"allOf": [_NULL, _FLAG]}, "'allOf' must be a list of one"),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"type": "string"}}, "maxLength": 2}, "'$ref' is not enforced together"),
        ({"$ref": "https://example.com/x"}, "'$ref' must point into"),
        ({"$ref": "#/$defs/missing"}, "Cannot find field"),
        ({"type": "object", "required": ["a"]}, "'a' is required"),
        ({"type": "object", "properties": {"a": _NULL}, "minProperties": 1}, "'minProperties' cannot be enforced"),
        ({"minimum": 5}, '\'minimum\' is enforced only with "type": "number"'),
        ({"type": "string", "enum": ["a", 1]}, "1 is not of type string"),
        ({"type": "string", "pattern": "^a+$", "maxLength": 2}, "'pattern' is not enforced together with maxLength"),
        ({"type": "string", "pattern": "a"}, "whole strings only"),
        ({"type": "string", "pattern": "^[^a]$"}, "could write what ends a JSON string"),
        ({"type": "string", "pattern": "^a|(b$"}, "parenthesis is not closed"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "minimum greater than maximum"),
        ({"type": "string", "maxLength": 100_000}, "from 0 to 1000"),
        ({"type": "frog"}, "'type' must be of"),
        ({"enum": "ab"}, "'enum' must be a list"),
        ([], "# is not a schema"),
        (False, "# is not a schema"),
        ({"description": "x" * 20_000}, "at most 16384"),
    ],
)
def test_what_would_not_be_enforced_is_refused(engine: Engine, schema: object, named: str) -> None:
    with pytest.raises(EngineError) as error:
        engine.grammar(schema_constraint(schema))
    assert named in str(error.value)
    assert "/project/" not in str(error.value)


def test_a_deep_schema_is_refused(engine: Engine) -> None:
    schema: dict[str, object] = {"type": "null"}
    for _ in range(40):
        schema = {"type": "array", "items": schema}
    with pytest.raises(EngineError, match="levels deep at #/items"):
        engine.grammar(schema_constraint(schema))


@pytest.mark.parametrize(
    "pattern,named",
    [
        ("(a", "not closed"),
        ("(?=a)b", "Lookahead"),
        (r"\bfoo", "Word boundary"),
        ("", "nothing but the empty text"),
        ("a" * 1025, "at most 1024"),
        ("(" * 17 + "a" + ")" * 17, "nests 17 groups"),
    ],
)
def test_patterns_that_cannot_be_compiled(engine: Engine, pattern: str, named: str) -> None:
    with pytest.raises(EngineError, match=named):
        engine.grammar(Constraint("regex", pattern))


def test_compiled_once_and_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_tokenizer()
    cache = Grammars(tokenizer, vocab_size=len(tokenizer), end_ids={2})
    first = cache.compile(Constraint("regex", "a"))
    assert cache.compile(Constraint("regex", "a")) is first
    monkeypatch.setattr(grammars, "_CACHE_ENTRIES", 2)
    cache.compile(Constraint("regex", "b"))
    cache.compile(Constraint("regex", "a"))
    cache.compile(Constraint("regex", "c"))  # b was used longest ago
    assert cache.compile(Constraint("regex", "a")) is first
    monkeypatch.setattr(grammars, "_CACHE_BYTES", 2 * first.num_bytes)
    cache.compile(Constraint("regex", "d"))
    assert cache.num_cached_bytes <= 2 * first.num_bytes
    monkeypatch.setattr(grammars, "_CACHE_BYTES", 2)
    with pytest.raises(EngineError, match="its grammar takes"):
        cache.compile(Constraint("regex", "e"))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammars, "find_spec", lambda name: None)
    with pytest.raises(EngineError) as error:
        _engine().grammar(Constraint("json_object"))
    assert "distill[xgrammar]" in str(error.value)


def test_a_vocabulary_that_cannot_go_on_aborts() -> None:
    """Logits over fewer tokens than the pattern needs: what is there is text, then the sequence is given up."""
    tokenizer = byte_tokenizer()
    (a,) = tokenizer("a", add_special_tokens=False)["input_ids"]
    grammar = Grammars(tokenizer, vocab_size=len(tokenizer), end_ids={2}).compile(Constraint("regex", "ab"))
    grammar.banned[:] = True
    grammar.banned[a] = False
    model = Engine(chat_model(tokenizer), tokenizer, EngineConfig(max_batch=2, block_size=8))
    completion = model.generate([PROMPT], SamplingParams(max_tokens=9, grammar=grammar))[0]
    assert (completion.text, completion.finish_reason) == ("a", "abort")


def test_a_grammar_that_takes_too_long_is_given_up(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammars, "_START_SECONDS", 0.0)
    monkeypatch.setattr(grammars, "_TOKEN_SECONDS", 0.0)
    grammar = engine.grammar(Constraint("regex", "[0-9]{9}"))
    done = engine.generate([PROMPT] * 2, [SamplingParams(max_tokens=9, grammar=grammar), SamplingParams(max_tokens=9)])
    assert done[0].finish_reason == "abort" and len(done[0].text) == 1
    assert done[1].finish_reason == "length"
    assert engine.blocks_in_use == 0


def test_a_mask_is_what_matching_says(engine: Engine) -> None:
    """Against the definition: a token may come iff some text with it matches."""
    tokenizer = engine.tokenizer
    assert tokenizer is not None
    texts = [tokenizer.decode([i]) for i in range(engine.vocab_size)]
    progress = engine.grammar(Constraint("regex", "(the|then|cat) ?")).start()
    wanted = ["the", "then", "cat", "the ", "then ", "cat "]
    special = set(tokenizer.all_special_ids) | {t for t, a in tokenizer.added_tokens_decoder.items() if a.special}
    expected = [i not in special and t != "" and any(w.startswith(t) for w in wanted) for i, t in enumerate(texts)]
    assert progress.allowed.tolist() == expected
    ids = tokenizer("the", add_special_tokens=False)["input_ids"]
    progress.follow(ids)
    assert progress.allowed[list(engine.eos_ids)].all()
    assert torch.from_numpy(progress.allowed).sum() == len(engine.eos_ids) + sum(t in ("n", " ", "n ") for t in texts)
