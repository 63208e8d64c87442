"""Two photos: faces are found and aligned, the cosine is that of the evaluation, and so is the threshold."""

import json
import shutil
import struct
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from conftest import run_script
from evaluation_sets import FULL, draw_faces, flags, score
from golden_networks import LANDMARK_NETWORK, golden_weights, load_golden_weights
from safetensors.torch import save_file
from yunet_files import MARK, write_yunet

from backbones import build_landmark_network
from backbones.cvlface_landmarks import LandmarkNetwork
from config import load_config
from data.alignment import ARCFACE_POINTS
from data.face_detector import FaceDetector
from data.images import decode_rgb
from deploy import compare, export_onnx, faces
from deploy.faces import LandmarkFinder, build_face_reader
from deploy.pixels import UNIT_LENGTH
from deploy.threshold import read_threshold
from utils.errors import InputError
from utils.files import sha256

SMALL = ["embedding_size=16", "width=0.125"]
CORNER = 3 * MARK  # pixels from the corner of a mark to that of the face, down and right


def run(monkeypatch, module, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    module.main()


@pytest.fixture(scope="module")
def detector(tmp_path_factory) -> Path:
    """A file for FaceDetectorYN that finds a face of 112 pixels beside each mark."""
    return write_yunet(tmp_path_factory.mktemp("yunet") / "yunet.onnx", ARCFACE_POINTS + CORNER)


@pytest.fixture(scope="module")
def model(checkpoints, tmp_path_factory) -> Path:
    """The ONNX file of a small checkpoint."""
    path = tmp_path_factory.mktemp("exported") / "small.onnx"
    arguments = ["--checkpoint", checkpoints / "5backbone.pth", "--output", path, *SMALL, "val_rec=nowhere"]
    with pytest.MonkeyPatch.context() as monkeypatch:
        run(monkeypatch, export_onnx, *arguments)
    return path


@pytest.fixture(scope="module")
def images_of(tmp_path_factory) -> list[Path]:
    """The 40 drawn faces of the set "pairs", in files."""
    folder = tmp_path_factory.mktemp("faces")
    paths = [folder / f"{number:02}.png" for number in range(40)]
    for path, encoded in zip(paths, draw_faces(), strict=True):
        path.write_bytes(encoded)
    return paths


def photo(*faces: tuple[np.ndarray, int, int], size: tuple[int, int] = (480, 640)) -> np.ndarray:
    """A grey photo with faces and their marks: (face, row and column of the mark)."""
    pixels = np.full((*size, 3), 90, np.uint8)
    for face, row, column in faces:
        pixels[row + CORNER : row + CORNER + 112, column + CORNER : column + CORNER + 112] = face
        pixels[row : row + MARK, column : column + MARK] = 255, 0, 0
    return pixels


def write(path: Path, pixels: np.ndarray) -> Path:
    cv2.imwrite(str(path), pixels[..., ::-1])
    return path


# --- photos -----------------------------------------------------------------------------------------------------


def test_a_face_that_the_detector_finds_is_cut_out_pixel_by_pixel(detector, images, tmp_path):
    read = build_face_reader(load_config(), False, str(detector), False).read
    face = read(write(tmp_path / "a.png", photo((images[0], 160, 240))))
    assert abs(face.pixels.astype(int) - images[0])[2:-2, 2:-2].max() <= 1
    assert "face of 112 pixels, found by YuNet (score 1.00)" in face.source


@pytest.mark.parametrize("factor", [2, 3])
def test_a_large_photo_gives_the_same_face(detector, images, tmp_path, factor):
    """Each pixel becomes a block of equal ones, of which the detector sees the mean."""
    small = photo((images[7], 160, 240))
    large = small.repeat(factor, axis=0).repeat(factor, axis=1)
    (in_small,), (in_large,) = FaceDetector(detector)(small), FaceDetector(detector)(large)
    middle = (factor - 1) / 2  # of a block
    assert np.allclose(in_small.points, ARCFACE_POINTS + CORNER + (240, 160), atol=1e-4)
    assert np.allclose(in_large.points, factor * in_small.points + middle, atol=1e-3)
    face = build_face_reader(load_config(), False, str(detector), False).read(write(tmp_path / "a.png", large))
    assert abs(face.pixels.astype(int) - images[7])[2:-2, 2:-2].max() <= 4
    assert f"face of {112 * factor} pixels" in face.source


def test_the_crop_is_that_of_opencv(detector, model, images, tmp_path, monkeypatch):
    """OpenCV's recogniser aligns the same rows by an implementation of its own."""
    pixels = photo((cv2.GaussianBlur(images[1], None, 1), 80, 40))
    tilted = cv2.warpAffine(pixels, cv2.getRotationMatrix2D((150, 180), 17, 1.2), (640, 480))
    (found,) = FaceDetector(detector)(pixels)
    rotation = cv2.getRotationMatrix2D((150, 180), 17, 1.2)
    points = found.points @ rotation[:, :2].T + rotation[:, 2]
    row = np.concatenate([[0, 0, 1, 1], points.ravel(), [1]]).astype(np.float32)
    expected = cv2.FaceRecognizerSF.create(str(model), "").alignCrop(tilted, row[None])
    monkeypatch.setattr(FaceDetector, "__call__", lambda self, photo: [found._replace(points=points)])
    face = build_face_reader(load_config(), False, str(detector), False).read(write(tmp_path / "a.png", tilted))
    assert abs(face.pixels.astype(int) - expected.astype(int)).mean() < 0.3


def test_several_faces_are_refused_or_the_largest_is_taken(detector, images, tmp_path):
    several = write(tmp_path / "group.png", photo((images[0], 160, 240), (images[1], 160, 440)))
    with pytest.raises(InputError, match=r"group\.png: 2 faces; cut out .*--largest"):
        build_face_reader(load_config(), False, str(detector), False).read(several)
    face = build_face_reader(load_config(), False, str(detector), True).read(several)
    assert "the largest of 2" in face.source and abs(face.pixels.astype(int) - images[0])[2:-2, 2:-2].max() <= 1
    found = FaceDetector(detector)
    found._detector = type(
        "Detector", (), {"detect": lambda self, image: (1, np.float32([box(10), box(30), box(20)]))}
    )()
    assert [face.points[0, 0] for face in found(photo())] == [30, 20, 10]


def box(side: float) -> list[float]:
    return [0, 0, side, side, *[side] * 10, 0.95]


def test_images_that_cannot_be_used_are_refused_with_their_name(detector, images, tmp_path):
    read = build_face_reader(load_config(), False, str(detector), False).read
    with pytest.raises(InputError, match=r"wall\.png: no face found by YuNet"):
        read(write(tmp_path / "wall.png", photo()))
    with pytest.raises(InputError, match=r"tiny\.png: 20x30 pixels, too small"):
        read(write(tmp_path / "tiny.png", np.zeros((30, 20, 3), np.uint8)))
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(InputError, match=r"text\.jpg: its 8 bytes are not an image"):
        read(tmp_path / "text.jpg")
    with pytest.raises(InputError, match=r"absent\.jpg: no such file or directory; check the path"):
        read(tmp_path / "absent.jpg")
    far_away = write_yunet(tmp_path / "far.onnx", (ARCFACE_POINTS + CORNER) / 4)
    with pytest.raises(InputError, match=r"a\.png: the face is only 28 pixels across"):
        build_face_reader(load_config(), False, str(far_away), False).read(
            write(tmp_path / "a.png", photo((images[0], 160, 240)))
        )
    equal = write_yunet(tmp_path / "equal.onnx", np.full((5, 2), 3.0))
    with pytest.raises(InputError, match=r"a\.png: no face found by YuNet"):
        build_face_reader(load_config(), False, str(equal), False).read(tmp_path / "a.png")
    header = struct.pack(">I4sIIBBBBB", 13, b"IHDR", 8064, 6048, 8, 2, 0, 0, 0)
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header)
    with pytest.raises(InputError, match=r"huge\.png: 8064x6048 pixels, too large \(at most 33554432 .*; shrink it"):
        read(tmp_path / "huge.png")
    with pytest.raises(InputError, match=r"a\.png: 640x480 pixels; faces must be aligned"):
        build_face_reader(load_config(), True, None, False).read(tmp_path / "a.png")


def test_a_file_that_is_no_yunet_is_refused(model, tmp_path):
    for content, words in [
        (b"<!doctype html>", "a web page"),
        (model.read_bytes(), "number of requested and actual outputs"),
    ]:
        (tmp_path / "m.onnx").write_bytes(content)
        with pytest.raises(InputError, match=rf"m\.onnx: not a YuNet .*({words}).*name face_detection_yunet"):
            FaceDetector(tmp_path / "m.onnx")(photo())
    with pytest.raises(FileNotFoundError):
        FaceDetector(tmp_path / "absent.onnx")


# --- CVLFace's landmark network ---------------------------------------------------------------------------------

COLOURS = np.array([(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1)], np.float64)


class ColourNetwork(torch.nn.Module):
    """Finds five spots by their colours in the 160 x 160 pixels that the landmark network sees, and is sure of it."""

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        seen = (F.interpolate(x, (160, 160), mode="bilinear", align_corners=True)[0].double() + 1) / 2
        colours = torch.from_numpy(COLOURS)
        weight = ((colours[:, :, None, None] * 2 - 1) * seen).sum(1).clamp(min=0)  # [5, 160, 160]
        weight = torch.where(weight >= 0.6 * colours.sum(1)[:, None, None], weight, 0)
        pixel = torch.arange(160, dtype=torch.float64)
        x, y = ((weight.sum(axis) * pixel).sum(1) / weight.sum((1, 2)) for axis in (1, 2))
        points = torch.stack([x, y], 1) / 160
        return torch.cat([torch.zeros(4).double(), torch.tensor([-2.0, 2.0]).double(), points.flatten()])[None]


@pytest.mark.parametrize("size", [(480, 640), (640, 360), (1500, 1100), (200, 200)])
def test_key_points_are_found_where_they_are_in_the_photo(size):
    height, width = size
    middle, side = np.array([0.55 * width, 0.4 * height]), 0.5 * min(size)
    points = middle + (ARCFACE_POINTS - 56) / 56 * side * 0.6
    pixels = np.zeros((*size, 3), np.uint8)
    for point, colour in zip(points, COLOURS, strict=True):
        cv2.circle(pixels, point.round().astype(int).tolist(), round(0.025 * max(size)), (255 * colour).tolist(), -1)
    (found,) = LandmarkFinder(ColourNetwork())(pixels)
    assert abs(found.points - points.round()).max() < 0.004 * max(size)
    assert found.score == pytest.approx(np.exp(2) / (np.exp(2) + np.exp(-2)))


def test_the_landmark_network_sees_a_square_photo_and_its_score_decides(monkeypatch, tmp_path, images):
    """With golden weights, which find no faces: the numbers are those of the network on the padded photo."""
    save_file(
        {key: value.contiguous() for key, value in golden_weights(LANDMARK_NETWORK).items()}, tmp_path / "l.safetensors"
    )
    network = build_landmark_network(load_config(overrides=[f"landmarks_path={tmp_path / 'l.safetensors'}"]))
    assert not network.training and not any(weight.requires_grad for weight in network.parameters())
    pixels = images[7][:, 10:81]  # 112 x 71, noise
    padded = F.pad(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1, (20, 21), value=-1)
    expected = LandmarkNetwork().eval()
    load_golden_weights(expected, LANDMARK_NETWORK)
    with torch.no_grad():
        points, prediction = expected.double()(padded.double())[0].numpy(), expected.predict(padded.double())[0]
    monkeypatch.setattr(faces, "LOWEST_SCORE", 0.0)
    (found,) = LandmarkFinder(network)(pixels)
    assert np.allclose(found.points, points * 160 * 111 / 159 - (20, 0), atol=1e-3)
    assert found.score == pytest.approx(float(prediction[5].exp() / prediction[4:6].exp().sum()), abs=1e-5)
    monkeypatch.setattr(faces, "LOWEST_SCORE", found.score + 0.01)
    assert LandmarkFinder(network)(pixels) == []


def test_without_its_weights_the_message_says_how_to_get_them(tmp_path, images):
    read = build_face_reader(load_config(overrides=[f"landmarks_path={tmp_path / 'absent'}"]), False, None, False).read
    assert read(write(tmp_path / "a.png", images[0])).source == "aligned face"  # needs no network
    with pytest.raises(InputError, match=r"set landmarks_path to the weights of CVLFace's.*--detector"):
        read(write(tmp_path / "b.png", photo()))


# --- the cosine and the verdict -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scored(root, checkpoints, tmp_path_factory) -> Path:
    """Results of run_full_eval.py on the set "pairs" of drawn faces."""
    path = tmp_path_factory.mktemp("scored") / "results.json"
    score(FULL, "--checkpoint", checkpoints / "5backbone.pth", *flags(root), "--results-json", path)
    return path


def cosine_in(text: str) -> float:
    return float(text.split("cosine: ")[1].split("\n")[0])


def test_onnx_and_checkpoint_give_the_score_of_the_evaluation(
    model, checkpoints, scored, images_of, tmp_path, monkeypatch, capsys
):
    with np.load(scored.with_suffix(".npz")) as arrays:
        scores = arrays["verification/pairs/score"]
    capital = shutil.copy(model, tmp_path / "SMALL.ONNX")
    for pair in (0, 7):
        for arguments in (["--model", model], ["--model", capital], ["--model", checkpoints / "5backbone.pth", *SMALL]):
            run(monkeypatch, compare, *images_of[2 * pair : 2 * pair + 2], *arguments)
            output = capsys.readouterr().out
            assert cosine_in(output) == pytest.approx(scores[pair], abs=6e-5)
            assert "verdict: none; --results" in output


def results_file(path: Path, weights: Path, metrics: dict | None = None, **about) -> Path:
    """Results of a set "faces" with 40,000 impostor pairs."""
    threshold = {"thresh_at_FAR_0.001": 0.3, "thresh_at_FAR_0.001_low": 0.25, "thresh_at_FAR_0.001_high": 0.34}
    tar = {"TAR_at_FAR_0.001": 0.97, "TAR_at_FAR_0.001_low": 0.96, "TAR_at_FAR_0.001_high": 0.98}
    found = {**threshold, **tar, "genuine_pairs": 9, "impostor_pairs": 40000} if metrics is None else metrics
    about = {"checkpoint_sha256": sha256(weights), **about}
    content = {"verification": {"faces": found}, "absent": [], "failed": [], "about": about}
    path.write_text(json.dumps(content))
    return path


def test_the_verdict_is_that_of_the_threshold_and_says_when_it_is_uncertain(checkpoints, tmp_path):
    weights = checkpoints / "5backbone.pth"
    path = results_file(tmp_path / "r.json", weights)
    threshold = read_threshold(str(path), None, 1e-3, sha256(weights))
    assert threshold.flip
    assert threshold.verdict(0.35) == "same person" and threshold.verdict(0.2) == "different people"
    assert threshold.verdict(0.3).startswith("same person, but") and "uncertain" in threshold.verdict(0.3)
    assert threshold.verdict(0.2999).startswith("different people, but")
    line = threshold.describe()
    for words in ("0.3000 (95 % interval 0.2500 to 0.3400)", "on faces with 40,000", "FAR 0.001", "97.00 %"):
        assert words in line
    small = {"thresh_at_FAR_0.01": 0.3, "TAR_at_FAR_0.01": 0.9, "genuine_pairs": 9, "impostor_pairs": 300}
    path = results_file(tmp_path / "r.json", weights, small, val_flip="False")
    threshold = read_threshold(str(path), "faces", 1e-2, sha256(weights))
    assert "(no interval: that needs 1,000 impostor pairs)" in threshold.describe() and not threshold.flip


def test_a_verdict_that_the_set_or_the_weights_cannot_support_is_refused(
    checkpoints, model, scored, tmp_path, images_of
):
    weights, other = checkpoints / "5backbone.pth", checkpoints / "10backbone.pth"
    path, digest = results_file(tmp_path / "r.json", weights), sha256(weights)
    several = tmp_path / "several.json"
    sets = json.loads(path.read_text())
    several.write_text(
        json.dumps({**sets, "verification": dict.fromkeys(("one", "other"), sets["verification"]["faces"])})
    )
    for arguments, words in [
        ((path, None, 1e-5, digest), "faces has 40,000 impostor pairs, too few for FAR 1e-05, which needs 100,000"),
        ((path, None, 1e-2, digest), "has no threshold of faces for FAR 0.01; score the checkpoint again"),
        ((path, None, 0.05, digest), "--far 0.05: not measured; choose one of 0.01, 0.001, 0.0001, 1e-05"),
        ((path, "lfw", 1e-3, digest), "no verification set lfw.*it has faces.*--set"),
        ((path, None, 1e-3, sha256(other)), "results of other weights"),
        ((path, None, 1e-3, None), "the model does not state the checksum"),
        (
            (results_file(tmp_path / "o.json", weights, checkpoint_sha256=None), None, 1e-3, digest),
            "does not state the",
        ),
        ((several, None, 1e-3, digest), "several verification sets .it has one, other.; name one with --set"),
        ((scored, "pairs", 1e-2, digest), "pairs has 10 impostor pairs, too few for FAR 0.01, which needs 100"),
    ]:
        with pytest.raises(InputError, match=words):
            read_threshold(str(arguments[0]), *arguments[1:])


def test_an_exported_file_knows_its_weights_and_whether_it_normalises(
    checkpoints, model, tmp_path, images_of, monkeypatch, capsys
):
    mine = results_file(tmp_path / "mine.json", checkpoints / "5backbone.pth")
    run(monkeypatch, compare, *images_of[:2], "--model", model, "--results", mine)
    output = capsys.readouterr().out
    expected = "same person" if cosine_in(output) >= 0.3 else "different people"
    assert f"verdict: {expected}" in output and "threshold 0.3000" in output
    of_a_teacher = ["onnx_colours=BGR", "onnx_mean=0", "onnx_std=1"]
    run(monkeypatch, compare, *images_of[:2], "--model", model, "--results", mine, *of_a_teacher)
    assert cosine_in(capsys.readouterr().out) == cosine_in(output)
    with pytest.raises(InputError, match="--far 0: not measured"):
        run(monkeypatch, compare, *images_of[:2], "--model", model, "--results", mine, "--far", "0")
    other = results_file(tmp_path / "other.json", checkpoints / "10backbone.pth")
    with pytest.raises(InputError, match="results of other weights"):
        run(monkeypatch, compare, *images_of[:2], "--model", model, "--results", other)
    changed, exported = tmp_path / "changed.onnx", onnx.load(model)
    known = {entry.key: entry.value for entry in exported.metadata_props}
    for facts, words in (({"output": UNIT_LENGTH}, "exported with --normalize"), ({"quantization": "{}"}, "int8")):
        onnx.helper.set_model_props(exported, {**known, **facts})
        onnx.save(exported, changed)
        with pytest.raises(InputError, match=words):
            run(monkeypatch, compare, *images_of[:2], "--model", changed, "--results", mine)


def test_without_mirror_images_in_the_evaluation_there_are_none_in_the_comparison(
    checkpoints, tmp_path, images, monkeypatch, capsys
):
    noise, half = images[7], np.where(np.arange(112)[:, None] < 50, 0, images[7]).astype(np.uint8)
    files = [write(tmp_path / "noise.png", noise), write(tmp_path / "half.png", half)]
    plain = results_file(tmp_path / "plain.json", checkpoints / "5backbone.pth", val_flip="False")
    found = []
    for more in ([], ["--results", plain]):
        run(monkeypatch, compare, *files, "--model", checkpoints / "5backbone.pth", *SMALL, *more)
        found.append(cosine_in(capsys.readouterr().out))
    from backbones.mobilefacenet import MobileFaceNet

    network = MobileFaceNet(16, 0.125).eval().double()
    network.load_state_dict(torch.load(checkpoints / "5backbone.pth", weights_only=True))
    x = (torch.from_numpy(np.stack([noise, half])).permute(0, 3, 1, 2).double() - 127.5) / 127.5
    with torch.no_grad():
        views = [network(x) + network(x.flip(3)), network(x)]
    expected = [float(F.cosine_similarity(*view, dim=0)) for view in views]
    assert np.allclose(found, expected, atol=6e-5) and abs(expected[0] - expected[1]) > 2e-4


def test_photos_are_compared_like_the_faces_in_them_and_saved(
    model, detector, images_of, tmp_path, monkeypatch, capsys
):
    pair = [decode_rgb(path.read_bytes(), "face") for path in images_of[:2]]
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
    photos = [
        write(tmp_path / folder / "me.png", photo((face, 160, 240)))
        for folder, face in zip(("one", "other"), pair, strict=True)
    ]
    run(monkeypatch, compare, *images_of[:2], "--model", model)
    expected = cosine_in(capsys.readouterr().out)
    run(monkeypatch, compare, *photos, "--model", model, "--detector", detector, "--save", tmp_path / "saved")
    output = capsys.readouterr().out
    assert cosine_in(output) == pytest.approx(expected, abs=0.02)
    assert "found by YuNet" in output and "saved as" in output
    for name, face in zip(("1_me.png", "2_me.png"), pair, strict=True):
        saved = decode_rgb((tmp_path / "saved" / name).read_bytes(), name)
        assert saved.shape == (112, 112, 3) and abs(saved.astype(int) - face)[2:-2, 2:-2].max() <= 1


def test_bad_input_ends_the_script_with_code_2_and_one_line(images_of, model, tmp_path):
    done = run_script("deploy/compare.py", images_of[0], tmp_path / "absent.png", "--model", model)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "absent.png" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--far", "1e-3"], "--far and --set are about --results"),
        (["--aligned", "--detector", "d.onnx"], "exclude each other"),
        (["--largest"], "--largest needs --detector"),
        (["--model", "absent.onnx"], "absent.onnx: no such file"),
        (["--model", "absent.pth"], "absent.pth: no such file"),
    ],
)
def test_flags_that_do_not_fit_are_refused(arguments, words, monkeypatch):
    with pytest.raises(InputError, match=words):
        run(monkeypatch, compare, "a.png", "b.png", "--model", "m.onnx", *arguments)
