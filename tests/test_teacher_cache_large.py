"""The file of the teacher's embeddings for 42 million images, written by ranks on several machines, and as int8."""

import json
import os
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import WARM
from runs import SCRIPTS, metrics, refused, train
from test_teacher_projection import unit_rows as float64_unit_rows
from test_teacher_projection import write_embeddings

from data import teacher_cache_writer
from data.teacher_cache import EmbeddingError, EmbeddingFile, decode, encode, row_type
from data.teacher_cache_writer import PAGE, Batches, EmbeddingWriter, gaps, share_of_rank
from data.teacher_projection import JoinedEmbeddings

TRAIN, CACHE = SCRIPTS[0], "train/cache_teacher.py"
MILLIONS = 42_000_000


def described(images: int, dimensions: int, kind: str = "float16") -> dict:
    return {"embeddings": {"shape": [images, 2, dimensions], "type": kind}, "teacher": {"network": "none"}}


@pytest.mark.parametrize(("kind", "size"), [("float16", 86_016_004_096), ("int8", 43_344_004_096)])
def test_42_million_images_take_little_memory_to_write_to_continue_and_to_read(scratch, monkeypatch, kind, size):
    """The file is sparse: only what is written takes space on the disk."""
    disk = shutil._ntuple_diskusage(10**12, 0, 10**12)
    monkeypatch.setattr(teacher_cache_writer.shutil, "disk_usage", lambda path: disk)
    path, description = scratch / "teacher.npy", described(MILLIONS, 512, kind)
    values = torch.randn(128, 2, 512, generator=torch.Generator().manual_seed(0))
    tracemalloc.start()
    with pytest.raises(KeyboardInterrupt), EmbeddingWriter(path, description) as writer:
        for first in (0, 128, MILLIONS - 128):
            writer.write(first, values)
        raise KeyboardInterrupt
    with (
        pytest.raises(EmbeddingError, match="41999616 images have no emb"),
        EmbeddingWriter(path, description) as writer,
    ):
        assert writer.remaining.tolist() == writer.share.tolist() == [[256, MILLIONS - 128]]
        batches = Batches(writer.share, 128)
        assert len(batches) == (MILLIONS - 384) / 128 and next(iter(batches)).tolist() == list(range(256, 384))
    progress = sum(file.stat().st_size for file in scratch.glob("teacher.npy.done*"))
    part = scratch / "teacher.npy.part"
    assert part.stat().st_size == size
    os.replace(part, path)
    rows = EmbeddingFile(path, description).rows(np.array([MILLIONS - 1, 1000]), np.array([True, False]))
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert torch.allclose(rows[0].float(), values[127, 1], atol=0.02) and not rows[1].any()
    assert progress < 100 and used < 4e6 and path.stat().st_blocks * 512 < 4e6


@pytest.mark.parametrize("size", [64, 1032, 2048])
@pytest.mark.parametrize("ranks", [1, 2, 5, 8])
def test_ranks_share_the_images_evenly_and_no_page(monkeypatch, ranks, size):
    rng = np.random.default_rng(ranks)
    images = 100_000
    edges = np.sort(rng.choice(images, 40, replace=False)).reshape(-1, 2)
    monkeypatch.setattr(teacher_cache_writer, "world_size", lambda: ranks)
    shares = []
    for rank in range(ranks):
        monkeypatch.setattr(teacher_cache_writer, "rank", lambda rank=rank: rank)
        share = share_of_rank(edges, images, size)
        shares.append(np.concatenate([np.arange(0), *Batches(share, 1000)]))
    assert np.array_equal(np.concatenate(shares), np.concatenate(list(Batches(edges, images))))
    pages = [set((np.add.outer(share * size, [0, size - 1]) // 4096).ravel()) for share in shares]
    assert sum(map(len, pages)) == len(set.union(*pages))
    assert max(map(len, shares)) - min(map(len, shares)) <= 2 * 4096 // np.gcd(4096, size)


def test_without_images_left_every_rank_has_an_empty_share():
    assert len(share_of_rank(np.empty((0, 2), np.int64), 100, 64)) == 0


def test_gaps_are_the_images_outside_of_all_ranges_also_if_these_overlap():
    rng = np.random.default_rng(0)
    for count in range(20):
        starts = rng.integers(0, 190, count)
        ranges = np.stack([starts, starts + rng.integers(1, 11, count)], 1)
        is_done = np.zeros(200, dtype=bool)
        for start, stop in ranges:
            is_done[start:stop] = True
        found = gaps(ranges, 200)
        left = [position for start, stop in found for position in range(start, stop)]
        assert left == np.flatnonzero(~is_done).tolist()
        assert (found[1:, 0] > found[:-1, 1]).all()


def write_as_rank(number: int, path: Path, values: torch.Tensor, stop_after: int) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{path}.ranks{stop_after}", rank=number, world_size=3
    )
    with EmbeddingWriter(path, described(len(values), values.shape[2])) as writer:
        for batch, positions in enumerate(Batches(writer.share, 4)):
            if batch == stop_after:
                writer._mark()
                os._exit(1)
            writer.write(int(positions[0]), values[positions])


def test_ranks_write_their_own_parts_and_continue_after_all_were_killed(tmp_path):
    path, values = tmp_path / "teacher.npy", torch.randn(100, 2, 512)
    for stop_after in (3, 4, 1000):
        run = [WARM.Process(target=write_as_rank, args=(number, path, values, stop_after)) for number in range(3)]
        for process in run:
            process.start()
        for process in run:
            process.join(60)
    stored = np.load(path, mmap_mode="r")
    assert stored.offset == PAGE and np.array_equal(stored, values.half().numpy())
    assert sorted(file.name for file in tmp_path.glob("teacher*")) == [
        "teacher.json", "teacher.npy", "teacher.npy.ranks1000", "teacher.npy.ranks3", "teacher.npy.ranks4",
    ]  # fmt: skip


def test_marks_that_were_cut_short_are_ignored(tmp_path):
    path = tmp_path / "teacher.npy"
    with pytest.raises(KeyboardInterrupt), EmbeddingWriter(path, described(9, 4)) as writer:
        writer.write(2, torch.ones(3, 2, 4))
        raise KeyboardInterrupt
    with open(f"{path}.done.0", "ab") as marks:
        marks.write(np.array([0, 9], np.int64).tobytes()[:12])
    with pytest.raises(KeyboardInterrupt), EmbeddingWriter(path, described(9, 4)) as writer:
        assert writer.remaining.tolist() == [[0, 2], [5, 9]]
        raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["float16", "int8"])
def test_exactly_the_bytes_of_the_rows_are_read_ahead(tmp_path, monkeypatch, kind):
    path, description = tmp_path / "teacher.npy", described(50, 6, kind)
    with EmbeddingWriter(path, description) as writer:
        writer.write(0, torch.randn(50, 2, 6))
    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, start, length, advice: asked.append((start, length)))
    positions, flips = np.array([7, 49, 0]), np.array([True, False, True])
    rows = EmbeddingFile(path, description).rows(positions, flips)
    content, row = path.read_bytes(), row_type(description)
    for (start, length), expected in zip(asked, rows, strict=True):
        stored = np.frombuffer(content[start : start + length], row.base).reshape(row.shape or ())
        assert torch.equal(decode(np.array(stored)), expected)


def int8_in_float64(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scales [...] and the rounded numbers [..., D], the slow way."""
    scales = np.zeros(values.shape[:-1])
    numbers = np.zeros(values.shape, int)
    for place in np.ndindex(scales.shape):
        scales[place] = max(abs(x) for x in values[place]) / 127
        numbers[place] = [round(x / scales[place]) for x in values[place]]
    return scales, numbers


def test_int8_rounds_to_nearest_with_one_scale_per_embedding():
    rng = np.random.default_rng(0)
    values = (rng.standard_normal((20, 2, 33)) * rng.uniform(1e-2, 1e3, (20, 2, 1))).astype(np.float32)
    stored = encode(torch.from_numpy(values), row_type(described(20, 33, "int8")))
    scales, numbers = int8_in_float64(values.astype(np.float64))
    assert np.allclose(stored["scale"], scales, rtol=1e-6) and abs(stored["row"]).max(2).min() == 127
    assert np.array_equal(stored["row"], numbers)
    restored = decode(stored)
    assert restored.dtype == torch.float16
    exact = scales[..., None] * numbers
    assert np.allclose(restored.double().numpy(), exact, rtol=2**-11 + 1e-6, atol=1e-6)
    assert (abs(exact - values) <= 0.5001 * scales[..., None]).all()


def test_the_file_of_int8_is_read_by_numpy_and_by_the_projection(tmp_path):
    reference = EmbeddingFile(write_embeddings(tmp_path / "float16.npy", 24), {})
    values = np.load(reference.path)
    description = reference.description | {"embeddings": {"shape": list(values.shape), "type": "int8"}}
    with EmbeddingWriter(tmp_path / "int8.npy", description) as writer:
        writer.write(0, torch.from_numpy(values))
    file = EmbeddingFile(tmp_path / "int8.npy", description)
    stored = np.load(file.path)
    assert stored.dtype.names == ("scale", "row") and stored["row"].dtype == np.int8 and stored.shape == (150, 2)
    assert stored.itemsize == 24 + 4
    scales, numbers = int8_in_float64(values.astype(np.float64))
    exact = scales[..., None] * numbers
    exact /= np.sqrt((exact**2).sum(2, keepdims=True))
    joined = JoinedEmbeddings([file], [1.0])
    rows = joined.unit_rows(np.arange(150), np.ones(150, bool))
    assert np.allclose(rows.numpy(), exact[:, 1], atol=1e-3)
    cosines = (exact * float64_unit_rows(reference)).sum(2)
    assert 0.9995 < cosines.min() < 0.99999
    assert joined.identity != reference.identity and file.identity.endswith("rounded to int8")


def test_training_from_int8_follows_training_from_float16(small_run, cached, tmp_path):
    """The description and the type must agree; a run is not resumed with the other type."""
    file = f"teacher_embeddings={tmp_path / 'int8.npy'}"
    steps = ["max_steps=2", "dtype=float32", "val_eval_every_n_epoch=0", "checkpoint_every=1"]
    train(TRAIN, [*small_run, *steps], tmp_path / "float16", f"teacher_embeddings={cached}")
    train(TRAIN, [*small_run, *steps], tmp_path / "int8", file, "teacher_embeddings_type=int8")
    one, other = (metrics(tmp_path / name) for name in ("float16", "int8"))
    assert 0 < abs(one[0]["conf_t"] - other[0]["conf_t"]) < 1e-3 and abs(one[0]["loss"] / other[0]["loss"] - 1) < 1e-3
    assert json.loads((tmp_path / "int8.json").read_text())["embeddings"]["type"] == "int8"
    hint = r"embeddings\.type is 'int8', not 'float16'\. .*set teacher_embeddings_type to its type"
    refused(CACHE, *small_run, file, words=hint)
    resumed = [*small_run, *steps, f"teacher_embeddings={cached}", f"output={tmp_path / 'int8'}", "resume=auto"]
    refused(TRAIN, *resumed, "max_steps=3", words="rounded to int8")
