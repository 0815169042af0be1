"""What evaluation harnesses and other clients rely on, field by field, through the official client and plain HTTP."""

from __future__ import annotations

import math
from collections.abc import Iterator

import httpx2
import openai
import pytest
import requests
import torch
from tokenizers.processors import TemplateProcessing

from distill.engine.runner import Engine, EngineConfig
from tests.engine.models import byte_tokenizer, chat_model, sentence_piece_tokenizer
from tests.serve.conftest import MODEL, Running, start

TEMPLATE = (
    "{{ bos_token }}{% if tools %}{{ '<|user|>' + (tools | tojson) + '</s>' }}{% endif %}"
    "{% for m in messages %}{{ '<|' + m.role + '|>' + (m.content or '') }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments | tojson }}){% endfor %}"
    "{{ '</s>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def client(running: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=running.url, api_key="unused", max_retries=0)


@pytest.fixture(scope="module")
def tool_server() -> Iterator[Running]:
    """A model whose template knows tools and writes a BOS, and whose tokenizer adds one to texts."""
    tokenizer = byte_tokenizer()
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    tokenizer.chat_template = TEMPLATE
    engine = Engine(chat_model(tokenizer), tokenizer, EngineConfig(max_batch=8, block_size=8))
    server, url = start(engine)
    yield Running(url, engine, tokenizer)
    server.should_exit = True


def _post(running: Running, path: str, body: dict[str, object]) -> httpx2.Response:
    return httpx2.post(running.url.removesuffix("/v1") + path, json=body, timeout=60, trust_env=False)


def _logprobs(running: Running, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return torch.log_softmax(running.engine.model(torch.tensor([ids])).logits[0].float(), -1)


def test_echo_scores_the_prompt_and_one_more_token(client: openai.OpenAI, running: Running) -> None:
    ids = running.tokenizer("the cat sat").input_ids
    answer = client.completions.create(
        model=MODEL, prompt=[ids], echo=True, logprobs=1, max_tokens=1, temperature=0, seed=1234
    )
    (choice,) = answer.choices
    found = choice.logprobs
    assert found is not None and found.token_logprobs is not None and found.top_logprobs is not None
    assert found.tokens is not None and found.text_offset is not None
    assert len(found.token_logprobs) == len(found.top_logprobs) == len(found.tokens) == len(ids) + 1
    assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
    expected = _logprobs(running, ids)
    for position in range(1, len(ids)):
        own = found.token_logprobs[position]
        assert own == pytest.approx(float(expected[position - 1, ids[position]]), rel=1e-5)
        best = max(found.top_logprobs[position].values())
        assert best == pytest.approx(float(expected[position - 1].max()), rel=1e-5)
        # compared as floats by harnesses: equal if and only if the token is the likeliest
        assert (own == best) == (int(expected[position - 1].argmax()) == ids[position])
        assert own in found.top_logprobs[position].values()
    assert "".join(found.tokens[: len(ids)]) == "the cat sat"
    assert choice.text.startswith("the cat sat")
    assert found.text_offset == [len("".join(found.tokens[:i])) for i in range(len(found.tokens))]
    assert answer.usage is not None and answer.usage.completion_tokens == 1


def test_a_greedy_continuation_is_greedy_when_it_is_scored(client: openai.OpenAI, running: Running) -> None:
    ids = running.tokenizer("the dog").input_ids
    (done,) = client.completions.create(
        model=MODEL, prompt=ids, max_tokens=8, temperature=0, logprobs=0, extra_body={"ignore_eos": True}
    ).choices
    assert done.logprobs is not None and done.logprobs.token_logprobs is not None
    tokens: list[int] = []
    for _ in range(8):  # by the model itself: the engine belongs to the server's thread
        tokens.append(int(_logprobs(running, [*ids, *tokens])[-1].argmax()))
    assert done.text == running.tokenizer.decode(tokens, skip_special_tokens=True)
    (scored,) = client.completions.create(
        model=MODEL, prompt=[*ids, *tokens], echo=True, logprobs=1, max_tokens=1, temperature=0
    ).choices
    assert scored.logprobs is not None
    own, top = scored.logprobs.token_logprobs, scored.logprobs.top_logprobs
    assert own is not None and top is not None
    assert all(own[i] == max(top[i].values()) for i in range(len(ids), len(ids) + 8))
    assert own[len(ids) : -1] == pytest.approx(done.logprobs.token_logprobs, rel=1e-5)


def test_scoring_returns_one_generated_token_even_if_it_is_eos(client: openai.OpenAI, running: Running) -> None:
    """A bias makes EOS certain; harnesses cut the last entry off, so it must be there."""
    ids = running.tokenizer("the cat").input_ids
    answer = client.completions.create(
        model=MODEL,
        prompt=ids,
        echo=True,
        logprobs=1,
        max_tokens=1,
        temperature=0,
        logit_bias={str(running.tokenizer.eos_token_id): 100},
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "stop" and choice.text == "the cat"
    assert choice.logprobs is not None and choice.logprobs.token_logprobs is not None
    assert len(choice.logprobs.token_logprobs) == len(ids) + 1
    assert choice.logprobs.tokens is not None and choice.logprobs.tokens[-1] == "</s>"
    # probabilities are the model's own, before the bias
    assert choice.logprobs.token_logprobs[-1] == pytest.approx(
        float(_logprobs(running, ids)[-1, running.tokenizer.eos_token_id]), rel=1e-5
    )


def test_scoring_alone(client: openai.OpenAI, running: Running) -> None:
    ids = running.tokenizer("the cat sat").input_ids
    answer = client.completions.create(model=MODEL, prompt=["the cat sat", "a"], echo=True, logprobs=0, max_tokens=0)
    first, second = answer.choices
    assert first.logprobs is not None and second.logprobs is not None
    assert first.text == "the cat sat" and first.finish_reason == "length"
    assert len(first.logprobs.token_logprobs or ()) == len(ids) and second.logprobs.token_logprobs == [None]
    assert answer.usage is not None and answer.usage.completion_tokens == 0


def test_echo_without_logprobs(client: openai.OpenAI, running: Running) -> None:
    ids = running.tokenizer("the cat").input_ids
    plain = client.completions.create(model=MODEL, prompt=ids, max_tokens=5, temperature=0).choices[0].text
    for prompt in (ids, "the cat"):
        answer = client.completions.create(model=MODEL, prompt=prompt, echo=True, max_tokens=5, temperature=0, n=2)
        assert [c.text for c in answer.choices] == ["the cat" + plain] * 2 and answer.choices[0].logprobs is None
    pieces = client.completions.create(
        model=MODEL, prompt="the cat", echo=True, max_tokens=5, temperature=0, stream=True
    )
    assert "".join(p.choices[0].text for p in pieces) == "the cat" + plain
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt="a", echo=True, logprobs=1, stream=True)
    assert caught.value.param == "echo"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt="a", max_tokens=0)
    assert caught.value.param == "max_tokens"


def test_a_space_between_prompt_and_answer_is_kept() -> None:
    """By a tokenizer that takes the first space of a text away: whole, streamed, cut by a stop string, and in the
    tokens' own texts."""
    tokenizer = sentence_piece_tokenizer()
    engine = Engine(chat_model(tokenizer), tokenizer, EngineConfig(max_batch=8, block_size=8))
    server, url = start(engine)
    client = openai.OpenAI(base_url=url, api_key="unused", max_retries=0)
    dog = tokenizer("the dog", add_special_tokens=False).input_ids[-1]
    fields = {"model": MODEL, "prompt": "the cat", "max_tokens": 3, "temperature": 0, "logit_bias": {str(dog): 100}}
    try:
        assert tokenizer.decode([dog]) == "dog"
        plain = client.completions.create(**fields, logprobs=1).choices[0]
        assert plain.text == " dog dog dog" and plain.logprobs is not None
        assert plain.logprobs.tokens == [" dog"] * 3 and plain.logprobs.text_offset == [0, 4, 8]
        assert client.completions.create(**fields, echo=True).choices[0].text == "the cat dog dog dog"
        assert client.completions.create(**fields, stop=[" dog dog"]).choices[0].text == ""
        assert "".join(p.choices[0].text for p in client.completions.create(**fields, stream=True)) == " dog dog dog"
    finally:
        server.should_exit = True


def test_token_ids_are_taken_as_they_are(tool_server: Running) -> None:
    """Neither BOS nor anything else is added to ids; text gets what the tokenizer adds."""
    client = openai.OpenAI(base_url=tool_server.url, api_key="unused", max_retries=0)
    ids = tool_server.tokenizer("the cat", add_special_tokens=False).input_ids
    answer = client.completions.create(model=MODEL, prompt=[ids, [*ids, 5]], max_tokens=1)
    assert answer.usage is not None and answer.usage.prompt_tokens == 2 * len(ids) + 1
    text = client.completions.create(model=MODEL, prompt=["the cat"] * 2, max_tokens=1)
    assert text.usage is not None and text.usage.prompt_tokens == 2 * (len(ids) + 1)
    bare = client.completions.create(
        model=MODEL, prompt="the cat", max_tokens=1, extra_body={"add_special_tokens": False}
    )
    assert bare.usage is not None and bare.usage.prompt_tokens == len(ids)
    scored = client.completions.create(model=MODEL, prompt=ids, echo=True, logprobs=1, max_tokens=1)
    found = scored.choices[0].logprobs
    assert found is not None and found.tokens is not None
    assert "".join(found.tokens[:-1]) == "the cat" and len(found.tokens) == len(ids) + 1


def test_a_chat_has_the_bos_of_its_template_alone(tool_server: Running) -> None:
    messages = [{"role": "user", "content": "the cat"}]
    expected = tool_server.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    ids = _post(tool_server, "/tokenize", {"messages": messages}).json()["tokens"]
    assert ids == expected and ids.count(tool_server.tokenizer.bos_token_id) == 1


def test_many_stop_strings_and_an_empty_bearer(running: Running) -> None:
    """OpenAI takes four stop strings; tasks of harnesses have more. Without a key they send `Bearer ` and nothing."""
    body = {"model": MODEL, "prompt": "the", "max_tokens": 2, "stop": [f"stop {i}" for i in range(12)]}
    url = running.url + "/completions"
    answer = requests.post(url, json=body, headers={"authorization": "Bearer "}, timeout=60)
    assert answer.status_code == 200


def test_logit_bias_decides(client: openai.OpenAI, running: Running) -> None:
    wanted = running.tokenizer("cat").input_ids[0]
    answer = client.completions.create(
        model=MODEL, prompt="the", max_tokens=3, logit_bias={str(wanted): 100}, temperature=0
    )
    assert answer.choices[0].text == running.tokenizer.decode([wanted]) * 3
    with pytest.raises(openai.BadRequestError, match="vocabulary"):
        client.completions.create(model=MODEL, prompt="the", logit_bias={"100000": 1})


def test_tools_reach_the_template(tool_server: Running) -> None:
    tokenizer = tool_server.tokenizer
    messages = [
        {"role": "user", "content": "look!"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": "cat"}'}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "a cat"},
    ]
    native = [{**m, "tool_calls": [_native(c) for c in m["tool_calls"]]} if "tool_calls" in m else m for m in messages]
    for choice, tools in ((None, [TOOL]), ("auto", [TOOL]), ("none", None)):
        expected = tokenizer.apply_chat_template(native, tools=tools, add_generation_prompt=True, return_dict=False)
        body = {"messages": messages, "tools": [TOOL], **({"tool_choice": choice} if choice else {})}
        assert _post(tool_server, "/tokenize", body).json()["tokens"] == expected, choice
    answer = _post(tool_server, "/v1/chat/completions", {"model": MODEL, "max_tokens": 1, **body}).json()
    assert answer["usage"]["prompt_tokens"] == len(expected)


def _native(call: dict[str, object]) -> dict[str, object]:
    return {**call, "function": {"name": "look", "arguments": {"at": "cat"}}}


def test_tools_without_a_template_for_them_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x"}], tools=[TOOL])
    assert caught.value.param == "tools"


def test_tokenizer_endpoints(running: Running) -> None:
    tokenizer = running.tokenizer
    ids = tokenizer("the cat</s>", add_special_tokens=False).input_ids
    found = _post(running, "/tokenize", {"prompt": "the cat</s>", "add_special_tokens": False}).json()
    assert found["tokens"] == ids and found["count"] == len(ids) and found["max_model_len"] == 256
    assert _post(running, "/detokenize", {"tokens": ids, "model": MODEL}).json() == {"prompt": "the cat</s>"}
    named = _post(running, "/tokenize", {"prompt": "the", "return_token_strs": True}).json()
    assert named["token_strs"] == tokenizer.convert_ids_to_tokens(named["tokens"])
    info = httpx2.get(running.url.removesuffix("/v1") + "/tokenizer_info", trust_env=False).json()
    assert (info["bos_token"], info["eos_token"]) == ("<s>", "</s>") and "add_generation_prompt" in info[
        "chat_template"
    ]
    for path, body, name in (
        ("/tokenize", {}, "messages"),
        ("/tokenize", {"prompt": "x", "chat_template": "{{ 1 }}"}, "chat_template"),
        ("/detokenize", {"tokens": [100_000]}, "tokens"),
        ("/detokenize", {"tokens": "x"}, "tokens"),
        ("/detokenize", {"tokens": [1], "model": "other"}, "model"),
    ):
        answer = _post(running, path, body)
        assert answer.status_code in (400, 404) and answer.json()["error"]["param"] == name, body


def test_cold_and_hot_temperatures_leave_the_engine_alive(client: openai.OpenAI) -> None:
    """Dividing logits by 1e-300 gives no numbers; such a temperature is greedy instead."""
    greedy = client.completions.create(model=MODEL, prompt="the", max_tokens=4, temperature=0).choices[0].text
    for temperature in (1e-300, 1e-5):
        answer = client.completions.create(model=MODEL, prompt="the", max_tokens=4, temperature=temperature)
        assert answer.choices[0].text == greedy
    hot = client.completions.create(
        model=MODEL, prompt="the", max_tokens=4, temperature=100, top_p=1e-300, logprobs=1, seed=1
    )
    assert hot.choices[0].logprobs is not None
    assert all(math.isfinite(p) for p in hot.choices[0].logprobs.token_logprobs or ())


def test_half_a_surrogate_pair_is_refused(running: Running) -> None:
    for path, body in (("/v1/completions", b'{"prompt": "\\ud800"}'), ("/tokenize", b'{"\\udc00": 1, "prompt": "x"}')):
        answer = httpx2.post(running.url.removesuffix("/v1") + path, content=body, trust_env=False)
        assert answer.status_code == 400 and "UTF-8" in answer.json()["error"]["message"]
