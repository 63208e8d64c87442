"""Programs of others run exported ONNX files, each in an environment of its own, and give the embeddings of torch."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from environments import environment
from golden_networks import recipe, settings

from backbones import build_backbone
from backbones.folding import fold_batch_norm
from data.alignment import ARCFACE_POINTS, similarity_to_arcface, warp
from data.bin_set import read_bin
from deploy.onnx_model import to_onnx
from deploy.sample_images import draw_patterns

pytest.importorskip("timm")
COUNT = 100
STUDENTS = {
    "mobilefacenet": {"embedding_size": 128},
    "iresnet18": {"network": "iresnet18"},
    "timm": {"network": "timm/mobilenetv3_small_050"},
}
PRETRAINED = "mobilefacenet_y1_128.pth"

# Writes an .npz with what each program gives for each model, and prints the versions.
RUN = """
import sys
import cv2, insightface, numpy as np, onnxruntime
from insightface.model_zoo import get_model
from insightface.utils import face_align

folder = sys.argv[1]
given = np.load(folder + "/given.npz")
bgr = np.ascontiguousarray(given["faces"][..., ::-1])
found = {"norm_crop": np.stack([face_align.norm_crop(given["photo"], points) for points in given["points"]])}
for name in sys.argv[2:]:
    path = folder + "/" + name + ".onnx"
    model = get_model(path, providers=["CPUExecutionProvider"])
    found[name + " insightface"] = np.concatenate([model.get_feat(list(bgr[:60])), model.get_feat(list(bgr[60:]))])
    recogniser = cv2.FaceRecognizerSF.create(path, "")
    found[name + " opencv"] = np.concatenate([recogniser.feature(image) for image in bgr])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    pixels = given["faces"].transpose(0, 3, 1, 2).astype(np.float32)
    found[name + " onnxruntime"] = session.run(None, {"input": pixels})[0]
np.savez(folder + "/found.npz", **found)
print(*(f"{package.__name__} {package.__version__}" for package in (insightface, cv2, onnxruntime)), sep=", ")
"""


def faces() -> np.ndarray:
    """100 faces of LFW, or drawn patterns without FACE_DATA: uint8 [100, 112, 112, 3] RGB."""
    if "FACE_DATA" not in os.environ:
        return draw_patterns(COUNT).numpy()
    return read_bin(Path(os.environ["FACE_DATA"], "lfw", "lfw_heldout.bin"))[range(COUNT)].numpy()


def make(name: str) -> torch.nn.Module:
    """A student with the weights of the recipe; MobileFaceNet with trained ones, if there are any."""
    network = build_backbone(settings(**STUDENTS[name]))
    weights = Path(os.environ.get("FACE_DATA", ""), PRETRAINED)
    if name == "mobilefacenet" and weights.is_file():
        state = torch.load(weights, weights_only=True)
    else:
        state = {key: recipe(key, list(value.shape)) for key, value in network.state_dict().items()}
    network.load_state_dict(state)
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
        onnx.save(to_onnx(fold_batch_norm(make(name))), folder / f"{name}.onnx")
        with torch.inference_mode():
            expected[name] = make(name)(x).double().numpy()
    return folder, expected


@pytest.fixture(scope="module", params=["insightface.txt", "insightface_0.7.txt"])
def found(request, exported) -> dict[str, np.ndarray]:
    """What the programs of one environment give, by name."""
    run = environment(request.param, "insightface")
    print(run(RUN, exported[0], *STUDENTS).splitlines()[-1])
    with np.load(exported[0] / "found.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("program", ["insightface", "opencv", "onnxruntime"])
@pytest.mark.parametrize("student", STUDENTS)
def test_a_program_gives_the_embeddings_of_torch(found, exported, student, program):
    embeddings, expected = found[f"{student} {program}"].astype(np.float64), exported[1][student]
    assert embeddings.shape == expected.shape == (COUNT, STUDENTS[student].get("embedding_size", 512))
    for what, center in (("cosine", 0), ("cosine of what distinguishes the faces", expected.mean(0))):
        one, other = embeddings - center, expected - center
        cosines = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
        print(f"{student}, {program}: smallest {what} 1 - {1 - cosines.min():.1e}")
        assert cosines.min() > 0.9999


def test_insightface_aligns_faces_as_we_do(found, exported):
    difference = abs(found["norm_crop"].astype(int) - exported[1]["norm_crop"])
    print(f"norm_crop: mean difference {difference.mean():.4f} grey levels, largest {difference.max()}")
    assert difference.mean() < 0.05 and np.ptp(exported[1]["norm_crop"]) > 100
