"""A small hub on this machine: what huggingface_hub asks for when it makes, reads and fills a repository."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlparse

COMMIT = "0" * 40
LARGE = (".safetensors", ".parquet")


class Hub:
    """Repositories by path (``alice/x``, ``datasets/alice/x``), and large objects by sha256."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        self.received: list[str] = []
        """The sha256 of each object that arrived, in order."""
        self.breaks_after: int | None = None
        """Objects after which the connection breaks instead."""
        self.waits_after: int | None = None
        """Objects after which no further one is answered; ``waiting`` is then set."""
        self.waiting = threading.Event()
        self.address = ""


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def _answer(self, status: int, content: Any = b"", **headers: str) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _repository(self, path: str) -> tuple[str, str]:
            """``/api/models/alice/x/rest`` -> its key, ``rest``."""
            kind, user, name, *rest = path.removeprefix("/api/").split("/")
            return f"{'' if kind == 'models' else f'{kind}/'}{user}/{name}", "/".join(rest)

        def do_GET(self) -> None:
            path = urlparse(self.path).path
            if "/resolve/main/" in path:
                key, file = path.strip("/").split("/resolve/main/")
                content = hub.files.get(key, {}).get(file)
                if content is None:
                    self._answer(404, X_Error_Code="EntryNotFound")
                else:
                    self._answer(200, content, ETag=f'"{hashlib.sha256(content).hexdigest()}"', X_Repo_Commit=COMMIT)
                return
            key, rest = self._repository(path)
            if key not in hub.files:
                self._answer(404, {}, X_Error_Code="RepoNotFound")
            elif rest.startswith("tree/"):
                self._answer(
                    200, [{"type": "file", "path": p, "size": len(c), "oid": COMMIT} for p, c in hub.files[key].items()]
                )
            else:
                self._answer(200, {"id": key, "sha": COMMIT, "private": hub.private[key], "siblings": []})

        do_HEAD = do_GET

        def do_POST(self) -> None:
            path, body = urlparse(self.path).path, self._body()
            if self.headers.get("Authorization") != "Bearer hf_good":
                self._answer(401, {"error": "Invalid username or password."})
            elif path == "/api/validate-yaml":  # of a card, before the commit
                self._answer(200, {"errors": [], "warnings": []})
            elif path == "/api/repos/create":
                given = json.loads(body)
                prefix = "" if given.get("type", "model") == "model" else f"{given['type']}s/"
                key = f"{prefix}{given['organization']}/{given['name']}"
                there = key in hub.files
                hub.files.setdefault(key, {".gitattributes": b""})
                hub.private.setdefault(key, bool(given.get("private")) or given.get("visibility") == "private")
                self._answer(409 if there else 200, {"url": f"{hub.address}/{key}"})
            elif path.endswith("/info/lfs/objects/batch"):
                objects = []
                for item in json.loads(body)["objects"]:
                    known = item["oid"] in hub.objects
                    actions = {} if known else {"upload": {"href": f"{hub.address}/object/{item['oid']}"}}
                    objects.append({**item, "actions": actions} if actions else item)
                self._answer(200, {"transfer": "basic", "objects": objects})
            else:
                key, rest = self._repository(path)
                if rest.startswith("preupload/"):
                    modes = [
                        {
                            "path": file["path"],
                            "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                            "shouldIgnore": False,
                        }
                        for file in json.loads(body)["files"]
                    ]
                    self._answer(200, {"files": modes})
                else:
                    self._commit(key, [json.loads(line) for line in body.splitlines()])

        def _commit(self, key: str, lines: list[dict[str, Any]]) -> None:
            files = dict(hub.files[key])
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = hub.objects[value["oid"]]
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            hub.files[key] = files
            self._answer(200, {"commitUrl": f"{hub.address}/{key}/commit/{COMMIT}", "commitOid": COMMIT})

        def do_PUT(self) -> None:
            if hub.breaks_after is not None and len(hub.received) >= hub.breaks_after:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            body = self._body()
            if hub.waits_after is not None and len(hub.received) >= hub.waits_after:
                hub.waiting.set()
                self.close_connection = True
                self.rfile.read(1)  # until the client is gone
                return
            oid = self.path.rpartition("/")[2]
            assert hashlib.sha256(body).hexdigest() == oid
            hub.objects[oid] = body
            hub.received.append(oid)
            self._answer(200)

    return Handler


@contextmanager
def running() -> Iterator[Hub]:
    """A hub that answers until the end of the block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads, server.block_on_close = True, False  # clients keep their connections
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
