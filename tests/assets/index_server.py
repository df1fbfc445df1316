"""A package index on 127.0.0.1 for the tests: Simple API pages, files, and faults on demand."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
import zipfile
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class IndexServer:
    """``with IndexServer() as server: server.add("project", "file.whl", data)``; it is at ``server.url``."""

    def __init__(self):
        self.projects: dict[str, dict[str, bytes]] = defaultdict(dict)
        self.listed: dict[str, str] = {}  # file name -> a sha256 listed instead of the true one
        self.breaks: dict[str, list[int]] = defaultdict(list)  # bytes sent of each answer before the line goes dead
        self.statuses: dict[str, list[int]] = defaultdict(list)  # statuses answered first
        self.content_type = "text/html"
        self.requests: list[tuple[str, str | None]] = []  # path, Authorization

    def add(self, project: str, filename: str, data: bytes) -> str:
        self.projects[project][filename] = data
        return hashlib.sha256(data).hexdigest()

    def asked(self, filename: str) -> int:
        """The number of requests for a file."""
        return sum(path.endswith("/" + filename) for path, _ in self.requests)

    def __enter__(self) -> IndexServer:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_GET(self):
                outer.answer(self)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"http://127.0.0.1:{self.http.server_port}"
        self.url = f"{self.host}/simple/"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.requests.append((request.path, request.headers.get("Authorization")))
        _, area, project, *rest = request.path.split("/")
        filename = rest[0] if rest else ""
        if statuses := self.statuses[filename or project]:
            return self.send(request, statuses.pop(0))
        if project not in self.projects or (area == "files" and filename not in self.projects[project]):
            return self.send(request, 404)
        if area == "simple":
            links = "".join(
                f'<a href="/files/{project}/{name}#sha256='
                f'{self.listed.get(name, hashlib.sha256(data).hexdigest())}">{name}</a>\n'
                for name, data in self.projects[project].items()
            )
            page = f"<!DOCTYPE html><html><body>{links}</body></html>".encode()
            return self.send(request, 200, page, {"Content-Type": self.content_type})
        data = self.projects[project][filename]
        cut = self.breaks[filename].pop(0) if self.breaks[filename] else None
        return self.send(request, 200, data, cut=cut)

    def send(self, request, status, body=b"", headers=None, cut=None) -> None:
        request.send_response(status)
        for key, value in (headers or {}).items():
            request.send_header(key, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[:cut])


def zip_of(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, data in files.items():
            zipped.writestr(zipfile.ZipInfo(name), data)
    return out.getvalue()


def tar_of(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()
