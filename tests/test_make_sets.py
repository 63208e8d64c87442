"""tools/make_rec.py and tools/make_bin.py as users run them."""

import numpy as np
import pytest
import torch
from conftest import run_script
from training_sets import image_of, write_folder_set

from data.bin_set import read_bin
from data.dataset import RecordDataset
from data.folder_set import FolderDataset


@pytest.mark.parametrize("sample", [0, 2])
def test_make_rec_writes_the_images_and_labels_of_a_folder(tmp_path, sample):
    write_folder_set(tmp_path / "faces", {"a": 3, "b": 1, "c": 2, "d": 4})
    done = run_script("tools/make_rec.py", "faces", "set", "--sample", sample, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder, records = FolderDataset(tmp_path / "faces", sample), RecordDataset(tmp_path / "set")
    assert f"{len(folder)} images of 4 identities" in done.stdout
    assert (len(records), records.num_classes) == (len(folder), 4)
    everything = np.arange(len(folder))
    assert torch.equal(folder[everything], records[everything])
    assert np.array_equal(folder.read_labels(everything), records.read_labels(everything))
    assert (tmp_path / "set" / "property").read_text() == "4,112,112"
    end = len(folder) + 1
    assert records.reader.read(0)[0].label.tolist() == [end, end + 4]
    for identity in range(4):
        first, last = records.reader.read(end + identity)[0].label
        assert set(folder.labels[int(first) - 1 : int(last) - 1]) == {identity}
        assert last - first == (folder.labels == identity).sum()


def test_make_rec_names_a_broken_image_and_writes_no_set(tmp_path):
    folder = write_folder_set(tmp_path / "faces", {"a": 2})
    (folder / "a" / "001.png").write_bytes(b"no image")
    done = run_script("tools/make_rec.py", folder, tmp_path / "set", cwd="/")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "faces/a/001.png" in done.stderr.splitlines()[-1]
    assert list((tmp_path / "set").iterdir()) == []


def test_make_bin_writes_a_set_that_reads_back(tmp_path):
    write_folder_set(tmp_path / "faces", {"a": 2, "b": 2})
    (tmp_path / "pairs.txt").write_text("a/000.png a/001.png 1\n\na/000.png\tb/001.png\t0\n")
    done = run_script("tools/make_bin.py", "pairs.txt", "out/set.bin", "--root", "faces", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = read_bin(tmp_path / "out" / "set.bin")
    assert made.is_same.tolist() == [True, False]
    assert np.array_equal(made[range(4)].numpy(), np.stack([image_of(number) for number in (0, 1, 0, 3)]))


def test_make_bin_names_a_line_that_is_not_a_pair(tmp_path):
    (tmp_path / "pairs.txt").write_text("\na b yes\n")
    done = run_script("tools/make_bin.py", "pairs.txt", "set.bin", cwd=tmp_path)
    assert done.returncode == 2
    assert "pairs.txt: line 2 " in done.stderr.splitlines()[-1]
    assert not (tmp_path / "set.bin").exists()
