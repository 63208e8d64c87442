"""Scoring one checkpoint as users do: files, flags, absent and broken sets, warnings."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from arrow_sets import write_set
from evaluation_sets import COUNT, FULL, IJB, draw_faces, flags, score

from backbones.mobilefacenet import MobileFaceNet
from data.arrow_set import TemplateSet
from data.bin_set import read_bin, write_bin
from data.images import decode_rgb, encode_png
from eval.report import read_json


def test_scoring_a_checkpoint_writes_metrics_arrays_embeddings_plots_and_a_page(root, checkpoints, tmp_path):
    done = score(FULL, "--checkpoint", checkpoints / "5backbone.pth", *flags(root, "pairs,arrow_pairs,none"),
                 "ijb_targets=[]", "tinyface_targets=[]", "--results-json", tmp_path / "r.json",
                 "--save-embeddings", tmp_path / "e", "--plots", tmp_path / "p")  # fmt: skip
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["absent"] == [f"verification.none: {root / 'none.bin'}"] and content["failed"] == []
    assert "absent: verification.none" in done.stdout
    assert content["verification"]["pairs"] == content["verification"]["arrow_pairs"]
    assert content["ijb"].keys() == {"templates"} and content["tinyface"].keys() == {"tiny"}  # by flags, not keys
    assert len(content["ijb"]["templates"]) == 38

    arrays = read_json(tmp_path / "r.json").arrays
    assert {name: len(array) for name, array in arrays["verification"]["pairs"].items()} == {
        "is_same": 20, "score": 20, "decision": 20, "threshold": 10, "norm": 20,
    }  # fmt: skip
    embeddings = np.load(tmp_path / "e" / "verification.pairs.npy").astype(np.float64)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    pairs = arrays["verification"]["pairs"]
    assert pairs["score"] == pytest.approx((unit[::2] * unit[1::2]).sum(1), abs=1e-9)
    right = pairs["decision"] == pairs["is_same"]
    assert content["verification"]["pairs"]["Accuracy-Flip"] == pytest.approx(right.mean())
    assert content["verification"]["pairs"]["XNorm"] == pytest.approx(pairs["norm"].mean(), rel=1e-6)
    assert arrays["tinyface"]["tiny"]["rank"].shape == arrays["tinyface"]["tiny"]["norm"].shape == (3,)
    assert np.load(tmp_path / "e" / "ijb.templates.npy").shape == (COUNT, 16)

    page = (tmp_path / "p" / "report.html").read_text()
    drawn = sorted(path.name for path in (tmp_path / "p").glob("*.png"))
    assert {"roc_templates.png", "scores_pairs.png", "cmc_tiny.png", "norm_pairs.png"} <= set(drawn)
    assert page.count("<img") >= len(drawn) and "none.bin" in page
    facts = ["checkpoint", "checkpoint_sha256", "config", "val_flip", "command", "commit", "versions"]
    assert re.findall("<dt>(.*?)</dt>", page)[:7] == facts
    assert done.stderr.count("arning") == 0


def test_a_broken_set_does_not_stop_the_others(root, checkpoints, tmp_path):
    for name in ("templates", "tiny"):
        shutil.copytree(root / name, tmp_path / name)
    (tmp_path / "templates" / "metadata.pt").write_bytes(b"broken")
    (tmp_path / "pairs.bin").write_bytes((root / "pairs.bin").read_bytes())
    content = {}
    for ranks in (0, 2):
        path = tmp_path / f"{ranks}.json"
        done = score(FULL, "--checkpoint", checkpoints / "5backbone.pth", *flags(tmp_path), "--results-json", path,
                     code=1 if ranks else 2, ranks=ranks)  # fmt: skip
        assert "error" in done.stderr and "metadata.pt: broken" in done.stderr
        assert "FAILED: ijb.templates: " in done.stdout
        content[ranks] = json.loads(path.read_text())
    assert content[0]["failed"] == content[2]["failed"] and len(content[0]["failed"]) == 1
    assert "ijb" not in content[0] and content[0]["verification"] == content[2]["verification"]
    assert content[0]["tinyface"] == content[2]["tinyface"]


@pytest.mark.parametrize("wrong", [{"templates": ["a"] * COUNT}, {"faceness_scores": ["a"] * COUNT}, {"label": None}])
def test_metadata_of_a_wrong_type_fails_only_its_set(root, checkpoints, tmp_path, wrong):
    write_set(tmp_path / "templates", range(COUNT), None, {**IJB, **wrong})
    shutil.copy(root / "pairs.bin", tmp_path)
    arguments = [*flags(tmp_path), "--results-json", tmp_path / "r.json"]
    done = score(FULL, "--checkpoint", checkpoints / "5backbone.pth", *arguments, code=2)
    assert "ijb.templates: " in done.stderr and f"{next(iter(wrong))} must be a list of" in done.stderr
    assert json.loads((tmp_path / "r.json").read_text())["verification"].keys() == {"pairs"}


def test_a_broken_image_on_one_rank_fails_the_set_on_all_ranks(root, checkpoints, tmp_path):
    faces = draw_faces()
    write_bin(tmp_path / "torn.bin", [*faces[:12], b"torn", *faces[13:]], [True, False] * 10)  # in the second batch
    shutil.copy(root / "pairs.bin", tmp_path)
    path = tmp_path / "r.json"
    done = score(FULL, "--checkpoint", checkpoints / "5backbone.pth", *flags(tmp_path, "torn,pairs"), "--results-json",
                 path, code=1, ranks=2)  # fmt: skip
    content = json.loads(path.read_text())
    assert "torn.bin: image 12" in content["failed"][0] and "torn.bin: image 12" in done.stderr
    assert content["verification"].keys() == {"pairs"}


def test_no_existing_set_is_an_error(root, checkpoints, tmp_path):
    done = score(FULL, "--checkpoint", checkpoints / "5backbone.pth", *flags(tmp_path), code=2)
    assert "none of the evaluation sets was found" in done.stderr


def test_a_set_whose_images_are_resized_is_scored_with_a_warning(checkpoints, tmp_path):
    faces = draw_faces()
    image = decode_rgb(faces[3], "face")
    faces[3], faces[7] = encode_png(image[:100]), encode_png(np.vstack([image, image]))
    write_bin(tmp_path / "sizes.bin", faces, [True, False] * 10)
    done = score(FULL, "--checkpoint", checkpoints / "5backbone.pth", *flags(tmp_path, "sizes"))
    assert "WARNING: verification.sizes: 2 of 40 images are not 112x112: their short side is resized" in done.stdout


def test_a_set_with_one_sided_folds_is_scored_with_a_warning(root, checkpoints, tmp_path):
    write_bin(tmp_path / "sorted.bin", draw_faces(), [True] * 10 + [False] * 10)
    shutil.copy(root / "pairs.bin", tmp_path)
    arguments = ["--results-json", tmp_path / "r.json", "--plots", tmp_path / "p"]
    done = score(FULL, "--checkpoint", checkpoints / "5backbone.pth", *flags(tmp_path, "sorted,pairs"), *arguments)
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["verification"].keys() == {"sorted", "pairs"} and content["failed"] == []
    (warning,) = content["warnings"]
    assert warning.startswith("verification.sorted: 10 of 10 folds hold only genuine or only impostor pairs")
    assert f"WARNING: {warning}" in done.stdout
    assert f"warning: {warning}" in (tmp_path / "p" / "report.html").read_text()
    assert read_json(tmp_path / "r.json").warnings == [warning]


def test_the_flip_of_a_benchmark_decides_whether_its_embeddings_contain_the_mirror_image(root, checkpoints, tmp_path):
    checkpoint = checkpoints / "5backbone.pth"
    score(FULL, "--checkpoint", checkpoint, "--no-val-flip", "--save-embeddings", tmp_path, *flags(root))
    network = MobileFaceNet(16, 0.125).eval()
    network.load_state_dict(torch.load(checkpoint, weights_only=True))
    for name, images, flip in (
        ("verification.pairs", read_bin(root / "pairs.bin"), False),
        ("ijb.templates", TemplateSet(root / "templates"), True),
    ):
        x = (images[range(len(images))].permute(0, 3, 1, 2).float() - 127.5) / 127.5
        with torch.no_grad():
            expected = network(x) + network(x.flip(3)) if flip else network(x)
        assert np.load(tmp_path / f"{name}.npy") == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-4)
