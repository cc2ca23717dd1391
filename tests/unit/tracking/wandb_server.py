"""A W&B server of our own on 127.0.0.1, with the calls wandb makes to open a run and to send history and files."""

from __future__ import annotations

import gzip
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class FakeWandb:
    """What the server holds, and how it behaves."""

    def __init__(self) -> None:
        self.url = ""
        self.is_broken = False
        """Answer everything with status 500."""
        self.refuses = 0
        """Answer everything with this status (401, 403), as for a key that it does not know or that may not."""
        self.history: dict[str, list[dict[str, Any]]] = {}
        self.summary: dict[str, str] = {}
        self.config: dict[str, str] = {}
        self.seen = b""
        """Everything that was sent here, headers too."""

    def graphql(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables.get("name", "")
        if operation == "RunResumeStatus":
            return {
                "model": {"id": "1", "name": "p", "entity": {"id": "1", "name": "me"}, "bucket": self._resumed(name)}
            }
        if operation == "UpsertBucket":
            self.history.setdefault(name, [])
            self.config[name] = variables.get("config") or self.config.get(name, "{}")
            project = {"id": "1", "name": variables.get("project"), "entity": {"id": "1", "name": "me"}}
            bucket = {"id": name, "name": name, "displayName": variables.get("displayName") or name, "project": project}
            return {
                "upsertBucket": {"bucket": bucket | {"historyLineCount": len(self.history[name])}, "inserted": True}
            }
        if operation == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.url}/upload/{file}"} for file in variables["files"]]
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
        return {}

    def stream(self, run: str, files: dict[str, dict[str, Any]]) -> None:
        for name, part in files.items():
            lines = part["content"]
            if name == "wandb-history.jsonl":
                history = self.history.setdefault(run, [])
                history[part["offset"] : part["offset"] + len(lines)] = [json.loads(line) for line in lines]
            elif name == "wandb-summary.json":
                self.summary[run] = lines[-1]

    def _resumed(self, name: str) -> dict[str, Any] | None:
        if name not in self.history:
            return None
        tail = [json.dumps(row) for row in self.history[name][-1:]]
        return {
            "id": name,
            "name": name,
            "displayName": name,
            "summaryMetrics": self.summary.get(name, "{}"),
            "historyLineCount": len(self.history[name]),
            "historyTail": json.dumps(tail),
            "eventsLineCount": 0,
            "eventsTail": "[]",
            "logLineCount": 0,
            "config": self.config[name],
            "tags": [],
            "notes": None,
            "wandbConfig": '{"t": {}}',
        }


@contextmanager
def serve() -> Iterator[FakeWandb]:
    """The server, listening until the block ends."""
    fake = FakeWandb()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
            fake.seen += str(self.headers).encode() + body
            answer: dict[str, Any] = {}
            if self.path == "/graphql" and not fake.is_broken and not fake.refuses:
                call = json.loads(body)
                answer = {"data": fake.graphql(call.get("operationName", ""), call.get("variables") or {})}
            elif self.path.endswith("/file_stream") and not fake.is_broken:
                fake.stream(self.path.split("/")[-2], json.loads(body).get("files") or {})
            self.answer(answer)

        def do_PUT(self) -> None:
            fake.seen += self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.answer({})

        def do_GET(self) -> None:
            self.answer({})

        def answer(self, value: dict[str, Any]) -> None:
            if fake.refuses:
                value = {"errors": [{"message": "user is not logged in"}]}
            data = json.dumps(value).encode()
            self.send_response(500 if fake.is_broken else fake.refuses or 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
