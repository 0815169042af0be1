"""A teacher's distributions from the wire through the ledger into the sidecar, and back as token ids."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill.errors import DataError
from distill.teacher.distributions import SIDECAR, UNKNOWN, Sidecar, write_sidecar
from distill.teacher.logprobs import Position, pack
from distill.text.token_bytes import ids_by_bytes
from tests.generate.conftest import Project
from tests.teacher.mock import Body, MockTeacher, Reply, completion

VOCABULARY = {"a": 5, "Ġb": 7, "é"[0]: 9, "Ã©": 11, "<|end|>": 12}


def entry(text: str, logprob: float, top: dict[str, float] | None = None) -> dict[str, Any]:
    return {
        "token": text,
        "logprob": logprob,
        "bytes": list(text.encode()),
        **({} if top is None else {"top_logprobs": [entry(*one) for one in top.items()]}),
    }


CONTENT = [
    entry("a", -0.5, {"a": -0.5, " b": -1.5}),
    entry(" b", -0.25, {" b": -0.25, "zz": -3.0}),
    entry("<|end|>", 0.0, {"<|end|>": 0.0}),
]


def with_logprobs(text: str) -> Reply:
    reply = completion(text)
    assert reply.body is not None
    reply.body["choices"][0]["logprobs"] = {"content": CONTENT, "refusal": None}
    return reply


def test_a_job_keeps_the_distributions_of_its_rows(project: Project) -> None:
    """Two of four rows have them; one of these is filtered out, and so are its distributions."""

    def respond(body: Body, number: int) -> Reply:
        assert body["logprobs"] is True and body["top_logprobs"] == 2
        asked = str(body["messages"][-1]["content"])
        return with_logprobs(f"a b {asked}") if asked in ("one", "two") else completion(f"{asked} b b b b b")

    prompts = project.prompts(["one", "two", "three"])
    filters = {"length": {"min": 5}, "personal_data": True}
    job = {"name": "kd", "kind": "instruction", "prompts": prompts, "logprobs": 2, "filters": filters}
    with MockTeacher(respond) as mock:
        recipe = project.recipe(mock.base_url, job)
        problem = project.run_badly(recipe)
        assert problem.exit_code == 3 and "no log probabilities came with 1 of 3 rows" in str(problem)
        assert "done before" in project.run(recipe)  # another run would not get them either
    rows = project.data("kd")
    path = project.path / "runs" / "test" / "generate-kd" / SIDECAR
    assert pq.read_table(path).column_names == ["request_hash", "positions", "top", "packed"]
    sidecar = Sidecar(path, VOCABULARY)
    assert len(sidecar) == 2 and rows[2]["request_hash"] not in sidecar
    found = sidecar[rows[0]["request_hash"]]
    assert found.token_ids_T.tolist() == [5, 7, 12]
    assert found.logprobs_T.tolist() == [-0.5, -0.25, 0.0]
    assert found.top_ids_TK.tolist() == [[5, 7], [7, UNKNOWN], [12, UNKNOWN]]
    assert found.top_logprobs_TK.tolist() == [[-0.5, -1.5], [-0.25, -3.0], [0.0, -math.inf]]
    metrics = project.manifest("kd")["metrics"]["distributions"]
    assert (metrics["rows"], metrics["missing"], metrics["positions"]) == (2, 1, 6)


def test_nothing_is_asked_for_unless_the_job_says_so(project: Project) -> None:
    job = {"name": "plain", "kind": "instruction", "prompts": project.prompts(["one"])}
    with MockTeacher(lambda body, n: completion("x")) as mock:
        project.run(project.recipe(mock.base_url, job))
        assert "logprobs" not in mock.requests[0]
    assert not (project.path / "runs" / "test" / "generate-plain" / SIDECAR).exists()


def test_what_is_packed_comes_back(tmp_path: Path) -> None:
    """Many rows over several groups, ids as vLLM says them, and one answer without a token."""
    rows: list[tuple[str, bytes | None]] = []
    for row in range(2500):
        top = tuple((f"token_id:{rank + row}".encode(), -float(rank)) for rank in range(20))
        rows.append((f"h{row}", pack([Position(top[0][0], 0.0, top)] * (row % 3))))
    written = write_sidecar(tmp_path / SIDECAR, rows)
    assert (written.rows, written.positions) == (2500, sum(row % 3 for row in range(2500)))
    sidecar = Sidecar(tmp_path / SIDECAR, {})
    found = sidecar["h2000"]
    assert found.top_ids_TK.tolist() == [list(range(2000, 2020))] * 2
    np.testing.assert_array_equal(found.top_logprobs_TK[1], -np.arange(20, dtype=np.float32))
    assert sidecar["h0"].top_ids_TK.shape == (0, 0)
    with pytest.raises(KeyError):
        sidecar["another"]


def test_vocabularies_by_bytes() -> None:
    assert ids_by_bytes(VOCABULARY) == {b"a": 5, b" b": 7, b"\xe9": 9, "é".encode(): 11, b"<|end|>": 12}
    pieces = {"<0x41>": 3, "<0xE2>": 4, "A": 8, "▁the": 9, "</s>": 2}
    assert ids_by_bytes(pieces) == {b"A": 8, b"\xe2": 4, b" the": 9, b"</s>": 2}


def test_every_token_of_the_shipped_teacher_has_bytes_of_its_own() -> None:
    import json

    root = Path(__file__).parents[2]
    document = json.loads((root / "data" / "teacher" / "tokenizer.json").read_text())
    vocabulary = {**document["model"]["vocab"], **{t["content"]: t["id"] for t in document["added_tokens"]}}
    found = ids_by_bytes(vocabulary)
    assert len(found) == len(vocabulary) and sorted(found.values()) == sorted(vocabulary.values())


def test_another_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no distributions at"):
        Sidecar(tmp_path / SIDECAR, {})
    pq.write_table(pa.table({"request_hash": ["x"], "packed": [b""]}), tmp_path / SIDECAR)
    with pytest.raises(DataError, match="of this format"):
        Sidecar(tmp_path / SIDECAR, {})
    (tmp_path / SIDECAR).write_bytes(b"PAR1")
    with pytest.raises(DataError, match="not readable"):
        Sidecar(tmp_path / SIDECAR, {})
