"""What plots and the page show, against arithmetic done the slow way."""

import base64
import re
import warnings
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve
from sklearn.model_selection import KFold

from eval.ijb import FPRS, VARIANTS, tpr_at_fpr
from eval.report.page import PairError, pair_thresholds, worst_errors, write_page
from eval.report.plots import png, roc, set_plots, step_plots, wilson
from eval.report.tables import Table

ONE_PIXEL = cv2.imencode(".png", np.zeros((1, 1, 3), dtype=np.uint8))[1].tobytes()


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def _pairs(count: int = 1003, seed: int = 0) -> dict[str, np.ndarray]:
    """A verification set; scores of the two classes overlap, and every fold has a threshold of its own."""
    rng = np.random.default_rng(seed)
    is_same = rng.random(count) < 0.5
    score = np.where(is_same, 0.5, 0.1) + 0.2 * rng.standard_normal(count)
    threshold = 0.3 + 0.01 * np.arange(10.0)
    of_pair = np.empty(count)
    for fold, (_, test) in enumerate(KFold(10).split(score)):
        of_pair[test] = threshold[fold]
    norm = rng.uniform(5, 15, (count, 2)).astype(np.float32)
    return dict(is_same=is_same, score=score, decision=score > of_pair, threshold=threshold, norm=norm)


def _templates(count: int = 20_000, genuine: int = 300) -> tuple[dict[str, float | None], dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    label = np.zeros(count, dtype=bool)
    label[rng.choice(count, genuine, replace=False)] = True
    figures, arrays = {}, {"label": label}
    for variant in VARIANTS:
        # Two decimals, so that scores tie within a class and between them.
        score = (np.where(label, 0.5, 0.0) + 0.15 * rng.standard_normal(count)).round(2).astype(np.float32)
        arrays[f"{variant}.score"], arrays[f"{variant}.decision"] = score, score > 0.5
        for far, (tar, threshold) in zip(FPRS, tpr_at_fpr(label, score), strict=True):
            figures[f"{variant}_tpr_at_fpr_{far}"], figures[f"{variant}_thresh_at_fpr_{far}"] = tar, threshold
    return figures, arrays


def _probes(rank: list[int] | np.ndarray, norm: np.ndarray) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    rank = np.asarray(rank)
    return {f"rank-{k}": float(100 * (rank <= k).mean()) for k in (1, 5, 20)}, dict(rank=rank, norm=norm)


def _axes(figure: Figure) -> Axes:
    assert len(figure.axes) == 1 and figure.axes[0].get_xlabel() and figure.axes[0].get_ylabel()
    assert not figure.axes[0].get_legend() and figure.legends  # beside the data, not over it
    return figure.axes[0]


def _size(data: bytes) -> tuple[int, int]:
    return cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR).shape[:2]


def _line(axes: Axes, label: str) -> np.ndarray:
    return next(line for line in axes.lines if line.get_label() == label).get_xydata()


def _tar_at(line: np.ndarray, far: float) -> float:
    """y of a line drawn in steps (where="post")."""
    return line[line[:, 0] <= far][-1, 1]


def _slow_bins(norm: np.ndarray, hit: np.ndarray) -> list[tuple[int, int]]:
    """(hits, count) of each of ten bins, the first of which are one larger."""
    ordered = sorted(range(len(norm)), key=lambda number: (norm[number], number))
    bins = []
    for place in range(10):
        size = len(norm) // 10 + (place < len(norm) % 10)
        here, ordered = ordered[:size], ordered[size:]
        bins.append((sum(bool(hit[number]) for number in here), size))
    return bins


def _drawn_rates(axes: Axes) -> list[float]:
    return list(axes.containers[0].lines[0].get_ydata())


def test_histograms_have_the_area_and_the_shape_of_the_scores():
    arrays = _pairs()
    axes = _axes(set_plots("verification", "lfw", {}, arrays)["scores_lfw"])
    for patch, which in zip(axes.patches, (arrays["is_same"], ~arrays["is_same"]), strict=False):
        values, edges, _ = patch.get_data()
        assert (values * np.diff(edges)).sum() == pytest.approx(1)
        bin_ = int(values.argmax())
        inside = (arrays["score"][which] >= edges[bin_]) & (arrays["score"][which] < edges[bin_ + 1])
        assert values[bin_] * (edges[1] - edges[0]) == pytest.approx(inside.mean())
        assert f"({which.sum()} pairs)" in patch.get_label()
    assert axes.lines[0].get_xdata()[0] == pytest.approx(0.345)
    assert axes.lines[0].get_label() == "threshold 0.345 (0.300 to 0.390 over folds)"
    assert axes.patches[2].get_x() == pytest.approx(0.3) and axes.patches[2].get_width() == pytest.approx(0.09)


def test_the_roc_line_is_that_of_scikit_learn():
    figures, arrays = _templates()
    axes = _axes(set_plots("ijb", "IJBC", figures, arrays)["roc_IJBC"])
    assert axes.get_xscale() == "log" and axes.get_xlim() == (1e-6, 1)
    for number, variant in enumerate(VARIANTS):
        fpr, tpr, _ = roc_curve(arrays["label"], arrays[f"{variant}.score"], drop_intermediate=False)
        line = _line(axes, variant)
        assert axes.lines[2 * number].get_drawstyle() == "steps-post"
        for far in (*FPRS, 3e-5, 7e-4, 0.5, 1):
            assert _tar_at(line, far) == pytest.approx(100 * tpr[fpr <= far].max(), abs=1e-9)
        markers = axes.lines[2 * number + 1].get_xydata()
        expected = [(far, figures[f"{variant}_tpr_at_fpr_{far}"]) for far in FPRS]
        np.testing.assert_array_equal(markers, expected)


def test_the_roc_of_a_verification_set():
    arrays = _pairs()
    figures = {"TAR_at_FAR_0.01": 0.25, "TAR_at_FAR_0.001": None, "AUC": 0.9}
    axes = _axes(set_plots("verification", "lfw", figures, arrays)["roc_lfw"])
    fpr, tpr, _ = roc_curve(arrays["is_same"], arrays["score"], drop_intermediate=False)
    assert _tar_at(axes.lines[0].get_xydata(), 0.05) == pytest.approx(100 * tpr[fpr <= 0.05].max())
    np.testing.assert_array_equal(axes.lines[1].get_xydata(), [(0.01, 25)])
    assert axes.patches[0].get_label() == "fewer than one impostor pair"
    assert axes.patches[0].get_width() == pytest.approx(1 / (~arrays["is_same"]).sum() - 1e-4)


def test_the_roc_has_no_more_corners_than_genuine_pairs():
    arrays = _templates(genuine=7)[1]
    far, tar = roc(arrays["label"], arrays["Norm:True_Det:True.score"])
    assert len(far) <= 9 and (far[-1], tar[-1]) == (1, 1) and (np.diff(far) > 0).all() and (np.diff(tar) >= 0).all()


def test_thresholds_of_ijb_are_marked_where_they_exist():
    figures, arrays = _templates()
    figures["Norm:True_Det:True_thresh_at_fpr_1e-06"] = None
    figures = dict(reversed(figures.items()))
    axes = _axes(set_plots("ijb", "IJBC", figures, arrays)["scores_IJBC"])
    expected = [figures[f"Norm:True_Det:True_thresh_at_fpr_{far}"] for far in FPRS[1:]]
    assert [line.get_xdata()[0] for line in axes.lines] == expected
    assert [text.get_text().split(":")[0] for text in axes.texts] == [f"FAR 1e-{power}" for power in (5, 4, 3, 2, 1)]
    assert axes.get_yscale() == "log"
    values = np.concatenate([patch.get_data()[0] for patch in axes.patches])
    low, high = axes.get_ylim()
    assert low < values[values > 0].min() and high > values.max()


def test_cmc_values():
    rank = np.random.default_rng(2).integers(1, 80, 333)
    figures, arrays = _probes(rank, np.ones(333, dtype=np.float32))
    axes = _axes(set_plots("tinyface", "tinyface", figures, arrays)["cmc_tinyface"])
    drawn = _line(axes, "333 probes")
    slow = [(k, 100 * sum(1 for one in rank if one <= k) / 333) for k in range(1, 51)]
    np.testing.assert_allclose(drawn, slow)
    for k in (1, 5, 20):
        rate = figures[f"rank-{k}"]
        np.testing.assert_array_equal(_line(axes, f"rank-{k}: {rate:.2f} %"), [(k, rate)])


def test_rates_by_norm():
    arrays = _pairs()
    axes = _axes(set_plots("verification", "lfw", {}, arrays)["norm_lfw"])
    wrong = arrays["decision"] != arrays["is_same"]
    bins = _slow_bins(np.minimum(*arrays["norm"].T), wrong)
    assert sum(hits for hits, _ in bins) == wrong.sum() > 0
    np.testing.assert_allclose(_drawn_rates(axes), [100 * hits / count for hits, count in bins])
    assert [text.get_text() for text in axes.texts] == [f"{hits}/{count}" for hits, count in bins]
    labels = [float(label.get_text()) for label in axes.get_xticklabels()]
    assert len(labels) == 11 and labels == sorted(labels)
    assert labels[0] == pytest.approx(arrays["norm"].min(), rel=0.005)
    assert labels[-1] == pytest.approx(arrays["norm"].min(axis=1).max(), rel=0.005)

    rank = np.random.default_rng(3).integers(1, 4, 95)
    norm = np.random.default_rng(4).random(95).astype(np.float32)
    axes = _axes(set_plots("tinyface", "t", *_probes(rank, norm))["norm_t"])
    bins = _slow_bins(norm, rank == 1)
    np.testing.assert_allclose(_drawn_rates(axes), [100 * hits / count for hits, count in bins])


def test_intervals_are_wilsons():
    """The ends solve (p - hits / count)^2 = z^2 p (1 - p) / count."""
    hits, counts = np.array([0, 3, 50, 99, 100]), np.array([100, 100, 50, 100, 100])
    for end in wilson(hits, counts):
        np.testing.assert_allclose((end - hits / counts) ** 2, 1.959964**2 * end * (1 - end) / counts, atol=1e-12)
    low, high = wilson(hits, counts)
    assert (low <= hits / counts + 1e-12).all() and (high >= hits / counts - 1e-12).all() and (low < high).all()


def test_steps():
    tar = "ijb.IJBC_gt_aligned.Norm:True_Det:True_tpr_at_fpr_"
    rows = [
        (200, {"verification.lfw.Accuracy-Flip": 0.9, "verification.lfw.XNorm": 9.0, f"{tar}0.0001": 80.0}),
        (100, {"verification.lfw.Accuracy-Flip": 0.8, f"{tar}0.0001": 70.0, f"{tar}1e-05": None}),
        (300, {"verification.$_$.Accuracy-Flip": 0.7, f"{tar}1e-05": 60.0, f"{tar}1e-06": 5.0}),
    ]
    plots = step_plots(rows)
    assert set(plots) == {"accuracy", "tar"}
    axes = _axes(plots["accuracy"])
    np.testing.assert_allclose(_line(axes, "lfw"), [(100, 80), (200, 90)])
    np.testing.assert_allclose(axes.lines[1].get_xydata(), [(300, 70)])
    assert all(line.get_marker() != "None" for line in axes.lines)
    axes = _axes(plots["tar"])
    np.testing.assert_allclose(_line(axes, "IJBC_gt_aligned, FAR 1e-4"), [(100, 70), (200, 80)])
    np.testing.assert_allclose(_line(axes, "IJBC_gt_aligned, FAR 1e-5"), [(300, 60)])
    assert len(axes.lines) == 2
    axes = _axes(step_plots([(7, {"tinyface.tinyface_aligned_pad_0.1.rank-1": 60.0})])["rank"])
    np.testing.assert_allclose(_line(axes, "tinyface_aligned_pad_0.1"), [(7, 60)])
    assert all(_size(png(figure)) == (504, 720) for figure in plots.values())
    assert step_plots([]) == step_plots([(1, {})]) == {}


def test_small_and_odd_sets_are_drawn():
    """Twenty pairs; no errors; one genuine pair; one class; equal norms and scores; a single probe; all found."""
    few = _pairs(20)
    equal = {**few, "score": np.full(20, 0.25), "norm": np.full((20, 2), 7, dtype=np.float32)}
    right = {**few, "decision": few["is_same"]}
    rare = {**few, "is_same": np.arange(20) == 3}
    alone = {**few, "is_same": np.ones(20, dtype=bool)}
    cases = [("verification", {}, arrays) for arrays in (_pairs(10), few, equal, right, rare, alone)]
    cases += [("ijb", *_templates(20, 1)), ("ijb", *_templates(20, 19))]
    cases += [("tinyface", *_probes([rank], np.ones(1, dtype=np.float32))) for rank in (1, 99)]
    cases.append(("tinyface", *_probes(np.ones(100, dtype=int), np.ones(100))))  # rounding puts an end below 10 of 10
    for protocol, figures, arrays in cases:
        plots = set_plots(protocol, "set_1", figures, arrays)
        assert len(plots) == {"verification": 3, "ijb": 2, "tinyface": 2}[protocol]
        assert all(_size(png(figure)) == (504, 720) for figure in plots.values())
    assert set_plots("unheard_of", "set", {}, {}) == {}


def test_pair_thresholds_are_those_of_the_folds():
    for count in (10, 19, 1203):
        expected = np.empty(count)
        for fold, (_, test) in enumerate(KFold(10, shuffle=False).split(np.empty(count))):
            expected[test] = fold
        np.testing.assert_array_equal(pair_thresholds(np.arange(10.0), count), expected)


def test_worst_errors_are_the_farthest_from_the_decision():
    arrays = _pairs()
    thresholds = pair_thresholds(arrays["threshold"], 1003)
    rejected, accepted = [], []
    for number in range(1003):
        margin = arrays["score"][number] - thresholds[number]
        if arrays["is_same"][number] and not arrays["decision"][number]:
            rejected.append((margin, number))
        if not arrays["is_same"][number] and arrays["decision"][number]:
            accepted.append((-margin, number))
    assert len(rejected) > 10 and len(accepted) > 10
    for found, slow in zip(worst_errors(arrays, 10), (rejected, accepted), strict=True):
        assert found.tolist() == [number for _, number in sorted(slow)[:10]]
    assert [len(found) for found in worst_errors(arrays, 10**6)] == [len(rejected), len(accepted)]
    assert [len(found) for found in worst_errors({**arrays, "decision": arrays["is_same"]})] == [0, 0]


class _Page(HTMLParser):
    """Tags with their attributes; every tag must be closed in its turn."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f"[{self.open[-1]}] {data}\n" if self.open else ""

    def attributes(self, tag: str, name: str) -> list[str]:
        return [attributes[name] for one, attributes in self.tags if one == tag and name in attributes]


def test_the_page_is_one_file_and_escapes_what_comes_from_outside(tmp_path):
    evil = '<script>alert("1")</script>&'
    red = np.zeros((112, 112, 3), dtype=np.uint8)
    red[..., 0] = 255
    errors = {evil: [PairError(17, red, red, 0.25, 0.3125, True)], "agedb_30": []}
    table = Table(evil, ["checkpoint", evil], [[evil, "99.1"], ["two", "99.2"]], {(1, 1)})
    plots = {f"scores_{evil}": ONE_PIXEL, "tar": ONE_PIXEL, "new_kind": ONE_PIXEL}
    write_page(tmp_path / "report.html", evil, {evil: evil}, [table], plots, errors, [evil])

    raw = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert raw.startswith("<!DOCTYPE html>") and "<script" not in raw
    assert not re.search(r"https?:|url\(|@import", raw)
    page = _Page(tmp_path / "report.html")
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"}
    # The title twice, a name and its value, a note, a table's title, column and row, a plot's caption, a set of errors.
    assert page.text.count(evil) == 10
    assert "[strong] 99.2" in page.text and page.text.count("[strong]") == 1
    links, ids = page.attributes("a", "href"), page.attributes("section", "id")
    assert links == [f"#{name}" for name in ids] == ["#about", "#notes", "#results", "#plots", "#errors"]

    images = page.attributes("img", "src")
    assert len(images) == len([alt for alt in page.attributes("img", "alt") if alt]) == 5
    data = [base64.b64decode(image.removeprefix("data:image/png;base64,"), validate=True) for image in images]
    assert data[:3] == [ONE_PIXEL] * 3
    face = cv2.imdecode(np.frombuffer(data[3], dtype=np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(face[..., ::-1], red)  # OpenCV decodes to BGR


def test_the_page_labels_errors_and_says_where_there_are_none(tmp_path):
    face = np.zeros((112, 112, 3), dtype=np.uint8)
    errors = {"lfw": [PairError(5, face, face, 0.75, 0.5, False)], "agedb_30": []}
    write_page(tmp_path / "report.html", "t", {}, [], {}, errors, [])
    page = _Page(tmp_path / "report.html")
    assert page.attributes("section", "id") == ["errors"]
    assert "[h4] Different people, accepted" in page.text and "cosine 0.750, threshold 0.500" in page.text
    assert page.text.count("The same person, rejected: none.") == 2
    assert page.text.count("Different people, accepted: none.") == 1
    assert page.attributes("img", "alt")[0] == "pair 5, first image: different people, accepted"
