"""Projected and joined embeddings of teachers: their arithmetic, compared with NumPy's in float64, and their file."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import WARM
from safetensors.torch import load_file, save_file

from data.pairs import Pairs, sample_pairs, sample_positions
from data.teacher_cache import EmbeddingError, EmbeddingFile
from data.teacher_projection import (
    JoinedEmbeddings,
    Projection,
    describe_changes,
    describe_projection,
    fit_projection,
    read_projection,
    second_moment,
    write_projection,
)

IMAGES = 150


def write_embeddings(path: Path, dimensions: int, seed: int = 0, **sections) -> Path:
    """A file of random embeddings of several lengths, not centered, with more energy in some directions."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.standard_normal((dimensions, dimensions)))[0] * np.geomspace(1, 0.05, dimensions)
    values = (rng.standard_normal((IMAGES, 2, dimensions)) + 0.3) @ directions * rng.uniform(1, 20, (IMAGES, 2, 1))
    np.save(path, values.astype(np.float16))
    description = {"embeddings": {"shape": list(values.shape), "type": "float16"}, "teacher": {}, **sections}
    path.with_suffix(".json").write_text(json.dumps(description))
    return path


@pytest.fixture
def files(tmp_path) -> list[EmbeddingFile]:
    """The files of two teachers, with 24 and 10 dimensions."""
    paths = [write_embeddings(tmp_path / f"{size}.npy", size, seed=size) for size in (24, 10)]
    return [EmbeddingFile(path, {}) for path in paths]


def unit_rows(file: EmbeddingFile) -> np.ndarray:
    """The embeddings in the file with length 1, float64 [images, 2, D]."""
    stored = np.load(file.path).astype(np.float64)
    return stored / np.sqrt((stored**2).sum(2, keepdims=True))


def fit(embeddings: JoinedEmbeddings, size: int, chunk: int = IMAGES) -> tuple[torch.Tensor, float]:
    return fit_projection(second_moment(embeddings, IMAGES, chunk), size)


@pytest.mark.parametrize("size", [1, 7, 24])
def test_the_projection_keeps_the_first_right_singular_vectors_of_all_unit_embeddings(files, size):
    matrix, energy = fit(JoinedEmbeddings(files[:1], [1.0]), size, 37)
    _, values, vectors = np.linalg.svd(unit_rows(files[0]).reshape(-1, 24))
    assert energy == pytest.approx((values[:size] ** 2).sum() / (values**2).sum(), rel=1e-12)
    assert (values[:-1] / values[1:]).min() > 1.001  # otherwise the order of the vectors would be undefined
    expected = vectors[:size].T
    expected *= np.sign([column[abs(column).argmax()] for column in expected.T])
    assert matrix.dtype == torch.float64 and np.allclose(matrix.numpy(), expected, atol=1e-9)
    assert (matrix.max(0).values == matrix.abs().max(0).values).all()  # the sign


def save_moment_as_rank(number: int, embeddings: JoinedEmbeddings, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=number, world_size=2)
    torch.save(second_moment(embeddings, IMAGES, 17), folder / f"{number}.pt")


def test_the_second_moment_is_bit_equal_on_every_number_of_ranks(files, tmp_path):
    """Nine chunks: in the last round, the second rank has none."""
    joined = JoinedEmbeddings(files, [0.5, 0.5])
    ranks = [WARM.Process(target=save_moment_as_rank, args=(number, joined, tmp_path)) for number in range(2)]
    for process in ranks:
        process.start()
    alone = second_moment(joined, IMAGES, 17)
    for number, process in enumerate(ranks):
        process.join(60)
        assert process.exitcode == 0
        assert torch.equal(torch.load(tmp_path / f"{number}.pt"), alone)
    units = np.concatenate([unit_rows(file).reshape(-1, file.dimensions) for file in files], 1) * 0.5**0.5
    assert np.allclose(alone, units.T @ units, rtol=1e-12)


def test_the_cosine_of_joined_embeddings_is_the_weighted_mean_of_the_cosines_of_the_teachers(files):
    shares = [0.25, 0.75]
    joined = JoinedEmbeddings(files, shares)
    matrix, energy = fit(joined, 34)
    positions, flips = np.arange(IMAGES), np.arange(IMAGES) % 2 == 1
    first, second = (unit_rows(file)[positions, flips.astype(int)] for file in files)
    expected = 0.25 * first @ first.T + 0.75 * second @ second.T
    rows = joined.unit_rows(positions, flips).numpy()
    assert np.allclose(rows @ rows.T, expected, atol=1e-12) and np.allclose(np.diag(expected), 1)
    turned = JoinedEmbeddings(files, shares, Projection(matrix, {}))  # as many dimensions as before: a rotation
    for embeddings in (joined, turned):
        rounded = embeddings.rows(positions, flips)
        assert rounded.dtype == torch.float16 and rounded.shape == (IMAGES, 34)
        assert np.allclose(rounded.double() @ rounded.double().T, expected, atol=2e-3)
    assert energy == pytest.approx(1)


def test_rows_are_projected_one_by_one_whatever_the_batch(files):
    joined = JoinedEmbeddings(files, [0.5, 0.5])
    projected = JoinedEmbeddings(files, [0.5, 0.5], Projection(fit(joined, 5, 50)[0], {}))
    positions, flips = np.array([140, 3, 3, 77]), np.array([True, False, True, False])
    together = projected.rows(positions, flips)
    units = np.concatenate([unit_rows(file)[positions, flips.astype(int)] for file in files], 1) * 0.5**0.5
    assert np.array_equal(together.numpy(), (units @ projected.projection.matrix.numpy()).astype(np.float16))
    alone = [projected.rows(positions[[row]], flips[[row]]) for row in range(4)]
    assert torch.equal(torch.cat(alone), together)


def test_the_changes_of_cosines_are_those_of_the_pairs(files):
    labels = np.repeat(np.arange(50), 3)
    pairs = sample_pairs(np.arange(IMAGES), labels, 40, np.random.default_rng(0))
    joined = JoinedEmbeddings(files[:1], [1.0])
    matrix, energy = fit(joined, 4)
    changes = describe_changes(joined, matrix, pairs)
    rows = unit_rows(files[0])[:, 0]
    projected = rows @ matrix.numpy()
    for kind in ("same", "different"):
        before, after = [], []
        for one, other in getattr(pairs, kind):
            before.append(rows[one] @ rows[other])
            lengths = np.linalg.norm(projected[one]) * np.linalg.norm(projected[other])
            after.append(projected[one] @ projected[other] / lengths)
        change = abs(np.subtract(after, before))
        expected = dict(pairs=len(change), before=np.mean(before), after=np.mean(after), mean_change=change.mean())
        assert changes[kind] == pytest.approx({**expected, "largest_change": change.max()})
    description = {**joined.describe(4), "about": {"energy": energy, "cosines": changes}}
    line = describe_projection(description)
    assert line.startswith(f"from 24 to 4 dimensions: {100 * energy:.2f}% of the energy kept; cosines of 40 pairs of")
    assert f"of two identities: mean {np.mean(before):.3f}, now {np.mean(after):.3f}, changed by" in line


def test_a_set_without_pairs_has_no_changes_of_cosines(files):
    none = Pairs(*np.zeros((2, 0, 2), dtype=np.int64))
    assert describe_changes(JoinedEmbeddings(files, [0.5, 0.5]), torch.eye(34, dtype=torch.float64), none) == {}


def test_positions_for_pairs_are_runs_from_a_large_set_and_all_of_a_small_one():
    assert np.array_equal(sample_positions(160, 10, np.random.default_rng(0)), np.arange(160))
    positions = sample_positions(10**6, 10, np.random.default_rng(0))
    assert 160 < len(positions) <= 10 * 16 + 128 and (np.diff(positions) > 0).all() and positions[-1] < 10**6
    assert (np.diff(positions) == 1).sum() >= 100


def test_embeddings_that_are_not_finite_are_refused(tmp_path):
    path = write_embeddings(tmp_path / "nan.npy", 6)
    stored = np.load(path)
    stored[9, 1, 2] = np.nan
    np.save(path, stored)
    with pytest.raises(EmbeddingError, match=r"nan\.npy: contains embeddings that are not finite"):
        fit(JoinedEmbeddings([EmbeddingFile(path, {})], [1.0]), 3)


def test_a_stored_projection_is_read_back_bit_for_bit_and_damage_is_noticed(tmp_path):
    matrix = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    projection = Projection(
        matrix, {"projection": {"dimensions": [6, 3]}, "about": {"energy": 0.9, "cosines": {}, "run": "naïve"}}
    )
    path = tmp_path / "a.pca3.safetensors"
    write_projection(path, projection)
    complete, read = path.read_bytes(), read_projection(path)
    assert torch.equal(read.matrix, matrix) and read.description == projection.description
    assert torch.equal(load_file(path)["matrix"], matrix)  # any reader of safetensors can read it
    for _ in range(5):
        write_projection(path, read)
        assert path.read_bytes() == complete
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    for at in range(0, len(complete), 5):
        path.write_bytes(complete[:at] + bytes([complete[at] ^ 1]) + complete[at + 1 :])
        with pytest.raises(EmbeddingError, match=r"a\.pca3\.safetensors: .*; remove it to fit it again"):
            read_projection(path)
    for content in (b"", b"text", complete[:-1], complete[:40]):
        path.write_bytes(content)
        with pytest.raises(EmbeddingError, match=r"a\.pca3\.safetensors: not a projection of embeddings, or broken"):
            read_projection(path)
    sizes = {"dimensions": [6, 3]}
    for description in (
        [], {**read.description, "projection": {"dimensions": [3, 6]}}, {"projection": sizes},
        {**read.description, "embeddings 1": []}, {**read.description, "about": {"energy": "x", "cosines": {}}},
    ):  # fmt: skip
        write_projection(path, Projection(matrix, description))
        with pytest.raises(EmbeddingError, match=r"a\.pca3\.safetensors: not a projection"):
            read_projection(path)
    for metadata in (None, {"description": "0 {}"}, {"other": ""}):
        save_file({"matrix": matrix}, path, metadata)
        with pytest.raises(EmbeddingError, match=r"a\.pca3\.safetensors: not a projection"):
            read_projection(path)
