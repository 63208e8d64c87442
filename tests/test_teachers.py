"""Teachers: weights from files, folders and the Hugging Face hub load whole and frozen, or are refused with the fix."""

import argparse
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from types import ModuleType
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from conftest import ROOT
from easydict import EasyDict
from golden_networks import CVLFACE, assert_same, embed, golden_case, golden_keys, recipe, settings
from huggingface_hub import constants
from safetensors.torch import save_file

from backbones import build_backbone, build_teacher, find_teacher
from backbones.teacher import MissingWeights, Release
from utils.weights import WeightsError

WEIGHTS, DESCRIPTION = "model.safetensors", "pretrained_model/model.yaml"
IMAGE = torch.zeros(1, 3, 112, 112)


class Malicious:
    """Makes a folder when it is unpickled by a loader that lets it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


# --- weights files of our own networks -------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A MobileFaceNet of 32 dimensions in a file."""
    path = tmp_path / "checkpoint.pth"
    torch.save(build_backbone(settings(embedding_size=32)).state_dict(), path)
    return path


def plain_settings(path: str | os.PathLike, **changes) -> EasyDict:
    return settings(**{"teacher": "mobilefacenet", "embedding_size": 32, "pretrained_teacher_path": path, **changes})


def test_a_teacher_gives_the_embeddings_of_the_student_whose_weights_it_has(face_data):
    path = face_data / "mobilefacenet_y1_128.pth"
    student = build_backbone(settings(embedding_size=128, init_from=path)).eval()
    images = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1
    teacher = build_teacher(plain_settings(path, embedding_size=128))
    assert np.array_equal(embed(teacher, images), embed(student, images))


def test_a_teacher_is_frozen_in_eval_mode_and_of_its_own_width(checkpoint):
    teacher = build_teacher(plain_settings(checkpoint, width=0.5))  # the student's width
    assert_frozen(teacher)
    state = torch.load(checkpoint, weights_only=True)
    assert all(torch.equal(value, state[key]) for key, value in teacher.state_dict().items())
    assert teacher(IMAGE).shape == (1, 32)


def assert_frozen(teacher: torch.nn.Module) -> None:
    assert not any(module.training for module in teacher.modules())
    assert not any(weight.requires_grad for weight in teacher.parameters())
    assert {weight.dtype for weight in teacher.parameters()} == {torch.float32}
    assert {value.device.type for value in [*teacher.parameters(), *teacher.buffers()]} == {"cpu"}
    assert {name for name, _ in teacher.named_buffers()} <= set(teacher.state_dict())  # nothing is left unset


def test_a_teacher_draws_no_random_numbers(checkpoint, folder):
    for cfg in (plain_settings(checkpoint), release_settings(folder)):
        state = torch.get_rng_state()
        build_teacher(cfg)
        assert torch.equal(torch.get_rng_state(), state)


def test_a_teacher_is_built_from_the_release_that_was_found_before(checkpoint):
    cfg = plain_settings(checkpoint)
    release = find_teacher(cfg)
    assert (release.network, release.weights, release.origin) == ("mobilefacenet", checkpoint, str(checkpoint))
    cfg.pretrained_teacher_path = "nowhere"
    assert build_teacher(cfg, release)(IMAGE).shape == (1, 32)


def test_the_identity_of_a_teacher_tells_network_bytes_colours_and_origin(checkpoint):
    assert find_teacher(plain_settings(checkpoint)).identity() == {
        "network": "mobilefacenet",
        "sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "colours": "RGB",
        "origin": str(checkpoint),
    }
    assert find_teacher(release_settings(checkpoint)).identity()["colours"] == "BGR"  # AdaFace's own


def test_a_narrow_teacher_loads_with_its_width_and_is_refused_without(tmp_path):
    path = tmp_path / "narrow.pth"
    torch.save(build_backbone(settings(embedding_size=32, width=0.25)).state_dict(), path)
    assert build_teacher(plain_settings(path, teacher_width=0.25))(IMAGE).shape == (1, 32)
    with pytest.raises(WeightsError, match=r"narrow\.pth.*shapes differ.*teacher_width"):
        build_teacher(plain_settings(path))


def test_a_teacher_without_a_path_is_refused():
    with pytest.raises(WeightsError, match="pretrained_teacher_path"):
        build_teacher(plain_settings(""))


@pytest.mark.parametrize("teacher", ["mobilefacenet", "iresnet18", "cvlface_ir18"])
def test_a_missing_file_is_refused_by_name(teacher, tmp_path):
    with pytest.raises(MissingWeights, match=r"absent\.pth: no such file.*pretrained_teacher_path"):
        build_teacher(plain_settings(tmp_path / "absent.pth", teacher=teacher))


@pytest.mark.parametrize("teacher", ["iresnet18", "cvlface_ir18"])
def test_a_file_of_another_network_is_refused_by_name(teacher, checkpoint):
    with pytest.raises(WeightsError, match=rf"checkpoint\.pth.*keys missing.*keys unexpected.*weights of {teacher}"):
        build_teacher(plain_settings(checkpoint, teacher=teacher))


def test_a_teacher_of_another_embedding_size_is_refused_with_the_size_to_set(checkpoint, folder):
    with pytest.raises(WeightsError, match=r"checkpoint\.pth.* 32 dimensions.* 64;.*set embedding_size=32$"):
        build_teacher(plain_settings(checkpoint, embedding_size=64))
    with pytest.raises(WeightsError, match=r"model\.safetensors.* 512 dimensions.* 128;.*set embedding_size=512$"):
        build_teacher(release_settings(folder, embedding_size=128))


KEY = "conv_6_sep.conv.weight"  # [512, 128, 1, 1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop(KEY), rf"1 keys missing \({KEY}\)"),
        (lambda state: state.update({"one.more": torch.zeros(2)}), r"1 keys unexpected \(one\.more\)"),
        (
            lambda state: state.update({KEY: torch.zeros(512, 64, 1, 1)}),
            rf"{KEY} is \[512, 64, 1, 1\] where .*512, 128",
        ),
        (lambda state: state[KEY].view(-1)[7].fill_(torch.nan), rf"not finite \({KEY}\)"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_the_key(checkpoint, change, words):
    state = torch.load(checkpoint, weights_only=True)
    change(state)
    torch.save(state, checkpoint)
    with pytest.raises(WeightsError, match=rf"checkpoint\.pth.*{words}"):
        build_teacher(plain_settings(checkpoint))


@pytest.mark.parametrize(
    "content", ["text", "empty", "truncated", "list", "nested", "no tensors", "code", "text in safetensors"]
)
def test_what_is_no_checkpoint_is_refused_by_name_and_never_run(content, checkpoint, tmp_path):
    path = tmp_path / ("weights.safetensors" if content == "text in safetensors" else "weights.pth")
    if content in ("text", "text in safetensors"):
        path.write_text("These are no weights.\n")
    elif content == "empty":
        path.write_bytes(b"")
    elif content == "truncated":
        path.write_bytes(checkpoint.read_bytes()[:100_000])
    else:
        values = {
            "list": [torch.zeros(3)],
            "nested": {"network": {"conv1.conv.weight": torch.zeros(3)}},
            "no tensors": {"epoch": 3},
            "code": {"conv1.conv.weight": Malicious(tmp_path / "was_run")},
        }
        torch.save(values[content], path)
    with pytest.raises(WeightsError, match=re.escape(path.name)):
        build_teacher(plain_settings(path))
    assert not (tmp_path / "was_run").exists()


# --- CVLFace's and AdaFace's files -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ir18() -> dict[str, torch.Tensor]:
    return golden_weights("cvlface_ir18")


@pytest.fixture(scope="module")
def shared_folder(ir18) -> Iterator[Path]:
    with TemporaryDirectory() as name:
        save_file(ir18, Path(name, WEIGHTS))
        yield Path(name)


@pytest.fixture
def folder(shared_folder) -> Path:
    """A folder with the files of CVLFace's IR-18 release, RGB."""
    return describe(shared_folder, "ir18")


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder for what is large: it goes as soon as the test ends."""
    with TemporaryDirectory() as name:
        yield Path(name)


def golden_weights(name: str) -> dict[str, torch.Tensor]:
    return {key: recipe(key, shape) for key, shape in golden_keys(name).items()}


def described(name: str, color_space: str = "RGB") -> str:
    return f"name: {name}\ninput_size: [3, 112, 112]\ncolor_space: {color_space}\noutput_dim: 512\n"


def describe(folder: Path, name: str, color_space: str = "RGB") -> Path:
    (folder / "pretrained_model").mkdir(exist_ok=True)
    (folder / DESCRIPTION).write_text(described(name, color_space))
    return folder


def release_settings(path: str | os.PathLike = "", **changes) -> EasyDict:
    return settings(**{"teacher": "cvlface_ir18", "pretrained_teacher_path": path, **changes})


@pytest.mark.parametrize("name", CVLFACE)
def test_a_release_in_a_folder_gives_the_golden_embeddings(name, scratch):
    save_file(golden_weights(name), scratch / WEIGHTS)
    describe(scratch, name.removeprefix("cvlface_"))
    images, embeddings = golden_case(name)
    teacher = build_teacher(release_settings(scratch, teacher=name))
    assert_frozen(teacher)
    assert_same(embed(teacher.double(), images), embeddings)


@pytest.mark.parametrize("teacher", ["cvlface_ir18", "cvlface_ir50"])
def test_model_yaml_says_which_network_and_which_colours(teacher, folder):
    images, embeddings = golden_case("cvlface_ir18")
    assert_same(embed(build_teacher(release_settings(folder, teacher=teacher)).double(), images), embeddings)
    describe(folder, "ir18", "BGR")
    turned = build_teacher(release_settings(folder, teacher=teacher)).double()
    assert_same(embed(turned, images.flip(1)), embeddings)
    assert abs(embed(turned, images) - embeddings).max() > 0.01 * abs(embeddings).max()


def test_float16_weights_make_a_float32_teacher(ir18, scratch):
    halves = {key: value.half() if value.is_floating_point() else value for key, value in ir18.items()}
    save_file(halves, scratch / WEIGHTS)
    teacher = build_teacher(release_settings(describe(scratch, "ir18")))
    assert_frozen(teacher)
    state = teacher.state_dict()
    assert all(torch.equal(state[key.removeprefix("model.net.")], value.to(ir18[key])) for key, value in halves.items())
    images, embeddings = golden_case("cvlface_ir18")
    assert_same(embed(teacher, images), embeddings, tolerance=1e-2)


def test_adafaces_own_checkpoint_is_the_named_network_in_bgr_without_its_head(ir18, scratch):
    state = {"model." + key.removeprefix("model.net."): value for key, value in ir18.items()}
    path, head = scratch / "adaface.ckpt", {"head.kernel": torch.zeros(512, 10), "head.t": torch.ones(1)}
    torch.save({"state_dict": {**state, **head}, "epoch": 3}, path)
    images, embeddings = golden_case("cvlface_ir18")
    teacher = build_teacher(release_settings(path))
    assert_frozen(teacher)
    assert_same(embed(teacher.double(), images.flip(1)), embeddings)
    with pytest.raises(WeightsError, match=r"adaface\.ckpt.*keys missing.*weights of cvlface_ir50"):
        build_teacher(release_settings(path, teacher="cvlface_ir50"))


def test_classes_of_lightning_in_adafaces_own_checkpoint_are_left_aside(ir18, scratch, monkeypatch):
    """AdaFace was trained under PyTorch Lightning, which puts its callbacks' classes beside the weights."""
    module = ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    state = {"model." + key.removeprefix("model.net."): value for key, value in ir18.items()}
    callbacks = {module.ModelCheckpoint: {"best_model_score": torch.ones(1)}}
    more = {"callbacks": callbacks, "hyper_parameters": {"args": argparse.Namespace(lr=0.1)}}
    torch.save({"state_dict": state, **more}, scratch / "adaface.ckpt")
    torch.save({"state_dict": state, **more, "code": Malicious(scratch / "was_run")}, scratch / "code.ckpt")
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
        monkeypatch.delitem(sys.modules, name)
    assert_frozen(build_teacher(release_settings(scratch / "adaface.ckpt")))
    with pytest.raises(WeightsError, match=r"code\.ckpt.*it refers to posix\.mkdir"):
        build_teacher(release_settings(scratch / "code.ckpt"))
    assert not (scratch / "was_run").exists()


def test_a_key_without_the_releases_prefix_does_not_stand_for_one_with_it(ir18, scratch):
    state = {"model." + key.removeprefix("model.net."): value for key, value in ir18.items()}
    torch.save({"state_dict": {**state, "input_layer.2.weight": torch.ones(64)}}, scratch / "adaface.ckpt")
    with pytest.raises(WeightsError, match=r"1 keys unexpected \(input_layer\.2\.weight, without model\."):
        build_teacher(release_settings(scratch / "adaface.ckpt"))


@pytest.mark.parametrize("more", ["model.one.more", "one.more"])
def test_adafaces_own_checkpoint_with_an_unknown_key_is_refused_by_it(more, ir18, scratch):
    state = {"model." + key.removeprefix("model.net."): value for key, value in ir18.items()}
    torch.save({"state_dict": {**state, more: torch.zeros(2)}}, scratch / "adaface.ckpt")
    with pytest.raises(WeightsError, match=r"adaface\.ckpt.*1 keys unexpected \(one\.more"):
        build_teacher(release_settings(scratch / "adaface.ckpt"))


BATCHNORM = "model.net.output_layer.0.weight"  # [512]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop(BATCHNORM), r"1 keys missing \(output_layer\.0\.weight\)"),
        (lambda state: state.update({"model.net.one.more": torch.zeros(2)}), r"1 keys unexpected \(one\.more\)"),
        (lambda state: state.update({BATCHNORM: torch.ones(7)}), r"output_layer\.0\.weight is \[7\] where .* \[512\]"),
    ],
)
def test_a_release_whose_weights_do_not_fit_is_refused_by_the_key(change, words, ir18, scratch):
    state = dict(ir18)
    change(state)
    save_file(state, scratch / WEIGHTS)
    with pytest.raises(WeightsError, match=rf"model\.safetensors.*{words}.*weights of cvlface_ir18"):
        build_teacher(release_settings(describe(scratch, "ir18")))


@pytest.mark.parametrize(
    ("description", "words"),
    [
        (
            described("vit_base"),
            r"'vit_base'.*none of ours \(ir18, ir50, ir101\).*minchul/cvlface_adaface_ir50_webface4m",
        ),
        ("color_space: RGB\n", r"name.*none of ours \(ir18, ir50, ir101\).*minchul/cvlface_adaface_ir50_webface4m"),
        ("", "none of ours"),
        ("- ir18\n- RGB\n", "none of ours"),
        ("name: ir18\n", "color_space is None where RGB or BGR"),
        (described("ir18", "GRAY"), "color_space is 'GRAY' where RGB or BGR"),
        ("name: [ir18\ncolor_space: RGB\n", "not YAML.*fetch it again"),
        ("name: ir18\ncolor_space: RGB\nmore: !!python/object/apply:os.mkdir [MARK]\n", "not YAML"),
    ],
)
def test_a_model_yaml_of_no_network_of_ours_is_refused_with_the_reason(description, words, folder, tmp_path):
    (folder / DESCRIPTION).write_text(description.replace("MARK", str(tmp_path / "was_run")))
    with pytest.raises(WeightsError, match=rf"model\.yaml: .*{words}"):
        build_teacher(release_settings(folder))
    assert not (tmp_path / "was_run").exists()


def test_a_folder_without_one_of_the_two_files_is_refused_by_that_file(tmp_path):
    with pytest.raises(MissingWeights, match=r"pretrained_model/model\.yaml: no such file.*model\.safetensors and"):
        build_teacher(release_settings(tmp_path))
    with pytest.raises(MissingWeights, match=r"model\.safetensors: no such file.*pretrained_model/model\.yaml"):
        build_teacher(release_settings(describe(tmp_path, "ir18")))


def test_a_safetensors_file_is_refused_for_the_folder_that_holds_it(folder):
    with pytest.raises(WeightsError, match=r"name the folder that holds model\.safetensors and .*model\.yaml"):
        build_teacher(release_settings(folder / WEIGHTS))


@pytest.mark.parametrize("file", [WEIGHTS, "adaface.ckpt"])
def test_code_in_a_release_is_never_run(file, tmp_path):
    mark = tmp_path / "was_run"
    torch.save({"state_dict": {"model.net.input_layer.0.weight": Malicious(mark)}}, tmp_path / file)
    (tmp_path / "wrapper.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    describe(tmp_path, "ir18")
    with pytest.raises(WeightsError, match=re.escape(file)):
        build_teacher(release_settings(tmp_path if file == WEIGHTS else tmp_path / file))
    assert not mark.exists()


# --- the Hugging Face hub --------------------------------------------------------------------------------------

PUBLISHED = {
    "cvlface_ir18": "minchul/cvlface_adaface_ir18_webface4m",
    "cvlface_ir50": "minchul/cvlface_adaface_ir50_webface4m",
    "cvlface_ir101": "minchul/cvlface_adaface_ir101_webface12m",
}
FIRST, SECOND = "1a" * 20, "2b" * 20  # commits
SOMEONE = "someone/faces"


class FakeHub(ThreadingHTTPServer):
    """Answers from memory what huggingface_hub asks of huggingface.co, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}  # repository, commit, file
        self.branches: dict[tuple[str, str], str] = {}
        self.later: dict[tuple[str, str], str] = {}  # what the branches become once a description was downloaded
        self.asked: list[str] = []  # "METHOD file"
        self.authorizations: set[str | None] = set()
        self.refusal: tuple[int, dict[str, str]] | None = None  # what everything is answered by
        self.cut = 0  # so many downloads of weights break off halfway
        self.announced = 0  # bytes by which the weights' size is announced too large
        self.xet = False  # the weights lie in Hugging Face's Xet storage
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


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[FakeHub]:
    hub = FakeHub()
    connect(monkeypatch, hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "the_library_s"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # before each of the library's new attempts
    yield hub
    hub.shutdown()
    hub.server_close()


def connect(monkeypatch, url: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


def disconnect(monkeypatch) -> None:
    connect(monkeypatch, "http://127.0.0.1:1")


@pytest.fixture
def find(hub, tmp_path):
    """find_teacher of the fake hub with a cache of the test's own; by default of `someone/faces`."""

    def find(**changes) -> Release:
        return find_teacher(
            release_settings(**{"teacher_repo_id": SOMEONE, "teacher_cache": tmp_path / "ours", **changes})
        )

    return find


def child(*command: str, **environment: str) -> subprocess.CompletedProcess:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "TRANSFORMERS"))}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, env={**kept, **environment})


def test_a_published_teacher_is_downloaded_once_and_then_needs_no_network(hub, folder, scratch, monkeypatch):
    hub.publish(PUBLISHED["cvlface_ir18"], weights=(folder / WEIGHTS).read_bytes())
    images, embeddings = golden_case("cvlface_ir18")
    cfg = release_settings(teacher_cache=scratch)
    assert_same(embed(build_teacher(cfg).double(), images), embeddings)
    disconnect(monkeypatch)
    assert_same(embed(build_teacher(cfg).double(), images), embeddings)
    assert hub.asked.count(f"GET {WEIGHTS}") == 1


@pytest.mark.parametrize("teacher", PUBLISHED)
def test_each_teacher_has_its_published_repository_and_an_origin_with_the_commit(teacher, hub, find):
    hub.publish(PUBLISHED[teacher], described(teacher.removeprefix("cvlface_")))
    release = find(teacher=teacher, teacher_repo_id="")
    assert (release.network, release.bgr) == (teacher, False)
    assert release.origin == release.identity()["origin"] == f"{PUBLISHED[teacher]}@{FIRST}"


def test_another_repository_is_the_network_that_its_own_model_yaml_says(hub, folder, scratch):
    hub.publish("someone/other", described("ir18", "BGR"), (folder / WEIGHTS).read_bytes())
    cfg = release_settings(teacher="cvlface_ir101", teacher_repo_id="someone/other", teacher_cache=scratch)
    images, embeddings = golden_case("cvlface_ir18")
    assert_same(embed(build_teacher(cfg).double(), images.flip(1)), embeddings)


def test_a_revision_is_a_branch_or_a_commit_and_a_commit_stays_what_it_is(hub, find, monkeypatch):
    hub.publish(SOMEONE, weights=b"first")
    hub.publish(SOMEONE, described("ir50"), b"second", SECOND, branch="refs/pr/1")

    def content(revision: str) -> tuple[str, str, bytes]:
        release = find(teacher_revision=revision)
        return release.network, release.origin, release.weights.read_bytes()

    first, second = ("cvlface_ir18", f"{SOMEONE}@{FIRST}", b"first"), ("cvlface_ir50", f"{SOMEONE}@{SECOND}", b"second")
    assert content("") == content("main") == content(FIRST) == first
    assert content("refs/pr/1") == content(SECOND) == second
    hub.branches[SOMEONE, "main"] = SECOND
    assert (content(""), content(FIRST)) == (second, first)
    disconnect(monkeypatch)
    assert (content(""), content("refs/pr/1"), content(FIRST)) == (second, second, first)


def test_the_weights_are_of_the_commit_of_the_description_where_the_branch_moves_in_between(hub, find):
    hub.publish(SOMEONE, weights=b"second", commit=SECOND)
    hub.publish(SOMEONE, weights=b"first")
    hub.later = {(SOMEONE, "main"): SECOND}
    release = find()
    assert (release.origin, release.weights.read_bytes()) == (f"{SOMEONE}@{FIRST}", b"first")
    assert find().weights.read_bytes() == b"second"


def test_downloads_go_to_teacher_cache_or_to_the_librarys_own(hub, find, tmp_path):
    hub.publish(SOMEONE)
    assert tmp_path / "ours" in find().weights.parents
    assert tmp_path / "the_library_s" in find(teacher_cache="").weights.parents


def test_only_the_two_files_are_asked_for_and_the_description_first(hub, find):
    hub.publish(SOMEONE)
    find()
    files = [asked.split()[1] for asked in hub.asked]
    assert set(files) == {DESCRIPTION, WEIGHTS}  # not wrapper.py
    assert files == sorted(files, key=[DESCRIPTION, WEIGHTS].index)


@pytest.mark.parametrize("description", [described("vit_base"), "name: ir18\n", "name: [ir18\n", ""])
def test_weights_of_no_network_of_ours_are_not_downloaded(description, hub, find):
    hub.publish(SOMEONE, description)
    with pytest.raises(WeightsError, match=r"model\.yaml"):
        find()
    assert {asked.split()[1] for asked in hub.asked} == {DESCRIPTION}


def test_a_vision_transformers_repository_is_refused_unasked(hub, find):
    with pytest.raises(WeightsError, match=r"someone/cvlface_adaface_vit_base: .*transformer.*cvlface_adaface_ir50"):
        find(teacher_repo_id="someone/cvlface_adaface_vit_base")
    assert not hub.asked
    with pytest.raises(WeightsError, match=r"vitaly/invite_ir50: does not exist"):
        find(teacher_repo_id="vitaly/invite_ir50")  # no vision transformer
    assert hub.asked


@pytest.mark.parametrize("token", ["hf_secret", None])
def test_hf_token_is_sent_where_it_is_set(token, hub, find, monkeypatch):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    hub.publish(SOMEONE)
    find()
    assert hub.authorizations == {token and f"Bearer {token}"}


TERMS = rf"^{SOMEONE}: is gated: accept its terms.*HF_TOKEN"
PRIVATE = rf"^{SOMEONE}: does not exist or is private.*teacher_repo_id.*HF_TOKEN"


def by_hand(repository: str, revision: str = "main") -> str:
    files = r"model\.safetensors pretrained_model/model\.yaml"
    command = f"hf download {repository} {files} --revision {revision} --local-dir FOLDER"
    return f"`{command}`.*pretrained_teacher_path=FOLDER"


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (401, {"X-Error-Code": "GatedRepo"}, TERMS),
        (403, {"X-Error-Code": "GatedRepo"}, TERMS),
        (401, {"X-Error-Code": "RepoNotFound"}, PRIVATE),
        (404, {"X-Error-Code": "RepoNotFound"}, PRIVATE),
        (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, rf"^{SOMEONE}: .*HF_TOKEN"),
        (503, {}, rf"^{SOMEONE}: .*503.*{by_hand(SOMEONE)}"),
        (200, {}, rf"^{SOMEONE}: .*{by_hand(SOMEONE)}"),  # a proxy's own page
    ],
)
def test_what_the_hub_refuses_is_told_with_the_fix(status, headers, words, hub, find):
    hub.refusal = status, headers
    with pytest.raises(MissingWeights, match=words):
        find()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"teacher_revision": "v9"},
            rf"^{SOMEONE}: has no revision 'v9': teacher_revision is a branch, a tag or a comm",
        ),
        ({"teacher_revision": SECOND}, rf"^{SOMEONE}: has no revision '{SECOND}': teacher_revision"),
        ({"teacher_repo_id": "someone/empty"}, r"^someone/empty: has no pretrained_model/model\.yaml.*teacher_repo_id"),
        ({"teacher_repo_id": "someone/half"}, r"^someone/half: has no model\.safetensors.*teacher_repo_id"),
        ({"teacher_repo_id": "someone/nowhere"}, r"^someone/nowhere: does not exist or is private"),
        ({"teacher_repo_id": "a/b/c"}, r"^a/b/c: is no repository's name, which is owner/name: check teacher_repo_id"),
        ({"teacher_repo_id": "a/b c"}, r"^a/b c: is no repository's name, which is owner/name: check teacher_repo_id"),
    ],
)
def test_what_the_hub_does_not_have_is_told_with_the_fix(changes, words, hub, find):
    hub.publish(SOMEONE)
    hub.publish("someone/empty", description=None, weights=None)
    hub.publish("someone/half", weights=None)
    with pytest.raises(WeightsError, match=words):
        find(**changes)


def test_without_a_network_the_message_has_the_command_that_fetches_the_files(hub, find, tmp_path, monkeypatch):
    hub.publish(SOMEONE, described("ir50", "BGR"))
    disconnect(monkeypatch)
    with pytest.raises(MissingWeights, match=rf"^{SOMEONE}: .*not in the cache.*refused.*{by_hand(SOMEONE)}") as raised:
        find()
    program, *arguments = shlex.split(
        re.search("`(.+?)`", str(raised.value))[1].replace("FOLDER", str(tmp_path / "by_hand"))
    )
    command = (str(Path(sys.executable).with_name(program)), *arguments)
    done = child(*command, HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path), HF_HUB_DISABLE_UPDATE_CHECK="1")
    assert done.returncode == 0, done.stderr
    release = find_teacher(release_settings(tmp_path / "by_hand"))
    assert (release.network, release.bgr, release.weights.read_bytes()) == ("cvlface_ir50", True, b"weights" * 1000)
    assert "GET wrapper.py" not in hub.asked


def test_offline_mode_takes_what_is_cached_and_names_itself_where_nothing_is(hub, find, tmp_path):
    hub.publish(SOMEONE)
    find()
    asked = len(hub.asked)
    program = (
        "from backbones import find_teacher; from config import load_config; from utils.weights import WeightsError\n"
        f"cfg = load_config(overrides=['teacher_repo_id={SOMEONE}', {f'teacher_cache={tmp_path}/ours'!r}])\n"
        "print(find_teacher(cfg).origin)\ncfg.teacher_repo_id = 'someone/other'\n"
        "try:\n    find_teacher(cfg)\nexcept WeightsError as error:\n    print(error)\n"
    )
    done = child(sys.executable, "-c", program, HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    origin, message = done.stdout.splitlines()
    assert origin == f"{SOMEONE}@{FIRST}" and len(hub.asked) == asked
    assert re.search(rf"^someone/other: .*not in the cache.*HF_HUB_OFFLINE.*{by_hand('someone/other')}", message)


def test_a_download_that_breaks_off_goes_on_to_the_same_bytes(hub, find, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.publish(SOMEONE, weights=bytes(range(256)) * 1000)
    hub.cut = 2
    assert find().weights.read_bytes() == bytes(range(256)) * 1000
    assert hub.asked.count(f"GET {WEIGHTS}") == 3


@pytest.mark.parametrize("fault", [{"cut": 1000}, {"announced": 1}])
def test_a_broken_download_is_refused_and_never_taken_for_the_weights(fault, hub, find, monkeypatch):
    hub.publish(SOMEONE, weights=bytes(range(256)) * 1000)
    vars(hub).update(fault)
    with pytest.raises(MissingWeights, match=rf"^{SOMEONE}: cannot be fetched.*{by_hand(SOMEONE, FIRST)}"):
        find()
    with monkeypatch.context() as patch:
        disconnect(patch)
        with pytest.raises(MissingWeights, match=rf"^{SOMEONE}: .*not in the cache.*{by_hand(SOMEONE, FIRST)}"):
            find()
    vars(hub).update(dict.fromkeys(fault, 0))
    assert find().weights.read_bytes() == bytes(range(256)) * 1000


def test_a_download_from_xet_storage_that_fails_is_told_with_the_fix(hub, find, monkeypatch):
    def fail(**arguments: object) -> None:
        raise RuntimeError("Task error: CAS Client Error")  # as hf_xet does when its storage fails

    monkeypatch.setattr("huggingface_hub.file_download.xet_get", fail)
    hub.publish(SOMEONE)
    hub.xet = True
    with pytest.raises(MissingWeights, match=rf"^{SOMEONE}: cannot be fetched.*CAS.*{by_hand(SOMEONE, FIRST)}"):
        find()
