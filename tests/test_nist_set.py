"""IJB folders as NIST and InsightFace distribute them: how faces are aligned, and how lines are matched to photos."""

import shutil

import cv2
import numpy as np
import pytest
import torch
from nist_folders import ARCFACE, COUNT, aligned, photo, png, write_folder, write_small_folder

from data.alignment import similarity_to_arcface
from data.arrow_set import TemplateSet
from data.nist_set import NistSet, is_nist
from data.workers import keep_batch


def umeyama(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Equations 40 to 43 of Umeyama 1991, written out. Point sets [n, 2] -> the transform [2, 3]."""
    mean_x, mean_y = source.sum(0) / len(source), target.sum(0) / len(target)
    variance = ((source - mean_x) ** 2).sum() / len(source)
    covariance = np.zeros((2, 2))
    for x, y in zip(source, target, strict=True):
        covariance += np.outer(y - mean_y, x - mean_x) / len(source)
    u, d, vt = np.linalg.svd(covariance)
    s = np.diag([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = u @ s @ vt
    scale = np.trace(np.diag(d) @ s) / variance
    return np.column_stack([scale * rotation, mean_y - scale * rotation @ mean_x])


def jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 98])[1].tobytes()


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_transform_equals_umeyamas(mirrored):
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 30, (200, 5, 2)) * np.linspace(0, 1, 200)[:, None, None]
    points = (ARCFACE * (-1, 1) if mirrored else ARCFACE) * rng.uniform(0.1, 5, (200, 1, 1)) + noise
    points = points + rng.uniform(-100, 500, (200, 1, 2))
    expected = np.stack([umeyama(source, ARCFACE) for source in points])
    np.testing.assert_allclose(similarity_to_arcface(points), expected, rtol=1e-9, atol=1e-9)


def test_no_nearby_similarity_brings_the_points_closer():
    points = np.random.default_rng(1).uniform(0, 200, (5, 2))
    matrix = similarity_to_arcface(points[None])[0]

    def distance(a: float, b: float, x: float, y: float) -> float:
        return ((points @ np.array([[a, b], [-b, a]]) + (x, y) - ARCFACE) ** 2).sum()

    best = np.array([matrix[0, 0], matrix[1, 0], matrix[0, 2], matrix[1, 2]])
    for parameter in range(4):
        for change in (-1e-3, 1e-3):
            assert distance(*(best + change * np.eye(4)[parameter])) > distance(*best)


def test_a_face_is_cropped_as_its_points_say(tmp_path):
    small, large = photo(0), photo(1, 300, 300)
    cases = {  # name: photo, points, expected face
        "shifted": (small, ARCFACE + (40, 30), small[30:142, 40:152]),
        # A quarter turn clockwise moves (x, y) of 112 columns to (111 - y, x).
        "turned": (np.rot90(small[:112, :112], -1), np.stack([111 - ARCFACE[:, 1], ARCFACE[:, 0]], 1),
                   small[:112, :112]),
        "of double size": (large, 2 * ARCFACE + (10, 20), large[20:244:2, 10:234:2]),
    }  # fmt: skip
    folder = write_folder(
        tmp_path / "set", [png(image) for image, _, _ in cases.values()], [points for _, points, _ in cases.values()]
    )
    images = NistSet(folder)[range(len(cases))]
    assert images.dtype == torch.uint8 and images.shape == (3, 112, 112, 3)
    for name, image, (_, _, expected) in zip(cases, images.numpy(), cases.values(), strict=True):
        assert np.array_equal(image, expected), name


def test_between_two_pixels_is_their_mean_and_outside_the_photo_is_black(tmp_path):
    image = photo(0)
    folder = write_folder(tmp_path / "set", [png(image)] * 2, [ARCFACE + (40.5, 30), ARCFACE + (-20, 100)])
    between, outside = NistSet(folder)[[0, 1]].numpy()
    mean = (image[30:142, 40:152].astype(float) + image[30:142, 41:153]) / 2
    assert abs(between - mean).max() <= 0.51
    assert (outside[:, :20] == 0).all() and (outside[80:] == 0).all()
    assert np.array_equal(outside[:80, 20:], image[100:180, :92])


@pytest.mark.parametrize("prefix", ["ijbb", "ijbc"])
def test_photos_are_ordered_as_in_face_tid_mid_and_points_are_matched_by_name(tmp_path, prefix):
    order = [3, 0, 6, 5, 1, 2, 4]
    scores = np.array([0.5, 0.25, 0.125, 1.0, 0.75, 0.0, -1.5])
    pairs = [(1, 1, 1), (1, 2, 0), (3, 3, 1), (2, 4, 0), (20, 30, 0)]
    folder = write_small_folder(tmp_path / "set", order=order, scores=scores, pairs=pairs, prefix=prefix)
    (folder / "loose_crop" / "unlisted.jpg").write_bytes(b"no image")
    images = NistSet(folder)
    assert (images.path, len(images)) == (str(folder), COUNT)
    assert np.array_equal(images[range(COUNT)].numpy(), [aligned(i) for i in range(COUNT)])
    assert np.array_equal(images[np.array([5, 0, 5])].numpy(), [aligned(5), aligned(0), aligned(5)])
    expected = {
        "faceness_scores": scores, "templates": [1, 1, 2, 2, 3, 3, 4], "medias": range(100, 107),
        "p1": [1, 1, 3, 2, 20], "p2": [1, 2, 3, 4, 30], "label": [1, 0, 1, 0, 0],
    }  # fmt: skip
    assert images.metadata.keys() == expected.keys()
    for name, values in expected.items():
        assert np.array_equal(images.metadata[name], values), name
        assert images.metadata[name].dtype.kind == ("f" if name == "faceness_scores" else "i"), name


def test_tabs_spaces_empty_lines_and_windows_line_endings_are_white_space(tmp_path):
    folder = write_small_folder(tmp_path / "set")
    expected = NistSet(folder)
    for path in (folder / "meta").iterdir():
        first, rest = path.read_text().split("\n", 1)
        path.write_bytes(f"{first}\n\n{rest}".replace(" ", " \t ").replace("\n", "\r\n").strip().encode())
    images = NistSet(folder)
    assert torch.equal(images[range(COUNT)], expected[range(COUNT)])
    for name, values in expected.metadata.items():
        assert np.array_equal(images.metadata[name], values), name


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_loader_workers_read_a_folder(tmp_path, method):
    loader = torch.utils.data.DataLoader(
        NistSet(write_small_folder(tmp_path / "set")), batch_size=None, sampler=[range(0, 3), range(3, COUNT)],
        collate_fn=keep_batch, num_workers=2, multiprocessing_context=method,
    )  # fmt: skip
    assert np.array_equal(torch.cat(list(loader)).numpy(), [aligned(i) for i in range(COUNT)])


def test_the_layout_is_recognised(tmp_path):
    folder = write_small_folder(tmp_path / "nist")
    (tmp_path / "arrow").mkdir()
    (tmp_path / "arrow" / "metadata.pt").touch()
    assert is_nist(folder) and not is_nist(tmp_path / "arrow") and not is_nist(tmp_path / "absent")
    shutil.rmtree(folder / "loose_crop")
    assert is_nist(folder)


def test_real_faces_that_are_warped_into_photos_are_recovered(face_data, tmp_path):
    """Faces are turned, scaled and shifted into photos, and aligned again: only two resamplings differ."""
    arrow = TemplateSet(face_data / "template_sets" / "IJBX_gt_aligned")
    faces = arrow[range(len(arrow))].numpy()
    rng = np.random.default_rng(0)
    photos, points = [], []
    for face in faces:
        scale, angle = rng.uniform(1.5, 2.5), rng.uniform(-0.8, 0.8)
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        shift = 260 + rng.uniform(-20, 20, 2) - turn @ (56, 56)
        matrix = np.column_stack([turn, shift])
        photos.append(jpeg(cv2.warpAffine(face, matrix, (520, 520), flags=cv2.INTER_CUBIC)))
        points.append(ARCFACE @ turn.T + shift)
    order = rng.permutation(len(faces))
    known = arrow.metadata
    pairs = np.stack([known["p1"], known["p2"], known["label"]], axis=1)
    folder = write_folder(
        tmp_path / "set", photos, points, known["faceness_scores"], known["templates"], known["medias"], pairs, order
    )
    nist = NistSet(folder)
    assert len(nist) == len(arrow)
    for name in ("faceness_scores", "templates", "medias", "label", "p1", "p2"):
        assert np.array_equal(nist.metadata[name], known[name]), name
    difference = abs(nist[range(len(nist))].numpy().astype(float) - faces).mean((1, 2, 3))
    print(f"mean absolute difference {difference.mean():.3f}, of the worst face {difference.max():.3f}")
    assert difference.mean() < 1 and difference.max() < 3


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_may_have_a_byte_order_mark(tmp_path, encoding):
    expected = NistSet(write_small_folder(tmp_path / "plain"))
    folder = write_small_folder(tmp_path / "marked")
    for path in (folder / "meta").iterdir():
        path.write_bytes(path.read_text().replace("\n", "\r\n").encode(encoding))
    images = NistSet(folder)
    assert torch.equal(images[range(COUNT)], expected[range(COUNT)])
    for name, array in expected.metadata.items():
        assert np.array_equal(images.metadata[name], array)
