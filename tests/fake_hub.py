"""A stand-in for huggingface.co on 127.0.0.1, which answers correctly or with the faults that a test sets."""

import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote

from golden_networks import DESCRIPTION, WEIGHTS, described

FIRST = "1a" * 20  # a commit


class FakeHub(ThreadingHTTPServer):
    """Answers the requests of huggingface_hub from memory, and records them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}  # repository, commit, file
        self.branches: dict[tuple[str, str], str] = {}
        self.later: dict[tuple[str, str], str] = {}  # the commits of branches after a description was downloaded
        self.asked: list[str] = []  # "METHOD file"
        self.authorizations: set[str | None] = set()
        self.refusal: tuple[int, dict[str, str]] | None = None  # status and headers of all answers
        self.cut = 0  # number of downloads of weights that break off halfway
        self.announced = 0  # number of bytes by which the headers overstate the size of the weights
        self.xet = False  # whether the weights are in Hugging Face's Xet storage
        Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def publish(
        self,
        repository: str,
        description: str | None = described("ir18"),
        weights: bytes | None = b"weights" * 1000,
        commit: str = FIRST,
        branch: str = "main",
    ) -> None:
        files = {
            DESCRIPTION: None if description is None else description.encode(),
            WEIGHTS: weights,
            "wrapper.py": b"1 / 0",
        }
        present = {file: content for file, content in files.items() if content is not None}
        self.commits.setdefault(repository, {})[commit] = present
        self.branches[repository, branch] = commit


class Answer(BaseHTTPRequestHandler):
    server: FakeHub

    def do_GET(self) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        hub.authorizations.add(self.headers["Authorization"])
        route = re.fullmatch(r"/(?:api/models/)?([^/]+/[^/]+)/(resolve|revision|tree)/([^/]+)(?:/(.+))?", path)
        hub.asked.append(f"{self.command} {route[4] if route else path}")
        if hub.refusal or not route:
            return self.reply(*(hub.refusal or (500, {})))
        repository, kind, revision, file = map(unquote, route.groups(""))
        if repository not in hub.commits:
            return self.reply(401, {"X-Error-Code": "RepoNotFound"})
        commit = hub.branches.get((repository, revision), revision)
        if commit not in hub.commits[repository]:
            return self.reply(404, {"X-Error-Code": "RevisionNotFound"})
        files = hub.commits[repository][commit]
        if kind == "revision":
            return self.reply(200, {}, json.dumps({"id": repository, "sha": commit, "siblings": []}).encode())
        if kind == "tree":
            return self.reply(200, {}, json.dumps([entry(name, files[name]) for name in files]).encode())
        if file not in files:
            return self.reply(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        if (self.command, file) == ("GET", DESCRIPTION):
            hub.branches.update(hub.later)
        return self.send_file(commit, files[file], weights=file == WEIGHTS)

    do_HEAD = do_GET

    def send_file(self, commit: str, content: bytes, weights: bool) -> None:
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        if weights and self.server.announced:
            headers["X-Linked-Size"] = str(len(content) + self.server.announced)
        if weights and self.server.xet:
            headers |= {"X-Xet-Hash": "0" * 64, "X-Xet-Refresh-Route": f"{self.server.url}/xet"}
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        end = len(content)
        if weights and self.server.cut and self.command == "GET":
            self.server.cut -= 1
            end = len(content) // 2
        self.reply(206 if start else 200, headers, content[start:end], len(content) - start)

    def reply(self, status: int, headers: dict[str, str], body: bytes = b"", length: int | None = None) -> None:
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body) if length is None else length), **headers}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


def entry(file: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
