"""Programs of others run exported ONNX files, each in an environment of its own, and give the embeddings of torch."""

import json
import os
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from environments import environment
from golden_networks import settings

from backbones import build_backbone
from backbones.folding import fold_batch_norm
from data.alignment import ARCFACE_POINTS, similarity_to_arcface, warp
from data.bin_set import read_bin
from deploy.exported_model import to_onnx
from deploy.sample_images import draw_patterns

pytest.importorskip("timm")
COUNT = 100
COUNTS = {"mobilefacenet": COUNT, "iresnet18": 20, "timm": COUNT}  # faces; iresnet18 takes much longer than the others
STUDENTS = {
    "mobilefacenet": {"embedding_size": 128},
    "iresnet18": {"network": "iresnet18"},
    "timm": {"network": "timm/mobilenetv3_small_050"},
}
PRETRAINED = "mobilefacenet_y1_128.pth"

# Writes an .npz with what each program gives for each model, and prints the versions.
RUN = """
import json, sys
import cv2, insightface, numpy as np, onnxruntime
from insightface.model_zoo import get_model
from insightface.utils import face_align

folder, counts, programs = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3:]
given = np.load(folder + "/given.npz")
bgr = np.ascontiguousarray(given["faces"][..., ::-1])
found = {"norm_crop": np.stack([face_align.norm_crop(given["photo"], points) for points in given["points"]])}

def insightface_(path, images):
    model = get_model(path, providers=["CPUExecutionProvider"])
    return np.concatenate([model.get_feat(list(images[:7])), model.get_feat(list(images[7:]))])

def opencv(path, images):
    recogniser = cv2.FaceRecognizerSF.create(path, "")
    return np.concatenate([recogniser.feature(image) for image in images])

def onnxruntime_(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": images[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32)})[0]

run = {"insightface": insightface_, "opencv": opencv, "onnxruntime": onnxruntime_}
for name, count in counts.items():
    for program in programs:
        found[name + " " + program] = run[program](folder + "/" + name + ".onnx", bgr[:count])
np.savez(folder + "/found.npz", **found)
print(*(f"{package.__name__} {package.__version__}" for package in (insightface, cv2, onnxruntime)), sep=", ")
"""


def faces() -> np.ndarray:
    """100 faces of LFW, or drawn patterns without FACE_DATA: uint8 [100, 112, 112, 3] RGB."""
    if "FACE_DATA" not in os.environ:
        return draw_patterns(COUNT).numpy()
    return read_bin(Path(os.environ["FACE_DATA"], "lfw", "lfw_heldout.bin"))[range(COUNT)].numpy()


def make(name: str, x: torch.Tensor) -> torch.nn.Module:
    """A student with trained weights, if there are any; else with random ones, and statistics of the images x, so that
    its embeddings differ between images."""
    torch.manual_seed(0)
    network = build_backbone(settings(**STUDENTS[name]))
    weights = Path(os.environ.get("FACE_DATA", ""), PRETRAINED)
    if name == "mobilefacenet" and weights.is_file():
        network.load_state_dict(torch.load(weights, weights_only=True))
        return network.eval()
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(x[:32])
    return network.eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    """A folder with the exported students and given.npz, and the embeddings by torch."""
    folder, given = tmp_path_factory.mktemp("exported"), faces()
    rng = np.random.default_rng(0)
    photo = np.repeat(np.repeat(given[0], 3, axis=0), 4, axis=1)  # 336 x 448
    scale, shift = rng.uniform(0.5, 2.5, (20, 1, 1)), rng.uniform(-30, 120, (20, 1, 2))
    points = ARCFACE_POINTS * scale + shift + rng.normal(0, 4, (20, 5, 2))
    np.savez(folder / "given.npz", faces=given, photo=photo, points=points)
    expected = {"norm_crop": np.stack([warp(photo, transform) for transform in similarity_to_arcface(points)])}
    x = (torch.from_numpy(given).permute(0, 3, 1, 2).float() - 127.5) / 127.5
    for name in STUDENTS:
        network = make(name, x)
        with torch.inference_mode():
            expected[name] = network(x).double().numpy()
        onnx.save(to_onnx(fold_batch_norm(network)), folder / f"{name}.onnx")
    return folder, expected


@pytest.fixture(scope="module")
def run_in(exported):
    """run_in(requirements, *programs): what the programs of an environment give, by name. It runs them once."""

    @cache
    def run(requirements: str, *programs: str) -> dict[str, np.ndarray]:
        folder, _ = exported
        print(environment(requirements, "insightface")(RUN, folder, json.dumps(COUNTS), *programs).splitlines()[-1])
        with np.load(folder / "found.npz") as arrays:
            return dict(arrays)

    return run


# The environments differ in InsightFace and in the packages that it brings: opencv-python with 2.1,
# opencv-python-headless and more with 0.7.3. The versions of OpenCV and NumPy are not pinned.
OLD, NEW = ("insightface_0.7.txt", "insightface"), ("insightface.txt", "insightface", "opencv", "onnxruntime")


@pytest.mark.parametrize(("programs", "program"), [(OLD, OLD[1]), *((NEW, program) for program in NEW[1:])])
@pytest.mark.parametrize("student", STUDENTS)
def test_a_program_gives_the_embeddings_of_torch(run_in, exported, student, programs, program):
    embeddings = run_in(*programs)[f"{student} {program}"].astype(np.float64)
    expected = exported[1][student][: COUNTS[student]]
    assert embeddings.shape == expected.shape == (COUNTS[student], STUDENTS[student].get("embedding_size", 512))
    for what, center in (("cosine", 0), ("cosine of what distinguishes the faces", expected.mean(0))):
        one, other = embeddings - center, expected - center
        cosines = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
        print(f"{student}, {program}: smallest {what} 1 - {1 - cosines.min():.1e}")
        assert cosines.min() > 0.9999


@pytest.mark.parametrize("programs", [OLD, NEW])
def test_insightface_aligns_faces_as_we_do(run_in, exported, programs):
    ours = exported[1]["norm_crop"]
    difference = abs(run_in(*programs)["norm_crop"].astype(int) - ours)
    print(f"norm_crop: mean difference {difference.mean():.4f} grey levels, largest {difference.max()}")
    assert difference.mean() < 0.05 and np.ptp(ours) > 100
