"""What plots show, compared with counting in plain Python and with scikit-learn."""

import warnings
from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from matplotlib.axes import Axes
from scored_sets import scored_pairs, scored_probes, scored_templates
from sklearn.metrics import roc_curve

from eval.drawing import to_png
from eval.ijb import FPRS, VARIANTS
from eval.report.plots import Plot, set_plots, step_plots


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def _axes(plot: Plot) -> Axes:
    figure = plot.figure
    assert figure.get_suptitle().replace(r"\$", "$") == plot.caption
    assert len(figure.axes) == 1 and figure.axes[0].get_xlabel() and figure.axes[0].get_ylabel()
    assert not figure.axes[0].get_legend() and figure.legends  # the legend is below the axes, not over the data
    return figure.axes[0]


def _size(data: bytes) -> tuple[int, int]:
    return cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR).shape[:2]


def _line(axes: Axes, label: str) -> np.ndarray:
    return next(line for line in axes.lines if line.get_label() == label).get_xydata()


def _tar_at(line: np.ndarray, far: float) -> float:
    """y of a line drawn in steps (where="post")."""
    return line[line[:, 0] <= far][-1, 1]


def _slow_bins(norm: np.ndarray, hit: np.ndarray) -> list[tuple[int, int]]:
    """(hits, count) of each of ten bins; the first bins may be larger by one."""
    ordered = sorted(range(len(norm)), key=lambda number: (norm[number], number))
    bins = []
    for place in range(10):
        size = len(norm) // 10 + (place < len(norm) % 10)
        members, ordered = ordered[:size], ordered[size:]
        bins.append((sum(bool(hit[number]) for number in members), size))
    return bins


def _drawn_rates(axes: Axes) -> list[float]:
    return list(axes.containers[0].lines[0].get_ydata())


def test_histograms_have_area_1_and_the_shape_of_the_scores():
    arrays = scored_pairs()
    axes = _axes(set_plots("verification", "lfw", {}, arrays)["scores_lfw"])
    for patch, members in zip(axes.patches, (arrays["is_same"], ~arrays["is_same"]), strict=False):
        values, edges, _ = patch.get_data()
        assert (values * np.diff(edges)).sum() == pytest.approx(1)
        fullest = int(values.argmax())
        inside = (arrays["score"][members] >= edges[fullest]) & (arrays["score"][members] < edges[fullest + 1])
        assert values[fullest] * (edges[1] - edges[0]) == pytest.approx(inside.mean())
        assert f"({members.sum()} pairs)" in patch.get_label()
    assert axes.lines[0].get_xdata()[0] == pytest.approx(0.345)
    assert axes.lines[0].get_label() == "threshold 0.345 (0.300 to 0.390 over folds)"
    assert axes.patches[2].get_x() == pytest.approx(0.3) and axes.patches[2].get_width() == pytest.approx(0.09)


def test_the_roc_line_equals_that_of_scikit_learn():
    metrics, arrays = scored_templates()
    axes = _axes(set_plots("ijb", "IJBC", metrics, arrays)["roc_IJBC"])
    assert axes.get_xscale() == "log" and axes.get_xlim() == (1e-6, 1)
    for number, variant in enumerate(VARIANTS):
        fpr, tpr, _ = roc_curve(arrays["label"], arrays[f"{variant}.score"], drop_intermediate=False)
        line = _line(axes, variant)
        assert axes.lines[2 * number].get_drawstyle() == "steps-post"
        for far in (*FPRS, 3e-5, 7e-4, 0.5, 1):
            assert _tar_at(line, far) == pytest.approx(100 * tpr[fpr <= far].max(), abs=1e-9)
        markers = axes.lines[2 * number + 1].get_xydata()
        expected = [(far, metrics[f"{variant}_tpr_at_fpr_{far}"]) for far in FPRS]
        np.testing.assert_array_equal(markers, expected)


def test_the_roc_plot_of_a_verification_set():
    arrays = scored_pairs()
    metrics = {"TAR_at_FAR_0.01": 0.25, "TAR_at_FAR_0.001": None, "AUC": 0.9}
    axes = _axes(set_plots("verification", "lfw", metrics, arrays)["roc_lfw"])
    fpr, tpr, _ = roc_curve(arrays["is_same"], arrays["score"], drop_intermediate=False)
    assert _tar_at(axes.lines[0].get_xydata(), 0.05) == pytest.approx(100 * tpr[fpr <= 0.05].max())
    np.testing.assert_array_equal(axes.lines[1].get_xydata(), [(0.01, 25)])
    assert axes.patches[0].get_label() == "not measurable: FAR below 1 / number of impostor pairs"
    assert axes.patches[0].get_width() == pytest.approx(1 / (~arrays["is_same"]).sum() - 1e-4)


def test_finite_thresholds_of_ijb_are_marked():
    metrics, arrays = scored_templates()
    metrics["Norm:True_Det:True_thresh_at_fpr_1e-06"] = None
    metrics = dict(reversed(metrics.items()))
    axes = _axes(set_plots("ijb", "IJBC", metrics, arrays)["scores_IJBC"])
    expected = [metrics[f"Norm:True_Det:True_thresh_at_fpr_{far}"] for far in FPRS[1:]]
    assert [line.get_xdata()[0] for line in axes.lines] == expected
    assert [text.get_text().split(":")[0] for text in axes.texts] == [
        "FAR 1e-5 (not measurable)",
        *(f"FAR 1e-{power}" for power in (4, 3, 2, 1)),
    ]
    assert axes.get_yscale() == "log"
    values = np.concatenate([patch.get_data()[0] for patch in axes.patches])
    low, high = axes.get_ylim()
    assert low < values[values > 0].min() and high > values.max()


def test_the_cmc_line_equals_that_of_counting():
    rank = np.random.default_rng(2).integers(1, 80, 333)
    metrics, arrays = scored_probes(rank, np.ones(333, dtype=np.float32))
    axes = _axes(set_plots("tinyface", "tinyface", metrics, arrays)["cmc_tinyface"])
    drawn = _line(axes, "333 probes")
    slow = [(k, 100 * sum(1 for one in rank if one <= k) / 333) for k in range(1, 51)]
    np.testing.assert_allclose(drawn, slow)
    for k in (1, 5, 20):
        rate = metrics[f"rank-{k}"]
        np.testing.assert_array_equal(_line(axes, f"rank-{k}: {rate:.2f} %"), [(k, rate)])


def test_rates_by_norm_equal_those_of_counting():
    arrays = scored_pairs()
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
    axes = _axes(set_plots("tinyface", "t", *scored_probes(rank, norm))["norm_t"])
    bins = _slow_bins(norm, rank == 1)
    np.testing.assert_allclose(_drawn_rates(axes), [100 * hits / count for hits, count in bins])


def test_plots_over_steps_show_every_set_at_its_steps():
    tar = "Norm:True_Det:True_tpr_at_fpr_"
    rows = [
        (200, {"verification": {"lfw": {"Accuracy-Flip": 0.9, "XNorm": 9.0}}, "ijb": {"IJBC": {f"{tar}0.0001": 80.0}}}),
        (
            100,
            {
                "verification": {"lfw": {"Accuracy-Flip": 0.8}},
                "ijb": {"IJBC": {f"{tar}0.0001": 70.0, f"{tar}1e-05": None}},
            },
        ),
        (
            300,
            {
                "verification": {"$_$": {"Accuracy-Flip": 0.7}},
                "ijb": {"IJBC": {f"{tar}1e-05": 60.0, f"{tar}1e-06": 5.0}},
            },
        ),
    ]
    plots = step_plots(rows)
    assert {stem: plot.caption for stem, plot in plots.items()} == {
        "accuracy": "verification accuracy over steps",
        "tar": "TAR over steps",
    }
    axes = _axes(plots["accuracy"])
    np.testing.assert_allclose(_line(axes, "lfw"), [(100, 80), (200, 90)])
    np.testing.assert_allclose(axes.lines[1].get_xydata(), [(300, 70)])
    assert all(line.get_marker() != "None" for line in axes.lines)
    axes = _axes(plots["tar"])
    np.testing.assert_allclose(_line(axes, "IJBC, FAR 1e-4"), [(100, 70), (200, 80)])
    np.testing.assert_allclose(_line(axes, "IJBC, FAR 1e-5"), [(300, 60)])
    assert len(axes.lines) == 2
    axes = _axes(step_plots([(7, {"tinyface": {"tinyface_aligned_pad_0.1": {"rank-1": 60.0}}})])["rank"])
    np.testing.assert_allclose(_line(axes, "tinyface_aligned_pad_0.1"), [(7, 60)])
    assert all(_size(to_png(plot.figure)) == (504, 720) for plot in plots.values())
    assert step_plots([]) == step_plots([(1, {})]) == {}


def test_small_and_unusual_sets_are_drawn():
    """Few pairs, no errors, one genuine pair, one class, equal norms and scores, a single probe, all probes found."""
    few = scored_pairs(20)
    equal = {**few, "score": np.full(20, 0.25), "norm": np.full((20, 2), 7, dtype=np.float32)}
    right = {**few, "decision": few["is_same"]}
    rare = {**few, "is_same": np.arange(20) == 3}
    alone = {**few, "is_same": np.ones(20, dtype=bool)}
    cases = [("verification", {}, arrays) for arrays in (scored_pairs(10), few, equal, right, rare, alone)]
    cases += [("ijb", *scored_templates(20, 1)), ("ijb", *scored_templates(20, 19))]
    cases += [("tinyface", *scored_probes([rank], np.ones(1, dtype=np.float32))) for rank in (1, 99)]
    # Here rounding puts the upper end of an interval below the rate of 10 out of 10.
    cases.append(("tinyface", *scored_probes(np.ones(100, dtype=int), np.ones(100))))
    for protocol, metrics, arrays in cases:
        plots = set_plots(protocol, "set_1", metrics, arrays)
        assert len(plots) == {"verification": 4, "ijb": 2, "tinyface": 2}[protocol]
        assert all(_size(to_png(plot.figure)) == (504, 720) for plot in plots.values())
        assert all(plot.caption.startswith("set_1: ") for plot in plots.values())
