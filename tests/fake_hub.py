"""A stand-in for huggingface.co on 127.0.0.1, which answers correctly or with the faults that a test sets."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote

from golden_networks import DESCRIPTION, WEIGHTS, described
from huggingface_hub import constants

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
        self.owners: dict[str, str] = {}  # token -> the owner whose repositories it may write
        self.private: dict[str, bool] = {}
        self.stored: dict[str, bytes] = {}  # large files by SHA-256
        self.cut_uploads = {"PUT": 0, "commit": 0}  # number of these requests that break off halfway
        self.refuse_metadata = ""  # what is wrong with the front matter of cards
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
        route = re.fullmatch(r"/(?:api/models/)?([^/]+/[^/]+)(?:/(resolve|revision|tree)/([^/]+)(?:/(.+))?)?", path)
        hub.asked.append(f"{self.command} {(route and route[4]) or path}")
        if hub.refusal or not route:
            return self.reply(*(hub.refusal or (500, {})))
        repository, kind, revision, file = map(unquote, route.groups(""))
        if repository not in hub.commits or (hub.private.get(repository) and not self.may_write(repository)):
            return self.reply(401, {"X-Error-Code": "RepoNotFound"})
        if not kind:
            return self.reply_json({"id": repository, "private": hub.private.get(repository, False), "siblings": []})
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
        if self.command != "HEAD":
            self.wfile.write(body)

    def reply_json(self, content: object, status: int = 200) -> None:
        self.reply(status, {"Content-Type": "application/json"}, json.dumps(content).encode())

    # --- uploads ------------------------------------------------------------------------------------------------

    def do_POST(self) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        hub.asked.append(f"{self.command} {path}")
        hub.authorizations.add(self.headers["Authorization"])
        if hub.refusal:
            return self.reply(*hub.refusal)
        if path.endswith("/commit/main") and self.breaks_off("commit"):
            return None
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            errors = [{"message": hub.refuse_metadata}] if hub.refuse_metadata else []
            return self.reply_json({"errors": errors, "warnings": []}, 400 if errors else 200)
        repository = re.match(r"/(?:api/models/)?([^/]+/[^/]+?)(?:\.git)?/", path)[1]
        if not self.may_write(repository):
            return self.reply(403, {"X-Error-Message": "Forbidden: you must have write access"})
        if path.endswith("/preupload/main"):
            modes = {True: "lfs", False: "regular"}
            return self.reply_json(
                {"files": [
                    {"path": file["path"], "shouldIgnore": False, "oid": None,
                     "uploadMode": modes[file["path"].endswith((".safetensors", ".onnx"))]}
                    for file in json.loads(body)["files"]
                ]}
            )  # fmt: skip
        if path.endswith("/info/lfs/objects/batch"):
            return self.reply_json({"objects": [self.instruction(entry) for entry in json.loads(body)["objects"]]})
        return self.commit(repository, [json.loads(line) for line in body.splitlines()])

    def do_PUT(self) -> None:
        self.server.asked.append(f"PUT {self.path}")
        if self.breaks_off("PUT"):
            return
        content = self.rfile.read(int(self.headers["Content-Length"]))
        assert hashlib.sha256(content).hexdigest() == self.path.rpartition("/")[2]
        self.server.stored[self.path.rpartition("/")[2]] = content
        self.reply(200, {})

    def may_write(self, repository: str) -> bool:
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ")
        return self.server.owners.get(token) == repository.partition("/")[0]

    def breaks_off(self, kind: str) -> bool:
        """Read half of the request and close the connection, if the test asks for it."""
        if not self.server.cut_uploads[kind]:
            return False
        self.server.cut_uploads[kind] -= 1
        self.rfile.read(int(self.headers["Content-Length"]) // 2)
        self.close_connection = True
        self.connection.close()
        return True

    def create(self, asked: dict[str, object]) -> None:
        hub, repository = self.server, f"{asked['organization']}/{asked['name']}"
        if (self.headers["Authorization"] or "").removeprefix("Bearer ") not in hub.owners:
            return self.reply(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        if not self.may_write(repository):
            return self.reply(403, {"X-Error-Message": "You don't have the rights to create a model there"})
        existed = repository in hub.commits
        if not existed:
            hub.commits[repository] = {}
            hub.private[repository] = asked.get("visibility") == "private" or asked.get("private") is True
        return self.reply_json({"url": f"{hub.url}/{repository}"}, 409 if existed else 200)

    def instruction(self, wanted: dict[str, object]) -> dict[str, object]:
        """Where to send a large file; nowhere if it has arrived already."""
        if wanted["oid"] in self.server.stored:
            return wanted
        return {**wanted, "actions": {"upload": {"href": f"{self.server.url}/storage/{wanted['oid']}"}}}

    def commit(self, repository: str, lines: list[dict]) -> None:
        hub = self.server
        files = dict(hub.commits[repository].get(hub.branches.get((repository, "main")), {}))
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = hub.stored[value["oid"]]
        commit = hashlib.sha1(json.dumps(lines).encode()).hexdigest()
        hub.commits[repository][commit] = files
        hub.branches[repository, "main"] = commit
        self.reply_json({"commitUrl": f"{hub.url}/{repository}/commit/{commit}", "commitOid": commit})

    def log_message(self, *arguments: object) -> None:
        pass


def entry(file: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}


@contextmanager
def connected_hub(monkeypatch, folder: Path) -> Iterator[FakeHub]:
    """A hub that huggingface_hub uses in this process, with a cache in the folder, without a token, without waiting."""
    hub = FakeHub()
    connect(monkeypatch, hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "default_cache"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # before each retry of the library
    yield hub
    hub.shutdown()
    hub.server_close()


def connect(monkeypatch, url: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


def disconnect(monkeypatch) -> None:
    connect(monkeypatch, "http://127.0.0.1:1")
