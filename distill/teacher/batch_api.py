"""The Batch API's five calls, and the reading of what they answer."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from distill.errors import TeacherError
from distill.teacher.endpoint import Attempt, AttemptFailed, Endpoint, Reply, parse_reply
from distill.teacher.requests import Request

TERMINAL = frozenset({"completed", "failed", "expired", "cancelled"})
_TRANSFER_SECONDS = 600.0
_PAGES = 50
_METADATA = "distill"


@dataclass(frozen=True)
class RemoteBatch:
    """A batch as the provider describes it."""

    id: str
    status: str
    files: tuple[str, ...]  # of answers and of errors, as far as they are there
    problem: str = ""


class BatchApi:
    """Every method raises AttemptFailed."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    async def upload(self, lines: bytes) -> str:
        """The requests' file; its id."""
        boundary = secrets.token_hex(16)
        body = _multipart(boundary, lines)
        kind = f"multipart/form-data; boundary={boundary}"
        return _identity(await self._call("POST", "/files", body, kind))

    async def create(self, file_id: str, path: str, token: str) -> RemoteBatch:
        """Start it: from here on the provider bills. `token` stands in its metadata."""
        asked = {
            "input_file_id": file_id,
            "endpoint": f"/v1{path}",
            "completion_window": "24h",
            "metadata": {_METADATA: token},
        }
        return _batch(await self._call("POST", "/batches", json.dumps(asked).encode()))

    async def get(self, batch_id: str) -> RemoteBatch | None:
        """Its state; None where the provider does not know it any more."""
        try:
            return _batch(await self._call("GET", f"/batches/{batch_id}"))
        except AttemptFailed as failed:
            if failed.attempt.error.status == 404:
                return None
            raise

    async def find(self, token: str, file_id: str | None) -> RemoteBatch | None:
        """The batch with this token (or of this file), where the provider has one."""
        after = ""
        for _ in range(_PAGES):
            page = await self._call("GET", f"/batches?limit=100{after}")
            batches = page.get("data") or []
            for batch in batches:
                ours = (batch.get("metadata") or {}).get(_METADATA) == token
                if ours or (file_id is not None and batch.get("input_file_id") == file_id):
                    return _batch(batch)
            if not page.get("has_more") or not batches:
                return None
            after = f"&after={batches[-1]['id']}"
        return None

    async def download(self, file_id: str) -> bytes:
        """A file's content."""
        path = f"/files/{file_id}/content"
        return (await self._endpoint.exchange("GET", path, timeout_seconds=_TRANSFER_SECONDS)).content

    async def _call(
        self, method: str, path: str, body: bytes | None = None, content_type: str = "application/json"
    ) -> dict[str, Any]:
        try:
            reply = await self._endpoint.exchange(
                method, path, body, content_type=content_type, timeout_seconds=_TRANSFER_SECONDS
            )
        except AttemptFailed as failed:
            if failed.attempt.error.status != 404 or path not in ("/files", "/batches"):
                raise
            missing = f"{self._endpoint.shown_url} has no Batch API (404)"
            error = TeacherError(missing, remedy="set teacher.mode: online", status=404)
            raise AttemptFailed(Attempt(error, fatal=True)) from None
        try:
            found = json.loads(reply.content)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise self._endpoint.odd_reply("no JSON object")
        return found


def request_line(key: str, request: Request, model: str) -> bytes:
    """A request as a line of the file."""
    line = {"custom_id": key, "method": "POST", "url": f"/v1{request.path}", "body": request.body(model)}
    return json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def read_results(content: bytes) -> Iterator[tuple[str, Reply]]:
    """The answers in a file of results, by request key; what is no answer is left out."""
    for line in content.splitlines():
        try:
            found = json.loads(line)
            response = found["response"]
            if response is None or response["status_code"] != 200:
                continue
            yield str(found["custom_id"]), parse_reply(json.dumps(response["body"]).encode())
        except (ValueError, KeyError, TypeError):
            continue


def _multipart(boundary: str, lines: bytes) -> bytes:
    part = f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    head = 'Content-Disposition: form-data; name="file"; filename="requests.jsonl"\r\nContent-Type: application/jsonl'
    return f"{part}--{boundary}\r\n{head}\r\n\r\n".encode() + lines + f"\r\n--{boundary}--\r\n".encode()


def _identity(found: dict[str, Any]) -> str:
    identity = found.get("id")
    if not isinstance(identity, str):
        raise TeacherError("the provider's file has no id", remedy="use mode: online with this provider")
    return identity


def _batch(found: dict[str, Any]) -> RemoteBatch:
    files = tuple(found[name] for name in ("output_file_id", "error_file_id") if found.get(name))
    errors = (found.get("errors") or {}).get("data") or []
    problem = "; ".join(str(error.get("message") or error.get("code")) for error in errors[:3])
    return RemoteBatch(_identity(found), str(found.get("status")), files, problem)
