"""Models for the Hugging Face hub: the folder, its card, uploads to a fake hub, and the way back into training."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT
from evaluation_sets import FULL, flags, score
from fake_hub import FakeHub, connected_hub, disconnect
from huggingface_hub import ModelCard, constants
from safetensors import safe_open
from safetensors.torch import save_file
from teacher_files import plain_settings

from backbones import build_backbone, build_teacher, find_teacher
from backbones.mobilefacenet import MobileFaceNet
from config import BASE, load_config
from config.paths import PathError, split_repository
from deploy.hub_folder import model_folder
from deploy.model_card import model_card, training_script
from deploy.results import read_results
from deploy.upload import require_token, upload
from utils.errors import InputError
from utils.weights import WeightsError

TO_HUB = "deploy/to_hub.py"
SOMEONE = "someone/faces"
TOKEN = "hf_writes"
FILES = {"README.md", "config.json", "model.onnx", "model.safetensors"}
SMALL = ["embedding_size=16", "width=0.125"]
METRICS = {
    "verification": {"lfw": {"Accuracy-Flip": 0.9941666, "Accuracy-Std": 0.004, "TAR_at_FAR_0.001": 0.5, "XNorm": 20.0,
                             "genuine_pairs": 3000, "impostor_pairs": 900}},
    "ijb": {"IJBC_gt_aligned": {"Norm:True_Det:True_tpr_at_fpr_0.0001": 93.98, "genuine_pairs": 5,
                                "Norm:True_Det:True_thresh_at_fpr_0.0001": 0.31, "impostor_pairs": 10**6}},
    "tinyface": {"tinyface_aligned_pad_0.1": {"rank-1": 59.31, "rank-5": 64.43, "rank-20": 68.0}},
}  # fmt: skip


@pytest.fixture(scope="module")
def run(root, checkpoints, tmp_path_factory) -> Path:
    """A folder with the results of a checkpoint, results.json, and the preset of its run, run.py."""
    folder = tmp_path_factory.mktemp("run")
    preset = {
        "width": 0.125,
        "embedding_size": 16,
        "dataset": "custom",
        "rec": ["/secret/place/mine"],
        "num_classes": 77,
    }
    (folder / "run.py").write_text(f"preset = {preset}\n")
    score(FULL, "--checkpoint", checkpoints / "5backbone.pth", *flags(root), "--results-json", folder / "results.json")
    return folder


@pytest.fixture(scope="module")
def arguments(run, checkpoints) -> list[str]:
    """The arguments of to_hub.py, without --folder."""
    files = {"config": run / "run.py", "checkpoint": checkpoints / "5backbone.pth", "results": run / "results.json"}
    return [part for name, path in files.items() for part in (f"--{name}", str(path))]


@pytest.fixture(scope="module")
def folder(arguments, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "small"
    score(TO_HUB, *arguments, "--folder", folder)
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[FakeHub]:
    """A hub on which someone may write, and has a token in this process."""
    with connected_hub(monkeypatch, tmp_path) as hub:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        hub.owners[TOKEN] = "someone"
        yield hub


def newest(hub: FakeHub) -> dict[str, bytes]:
    """The files of the newest commit."""
    return hub.commits[SOMEONE][hub.branches[SOMEONE, "main"]]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@torch.no_grad()
def embed(network: torch.nn.Module, pixels: np.ndarray) -> torch.Tensor:
    return network.eval()((torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127.5) / 127.5)


def plain_network(checkpoints: Path, name: str = "5backbone.pth") -> MobileFaceNet:
    network = MobileFaceNet(16, 0.125)
    network.load_state_dict(torch.load(checkpoints / name, weights_only=True))
    return network


def refused(*arguments: str | Path) -> str:
    done = score(*arguments, code=2)
    assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr
    return done.stderr


# --- the folder -------------------------------------------------------------------------------------------------


def test_the_folder_has_the_weights_of_the_checkpoint_and_what_rebuilds_the_network(folder, checkpoints):
    assert {file.name for file in folder.iterdir()} == FILES
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1
    state = torch.load(checkpoints / "5backbone.pth", weights_only=True)
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert set(file.keys()) == state.keys()
        assert all(torch.equal(file.get_tensor(key), value) for key, value in state.items())
        assert file.metadata() == {"format": "pt"}
    assert json.loads((folder / "config.json").read_text()) == {
        "library_name": "adadistill", "network": "mobilefacenet", "embedding_size": 16, "width": 0.125, "SE": False,
        "activation": "prelu", "colours": "RGB", "input_size": [112, 112], "mean": 127.5, "std": 127.5,
    }  # fmt: skip


def test_nothing_in_the_folder_names_a_path_of_this_machine(folder, checkpoints):
    for name, content in contents(folder).items():
        assert b"/secret" not in content and str(checkpoints).encode() not in content, name
        assert str(ROOT).encode() not in content, name


def test_a_folder_is_written_whole_or_not_at_all_and_replaces_only_its_own_kind(tmp_path, folder):
    target = tmp_path / "target"
    with pytest.raises(ZeroDivisionError), model_folder(target) as new:
        (new / "README.md").write_text("half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    for text in ("first", "second"):
        with model_folder(target) as new:
            (new / "config.json").write_text('{"library_name": "adadistill"}')
            (new / "README.md").write_text(text)
    with pytest.raises(ZeroDivisionError), model_folder(target) as new:
        raise ZeroDivisionError
    assert (target / "README.md").read_text() == "second" and list(tmp_path.iterdir()) == [target]
    for name, text, words in [
        ("notes.txt", "mine", r"has other content \(notes.txt\)"),
        ("config.json", '{"library_name": "transformers"}', "did not make this folder"),
    ]:
        before = (target / name).read_text() if (target / name).exists() else None
        (target / name).write_text(text)
        with pytest.raises(InputError, match=f"target: .*{words}.*another"), model_folder(target):
            pass
        assert (target / name).read_text() == text
        (target / name).write_text(before) if before else (target / name).unlink()


# --- the card ---------------------------------------------------------------------------------------------------


def card(metrics: dict = METRICS, *overrides: str, name: str = SOMEONE, license: str | None = "mit") -> ModelCard:
    cfg = load_config(overrides=[*SMALL, *overrides])
    text = model_card(cfg, "train_AdaDistill", MobileFaceNet(16, 0.125), metrics, name, license, on_hub=True)
    return ModelCard(text)


def test_the_hub_reads_the_metrics_of_the_card(folder, run):
    data = card().data
    found = {(result.dataset_name, result.metric_type): result.metric_value for result in data.eval_results}
    assert found == pytest.approx({
        ("lfw", "Accuracy-Flip"): 99.41666,
        ("IJBC_gt_aligned", "Norm:True_Det:True_tpr_at_fpr_0.0001"): 93.98,
        ("tinyface_aligned_pad_0.1", "rank-1"): 59.31,
        ("tinyface_aligned_pad_0.1", "rank-5"): 64.43,
        ("tinyface_aligned_pad_0.1", "rank-20"): 68.0,
    })  # no TAR at 0.001 from 900 impostor pairs, no deviations, norms, thresholds  # fmt: skip
    assert {result.task_type for result in data.eval_results} == {
        "face-verification", "face-verification-of-templates", "face-identification",
    }  # fmt: skip
    assert (data.license, data.library_name, data.model_name) == ("mit", "adadistill", "faces")
    scored = ModelCard.load(folder / "README.md").data.eval_results
    accuracy = json.loads((run / "results.json").read_text())["verification"]["pairs"]["Accuracy-Flip"]
    assert [r.metric_value for r in scored if r.metric_type == "Accuracy-Flip"] == [pytest.approx(100 * accuracy)]


def test_the_card_states_data_teacher_licence_and_limits():
    text = card(METRICS, "dataset=emoreIresNet").text
    assert "MS1MV2 (5,822,653 images of 85,742 identities)" in text
    assert "`cvlface_ir50` ([minchul/cvlface_adaface_ir50_webface4m](https://huggingface.co/minchul/" in text
    assert "99.42 (0.40)" in text and "93.98" in text and "`mit`" in text
    assert re.findall("^## (.*)$", text, re.MULTILINE) == [
        "Example", "Method", "Training data", "Evaluation", "Intended use and limits", "Licence",
    ]  # fmt: skip
    mine = card(METRICS, "dataset=custom", "rec=/a/mine", "teacher=iresnet50", "pretrained_teacher_path=/b/t.pth")
    assert "`mine`: faces" in mine.text and "`iresnet50` (`t.pth`)" in mine.text and "/b" not in mine.text
    assert "No licence has been chosen" in card(license=None).text and card(license=None).data.license is None


def test_the_card_names_a_teacher_only_if_there_was_one(tmp_path):
    path = tmp_path / "config.py"
    for script, words in [
        ("'/a b/train/train_standalone.py' output=train_AdaDistill.py", "without a teacher"),
        ("train/train_AdaDistill.py output=train_standalone.py", "cvlface_ir50"),
        ("eval/run_full_eval.py", "Not stated"),
    ]:
        path.write_text(f"# command: {script}\n\npreset = {{}}\n")
        cfg = load_config(path)
        text = model_card(cfg, training_script(path), MobileFaceNet(16, 0.125), METRICS, "x", None, on_hub=False)
        assert words in text and ("cvlface" in text) == (words == "cvlface_ir50")
        assert ("- knowledge-distillation" in text) == ("cvlface" in text)
        is_known = words != "Not stated"
        assert ("| `num_epoch` |" in text) == ("faces aligned to 112 x 112 pixels. The" in text) == is_known
    assert training_script(BASE) is None


def test_the_card_names_several_teachers_and_the_projection(tmp_path):
    described = {"network": "cvlface_ir101", "sha256": "0"}, {"network": "onnx", "sha256": "1"}
    origins = f"minchul/ir101@{'a' * 40}", "/secret/w600k_r50.onnx"
    files = [tmp_path / f"{name}.npy" for name in ("one", "two", "three")]
    for file, teacher, origin in zip(files, described, origins, strict=False):
        embeddings = {"shape": [5, 2, 512], "type": "float16"}
        content = {"teacher": teacher, "embeddings": embeddings, "about": {"teacher": origin}}
        file.with_suffix(".json").write_text(json.dumps(content))
    listed = f"teacher_embeddings={','.join(map(str, files))}"
    text = card(METRICS, listed, "teacher_projection=pca", "teacher_cosine_weights=2,1,1").text
    assert "[minchul/ir101](https://huggingface.co/minchul/ir101)) (50%)" in text
    assert "`onnx` (`w600k_r50.onnx`) (25%), that of `three.npy` (25%)" in text and "/secret" not in text
    assert "The teachers' embeddings were projected to 16 dimensions by PCA" in text and "cvlface_ir50" not in text
    one = card(METRICS, f"teacher_embeddings={files[0]}", "teacher_projection=pca").text
    assert "Teacher: `cvlface_ir50`" in one and "The teacher's embeddings were projected to 16" in one
    assert "projected" not in card().text


def run_example(folder: Path, faces: np.ndarray, **environment: str) -> float:
    """Run the example of the card in the folder, with two faces there. Returns the cosine that it prints."""
    example = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    assert len([line for line in example.splitlines() if line]) in (9, 10)
    for name, face in zip("ab", faces, strict=True):
        cv2.imwrite(str(folder / f"{name}.png"), face[:, :, ::-1])
    command = [sys.executable, "-c", example]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, **environment})
    finally:
        for name in "ab":
            (folder / f"{name}.png").unlink()
    assert done.returncode == 0, done.stderr
    return float(re.fullmatch(r"cosine (-?[\d.]+); .*\n", done.stdout)[1])


def test_the_example_of_the_card_gives_the_cosine_of_the_network(folder, checkpoints, images):
    first, second = embed(plain_network(checkpoints), images[:2])
    assert run_example(folder, images[:2]) == pytest.approx(torch.cosine_similarity(first, second, 0).item(), abs=6e-4)


def test_results_of_other_weights_are_refused(run, checkpoints, tmp_path, arguments):
    other = [*arguments, "--checkpoint", str(checkpoints / "10backbone.pth"), "--folder", str(tmp_path / "f")]
    assert re.search(r"results\.json: results of other weights.*score the checkpoint again", refused(TO_HUB, *other))
    for about, words in [({"checkpoint_sha256": "a"}, "has no metrics"), ({}, "does not state the checksum")]:
        (tmp_path / "empty.json").write_text(json.dumps({"about": about, "absent": [], "failed": []}))
        with pytest.raises(InputError, match=rf"empty\.json: {words}"):
            read_results(str(tmp_path / "empty.json"), "a")
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--upload", SOMEONE], "--upload needs --license.*cc-by-nc-sa-4.0"),
        (["--upload", "faces", "--license", "mit"], "hf://faces: not the name of a repository"),
        (["--license", "My licence"], "--license My licence: not the identifier"),
        (["--private"], "--private is about the repository of --upload"),
        (["--upload", SOMEONE, "--license", "mit"], "no token.*HF_TOKEN.*hf auth login"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_written(flags, words, arguments, tmp_path, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert re.search(words, refused(TO_HUB, *arguments, "--folder", tmp_path / "f", *flags))
    assert not (tmp_path / "f").exists() and hub.asked == []


# --- uploads ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("private", [True, False])
def test_an_upload_creates_the_repository_with_the_files_of_the_folder(private, hub, folder):
    assert upload(folder, SOMEONE, private) == f"{hub.url}/{SOMEONE}"
    assert newest(hub) == contents(folder) and hub.private == {SOMEONE: private}
    assert hub.authorizations == {f"Bearer {TOKEN}"}


def test_an_upload_to_an_existing_repository_adds_a_commit_and_keeps_other_files(hub, folder):
    hub.commits[SOMEONE], hub.branches[SOMEONE, "main"] = {"1": {"LICENSE": b"mine", "README.md": b"old"}}, "1"
    upload(folder, SOMEONE, private=False)
    assert newest(hub) == {**contents(folder), "LICENSE": b"mine"} and len(hub.commits[SOMEONE]) == 2


def test_a_private_upload_to_a_public_repository_is_refused(hub, folder):
    upload(folder, SOMEONE, private=False)
    before = list(hub.commits[SOMEONE])
    with pytest.raises(InputError, match=f"^{SOMEONE}: exists and is public.*without --private"):
        upload(folder, SOMEONE, private=True)
    assert list(hub.commits[SOMEONE]) == before


@pytest.mark.parametrize("request_kind", ["PUT", "commit"])
def test_after_a_cut_connection_the_repository_is_unchanged_and_the_next_try_succeeds(request_kind, hub, folder):
    hub.cut_uploads[request_kind] = 1000
    with pytest.raises(InputError, match=f"^{SOMEONE}: not uploaded: the connection failed.*same command.*complete"):
        upload(folder, SOMEONE, private=False)
    assert hub.commits == {SOMEONE: {}}
    hub.cut_uploads[request_kind], hub.asked = 0, []
    upload(folder, SOMEONE, private=False)
    assert newest(hub) == contents(folder)
    sent_again = sum(asked.startswith("PUT") for asked in hub.asked)
    assert sent_again == (2 if request_kind == "PUT" else 0)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"owners": {}}, "does not accept the token.*HF_TOKEN.*permission to write"),
        ({"owners": {TOKEN: "another"}}, "may not write to repositories of someone.*HF_TOKEN"),
        ({"refuse_metadata": '"license" must be one of'}, r'refuses it .*"license" must be one of.*--license'),
        ({"refusal": (503, {})}, "the connection failed .*503.*same command again"),
    ],
)
def test_a_refused_upload_says_what_to_do(fault, words, hub, folder):
    vars(hub).update(fault)
    with pytest.raises(InputError, match=f"^{SOMEONE}: not uploaded: .*{words}.*{folder} is complete"):
        upload(folder, SOMEONE, private=False)
    assert hub.commits.get(SOMEONE, {}) == {}


def test_without_a_network_or_a_token_or_online_mode_an_upload_says_so(hub, folder, monkeypatch):
    with monkeypatch.context() as patch:
        disconnect(patch)
        with pytest.raises(InputError, match=f"^{SOMEONE}: not uploaded: the connection failed.*same command again"):
            upload(folder, SOMEONE, private=False)
    with monkeypatch.context() as patch:
        patch.delenv("HF_TOKEN")
        with pytest.raises(InputError, match=r"no token of your account.*HF_TOKEN"):
            require_token()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=f"^{SOMEONE}: not uploaded.*HF_HUB_OFFLINE"):
        upload(folder, SOMEONE, private=False)


def test_the_script_uploads_and_the_example_and_an_evaluation_use_the_repository(
    hub, arguments, checkpoints, root, run, images, tmp_path
):
    flags_of_upload = ["--license", "mit", "--upload", SOMEONE, "--private"]
    done = score(TO_HUB, *arguments, "--folder", tmp_path / "out", *flags_of_upload)
    assert f"uploaded: {hub.url}/{SOMEONE}" in done.stdout and newest(hub) == contents(tmp_path / "out")
    assert hub.private[SOMEONE]
    first, second = embed(plain_network(checkpoints), images[:2])
    environment = dict(HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path), HF_HUB_DISABLE_XET="1")
    cosine = run_example(tmp_path / "out", images[:2], **environment)
    assert cosine == pytest.approx(torch.cosine_similarity(first, second, 0).item(), abs=6e-4)
    settings = [flag for flag in flags(root) if not flag.startswith(("width=", "embedding_size="))]
    done = score(FULL, "--checkpoint", f"hf://{SOMEONE}", *settings, "--results-json", tmp_path / "again.json")
    assert f"hf://{SOMEONE}: {SOMEONE}@{hub.branches[SOMEONE, 'main']}: " in done.stdout
    before, after = (json.loads(path.read_text()) for path in (run / "results.json", tmp_path / "again.json"))
    assert {**after, "about": {}} == {**before, "about": {}}


# --- the way back -----------------------------------------------------------------------------------------------


def test_a_folder_and_its_repository_give_the_embeddings_of_the_checkpoint_bit_for_bit(
    folder, checkpoints, images, hub
):
    upload(folder, SOMEONE, private=True)
    expected = embed(plain_network(checkpoints), images)
    commit = hub.branches[SOMEONE, "main"]
    for source in (folder, f"hf://{SOMEONE}", f"hf://{SOMEONE}@{commit}"):
        network = build_backbone(load_config(overrides=[*SMALL, f"init_from={source}"]))
        assert torch.equal(embed(network, images), expected)
        teacher = build_teacher(teacher_settings(pretrained_teacher_path=source))
        assert torch.equal(embed(teacher, images), expected)
    release = find_teacher(teacher_settings(teacher_repo_id=SOMEONE, pretrained_teacher_path=""))
    assert release.origin == f"{SOMEONE}@{commit}"


def teacher_settings(**changes):
    return plain_settings("", **{"embedding_size": 16, "teacher_width": 0.125, **changes})


def test_a_teacher_from_a_folder_is_known_by_the_checksum_of_its_weights(folder, hub, monkeypatch):
    upload(folder, SOMEONE, private=False)
    file = find_teacher(teacher_settings(pretrained_teacher_path=folder / "model.safetensors")).describe()
    for source in (folder, f"hf://{SOMEONE}"):
        assert {**find_teacher(teacher_settings(pretrained_teacher_path=source)).describe(), "origin": ""} == {
            **file,
            "origin": "",
        }
    assert set(file) == {"network", "sha256", "colours", "origin"}


def make_folder(path: Path, weights: Path | None = None, **changes) -> Path:
    """A folder with a config.json, and a link to weights."""
    settings = dict(network="mobilefacenet", embedding_size=16, width=0.125, SE=False, activation="prelu")
    path.mkdir()
    (path / "config.json").write_text(json.dumps({**settings, **changes}))
    if weights:
        (path / "model.safetensors").symlink_to(weights)
    return path


def test_se_and_activation_of_a_teacher_come_from_the_folder(tmp_path, images):
    torch.manual_seed(1)
    network = MobileFaceNet(16, 0.125, se=True, activation="relu")
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    folder = make_folder(tmp_path / "f", tmp_path / "w.safetensors", SE=True, activation="relu")
    cfg = teacher_settings(pretrained_teacher_path=folder)
    assert torch.equal(embed(build_teacher(cfg), images), embed(network, images))
    described = find_teacher(cfg).describe()
    assert (described["SE"], described["activation"]) == (True, "relu")


def test_other_entries_of_config_json_are_ignored(tmp_path, folder):
    other = make_folder(tmp_path / "f", folder / "model.safetensors", auto_map={"AutoModel": "wrapper.Model"}, x=1)
    build_backbone(load_config(overrides=[*SMALL, f"init_from={other}"]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network": "resnet"}, r"network = 'resnet': must be one of mobilefacenet"),
        ({"network": 3}, r"network = 3: must be one of"),
        ({"embedding_size": "512"}, r"embedding_size = '512': must be an integer"),
        ({"width": -1}, r"width = -1: must be a number"),
        ({"SE": "False"}, r"SE = 'False': must be True or False"),
        ({"colours": "BGR"}, r"colours = 'BGR': must be RGB"),
        ({"input_size": [160, 160]}, r"input_size = \[160, 160\]: must be \[112, 112\]"),
    ],
)
def test_wrong_values_in_config_json_are_named(changes, words, tmp_path):
    folder = make_folder(tmp_path / "f", **changes)
    with pytest.raises(WeightsError, match=rf"f/config\.json: .*{words}"):
        build_backbone(load_config(overrides=[*SMALL, f"init_from={folder}"]))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "lacks network, embedding_size, width, SE, activation"),
        ('{"architectures": ["AutoModel"]}', "lacks network.*teacher_repo_id"),
        ("", "an empty file"),
    ],
)
def test_a_config_json_of_another_kind_is_refused(text, words, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=rf"config\.json: .*{words}"):
        build_backbone(load_config(overrides=[f"init_from={tmp_path}"]))


def test_a_contradiction_names_both_values(folder, root):
    with pytest.raises(WeightsError, match=r"width is 0\.125, but width = 0\.5; set width=0\.125"):
        build_backbone(load_config(overrides=[*SMALL, f"init_from={folder}", "width=0.5"]))
    with pytest.raises(WeightsError, match=r"network is 'mobilefacenet', but teacher = 'iresnet18'; .*teacher_width"):
        find_teacher(teacher_settings(teacher="iresnet18", pretrained_teacher_path=folder, teacher_width=1.0))
    with pytest.raises(WeightsError, match="16 dimensions, but embedding_size is 32"):
        build_teacher(teacher_settings(pretrained_teacher_path=folder, embedding_size=32))
    message = refused(FULL, "--checkpoint", folder, *flags(root), "network=iresnet18")
    assert re.search("network is 'mobilefacenet', but network = 'iresnet18'; set network=mobilefacenet", message)


def test_training_may_change_the_size_of_the_embeddings(folder):
    cfg = load_config(overrides=["embedding_size=24", "width=0.125", f"init_from={folder}"])
    assert "16 dimensions instead of 24" in build_backbone(cfg, new_last_layer=True).loaded
    with pytest.raises(WeightsError, match="embedding_size is 16, but embedding_size = 24"):
        build_backbone(cfg)


def test_a_mistyped_path_is_a_missing_file_and_a_mistyped_repository_is_named(hub, tmp_path, root):
    message = refused(FULL, "--checkpoint", "someone/faces", *flags(root))
    assert re.search("someone/faces: no such file or folder; .*hub is hf://owner/name", message)
    with pytest.raises(WeightsError, match=r"no such file, and no such folder; .*hf://owner/name"):
        build_backbone(load_config(overrides=["init_from=someone/faces"]))
    assert hub.asked == []
    message = refused(FULL, "--checkpoint", "hf://someone/face", *flags(root))
    assert re.search("someone/face: does not exist or is private: check init_from or --checkpoint", message)
    with pytest.raises(InputError, match=r"init_from = hf://faces: not the name of a repository"):
        load_config(overrides=["init_from=hf://faces"])
    with pytest.raises(PathError):
        split_repository("hf://a/b@")


def test_messages_for_a_repository_or_folder_that_lacks_a_file_or_a_revision(hub, tmp_path):
    hub.publish(SOMEONE, weights=None)
    for source, words in [
        (f"hf://{SOMEONE}", "has no config.json at 'main', so it is no model of deploy/to_hub.py"),
        (f"hf://{SOMEONE}@v2", "has no revision 'v2': what follows @ is a branch, a tag or a commit"),
    ]:
        with pytest.raises(WeightsError, match=f"^{SOMEONE}: {words}"):
            build_backbone(load_config(overrides=[f"init_from={source}"]))
    with pytest.raises(WeightsError, match=r"model\.safetensors: no such file, so the folder is not complete"):
        build_backbone(load_config(overrides=[*SMALL, f"init_from={make_folder(tmp_path / 'f')}"]))
