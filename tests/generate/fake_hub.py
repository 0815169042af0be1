"""A Hugging Face hub on a loopback port, as far as pushing a small dataset needs one."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeHub:
    """`with FakeHub(token) as hub`: `hub.url` is served; `files` are what was committed, by repository and path."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.repos: dict[str, dict[str, Any]] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.commits: list[str] = []
        self.cards: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", "0")))
                if self.headers.get("authorization") != f"Bearer {hub.token}":
                    self._reply(401, {"error": f"Invalid credentials: {self.headers.get('authorization')}"})
                else:
                    self._reply(200, hub.answer(self.path, body))

            def do_GET(self) -> None:
                self._reply(404, {"error": "not here"})

            def _reply(self, status: int, body: dict[str, Any]) -> None:
                payload = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FakeHub:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        """Make a repository, say how files are to be sent, or take a commit."""
        parts = path.partition("?")[0].strip("/").split("/")
        if parts[:3] == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = "/".join(part for part in (asked.get("organization"), asked["name"]) if part)
            self.repos.setdefault(name, asked)
            return {"url": f"{self.url}/datasets/{name}"}
        if parts[:2] == ["api", "validate-yaml"]:
            self.cards.append(json.loads(body)["content"])
            return {"errors": [], "warnings": []}
        repo = "/".join(parts[2:4])
        if parts[4] == "preupload":
            named = [file["path"] for file in json.loads(body)["files"]]
            return {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in named]}
        assert parts[4] == "commit", path
        for line in body.decode().splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                value = item["value"]
                self.files.setdefault(repo, {})[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "header":
                self.commits.append(item["value"]["summary"])
        return {"commitUrl": f"{self.url}/datasets/{repo}/commit/1", "commitOid": "1" * 40}
