"""A teacher with the Batch API: files, batches with metadata, a list, results; every answered request is billed."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from tests.teacher.mock import Body, MockTeacher, Reply, completion, error

Finish = Callable[[int, list[Body]], tuple[str, dict[str, Reply | None]]]


def complete(number: int, lines: list[Body]) -> tuple[str, dict[str, Reply | None]]:
    """Every request answered with its echo."""
    return "completed", {line["custom_id"]: completion(f"echo: {question(line)}") for line in lines}


def question(line: Body) -> str:
    return str(line["body"]["messages"][-1]["content"])


class MockBatches(MockTeacher):
    """`finish(number, lines)` says how batch `number` ends: its status and a reply (None: expired) for each request.

    A batch is under way for `looks` looks. `billed` counts answered requests by key, `created` the batches, `calls` all
    requests by what they ask. `flaky(call, number)` may answer instead.
    """

    def __init__(self, finish: Finish = complete, *, looks: int = 1, page: int = 100) -> None:
        super().__init__()
        self.finish = finish
        self.looks = looks
        self.page = page
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.left: Counter[str] = Counter()
        self.billed: Counter[str] = Counter()
        self.calls: list[str] = []
        self.flaky: Callable[[str, int], Reply | None] = lambda call, number: None

    @property
    def created(self) -> int:
        return len(self.batches)

    def _reply(self, request_line: str, headers: dict[str, str], body: bytes) -> Reply:
        method, path, _ = request_line.split(" ")
        path = path.removeprefix("/v1")
        if not path.startswith(("/files", "/batches")):
            return super()._reply(request_line, headers, body)
        call = f"{method} {re.sub(r'(file|batch)-[a-z0-9-]+', 'ID', path).partition('?')[0]}"
        self.calls.append(call)
        instead = self.flaky(call, self.calls.count(call))
        if instead is not None and instead.status != 299:  # 299: do it, and lose the reply
            return instead
        done = self._do(method, path, body)
        return done if instead is None else Reply(reset=True)

    def _do(self, method: str, path: str, body: bytes) -> Reply:
        if path == "/files":
            identity = f"file-{len(self.files)}"
            self.files[identity] = body.split(b"jsonl\r\n\r\n", 1)[1].rsplit(b"\r\n--", 1)[0]
            assert b'name="purpose"\r\n\r\nbatch\r\n' in body
            return Reply(body={"id": identity, "object": "file"})
        if path.startswith("/files/"):
            return Reply(raw=self.files[path.split("/")[2]])
        if method == "POST":
            return self._create(json.loads(body))
        if path.startswith("/batches?"):
            return self._list(path)
        batch = self.batches.get(path.split("/")[2])
        if batch is None:
            return error(404, "no such batch")
        self.left[batch["id"]] -= 1
        shown = batch if self.left[batch["id"]] < 0 else {**batch, "status": "in_progress", "output_file_id": None}
        return Reply(body=shown)

    def _list(self, path: str) -> Reply:
        every = list(reversed(self.batches.values()))
        after = re.search(r"after=([\w-]+)", path)
        start = 1 + [batch["id"] for batch in every].index(after[1]) if after else 0
        found = every[start : start + self.page]
        return Reply(body={"object": "list", "data": found, "has_more": start + self.page < len(every)})

    def _create(self, asked: Body) -> Reply:
        number = len(self.batches)
        lines = [json.loads(line) for line in self.files[asked["input_file_id"]].splitlines()]
        assert asked["completion_window"] == "24h" and all(line["url"] == asked["endpoint"] for line in lines)
        status, replies = self.finish(number, lines)
        answered, failed = [], []
        for key, reply in replies.items():
            line: dict[str, Any] = {"custom_id": key, "response": None, "error": {"code": "batch_expired"}}
            if reply is not None:
                line |= {"response": {"status_code": reply.status, "body": reply.body}, "error": None}
            good = reply is not None and reply.status == 200
            self.billed[key] += good
            (answered if good else failed).append(json.dumps(line))
        batch: dict[str, Any] = {**asked, "id": f"batch-{number}", "object": "batch", "status": status}
        for name, rows in (("output_file_id", answered), ("error_file_id", failed)):
            batch[name] = f"file-{name[:3]}-{number}" if rows else None
            self.files[str(batch[name])] = "\n".join(rows).encode()
        if status == "failed":
            batch["errors"] = {"data": [{"message": "token limit reached"}]}
        self.batches[batch["id"]] = batch
        self.left[batch["id"]] = self.looks
        return Reply(body={**batch, "status": "validating"})
