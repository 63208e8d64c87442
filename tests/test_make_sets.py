"""tools/make_rec.py and tools/make_bin.py as users run them."""

import os
import pickle
import re

import numpy as np
import pytest
import torch
from conftest import run_script
from training_sets import image_of, png, write_folder_set

from data.bin_set import read_bin, write_bin
from data.dataset import RecordDataset
from data.folder_set import FolderDataset
from eval.embeddings import Embeddings
from eval.verification import PROTOCOL


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


def make_bin(folder, text, *more):
    """Run make_bin.py on a list with these bytes."""
    (folder / "pairs.txt").write_bytes(text)
    return run_script("tools/make_bin.py", "pairs.txt", "set.bin", "--root", "faces", *more, cwd=folder)


def lfw_list(folder, change=lambda lines: lines):
    """Two folds of three genuine and three impostor pairs of three persons, as in xqlfw_pairs.txt, and their images."""
    write_folder_set(folder / "faces", {"Ann_Lee": 3, "Bo": 2, "Cy_Old": 2})
    for path in sorted((folder / "faces").glob("*/*.png")):
        number = int(path.stem) + 1
        kind = ".jpg" if number == 2 else ".png"  # the content decides the format, not the ending
        path.rename(path.with_name(f"{path.parent.name}_{number:04d}{kind}"))
    genuine = ["Ann_Lee\t1\t3", "Bo\t2\t1", "Cy_Old\t1\t2"]
    impostor = ["Cy_Old\t1\tAnn_Lee\t2", "Bo\t1\tCy_Old\t2", "Ann_Lee\t3\tBo\t2"]
    lines = ["2\t3", *genuine, *impostor, *genuine, *impostor]
    (folder / "xqlfw_pairs.txt").write_text("\n".join(change(lines)) + "\n")
    return run_script("tools/make_bin.py", "xqlfw_pairs.txt", "xqlfw.bin", "--root", "faces", cwd=folder)


def test_the_list_of_xqlfw_becomes_a_set_with_identities_that_is_scored(tmp_path):
    done = lfw_list(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "xqlfw.bin: 12 pairs, 6 of them same, 3 identities"
    made = read_bin(tmp_path / "xqlfw.bin")
    flags = ([True] * 3 + [False] * 3) * 2
    assert made.is_same.tolist() == flags
    assert made.identities.tolist() == [0, 0, 1, 1, 2, 2, 2, 0, 1, 2, 0, 1] * 2
    expected = [0, 2, 4, 3, 5, 6, 5, 1, 3, 6, 2, 4] * 2  # positions in the folder
    assert np.array_equal(made[range(24)].numpy(), np.stack([image_of(number) for number in expected]))
    with open(tmp_path / "xqlfw.bin", "rb") as file:  # as other readers do
        encoded, is_same = pickle.load(file)  # noqa: S301 (written here)
    assert encoded == made.encoded and is_same == flags

    opened = PROTOCOL.open(tmp_path / "xqlfw.bin")
    embeddings = np.random.default_rng(0).standard_normal((24, 8)).astype(np.float32)
    metrics, _ = PROTOCOL.score(opened, Embeddings(embeddings, np.ones(24, dtype=np.float32)))
    assert metrics["identities"] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], "xqlfw_pairs.txt: has 11 pairs, but its first line announces 12"),
        (
            lambda lines: [*lines[:4], "Cy_Old 1 Ann_Lee", *lines[5:]],
            "line 5 is 'Cy_Old 1 Ann_Lee' (expected a person and a number, twice)",
        ),
        (lambda lines: [lines[0], "Bo\t1\tx", *lines[2:]], "(expected a person and two numbers)"),
        (lambda lines: [lines[0], "Bo\t1\t9", *lines[2:]], "line 2: faces/Bo/Bo_0009.jpg: no such file"),
    ],
)
def test_a_wrong_list_in_lfws_form_is_refused(tmp_path, change, message):
    done = lfw_list(tmp_path, change)
    assert done.returncode == 2 and message in done.stderr and not (tmp_path / "xqlfw.bin").exists(), done.stderr


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be with a mark"])
def test_a_list_with_a_byte_order_mark_names_the_same_files(tmp_path, encoding):
    write_folder_set(tmp_path / "faces", {"Zoë\u3000李": 2})  # in text, U+3000 counts as a space
    text = "Zoë\u3000李/000.png Zoë\u3000李/001.png 1\r\n"
    mark = "\ufeff" if "with a mark" in encoding else ""
    done = make_bin(tmp_path, (mark + text).encode(encoding.split()[0]))
    assert done.returncode == 0, done.stderr
    assert np.array_equal(read_bin(tmp_path / "set.bin")[[0, 1]].numpy(), np.stack([image_of(0), image_of(1)]))


def test_a_list_names_files_by_their_bytes_or_says_how_to_convert_it(tmp_path):
    folder = write_folder_set(tmp_path / "faces", {"a": 2}) / "a"
    name = "李".encode("gbk")
    (folder / "000.png").rename(folder / os.fsdecode(name))
    done = make_bin(tmp_path, b"a/" + name + b" a/001.png 0\n")
    assert done.returncode == 0, done.stderr
    assert np.array_equal(read_bin(tmp_path / "set.bin")[[0]].numpy()[0], image_of(0))
    (folder / os.fsdecode(name)).rename(folder / "李")
    done = make_bin(tmp_path, b"a/001.png a/001.png 1\na/" + name + b" a/001.png 0\n")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert re.search(r"pairs\.txt: line 2: .*not UTF-8; .*`iconv -f GBK -t UTF-8 pairs\.txt", done.stderr)
    done = make_bin(tmp_path, "a/李 a/001.png 0\n".encode("utf-16-le"))  # without a byte order mark
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert re.search(r"pairs\.txt: line 1 has a zero byte.*`iconv -f UTF-16LE -t UTF-8 pairs\.txt", done.stderr)
    done = make_bin(tmp_path, b"a/001.png a/none.png 0\n")
    assert done.returncode == 2 and "pairs.txt: line 1: faces/a/none.png: no such file; paths are" in done.stderr


@pytest.mark.parametrize("script", ["tools/make_rec.py", "tools/make_bin.py"])
def test_images_of_another_size_are_refused_or_resized_as_evaluation_does(tmp_path, script):
    folder = write_folder_set(tmp_path / "faces", {"a": 2})
    wide = np.random.default_rng(9).integers(0, 256, (130, 200, 3), dtype=np.uint8)
    (folder / "a" / "001.png").write_bytes(png(wide))
    (tmp_path / "pairs.txt").write_text("a/000.png a/001.png 1\n")
    of_script = {
        "tools/make_rec.py": [folder, tmp_path / "set"],
        "tools/make_bin.py": [tmp_path / "pairs.txt", tmp_path / "set.bin", "--root", folder],
    }
    arguments = of_script[script]
    done = run_script(script, *arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for part in ("faces/a/001.png: 200x130 pixels", "aligned to 112x112", "docs/data.md", "--resize"):
        assert part in done.stderr
    done = run_script(script, *arguments, "--resize")
    assert done.returncode == 0 and "; resized to 112x112: 1 images" in done.stdout
    made = RecordDataset(tmp_path / "set") if script.endswith("rec.py") else read_bin(tmp_path / "set.bin")
    write_bin(tmp_path / "original.bin", [png(image_of(0)), png(wide)], [True])
    assert torch.equal(made[np.arange(2)], read_bin(tmp_path / "original.bin")[[0, 1]])
    words = " ".join(run_script(script, "--help").stdout.split())
    assert 'faces of 112x112 pixels, aligned by five points like those of InsightFace: docs/data.md, "Align' in words


def test_make_rec_says_what_it_left_out(tmp_path):
    folder = write_folder_set(tmp_path / "faces", {"a": 2})
    (folder / "__MACOSX").mkdir()
    (folder / "a" / "notes.txt").write_text("")
    done = run_script("tools/make_rec.py", folder, tmp_path / "set")
    assert done.returncode == 0, done.stderr
    expected = "files that are not images (1), hidden entries and entries created by tools (1)"
    assert done.stdout.splitlines()[-1] == f"left out of {folder}: {expected}"
