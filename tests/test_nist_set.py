"""IJB folders as NIST and InsightFace ship them: how faces are aligned, which line is which photo, what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data.arrow_set import TemplateSet
from data.nist_set import NistSet, NistSetError, is_nist, similarity_to_arcface
from data.workers import keep_batch
from utils.errors import InputError

ARCFACE = np.array([38.2946, 51.6963, 73.5318, 51.5014, 56.0252, 71.7366, 41.5493, 92.3655, 70.7299, 92.2041])
ARCFACE = ARCFACE.reshape(5, 2)
COUNT = 7


def umeyama(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Equations 40 to 43 of Umeyama 1991, as they stand there: [2, 3] for point sets [n, 2], one point a row."""
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


def write_folder(
    root: Path, photos, points, scores=None, templates=None, medias=None, pairs=((1, 1, 1), (1, 2, 0)), order=None,
    prefix="ijbc",
) -> Path:  # fmt: skip
    """Photo i is `{i + 1}.jpg`; `order` is that of the lines of name_5pts_score."""
    count = len(photos)
    scores = np.linspace(0.1, 0.9, count) if scores is None else scores
    templates = np.arange(count) // 2 + 1 if templates is None else templates
    medias = np.arange(count) + 100 if medias is None else medias
    for folder in ("loose_crop", "meta"):
        (root / folder).mkdir(parents=True)
    for i, photo in enumerate(photos):
        (root / "loose_crop" / f"{i + 1}.jpg").write_bytes(photo)
    of_points = [
        f"{i + 1}.jpg {' '.join(repr(float(x)) for x in np.ravel(points[i]))} {float(scores[i])!r}"
        for i in (range(count) if order is None else order)
    ]
    lists = {
        "face_tid_mid": [f"{i + 1}.jpg {templates[i]} {medias[i]}" for i in range(count)],
        "name_5pts_score": of_points,
        "template_pair_label": [" ".join(map(str, pair)) for pair in pairs],
    }
    for name, lines in lists.items():
        (root / "meta" / f"{prefix}_{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    return root


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 98])[1].tobytes()


def photo(number: int, width: int = 200, height: int = 180) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def small(root: Path, **changes) -> Path:
    """Photo i is `photo(i)`, with the face shifted by (i, 2 i)."""
    return write_folder(
        root, [png(photo(i)) for i in range(COUNT)], [ARCFACE + (i, 2 * i) for i in range(COUNT)], **changes
    )  # fmt: skip


def aligned(i: int) -> np.ndarray:
    return photo(i)[2 * i : 2 * i + 112, i : i + 112]


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_transform_is_umeyama_s(mirrored):
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 30, (200, 5, 2)) * np.linspace(0, 1, 200)[:, None, None]
    points = (ARCFACE * (-1, 1) if mirrored else ARCFACE) * rng.uniform(0.1, 5, (200, 1, 1)) + noise
    points = points + rng.uniform(-100, 500, (200, 1, 2))
    expected = np.stack([umeyama(source, ARCFACE) for source in points])
    np.testing.assert_allclose(similarity_to_arcface(points), expected, rtol=1e-9, atol=1e-9)


def test_no_similarity_near_by_brings_the_points_nearer():
    points = np.random.default_rng(1).uniform(0, 200, (5, 2))
    matrix = similarity_to_arcface(points[None])[0]

    def distance(a: float, b: float, x: float, y: float) -> float:
        return ((points @ np.array([[a, b], [-b, a]]) + (x, y) - ARCFACE) ** 2).sum()

    best = np.array([matrix[0, 0], matrix[1, 0], matrix[0, 2], matrix[1, 2]])
    for parameter in range(4):
        for step in (-1e-3, 1e-3):
            assert distance(*(best + step * np.eye(4)[parameter])) > distance(*best)


def test_a_face_is_what_the_points_frame(tmp_path):
    whole, large = photo(0), photo(1, 300, 300)
    canvases = {
        "shifted": (whole, ARCFACE + (40, 30), whole[30:142, 40:152]),
        # A quarter turn clockwise: what was at (x, y) of 112 columns is at (111 - y, x).
        "turned": (np.rot90(whole[:112, :112], -1), np.stack([111 - ARCFACE[:, 1], ARCFACE[:, 0]], 1),
                   whole[:112, :112]),
        "of double size": (large, 2 * ARCFACE + (10, 20), large[20:244:2, 10:234:2]),
    }  # fmt: skip
    folder = write_folder(
        tmp_path / "set", [png(image) for image, _, _ in canvases.values()], [p for _, p, _ in canvases.values()]
    )
    images = NistSet(folder)[range(len(canvases))]
    assert images.dtype == torch.uint8 and images.shape == (3, 112, 112, 3)
    for name, image, (_, _, expected) in zip(canvases, images.numpy(), canvases.values(), strict=True):
        assert np.array_equal(image, expected), name


def test_between_pixels_is_their_mean_and_outside_is_black(tmp_path):
    whole = photo(0)
    folder = write_folder(tmp_path / "set", [png(whole)] * 2, [ARCFACE + (40.5, 30), ARCFACE + (-20, 100)])
    between, outside = NistSet(folder)[[0, 1]].numpy()
    mean = (whole[30:142, 40:152].astype(float) + whole[30:142, 41:153]) / 2
    assert abs(between - mean).max() <= 0.51
    assert (outside[:, :20] == 0).all() and (outside[80:] == 0).all()
    assert np.array_equal(outside[:80, 20:], whole[100:180, :92])


@pytest.mark.parametrize("prefix", ["ijbb", "ijbc"])
def test_photos_come_in_the_order_of_face_tid_mid_and_points_are_found_by_name(tmp_path, prefix):
    order = [3, 0, 6, 5, 1, 2, 4]
    scores = np.array([0.5, 0.25, 0.125, 1.0, 0.75, 0.0, -1.5])
    pairs = [(1, 1, 1), (1, 2, 0), (3, 3, 1), (2, 4, 0), (20, 30, 0)]
    folder = small(tmp_path / "set", order=order, scores=scores, pairs=pairs, prefix=prefix)
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


def test_tabs_several_spaces_empty_lines_and_windows_line_ends_are_white_space(tmp_path):
    folder = small(tmp_path / "set")
    expected = NistSet(folder)
    for path in (folder / "meta").iterdir():
        first, rest = path.read_text().split("\n", 1)
        path.write_bytes(f"{first}\n\n{rest}".replace(" ", " \t ").replace("\n", "\r\n").strip().encode())
    images = NistSet(folder)
    assert torch.equal(images[range(COUNT)], expected[range(COUNT)])
    for name, values in expected.metadata.items():
        assert np.array_equal(images.metadata[name], values), name


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_it(tmp_path, method):
    loader = torch.utils.data.DataLoader(
        NistSet(small(tmp_path / "set")), batch_size=None, sampler=[range(0, 3), range(3, COUNT)],
        collate_fn=keep_batch, num_workers=2, multiprocessing_context=method,
    )  # fmt: skip
    assert np.array_equal(torch.cat(list(loader)).numpy(), [aligned(i) for i in range(COUNT)])


def test_layouts_are_told_apart(tmp_path):
    folder = small(tmp_path / "nist")
    (tmp_path / "arrow").mkdir()
    (tmp_path / "arrow" / "metadata.pt").touch()
    assert is_nist(folder) and not is_nist(tmp_path / "arrow") and not is_nist(tmp_path / "absent")
    shutil.rmtree(folder / "loose_crop")
    assert is_nist(folder)


def in_line(name: str, number: int, change: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    """Damage: replace the words of a line, counted from 1."""

    def damage(folder: Path) -> None:
        path = folder / "meta" / f"ijbc_{name}.txt"
        lines = path.read_text().splitlines()
        lines[number - 1] = " ".join(change(lines[number - 1].split()))
        path.write_text("\n".join(lines) + "\n")

    return damage


def cut(name: str, end: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "meta" / f"ijbc_{name}.txt"
        path.write_bytes(path.read_bytes()[:end])

    return damage


def other_prefix(folder: Path) -> None:
    shutil.copy(folder / "meta" / "ijbc_face_tid_mid.txt", folder / "meta" / "ijbb_face_tid_mid.txt")


FACES, POINTS, PAIRS = "face_tid_mid", "name_5pts_score", "template_pair_label"
DAMAGES = [
    (lambda folder: shutil.rmtree(folder / "meta"), r"set: meta has lists of no set; .* PREFIX is ijbb or ijbc"),
    (other_prefix, r"set: meta has lists of ijbb and ijbc; there must be those of one: PREFIX_face_tid_mid.txt, "),
    (lambda folder: shutil.rmtree(folder / "loose_crop"), r"incomplete: there is no .*/loose_crop; fetch the whole"),
    (
        lambda folder: [(folder / "meta" / f"ijbc_{name}.txt").unlink() for name in (POINTS, PAIRS)],
        r"there is no \S+/ijbc_name_5pts_score.txt, no \S+/ijbc_template_pair_label.txt; fetch the whole folder",
    ),
    (cut(FACES, 0), r"ijbc_face_tid_mid.txt: empty; each line must hold a file, its template and its medium"),
    (
        cut(FACES, 20),
        r"ijbc_face_tid_mid.txt: line 2 is '2.jpg 1'; expected a file, its template and its medium, these in whole",
    ),
    (cut(POINTS, 250), r"ijbc_name_5pts_score.txt: line \d is .*; expected a file, x and y of its five points, the"),
    (
        cut(PAIRS, 9),
        r"ijbc_template_pair_label.txt: line 2 is '1 2'; expected two templates and a label, in whole numbers; fetch",
    ),
    (in_line(FACES, 4, lambda words: [*words, "1"]), r"face_tid_mid.txt: line 4 is '4.jpg 2 103 1'; expected a file"),
    (in_line(POINTS, 7, lambda words: words[:-1]), r"name_5pts_score.txt: line 7 is '7.jpg 44.29.*'; expected a file"),
    (in_line(FACES, 3, lambda words: [*words[:2], "x"]), r"face_tid_mid.txt: line 3 is '3.jpg 2 x'; expected a file"),
    (in_line(PAIRS, 2, lambda words: ["1.5", "2", "0"]), r"template_pair_label.txt: line 2 is '1.5 2 0'; expected two"),
    (in_line(PAIRS, 1, lambda words: ["1", "9" * 12, "0"]), r"pair_label.txt: line 1 is '1 9{12} 0'; expected two"),
    (in_line(PAIRS, 2, lambda words: ["1", "2", "2"]), r"line 2 is '1 2 2'; expected the label 0 \(impostor\) or 1"),
    (in_line(PAIRS, 2, lambda words: ["1", "2", "-1"]), r"line 2 is '1 2 -1'; expected the label 0 \(impostor\) or 1"),
    (in_line(POINTS, 5, lambda words: [words[0], "nan", *words[2:]]), r"line 5 is '5.jpg nan .*'; expected finite"),
    (in_line(POINTS, 5, lambda words: [*words[:10], "-inf", words[11]]), r"line 5 is .* -inf .*'; expected finite"),
    (in_line(POINTS, 6, lambda words: [*words[:11], "inf"]), r"line 6 is .* inf'; expected finite numbers"),
    (in_line(POINTS, 2, lambda words: [words[0], *["33.3", "0.1"] * 5, "1"]), r"line 2 is .*, not all at one place"),
    (in_line(FACES, 2, lambda words: ["../2.jpg", *words[1:]]), r"line 2 is '../2.jpg 1 101'; expected the name of a"),
    (in_line(FACES, 2, lambda words: ["/etc/2.jpg", *words[1:]]), r"line 2 is '/etc/2.jpg 1 101'; expected the name"),
    (in_line(FACES, 6, lambda words: ["2.jpg", *words[1:]]), r"line 6 is '2.jpg 3 105'; expected a file that no line"),
    (in_line(POINTS, 4, lambda words: ["1.jpg", *words[1:]]), r"score.txt: line 4 is '1.jpg .*; expected a file that"),
    (in_line(POINTS, 4, lambda words: ["8.jpg", *words[1:]]), r"tid_mid.txt: line 4 is '4.jpg .* that ijbc_name_5pts"),
    (cut(FACES, 12), r"name_5pts_score.txt: line 2 is '2.jpg .*; expected a file that ijbc_face_tid_mid.txt lists too"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_folder_that_is_broken_is_refused_with_file_line_and_fix(tmp_path, damage, message):
    folder = small(tmp_path / "set")
    damage(folder)
    with pytest.raises(NistSetError, match=message):
        NistSet(folder)


def test_the_number_of_a_line_counts_empty_ones_and_is_right_far_down(tmp_path):
    pairs = [(1, 2, 0)] * 10_000
    folder = small(tmp_path / "set", pairs=pairs)
    path = folder / "meta" / "ijbc_template_pair_label.txt"
    for bad, expected in (("1 2", "two templates and a label"), ("1 2 7", "the label 0")):
        lines = ["1 2 0"] * 10_000
        lines[20], lines[6000], lines[9000] = "", bad, bad
        path.write_text("\n".join(lines))
        with pytest.raises(NistSetError, match=f"line 6001 is '{bad}'; expected {expected}"):
            NistSet(folder)


def test_a_photo_that_cannot_be_used_is_named_when_it_is_read(tmp_path):
    folder = small(tmp_path / "set")
    (folder / "loose_crop" / "3.jpg").unlink()
    (folder / "loose_crop" / "5.jpg").write_bytes(b"no image")
    images = NistSet(folder)
    with pytest.raises(InputError, match=r"loose_crop/3.jpg: meta lists it, but it cannot be read .*fetch it again"):
        images[[0, 2]]
    with pytest.raises(InputError, match=r"loose_crop/5.jpg: 8 bytes that decode to no image"):
        images[[4]]
    assert np.array_equal(images[[0]][0].numpy(), aligned(0))


def test_real_faces_put_into_photos_come_out_as_they_were(face_data, tmp_path):
    """Faces turned, scaled and shifted into photos with points that say how: the same set, but for two resamplings."""
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
