"""Making small base models: packed batches from the tasks, learning, and resuming as if never stopped."""

from pathlib import Path

import pytest
import torch

from distill.model.tokenizer import train_tokenizer
from distill.recipe.teacher import Scratch
from distill.recipe.train import LmEntry
from distill.train import lm
from distill.train.corpus import IGNORED, PackedCorpus, texts, tokenizer_texts

ENTRY = LmEntry(
    objective="lm", name="tiny", corpus="chats", steps=6, rows=2, row_tokens=128, workers=0, save_steps=3, seed=3
)
SHAPE = Scratch(vocab_size=512, hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=64)


@pytest.fixture(scope="module")
def tokenizer():  # type: ignore[no-untyped-def]
    return train_tokenizer(tokenizer_texts(0, 200), vocab_size=512, max_positions=256)


def packed(tokenizer, corpus: str = "chats", steps: range = range(2)) -> PackedCorpus:  # type: ignore[no-untyped-def]
    return PackedCorpus(tokenizer, corpus=corpus, seed=1, steps=steps, rows=2, row_tokens=256)  # type: ignore[arg-type]


def test_digits_are_tokens_of_their_own(tokenizer) -> None:  # type: ignore[no-untyped-def]
    tokens = tokenizer.tokenize("123 + 45")
    assert [token for token in tokens if token.isdigit()] == ["1", "2", "3", "4", "5"]
    assert tokenizer.decode(tokenizer("a 12b, é!")["input_ids"]) == "a 12b, é!"


def test_a_packed_chat_is_what_the_chat_template_renders(tokenizer) -> None:  # type: ignore[no-untyped-def]
    ids, labels = packed(tokenizer)[0]
    prompt, answer = next(iter(texts("chats", (1 + 1) * 1_000_003)))
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    rendered = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    length = min(len(rendered["input_ids"]), 256)
    flat_ids, flat_labels = ids.flatten().tolist(), labels.flatten().tolist()
    assert flat_ids[:length] == rendered["input_ids"][:length]
    # labels are shifted: the label at i is the token at i + 1, where that token belongs to the answer
    for i in range(length - 1):
        wanted = rendered["input_ids"][i + 1] if rendered["assistant_masks"][i + 1] else IGNORED
        assert flat_labels[i] == wanted
    assert tokenizer.convert_tokens_to_ids("<|end|>") in flat_labels


def test_plain_documents_have_loss_on_everything_but_the_start(tokenizer) -> None:  # type: ignore[no-untyped-def]
    ids, labels = packed(tokenizer, "plain")[0]
    ignored = (labels.flatten() == IGNORED).nonzero().flatten()
    starts = (ids.flatten()[1:] == tokenizer.bos_token_id).nonzero().flatten()
    assert torch.equal(ignored, starts)


def test_batches_depend_on_seed_and_step_alone(tokenizer) -> None:  # type: ignore[no-untyped-def]
    late = packed(tokenizer, steps=range(1, 2))[0]
    assert torch.equal(late[0], packed(tokenizer)[1][0])
    assert not torch.equal(late[0], packed(tokenizer)[0][0])


def test_the_rate_warms_up_and_decays() -> None:
    entry = ENTRY.model_copy(update={"steps": 1000, "warmup_steps": 100, "learning_rate": 1.0})
    assert lm.learning_rate(0, entry) == pytest.approx(0.01)
    assert lm.learning_rate(99, entry) == lm.learning_rate(100, entry) == 1.0
    assert lm.learning_rate(550, entry) == pytest.approx(0.01 + 0.99 * 0.5)
    assert lm.learning_rate(1000, entry) == pytest.approx(0.01)


def test_an_interrupted_run_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(lm, "_TOKENIZER_SAMPLES", 100)

    def trained(stop_at: int | None) -> dict[str, torch.Tensor]:
        model, own = lm.make_scratch(SHAPE)
        checkpoint = tmp_path / f"{stop_at}.pt"
        losses: list[float] = []

        def log(values: dict[str, float]) -> None:
            losses.append(values["loss"])
            if len(losses) == stop_at:
                raise KeyboardInterrupt

        entry = ENTRY.model_copy(update={"logging_steps": 1, "warmup_steps": 1})
        if stop_at is not None:
            with pytest.raises(KeyboardInterrupt):
                lm.train_lm(model, own, entry, checkpoint=checkpoint, log=log)
            assert checkpoint.exists()
            model, own = lm.make_scratch(SHAPE)
        lm.train_lm(model, own, entry, checkpoint=checkpoint, log=lambda values: None)
        return model.state_dict()

    whole, resumed = trained(None), trained(5)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_it_learns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lm, "_TOKENIZER_SAMPLES", 100)
    model, own = lm.make_scratch(SHAPE)
    losses: list[float] = []
    entry = ENTRY.model_copy(update={"steps": 80, "logging_steps": 1, "warmup_steps": 2, "learning_rate": 5e-3})
    lm.train_lm(model, own, entry, checkpoint=tmp_path / "c.pt", log=lambda values: losses.append(values["loss"]))
    assert losses[0] == pytest.approx(6.24, abs=0.3)  # ln 512: nothing is known yet
    assert sum(losses[-10:]) / 10 < 5.2
