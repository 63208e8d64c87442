"""Files and overrides with values that no reader can use: offsets, labels, descriptions, results."""

import numpy as np
import pytest
from fuzz_targets import record_files, saved

from config import BASE, ConfigError, load_config
from data.dataset import DataError, RecordDataset
from data.record_index import RecordError
from data.recordio import IndexedRecordReader, RecordWriter
from data.teacher_cache import EmbeddingError, EmbeddingFile
from eval.report.results import read_json
from utils.errors import InputError


@pytest.mark.parametrize("offset", [2**63 - 4, 2**63 - 8, 2**62, -4, 10**30])
def test_an_index_with_impossible_offsets_is_refused(tmp_path, offset):
    record_files(tmp_path)
    (tmp_path / "train.idx").write_text(f"0\t0\n1\t{offset}\n")
    with pytest.raises(
        RecordError, match=r"train\.idx: key 1 points to byte|train\.idx: the index has lines other than"
    ):
        IndexedRecordReader(tmp_path / "train.rec", tmp_path / "train.idx")


@pytest.mark.parametrize(
    "labels",
    [[float("nan"), 5.0], [3.0, float("inf")], [1e38, 3e38], [3.0, 3.0], float("inf"), float("nan"), -1.0, 1e30],
)
def test_labels_that_cannot_be_identities_are_refused(tmp_path, labels):
    with RecordWriter(tmp_path / "train") as writer:
        writer.write(0, labels, b"")
        for key in (1, 2):
            writer.write(key, labels if isinstance(labels, float) else 0.0, b"x")
    with pytest.raises(DataError, match=r"train\.(rec|idx): "):
        RecordDataset(tmp_path)


@pytest.mark.parametrize(
    "override",
    [
        "s={1: 2}",
        "s=0x" + "f" * 2990,
        f"lr={10**400}",
        f"batch_size={2**63}",
        "rec=~a\0b",
        "rec=~\ud800",
        "rec=a\0b",
        "s=" + "-" * 2900 + "1",
        "s=" + "1" * 100_000,
        "s=" + "(" * 100_000,
        "lr_milestones=" + "1+" * 1400 + "1",
        "x" * 100_000 + "=1",
    ],
    ids=lambda text: text[:20].encode("unicode_escape").decode(),
)
def test_an_override_with_an_impossible_value_is_refused(override):
    with pytest.raises(ConfigError) as error:
        load_config(BASE, [override])
    str(error.value)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("e.npy", saved(np.savez, a=np.zeros(3))),
        ("e.npy", saved(np.save, np.array([{}], dtype=object), allow_pickle=True)),
        ("e.json", b'{"embeddings": {"shape": [1, 2, 3]}, "teacher": []}'),
        ("e.json", b'{"embeddings": {"shape": [Infinity, 2, 3]}}'),
        ("e.json", b"[" * 100_000),
        ("e.json", b'{"embeddings": {"shape": [' + b"1" * 9999 + b", 2, 3]}}"),
    ],
    ids=range(6),
)
def test_broken_embeddings_or_descriptions_are_refused(tmp_path, file, content):
    (tmp_path / "e.npy").write_bytes(saved(np.save, np.zeros((1, 2, 3), np.float16)))
    (tmp_path / "e.json").write_text('{"embeddings": {"shape": [1, 2, 3], "type": "float16"}, "teacher": {"x": 1}}')
    EmbeddingFile(tmp_path / "e.npy", {"teacher": {"x": 1}})
    (tmp_path / file).write_bytes(content)
    with pytest.raises(EmbeddingError, match=r"e\.(npy|json): "):
        EmbeddingFile(tmp_path / "e.npy", {"teacher": {"x": 1}})


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        '{"about": ' + "1" * 9999 + "}",
        '{"a": {"b": {"c": "x"}}, "about": 1, "absent": [], "failed": []}',
    ],
)
def test_files_that_hold_no_results_are_refused(tmp_path, content):
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(InputError, match=r"r\.json: holds no results"):
        read_json(tmp_path / "r.json")
