"""Cutting a model down: identities where it must not change, and the KV cache that was asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from distill.engine.runner import Engine
from distill.engine.types import EngineConfig, SamplingParams
from distill.errors import CheckpointError, DistillError
from distill.model.cuts import prune_channels, prune_layers
from distill.model.depth import choose_layers, evenly_spaced
from distill.model.importance import Importance, silent
from distill.model.load import load_model, load_tokenizer
from distill.model.pooling import group_shares, pool_kv_heads
from distill.model.selection import Report, kv_weights
from distill.model.structure import Structure
from distill.model.student import cut_down, make_student
from distill.recipe.prune import Prune
from distill.recipe.teacher import Student
from tests.model import tiny
from tests.quantize.tiny import tiny_model
from tests.train import tiny as chats

IDS = torch.arange(7, 31).unsqueeze(0)


def cut(model: Any, folder: Path, rows: Any = None, **keys: Any) -> Any:
    """What `cut_down` makes of a model, as transformers loads it from the folder."""
    student = Student(model="in memory", **keys)
    cut_down(model, student, tiny.batches() if rows is None else rows, folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return load_model(folder, dtype="float32", device="cpu")(IDS).logits


def test_keeping_everything_is_identity(tmp_path: Path) -> None:
    chats.save_model(tmp_path / "teacher")
    teacher = str(tmp_path / "teacher")
    made = make_student(Student(model=teacher, layers=2, kv_heads=4, dtype="float32"), tmp_path / "student")
    torch.testing.assert_close(logits(tmp_path / "student"), logits(tmp_path / "teacher"), rtol=0, atol=0)
    assert made.after == made.before and "as they were" in made.summary()
    ours, theirs = load_tokenizer(tmp_path / "student"), load_tokenizer(tmp_path / "teacher")
    assert ours.chat_template == theirs.chat_template and ours.get_vocab() == theirs.get_vocab()


@pytest.mark.parametrize("pooling", ["mean", "weighted"])
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_pooling_equal_heads_preserves_the_function(tmp_path: Path, kind: str, pooling: Any) -> None:
    """8 KV heads that are equal in groups of 4 pooled to 2: the same logits, a quarter of the cache."""
    model = tiny.model(kind, heads=8, kv_heads=8)
    with torch.no_grad():
        for layer in model.model.layers:
            for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj):
                for parameter in projection.parameters():
                    heads = parameter.unflatten(0, (2, 4, 6))
                    heads.copy_(heads[:, :1].expand_as(heads).clone())
    before = tiny.logits(model)
    student = Student(model="in memory", kv_heads=2, prune=Prune(kv_pooling=pooling))
    made = cut_down(model, student, tiny.batches(), tmp_path)
    torch.testing.assert_close(tiny.logits(tmp_path), before, rtol=1e-5, atol=1e-5)
    assert made.after.kv_bytes_per_token * 4 == made.before.kv_bytes_per_token == 2 * 3 * 8 * 6 * 4
    assert load_model(tmp_path).config.num_key_value_heads == 2


def test_pooling_takes_the_mean_of_neighbours() -> None:
    state = {"model.layers.0.self_attn.k_proj.weight": torch.tensor([[1.0], [3.0], [10.0], [20.0]])}
    pooled = pool_kv_heads(state, kv_heads_before=4, kv_heads=2)
    assert pooled["model.layers.0.self_attn.k_proj.weight"].tolist() == [[2.0], [15.0]]


def test_weighted_pooling_by_hand() -> None:
    """Heads 1 and 3 with weights 3 : 1 give 1.5, and 10 and 20 with 1 : 4 give 18; equal where all weights are 0."""
    name = "model.layers.1.self_attn.{}_proj.{}"
    state = {
        name.format("k", "weight"): torch.tensor([[1.0], [3.0], [10.0], [20.0]]),
        name.format("k", "bias"): torch.tensor([4.0, 8.0, 5.0, 10.0]),
        name.format("v", "weight"): torch.tensor([[1.0], [3.0], [10.0], [20.0]]),
    }
    keys, values = torch.tensor([3.0, 1.0, 2.0, 8.0]), torch.tensor([0.0, 0.0, 1.0, 0.0])
    unused = torch.full((4,), torch.nan)
    pooled = pool_kv_heads(state, kv_heads_before=4, kv_heads=2, weights=[(unused, unused), (keys, values)])
    assert pooled[name.format("k", "weight")].tolist() == [[1.5], [18.0]]
    assert pooled[name.format("k", "bias")].tolist() == [5.0, 9.0]
    assert pooled[name.format("v", "weight")].tolist() == [[2.0], [10.0]]
    assert group_shares(torch.zeros(4), 2).tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_weights_of_kv_heads_by_hand() -> None:
    """Two query heads on each of two KV heads: 3 * 2 + 1 * 6 and 9 * 0 + 5 * 1 for keys; values count alike."""
    importance = Importance(
        heads_LH=torch.zeros(1, 4), neurons_LF=torch.zeros(1, 1), channels_D=torch.zeros(1), energy={},
        queries_LH=torch.tensor([[3.0, 1.0, 9.0, 5.0]], dtype=torch.float64),
        effects_LH=torch.tensor([[2.0, 6.0, 0.0, 1.0]], dtype=torch.float64),
    )  # fmt: skip
    ((keys, values),) = kv_weights(importance, Structure(1, 4, 2, 6, 1, 1))
    assert keys.tolist() == [12.0, 5.0] and values.tolist() == [1.0, 1.0]


def test_weighted_pooling_keeps_the_keys_of_the_head_that_counts(tmp_path: Path) -> None:
    """The second head of every pair writes nothing to the stream and has the first one's values: its keys do not count,
    and where the plain mean changes the model, the weighted one does not."""

    def made() -> Any:
        model = tiny.model("llama")
        with torch.no_grad():
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight.unflatten(1, (2, 2, 6))[:, :, 1] = 0
                for parameter in layer.self_attn.v_proj.parameters():
                    heads = parameter.unflatten(0, (2, 2, 6))
                    heads[:, 1] = heads[:, 0].clone()
        return model

    before = tiny.logits(made())
    plain = cut(made(), tmp_path / "mean", kv_heads=2)
    weighted = cut(made(), tmp_path / "weighted", kv_heads=2, prune=Prune(kv_pooling="weighted"))
    torch.testing.assert_close(tiny.logits(weighted), before, rtol=1e-4, atol=1e-4)
    assert (tiny.logits(plain) - before).abs().max() > 0.1


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_heads_and_neurons_that_are_zero_go_without_a_trace(tmp_path: Path, kind: str, kv_heads: int) -> None:
    """Two of four heads and eight of twenty neurons, others in each layer, whose outputs are exactly 0."""
    model = tiny.model(kind, kv_heads=kv_heads)
    dead_heads = ([1, 2], [0, 3], [1, 3]) if kv_heads == 2 else ([0, 1], [2, 3], [1, 2])
    with torch.no_grad():
        for index, layer in enumerate(model.model.layers):
            for head in dead_heads[index]:
                layer.self_attn.o_proj.weight[:, 6 * head : 6 * head + 6] = 0
            for neuron in range(index, index + 8):
                layer.mlp.down_proj.weight[:, neuron] = 0
    before = tiny.logits(model)
    student = Student(model="in memory", heads=2, intermediate_size=12, prune=Prune(width_by="contribution"))
    made = cut_down(model, student, tiny.batches(), tmp_path)
    torch.testing.assert_close(tiny.logits(tmp_path), before, rtol=1e-5, atol=1e-5)
    assert [layer["removed"] for layer in made.report.as_json()["heads"]["layers"]] == [list(d) for d in dead_heads]
    found = [layer["removed"] for layer in made.report.as_json()["neurons"]["layers"]]
    assert found == [list(range(index, index + 8)) for index in range(3)]
    assert made.after.heads == made.after.kv_heads == 2 and made.after.intermediate_size == 12


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_channels_that_are_zero_go_without_a_trace(tmp_path: Path, kind: str, tied: bool) -> None:
    """Eight of 32 channels of the stream that nothing writes to: the norms must make up for the narrower mean."""
    model = tiny.model(kind, tied=tied)
    dead = [0, 5, 6, 7, 12, 20, 30, 31]
    with torch.no_grad():
        model.model.embed_tokens.weight[:, dead] = 0
        for layer in model.model.layers:
            for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
                for parameter in linear.parameters():
                    parameter[dead] = 0
    before = tiny.logits(model)
    smaller = cut(model, tmp_path, hidden_size=24, prune=Prune())
    torch.testing.assert_close(tiny.logits(smaller), before, rtol=1e-4, atol=5e-4)  # logits are of size 5
    assert smaller.config.hidden_size == 24 and smaller.model.layers[0].self_attn.head_dim == 6
    assert (smaller.lm_head.weight.data_ptr() == smaller.model.embed_tokens.weight.data_ptr()) == tied


def test_a_tied_head_stays_tied() -> None:
    embedding = torch.arange(12.0).reshape(3, 4)
    cut_state = prune_channels({"model.embed_tokens.weight": embedding, "lm_head.weight": embedding}, [1, 3], {})
    assert cut_state["lm_head.weight"] is cut_state["model.embed_tokens.weight"]
    assert cut_state["lm_head.weight"].tolist() == [[1.0, 3.0], [5.0, 7.0], [9.0, 11.0]]


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize(("layers_by", "iterative"), [("loss", True), ("block_importance", False)])
def test_layers_that_do_nothing_go_first(tmp_path: Path, kind: str, layers_by: Any, iterative: bool) -> None:
    """Layers 1 and 3 of five add nothing; the model of the others is the same one, sliding windows included."""
    model = tiny.model(kind, layers=5)
    with torch.no_grad():
        for layer in (model.model.layers[1], model.model.layers[3]):
            for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
                for parameter in linear.parameters():
                    parameter.zero_()
    before = tiny.logits(model)
    prune = Prune(layers_by=layers_by, iterative=iterative)
    student = Student(model="in memory", layers=3, prune=prune)
    # a random model's loss may fall when a layer goes: rows that the model itself wrote make its loss the least
    rows = tiny.own_rows(model)
    made = cut_down(model, student, rows, tmp_path)
    report = made.report.as_json()["layers"]
    assert made.layers == (0, 2, 4) and report["kept"] == [0, 2, 4]
    removed = [r["removed"] for r in report["rounds"]]
    assert removed in ([[1], [3]], [[3], [1]]) if iterative else removed == [[1, 3]]
    torch.testing.assert_close(tiny.logits(tmp_path), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layers_by", ["loss", "block_importance"])
@pytest.mark.parametrize("iterative", [True, False])
def test_the_ends_stay(layers_by: Any, iterative: bool) -> None:
    """First and last do nothing, so that every measure would take them first; they stay, but for one layer alone."""
    model = tiny.model(layers=4)
    with torch.no_grad():
        for layer in (model.model.layers[0], model.model.layers[3]):
            for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
                linear.weight.zero_()
                linear.bias.zero_()
    prune, rows = Prune(layers_by=layers_by, iterative=iterative), tiny.own_rows(model)
    for keep in (3, 2, 1):
        report = Report()
        kept = choose_layers(model, keep, prune, rows, report, silent)
        (scored, *_) = (found["scores"] for found in report.as_json()["layers"]["rounds"])
        if keep == 1:
            assert set(scored) == set("0123") and kept[0] in (1, 2)
        else:
            assert set(scored) == set("12") and kept[0] == 0 and kept[-1] == 3 and len(kept) == keep


def test_pruning_keeps_and_renumbers(tmp_path: Path) -> None:
    state = {f"model.layers.{i}.mlp.weight": torch.tensor(float(i)) for i in range(12)} | {
        "lm_head.weight": torch.ones(1)
    }
    pruned = prune_layers(state, [0, 4, 11])
    assert {name: tensor.item() for name, tensor in pruned.items()} == {
        "model.layers.0.mlp.weight": 0.0,
        "model.layers.1.mlp.weight": 4.0,
        "model.layers.2.mlp.weight": 11.0,
        "lm_head.weight": 1.0,
    }
    chats.save_model(tmp_path / "teacher", layers=4)
    made = make_student(Student(model=str(tmp_path / "teacher"), layers=2, kv_heads=1), tmp_path / "student")
    student = load_model(tmp_path / "student", dtype="stored")
    assert made.layers == (0, 3) and len(student.model.layers) == 2 and student.dtype == torch.bfloat16
    assert sum(p.numel() for p in student.parameters()) == made.after.parameters
    teacher = load_model(tmp_path / "teacher", dtype="bfloat16")
    torch.testing.assert_close(student.model.layers[1].mlp.up_proj.weight, teacher.model.layers[3].mlp.up_proj.weight)


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_everything_at_once_loads_and_serves(tmp_path: Path, kind: str, kv_heads: int) -> None:
    """Depth, heads, neurons, channels and KV heads together: plain transformers and the engine agree on the text, and
    the same rows give the same files."""
    keys: dict[str, Any] = {"layers": 2, "heads": 2, "kv_heads": 1, "intermediate_size": 12, "hidden_size": 24}
    prune = Prune(kv_pooling="weighted")
    reports, files = [], []
    for run in ("one", "two"):
        model = tiny.model(kind, kv_heads=kv_heads)
        made = cut_down(model, Student(model="in memory", prune=prune, **keys), tiny.batches(), tmp_path / run)
        reports.append(json.dumps(made.report.as_json()))
        files.append((tmp_path / run / "model.safetensors").read_bytes())
    assert reports[0] == reports[1] and files[0] == files[1]
    assert set(json.loads(reports[0])) == {"calibration", "layers", "heads", "kv_pooling", "neurons", "channels"}
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "one", dtype=torch.float32).eval()
    assert sum(p.numel() for p in student.parameters()) == made.after.parameters
    prompt = torch.arange(5, 17).unsqueeze(0)
    expected = student.generate(prompt, max_new_tokens=8, do_sample=False, eos_token_id=None)[0, 12:].tolist()
    engine = Engine(load_model(tmp_path / "one"), None, EngineConfig(kv_bytes=1 << 20, max_model_len=64))
    (answer,) = engine.generate([prompt[0].tolist()], SamplingParams(max_tokens=8, ignore_eos=True))
    assert list(answer.token_ids) == expected


def test_evenly_spaced_layers() -> None:
    assert evenly_spaced(8, 4) == [0, 2, 5, 7]
    assert evenly_spaced(8, 8) == list(range(8))
    assert evenly_spaced(8, 1) == [0]
    assert evenly_spaced(32, 16)[0] == 0 and evenly_spaced(32, 16)[-1] == 31
    assert all(len(set(evenly_spaced(n, k))) == k for n in range(1, 40) for k in range(1, n + 1))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kv_heads": 3}, "kv_heads is 3, the model has 4 -> one of 1, 2, 4"),
        ({"kv_heads": 3, "prune": Prune()}, "kv_heads is 3, the model has 4 -> one of 1, 2, 4"),
        ({"layers": 5}, "student.layers is 5, the model has 3 -> keep 1 to 3"),
        ({"heads": 5, "prune": Prune()}, "student.heads is 5, the model has 4"),
        ({"intermediate_size": 21, "prune": Prune()}, "student.intermediate_size is 21, the model has 20"),
        ({"hidden_size": 33, "prune": Prune()}, "student.hidden_size is 33, the model has 32"),
        ({"heads": 3, "prune": Prune()}, "Llama of 32 channels and 3 heads does not load"),
        ({"hidden_size": 30, "prune": Prune()}, "multiple of the heads -> set student.hidden_size to 28"),
        ({"heads": 2, "kv_heads": 4, "prune": Prune()}, "4 KV heads cannot share them evenly -> one of 4,"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(DistillError, match=message):
        cut(tiny.model(), tmp_path, **keys)


def test_grouped_heads_go_evenly(tmp_path: Path) -> None:
    with pytest.raises(
        DistillError, match="student.heads is 3, and 2 KV heads cannot share them evenly -> one of 2, 4"
    ):
        cut(tiny.model("qwen2", kv_heads=2), tmp_path, heads=3, prune=Prune())


def test_measuring_needs_rows_and_a_known_structure(tmp_path: Path) -> None:
    chats.save_model(tmp_path / "teacher")
    student = Student(model=str(tmp_path / "teacher"), layers=1, prune=Prune())
    with pytest.raises(DistillError, match="no rows to measure the model on"):
        make_student(student, tmp_path / "student")
    with pytest.raises(CheckpointError, match=r"Gemma2ForCausalLM \(gemma2\) cannot be measured"):
        cut(tiny_model("gemma2"), tmp_path, layers=1, prune=Prune())
