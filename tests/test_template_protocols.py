"""From template sets to the metrics of IJB and TinyFace."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from arrow_sets import COUNT, face, write_set
from easydict import EasyDict

import eval.protocols as protocols
from backbones import build_backbone
from config import load_config
from data.arrow_set import TemplateSet
from eval.embeddings import embed
from eval.ijb import evaluate_templates
from eval.sets import EvaluationSet
from eval.tinyface import evaluate_identification


def test_real_sets_are_read_completely(face_data):
    root = face_data / "template_sets"
    ijb, tinyface = (
        protocols.PROTOCOLS[name].open(root / target)
        for name, target in (("ijb", "IJBX_gt_aligned"), ("tinyface", "tinyx_aligned_pad_0.1"))
    )
    assert (len(ijb), len(tinyface)) == (526, 549)
    assert ijb.metadata["templates"].shape == (526,) and len(tinyface.metadata["image_paths"]) == 549
    for images in (ijb, tinyface):
        assert images[range(500, 526)].shape == (26, 112, 112, 3)


@pytest.mark.parametrize("name", ["IJBX_gt_aligned", "tinyx_aligned_pad_0.1"])
def test_embeddings_of_real_images_equal_those_of_the_public_code(face_data, name):
    checkpoint = str(face_data / "mobilefacenet_y1_128.pth")
    cfg = EasyDict(
        network="mobilefacenet", embedding_size=128, width=1.0, SE=False, activation="prelu", init_from=checkpoint
    )
    images = TemplateSet(face_data / "template_sets" / name)
    features = embed(build_backbone(cfg), First(images, 64), torch.device("cpu"), batch_size=32).features
    expected = np.load(face_data / "template_sets" / name / "embeddings.npy")[:64]
    cosines = (features * expected).sum(1) / np.linalg.norm(features, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > 1 - 1e-3
    assert np.linalg.norm(features, axis=1) == pytest.approx(np.linalg.norm(expected, axis=1), rel=1e-3)


class First(torch.utils.data.Dataset):
    """The first images of a set."""

    def __init__(self, images, count):
        self.images, self.count = images, count

    def __len__(self):
        return self.count

    def __getitem__(self, positions):
        return self.images[positions]


def test_importing_the_protocols_does_not_import_datasets():
    code = "import eval.protocols, sys; assert 'datasets' not in sys.modules"
    root = Path(__file__).resolve().parent.parent
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def test_a_protocol_without_targets_is_not_evaluated():
    def due(epoch: int, *overrides: str) -> list[str]:
        sets = protocols.build_evaluation_sets(load_config(overrides=list(overrides)))
        return list(dict.fromkeys(evaluation_set.protocol for evaluation_set in protocols.due(sets, epoch)))

    assert due(0) == ["verification", "ijb", "tinyface"]
    assert due(0, "ijb_targets=[]") == ["verification", "tinyface"]


def test_a_set_is_due_after_the_number_of_epochs_that_its_key_names():
    sets = [EvaluationSet("ijb", str(epochs), (), 1, 0, True, epochs_between=epochs) for epochs in (0, 1, 2)]
    due = [[evaluation_set.target for evaluation_set in protocols.due(sets, epoch)] for epoch in range(3)]
    assert due == [["1", "2"], ["1"], ["1", "2"]]


def test_missing_sets_are_reported(tmp_path):
    sets = protocols.build_evaluation_sets(load_config(overrides=[f"ijb_root={tmp_path}"]), ["ijb"])
    missing = [evaluation_set for evaluation_set in sets if evaluation_set.target == "IJBB_gt_aligned"]
    results = protocols.evaluate(torch.nn.Identity(), missing, torch.device("cpu"), torch.float32)
    assert results.metrics == {}
    assert results.absent == [f"ijb.IJBB_gt_aligned: {tmp_path / 'IJBB_gt_aligned'}"]


class MeanColour(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


def test_evaluating_a_set_gives_what_the_protocol_computes_from_its_embeddings(tmp_path):
    ijb = {
        "faceness_scores": np.linspace(0.1, 1, COUNT), "templates": np.arange(COUNT) // 2, "medias": np.arange(COUNT),
        "label": np.array([1, 0, 0]), "p1": np.array([0, 0, 1]), "p2": np.array([1, 4, 5]),
    }  # fmt: skip
    names = [f"{number // 4}_{number}.png" for number in range(COUNT)]
    tinyface = {"image_paths": names, "probe_paths": names[::4], "gallery_paths": names[1::4],
                "distractor_paths": names[2::4]}  # fmt: skip
    write_set(tmp_path / "templates", metadata=ijb)
    write_set(tmp_path / "tiny", metadata=tinyface)
    sets = [
        EvaluationSet(protocol, target, (tmp_path / target,), batch_size=5, num_workers=0, flip=True)
        for protocol, target in (("ijb", "templates"), ("tinyface", "tiny"))
    ]
    metrics = protocols.evaluate(MeanColour(), sets, torch.device("cpu"), torch.float32).metrics
    embeddings = 2 * (np.stack([face(number)[0, 0] for number in range(COUNT)]) - 127.5) / 127.5
    expected = {
        "ijb": {"templates": {**evaluate_templates(embeddings, **ijb), "genuine_pairs": 1, "impostor_pairs": 2}},
        "tinyface": {"tiny": evaluate_identification(embeddings, names, tinyface)},
    }
    assert protocols.flatten(metrics) == pytest.approx(protocols.flatten(expected), abs=1e-6)
