"""Weights files as people have them: prefixes, entries, missing counters, and other files in place of weights."""

import gzip
import re
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_sets import BATCH, FULL, flags, score, write_sets
from golden_networks import WEIGHTS, release_settings, settings
from safetensors.torch import save_file
from teacher_files import IMAGE, describe, plain_settings

from backbones import build_backbone, build_teacher
from data.bin_set import BinError, read_bin
from data.record_index import RecordError
from data.recordio import IndexedRecordReader
from data.template_metadata import ArrowSetError, read_metadata
from heads import build_head
from utils.weights import WeightsError

SMALL = {"embedding_size": 16, "width": 0.125}
COUNTER = "num_batches_tracked"


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    network = build_backbone(settings(**SMALL)).train()
    network(torch.randn(4, 3, 112, 112))  # so that no counter is 0
    return network.state_dict()


def prefixed(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


def load(path: Path, content: object) -> torch.nn.Module:
    torch.save(content, path)
    return build_backbone(settings(init_from=path, **SMALL))


def assert_holds(network: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    state = network.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(value, weights[key]) for key, value in state.items())


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "net.", "backbone.", "student.",
     "model.net.", "model.student.module."],
)  # fmt: skip
def test_one_prefix_that_makes_all_keys_fit_is_taken_off_and_said(prefix, weights, tmp_path):
    network = load(tmp_path / "w.pth", prefixed(prefix, weights))
    assert_holds(network, weights)
    assert network.loaded == f"{len(weights)} tensors; prefix {prefix!r} removed"


def test_weights_whose_names_fit_are_loaded_without_a_remark(weights, tmp_path):
    assert load(tmp_path / "w.pth", weights).loaded == f"{len(weights)} tensors"


@pytest.mark.parametrize("entry", ["state_dict", "model", "model_state_dict", "backbone", "net", "network", "weights",
                                   "student", "ema", "model.state_dict"])  # fmt: skip
def test_a_state_dict_in_an_entry_of_a_dict_is_found_and_said(entry, weights, tmp_path):
    content = weights
    for name in reversed(entry.split(".")):
        content = {"epoch": 3, name: content, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "groups": []}}
    network = load(tmp_path / "w.pth", content)
    assert_holds(network, weights)
    assert f"found under {entry!r}" in network.loaded


def test_the_training_files_of_arcface_torch_are_loaded_without_their_class_centers(weights, tmp_path):
    content = {
        "epoch": 2, "global_step": 700, "state_dict_backbone": weights,
        "state_dict_softmax_fc": {"weight": torch.zeros(10, 16)},
        "state_optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
        "state_lr_scheduler": {"last_epoch": 2, "base_lrs": [0.1]},
    }  # fmt: skip
    network = load(tmp_path / "checkpoint_gpu_0.pt", content)
    assert_holds(network, weights)
    assert network.loaded.endswith("found under 'state_dict_backbone'; 1 left out (state_dict_softmax_fc)")


def test_what_stands_beside_the_network_is_left_out_and_said(weights, tmp_path):
    teacher = build_backbone(settings(embedding_size=16, width=0.25)).state_dict()  # the same keys with other shapes
    head = {"head.kernel": torch.zeros(16, 5), "n_averaged": torch.tensor(3)}
    content = {"state_dict": {**prefixed("teacher.", teacher), **prefixed("student.", weights), **head}}
    network = load(tmp_path / "lightning.ckpt", content)
    assert_holds(network, weights)
    assert f"prefix 'student.' removed; {len(teacher) + 2} left out (teacher.conv1.conv.weight, " in network.loaded


@pytest.mark.parametrize(
    ("content", "places"),
    [
        (lambda state: {"model": state, "ema": state}, "found under 'model' and found under 'ema'"),
        (
            lambda state: {**prefixed("student.", state), **prefixed("teacher.", state)},
            "prefix 'student.' removed and prefix 'teacher.' removed",
        ),
    ],
)
def test_a_file_with_two_networks_that_fit_is_refused_with_both(content, places, weights, tmp_path):
    with pytest.raises(WeightsError, match=rf"w\.pth: contains 2 networks that fit MobileFaceNet \({places}\); save"):
        load(tmp_path / "w.pth", content(weights))


def test_without_counters_one_of_two_networks_that_fit_is_not_preferred(weights, tmp_path):
    fewer = {key: value for key, value in weights.items() if not key.endswith(COUNTER)}
    with pytest.raises(WeightsError, match=r"contains 2 networks that fit"):
        load(tmp_path / "w.pth", {"model": fewer, "ema": weights})


def test_only_num_batches_tracked_may_be_missing_and_is_0(weights, tmp_path):
    fewer = {key: value for key, value in weights.items() if not key.endswith(COUNTER)}
    expected = {key: torch.zeros_like(value) if key.endswith(COUNTER) else value for key, value in weights.items()}
    assert any(value for key, value in weights.items() if key.endswith(COUNTER))
    network = load(tmp_path / "w.pth", prefixed("module.", fewer))
    assert_holds(network, expected)
    assert network.loaded.endswith("num_batches_tracked is not in the file and starts at 0")
    teacher = build_teacher(plain_settings(tmp_path / "w.pth", teacher_width=0.125, embedding_size=16))
    assert_holds(teacher, expected)
    for key in fewer:
        if key.startswith("conv1."):
            with pytest.raises(WeightsError, match=rf"missing keys: 1 \({key}\)"):
                load(tmp_path / "w.pth", {other: value for other, value in fewer.items() if other != key})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {**state, "one.more": torch.ones(1)}, r"unexpected keys: 1 \(one\.more\)"),
        (
            lambda state: {**prefixed("module.", state), "module.one.more": torch.ones(1)},
            r"prefix 'module\.' removed, unexpected keys: 1 \(one\.more\)",
        ),
        (
            lambda state: {**prefixed("module.", state), "conv1.bn.bias": torch.ones(8)},
            r"unexpected keys: 1 \(conv1\.bn\.bias, without module\.\)",
        ),
        (lambda state: {"a." * (key > "conv_4") + key: value for key, value in state.items()}, "missing keys"),
        (lambda state: {"kernel": torch.zeros(16, 5)}, r"looks like a header file.*<step>backbone\.pth"),
        (
            lambda state: {"epoch": 3, "optimizer": {"lr": 0.1}},
            r"contains a dict with epoch \(int\), optimizer \(dict\) \(expected.*torch\.save",
        ),
    ],
)
def test_a_file_that_fits_under_no_prefix_is_refused_with_the_difference(change, message, weights, tmp_path):
    with pytest.raises(WeightsError, match=rf"w\.pth: .*{message}"):
        load(tmp_path / "w.pth", change(weights))


@pytest.mark.parametrize("network", ["iresnet18", "cvlface_ir18"])
def test_weights_of_another_network_are_named(network, weights, tmp_path):
    torch.save(weights, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"looks like a MobileFaceNet; it does not fit.*another network"):
        build_backbone(settings(network=network, init_from=tmp_path / "w.pth"))


def test_a_student_of_another_embedding_size_is_refused_with_the_size_to_set(weights, tmp_path):
    torch.save(prefixed("module.", weights), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth: its embeddings have 16 dimensions.* 512; set embedding_size=16$"):
        build_backbone(settings(width=0.125, init_from=tmp_path / "w.pth"))


def test_a_file_made_to_have_many_prefixes_and_dots_is_refused_at_once(tmp_path):
    state = {f"{number}.conv1.bn.bias": torch.ones(8) for number in range(10_000)} | {"." * 200_000: torch.ones(8)}
    start = time.monotonic()
    with pytest.raises(WeightsError, match="missing keys"):
        load(tmp_path / "w.pth", state)
    assert time.monotonic() - start < 20  # minutes, if each prefix were compared with all keys


def test_a_missing_weights_file_is_named_with_similar_ones(weights, tmp_path):
    torch.save(weights, tmp_path / "394238backbone.pth")
    with pytest.raises(WeightsError, match=r"39423backbone\.pth: no such file.*394238backbone\.pth"):
        build_backbone(settings(init_from=tmp_path / "39423backbone.pth", **SMALL))
    with pytest.raises(WeightsError, match=r"no such folder; check the path"):
        build_backbone(settings(init_from=tmp_path / "nowhere" / "w.pth", **SMALL))
    with pytest.raises(WeightsError, match=r"a folder; name the weights file in it"):
        build_backbone(settings(init_from=tmp_path, **SMALL))


# --- other files in place of weights and sets ------------------------------------------------------------------


class Doubled(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def write_torchscript(path: Path) -> None:
    torch.jit.trace(Doubled(), IMAGE).save(str(path))


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.safetensors", b"weights")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 4908000\n"
OTHERS = {
    "a Git LFS pointer.*git lfs pull": lambda path: path.write_bytes(POINTER),
    "a web page; download the file itself": lambda path: path.write_bytes(
        b"\n <!DOCTYPE html>\n<html>Not found</html>"
    ),
    "a web page; download": lambda path: path.write_bytes(b"\xef\xbb\xbf<HTML><head>"),
    "an empty file": lambda path: path.write_bytes(b""),
    "a TorchScript archive, which is a program; ": write_torchscript,
    "a zip archive; extract it": write_zip,
    "an archive; extract it": lambda path: path.write_bytes(gzip.compress(b"weights")),
    "a TensorFlow Lite model": lambda path: path.write_bytes(b"\x1c\0\0\0TFL3" + bytes(40)),
    "an HDF5 file": lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(40)),
    "an ONNX model": lambda path: path.write_bytes(b"\x08\x08\x12\x07pytorch\x1a\x052.0.0:" + bytes(40)),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("kind", OTHERS)
def test_another_file_in_place_of_weights_or_of_a_set_is_named_with_what_to_do(kind, tmp_path):
    for path in (tmp_path / "w.pth", tmp_path / "w.safetensors", tmp_path / "lfw.bin"):
        OTHERS[kind](path)
    for path in (tmp_path / "w.pth", tmp_path / "w.safetensors"):
        with pytest.raises(WeightsError, match=rf"{path.name}: not a weights file, but {kind}"):
            build_backbone(settings(init_from=path, **SMALL))
    with pytest.raises(BinError, match=rf"lfw\.bin: not a verification set, but {kind}"):
        read_bin(tmp_path / "lfw.bin")


@pytest.mark.parametrize("kind", list(OTHERS)[:4])
def test_another_file_in_place_of_a_release_or_of_class_centers_is_named_with_what_to_do(kind, tmp_path):
    for path in (tmp_path / WEIGHTS, tmp_path / "header.pth"):
        OTHERS[kind](path)
    with pytest.raises(WeightsError, match=rf"model\.safetensors: not a weights file, but {kind}"):
        build_teacher(release_settings(describe(tmp_path, "ir18")))
    centers = {"centers": "fixed", "pretrained_teacher_header_path": tmp_path / "header.pth", "num_classes": 5}
    with pytest.raises(WeightsError, match=rf"header\.pth: not a weights file, but {kind}"):
        build_head(settings(**centers))


@pytest.mark.parametrize("kind", list(OTHERS)[:4])
def test_another_file_in_place_of_records_or_metadata_is_named_with_what_to_do(kind, tmp_path):
    for name in ("train.rec", "train.idx", "metadata.pt"):
        OTHERS[kind](tmp_path / name)
    (tmp_path / "valid.rec").write_bytes(bytes(8))
    with pytest.raises(ArrowSetError, match=rf"metadata\.pt: not metadata, but {kind}"):
        read_metadata(tmp_path / "metadata.pt")
    for rec, idx, named in (("train.rec", "train.idx", "train.rec"), ("valid.rec", "train.idx", "train.idx")):
        with pytest.raises(RecordError, match=rf"{named}: not a part of a record set, but {kind}"):
            IndexedRecordReader(tmp_path / rec, tmp_path / idx)


def test_weights_in_place_of_a_set_are_named(weights, tmp_path):
    torch.save(weights, tmp_path / "lfw.bin")
    with pytest.raises(BinError, match=r"lfw\.bin: not a verification set, but a file that torch\.save wrote"):
        read_bin(tmp_path / "lfw.bin")


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_the_weights_of_a_torchscript_archive_can_be_saved_as_its_message_says(weights, tmp_path):
    network = load(tmp_path / "w.pth", weights).eval()
    torch.jit.trace(network, IMAGE).save(str(tmp_path / "scripted.pt"))
    with pytest.raises(WeightsError, match=r"scripted\.pt: not a weights file, but a TorchScript") as raised:
        build_backbone(settings(init_from=tmp_path / "scripted.pt", **SMALL))
    command = re.search("`(.+)`", str(raised.value))[1]
    assert command == "torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)"
    assert_holds(load(tmp_path / "new.pth", torch.jit.load(str(tmp_path / "scripted.pt")).state_dict()), weights)


# --- the lines that the user sees ------------------------------------------------------------------------------


def test_evaluation_says_how_it_read_each_checkpoint(weights, tmp_path):
    root = write_sets(tmp_path)
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "5backbone.pth"
    torch.save({"student": prefixed("module.", weights)}, path)
    more = [*flags(root), "--ijb-targets", "", "--tinyface-targets", ""]
    line = f"{len(weights)} tensors; found under 'student'; prefix 'module.' removed\n"
    assert f"{path}: {line}" in score(FULL, "--checkpoint", path, *more).stdout
    assert f"5backbone.pth: {line}" in score(BATCH, "--checkpoint-dir", tmp_path / "run", *more).stdout


def test_a_plain_teacher_may_have_a_prefix_and_its_embeddings_stay_the_same(weights, tmp_path):
    save_file(weights, tmp_path / "plain.safetensors")
    save_file(prefixed("model.net.", weights), tmp_path / "prefixed.safetensors")
    changes = {"teacher_width": 0.125, "embedding_size": 16}
    plain, other = (build_teacher(plain_settings(tmp_path / f"{name}.safetensors", **changes))
                    for name in ("plain", "prefixed"))  # fmt: skip
    assert np.array_equal(plain(IMAGE).numpy(), other(IMAGE).numpy())
    assert other.loaded == f"{len(weights)} tensors; prefix 'model.net.' removed"
