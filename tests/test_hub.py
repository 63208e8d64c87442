"""Teachers from the Hugging Face hub: only two files, no code; cache; pinned commits; a message for each failure."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from fake_hub import FIRST, FakeHub, connected_hub, disconnect
from golden_networks import (
    DESCRIPTION,
    WEIGHTS,
    assert_same,
    described,
    embed,
    golden_case,
    golden_weights,
    release_settings,
)
from huggingface_hub import constants
from safetensors.torch import save

from backbones import build_teacher, find_teacher
from backbones.teacher import MissingWeights, Release
from utils.weights import WeightsError

PUBLISHED = {
    "cvlface_ir18": "minchul/cvlface_adaface_ir18_webface4m",
    "cvlface_ir50": "minchul/cvlface_adaface_ir50_webface4m",
    "cvlface_ir101": "minchul/cvlface_adaface_ir101_webface12m",
    "cvlface_vit_small": "minchul/cvlface_adaface_vit_small_webface4m",
    "cvlface_vit_base": "minchul/cvlface_adaface_vit_base_webface4m",
    "cvlface_vit_base_kprpe": "minchul/cvlface_adaface_vit_base_kprpe_webface4m",
}
LANDMARKS = "minchul/cvlface_DFA_mobilenet"
SECOND = "2b" * 20  # a commit
SOMEONE = "someone/faces"


@pytest.fixture(scope="module")
def ir18_bytes() -> bytes:
    return save(golden_weights("cvlface_ir18"))


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[FakeHub]:
    with connected_hub(monkeypatch, tmp_path) as hub:
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
        yield hub


@pytest.fixture
def find(hub, tmp_path):
    """Calls find_teacher with the fake hub and the test's own cache; the repository is `someone/faces` by default."""

    def find(**changes) -> Release:
        return find_teacher(
            release_settings(**{"teacher_repo_id": SOMEONE, "teacher_cache": tmp_path / "own_cache", **changes})
        )

    return find


def child(*command: str, **environment: str) -> subprocess.CompletedProcess:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "TRANSFORMERS"))}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, env={**kept, **environment})


def test_a_published_teacher_is_downloaded_once_and_then_needs_no_network(hub, ir18_bytes, scratch, monkeypatch):
    hub.publish(PUBLISHED["cvlface_ir18"], weights=ir18_bytes)
    images, embeddings = golden_case("cvlface_ir18")
    cfg = release_settings(teacher_cache=scratch)
    assert_same(embed(build_teacher(cfg).double(), images), embeddings)
    disconnect(monkeypatch)
    assert_same(embed(build_teacher(cfg).double(), images), embeddings)
    assert hub.asked.count(f"GET {WEIGHTS}") == 1


@pytest.mark.parametrize("teacher", PUBLISHED)
def test_each_teacher_has_its_published_repository_and_an_origin_with_the_commit(teacher, hub, find):
    hub.publish(PUBLISHED[teacher], described(teacher.removeprefix("cvlface_")))
    hub.publish(LANDMARKS, description=None)
    release = find(teacher=teacher, teacher_repo_id="")
    assert (release.network, release.bgr) == (teacher, False)
    assert release.origin == release.describe()["origin"] == f"{PUBLISHED[teacher]}@{FIRST}"


def test_the_model_yaml_of_another_repository_names_the_network(hub, ir18_bytes, scratch):
    hub.publish("someone/other", described("ir18", "BGR"), ir18_bytes)
    cfg = release_settings(teacher="cvlface_ir101", teacher_repo_id="someone/other", teacher_cache=scratch)
    images, embeddings = golden_case("cvlface_ir18")
    assert_same(embed(build_teacher(cfg).double(), images.flip(1)), embeddings)


def test_a_revision_is_a_branch_or_a_commit_and_a_commit_never_changes(hub, find, monkeypatch):
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


def test_the_weights_come_from_the_commit_of_the_description_if_the_branch_moves_in_between(hub, find):
    hub.publish(SOMEONE, weights=b"second", commit=SECOND)
    hub.publish(SOMEONE, weights=b"first")
    hub.later = {(SOMEONE, "main"): SECOND}
    release = find()
    assert (release.origin, release.weights.read_bytes()) == (f"{SOMEONE}@{FIRST}", b"first")
    assert find().weights.read_bytes() == b"second"


def test_downloads_go_to_teacher_cache_or_to_the_default_cache(hub, find, tmp_path):
    hub.publish(SOMEONE)
    assert tmp_path / "own_cache" in find().weights.parents
    assert tmp_path / "default_cache" in find(teacher_cache="").weights.parents


def test_only_the_two_files_are_requested_and_the_description_first(hub, find):
    hub.publish(SOMEONE)
    find()
    files = [asked.split()[1] for asked in hub.asked]
    assert set(files) == {DESCRIPTION, WEIGHTS}  # not wrapper.py
    assert files == sorted(files, key=[DESCRIPTION, WEIGHTS].index)


@pytest.mark.parametrize("description", [described("swin"), "name: ir18\n", "name: [ir18\n", ""])
def test_weights_of_an_unsupported_network_are_not_downloaded(description, hub, find):
    hub.publish(SOMEONE, description)
    with pytest.raises(WeightsError, match=r"model\.yaml"):
        find()
    assert {asked.split()[1] for asked in hub.asked} == {DESCRIPTION}


def test_a_teacher_with_kprpe_brings_its_landmark_network_from_the_hub_or_from_a_file(hub, find, tmp_path):
    hub.publish(PUBLISHED["cvlface_vit_base_kprpe"], described("vit_base_kprpe"))
    hub.publish(LANDMARKS, description=None, weights=b"landmarks", commit=SECOND)
    kprpe = {"teacher": "cvlface_vit_base_kprpe", "teacher_repo_id": ""}
    landmarks = find(**kprpe).landmarks
    assert (landmarks.origin, landmarks.weights.read_bytes()) == (f"{LANDMARKS}@{SECOND}", b"landmarks")
    assert tmp_path / "own_cache" in landmarks.weights.parents
    hub.publish(LANDMARKS, description=None, weights=b"newer")
    assert find(**kprpe).landmarks.weights.read_bytes() == b"newer"
    assert find(**kprpe, landmarks_revision=SECOND).landmarks.weights.read_bytes() == b"landmarks"
    hub.publish(SOMEONE, description=None, weights=b"others")
    assert find(**kprpe, landmarks_repo_id=SOMEONE).landmarks.weights.read_bytes() == b"others"
    (tmp_path / WEIGHTS).write_bytes(b"mine")
    for path in (tmp_path, tmp_path / WEIGHTS):
        release = find(**kprpe, landmarks_path=path)
        assert (release.landmarks.origin, release.landmarks.weights.read_bytes()) == (str(path), b"mine")
    with pytest.raises(MissingWeights, match=r"absent/model\.safetensors: no such file; set landmarks_path to"):
        (tmp_path / "absent").mkdir()
        find(**kprpe, landmarks_path=tmp_path / "absent")
    with pytest.raises(
        MissingWeights, match=r"^someone/nowhere: does not exist or is private: check landmarks_repo_id"
    ):
        find(**kprpe, landmarks_repo_id="someone/nowhere")


def test_without_a_network_the_message_says_how_to_get_the_landmark_network(hub, find, monkeypatch):
    hub.publish(SOMEONE, described("vit_base_kprpe"))
    with pytest.raises(MissingWeights):
        find()  # keeps the teacher in the cache
    disconnect(monkeypatch)
    command = rf"`hf download {LANDMARKS} model\.safetensors --revision main --local-dir FOLDER`"
    with pytest.raises(MissingWeights, match=rf"^{LANDMARKS}: .*not in the cache.*{command}.*landmarks_path=FOLDER"):
        find()


@pytest.mark.parametrize("token", ["hf_secret", None])
def test_hf_token_is_sent_if_it_is_set(token, hub, find, monkeypatch):
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
    ("status", "headers", "message"),
    [
        (401, {"X-Error-Code": "GatedRepo"}, TERMS),
        (403, {"X-Error-Code": "GatedRepo"}, TERMS),
        (401, {"X-Error-Code": "RepoNotFound"}, PRIVATE),
        (404, {"X-Error-Code": "RepoNotFound"}, PRIVATE),
        (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, rf"^{SOMEONE}: .*HF_TOKEN"),
        (503, {}, rf"^{SOMEONE}: .*503.*{by_hand(SOMEONE)}"),
        (200, {}, rf"^{SOMEONE}: .*{by_hand(SOMEONE)}"),  # the page of a proxy
    ],
)
def test_the_message_for_a_refused_request_says_what_to_do(status, headers, message, hub, find):
    hub.refusal = status, headers
    with pytest.raises(MissingWeights, match=message):
        find()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"teacher_revision": "v9"},
            rf"^{SOMEONE}: has no revision 'v9': teacher_revision is a branch, a tag or a commit",
        ),
        ({"teacher_revision": SECOND}, rf"^{SOMEONE}: has no revision '{SECOND}': teacher_revision"),
        ({"teacher_repo_id": "someone/empty"}, r"^someone/empty: has no pretrained_model/model\.yaml.*teacher_repo_id"),
        ({"teacher_repo_id": "someone/half"}, r"^someone/half: has no model\.safetensors.*teacher_repo_id"),
        ({"teacher_repo_id": "someone/nowhere"}, r"^someone/nowhere: does not exist or is private"),
        (
            {"teacher_repo_id": "a/b/c"},
            r"^a/b/c: is not the name of a repository, .*: check teacher_repo_id",
        ),
        (
            {"teacher_repo_id": "a/b c"},
            r"^a/b c: is not the name of a repository, .*: check teacher_repo_id",
        ),
    ],
)
def test_the_message_for_something_missing_on_the_hub_says_what_to_do(changes, message, hub, find):
    hub.publish(SOMEONE)
    hub.publish("someone/empty", description=None, weights=None)
    hub.publish("someone/half", weights=None)
    with pytest.raises(WeightsError, match=message):
        find(**changes)


def test_without_a_network_the_message_has_the_command_that_downloads_the_files(hub, find, tmp_path, monkeypatch):
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


def test_offline_mode_uses_the_cache_and_is_named_in_the_message_if_the_cache_is_empty(hub, find, tmp_path):
    hub.publish(SOMEONE)
    find()
    asked = len(hub.asked)
    program = (
        "from backbones import find_teacher; from config import load_config; from utils.weights import WeightsError\n"
        f"cfg = load_config(overrides=['teacher_repo_id={SOMEONE}', {f'teacher_cache={tmp_path}/own_cache'!r}])\n"
        "print(find_teacher(cfg).origin)\ncfg.teacher_repo_id = 'someone/other'\n"
        "try:\n    find_teacher(cfg)\nexcept WeightsError as error:\n    print(error)\n"
    )
    done = child(sys.executable, "-c", program, HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    origin, message = done.stdout.splitlines()
    assert origin == f"{SOMEONE}@{FIRST}" and len(hub.asked) == asked
    assert re.search(rf"^someone/other: .*not in the cache.*HF_HUB_OFFLINE.*{by_hand('someone/other')}", message)


def test_an_interrupted_download_continues_to_the_same_bytes(hub, find, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.publish(SOMEONE, weights=bytes(range(256)) * 1000)
    hub.cut = 2
    assert find().weights.read_bytes() == bytes(range(256)) * 1000
    assert hub.asked.count(f"GET {WEIGHTS}") == 3


@pytest.mark.parametrize("fault", [{"cut": 1000}, {"announced": 1}])
def test_a_broken_download_is_refused_and_never_used_as_weights(fault, hub, find, monkeypatch):
    hub.publish(SOMEONE, weights=bytes(range(256)) * 1000)
    vars(hub).update(fault)
    with pytest.raises(MissingWeights, match=rf"^{SOMEONE}: cannot be downloaded.*{by_hand(SOMEONE, FIRST)}"):
        find()
    with monkeypatch.context() as patch:
        disconnect(patch)
        with pytest.raises(MissingWeights, match=rf"^{SOMEONE}: .*not in the cache.*{by_hand(SOMEONE, FIRST)}"):
            find()
    vars(hub).update(dict.fromkeys(fault, 0))
    assert find().weights.read_bytes() == bytes(range(256)) * 1000


def test_the_message_for_a_failed_download_from_xet_storage_says_what_to_do(hub, find, monkeypatch):
    def fail(**arguments: object) -> None:
        raise RuntimeError("Task error: CAS Client Error")  # as hf_xet does when its storage fails

    monkeypatch.setattr("huggingface_hub.file_download.xet_get", fail)
    hub.publish(SOMEONE)
    hub.xet = True
    with pytest.raises(MissingWeights, match=rf"^{SOMEONE}: cannot be downloaded.*CAS.*{by_hand(SOMEONE, FIRST)}"):
        find()
