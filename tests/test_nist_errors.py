"""Broken IJB folders: the error names the file, the line, what was expected, and what to do."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from nist_folders import aligned, write_small_folder

from data.nist_set import NistSet, NistSetError
from utils.errors import InputError


def in_line(name: str, number: int, change: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    """A function that damages a folder: it changes the words of line `number` (from 1) of a list."""

    def damage(folder: Path) -> None:
        path = folder / "meta" / f"ijbc_{name}.txt"
        lines = path.read_text().splitlines()
        lines[number - 1] = " ".join(change(lines[number - 1].split()))
        path.write_text("\n".join(lines) + "\n")

    return damage


def cut(name: str, end: int) -> Callable[[Path], None]:
    """A function that damages a folder: it keeps only the first `end` bytes of a list."""

    def damage(folder: Path) -> None:
        path = folder / "meta" / f"ijbc_{name}.txt"
        path.write_bytes(path.read_bytes()[:end])

    return damage


def other_prefix(folder: Path) -> None:
    shutil.copy(folder / "meta" / "ijbc_face_tid_mid.txt", folder / "meta" / "ijbb_face_tid_mid.txt")


FACES, POINTS, PAIRS = "face_tid_mid", "name_5pts_score", "template_pair_label"
DAMAGES = [
    (lambda folder: shutil.rmtree(folder / "meta"), r"set: meta has the lists of no set; .* PREFIX is ijbb or ijbc"),
    (
        other_prefix,
        r"set: meta has the lists of ijbb and ijbc; it must have those of one set: PREFIX_face_tid_mid.txt, ",
    ),
    (lambda folder: shutil.rmtree(folder / "loose_crop"), r"incomplete, .*/loose_crop missing; fetch the whole"),
    (
        lambda folder: [(folder / "meta" / f"ijbc_{name}.txt").unlink() for name in (POINTS, PAIRS)],
        r"incomplete, \S+/ijbc_name_5pts_score.txt and \S+/ijbc_template_pair_label.txt missing; fetch the whole",
    ),
    (cut(FACES, 0), r"ijbc_face_tid_mid.txt: empty .each line must have a file name, its template and its medium"),
    (
        cut(FACES, 20),
        r"ijbc_face_tid_mid.txt: line 2 is '2.jpg 1' .expected a file name, its template and its medium",
    ),
    (cut(POINTS, 250), r"ijbc_name_5pts_score.txt: line \d is .* .expected a file name, x and y of five points, the"),
    (
        cut(PAIRS, 9),
        r"ijbc_template_pair_label.txt: line 2 is '1 2' .expected two templates and a label as integers.; fetch",
    ),
    (in_line(FACES, 4, lambda words: [*words, "1"]), r"face_tid_mid.txt: line 4 is '4.jpg 2 103 1' .expected a file"),
    (in_line(POINTS, 7, lambda words: words[:-1]), r"name_5pts_score.txt: line 7 is '7.jpg 44.29.*' .expected a file"),
    (in_line(FACES, 3, lambda words: [*words[:2], "x"]), r"face_tid_mid.txt: line 3 is '3.jpg 2 x' .expected a file"),
    (in_line(PAIRS, 2, lambda words: ["1.5", "2", "0"]), r"template_pair_label.txt: line 2 is '1.5 2 0' .expected two"),
    (in_line(PAIRS, 1, lambda words: ["1", "9" * 12, "0"]), r"pair_label.txt: line 1 is '1 9{12} 0' .expected two"),
    (in_line(PAIRS, 2, lambda words: ["1", "2", "2"]), r"line 2 is '1 2 2' .expected the label 0 \(impostor\) or 1"),
    (in_line(PAIRS, 2, lambda words: ["1", "2", "-1"]), r"line 2 is '1 2 -1' .expected the label 0 \(impostor\) or 1"),
    (in_line(POINTS, 5, lambda words: [words[0], "nan", *words[2:]]), r"line 5 is '5.jpg nan .*' .expected finite"),
    (in_line(POINTS, 5, lambda words: [*words[:10], "-inf", words[11]]), r"line 5 is .* -inf .*' .expected finite"),
    (in_line(POINTS, 6, lambda words: [*words[:11], "inf"]), r"line 6 is .* inf' .expected finite numbers"),
    (
        in_line(POINTS, 2, lambda words: [words[0], *["33.3", "0.1"] * 5, "1"]),
        r"line 2 is .*expected finite numbers, and points that differ",
    ),
    (in_line(FACES, 2, lambda words: ["../2.jpg", *words[1:]]), r"line 2 is '../2.jpg 1 101' .expected a file name"),
    (
        in_line(FACES, 2, lambda words: ["/etc/2.jpg", *words[1:]]),
        r"line 2 is '/etc/2.jpg 1 101' .expected a file name",
    ),
    (
        in_line(FACES, 6, lambda words: ["2.jpg", *words[1:]]),
        r"line 6 is '2.jpg 3 105' .expected a file that no earlier",
    ),
    (in_line(POINTS, 4, lambda words: ["1.jpg", *words[1:]]), r"score.txt: line 4 is '1.jpg .* .expected a file that"),
    (
        in_line(POINTS, 4, lambda words: ["8.jpg", *words[1:]]),
        r"tid_mid.txt: line 4 is '4.jpg .* that is also in ijbc_name_5",
    ),
    (
        cut(FACES, 12),
        r"name_5pts_score.txt: line 2 is '2.jpg .* .expected a file that is also in ijbc_face_tid_mid.txt",
    ),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_an_error_names_the_broken_file_and_line_and_what_to_do(tmp_path, damage, message):
    folder = write_small_folder(tmp_path / "set")
    damage(folder)
    with pytest.raises(NistSetError, match=message):
        NistSet(folder)


def test_line_numbers_count_empty_lines_also_in_long_files(tmp_path):
    pairs = [(1, 2, 0)] * 10_000
    folder = write_small_folder(tmp_path / "set", pairs=pairs)
    path = folder / "meta" / "ijbc_template_pair_label.txt"
    for bad, expected in (("1 2", "two templates and a label"), ("1 2 7", "the label 0")):
        lines = ["1 2 0"] * 10_000
        lines[20], lines[6000], lines[9000] = "", bad, bad
        path.write_text("\n".join(lines))
        with pytest.raises(NistSetError, match=f"line 6001 is '{bad}' .expected {expected}"):
            NistSet(folder)


@pytest.mark.parametrize("name", [FACES, POINTS, PAIRS])
def test_an_error_says_how_to_convert_a_list_in_utf_16_without_a_byte_order_mark(tmp_path, name):
    folder = write_small_folder(tmp_path / "set")
    path = folder / "meta" / f"ijbc_{name}.txt"
    path.write_bytes(path.read_text().encode("utf-16-le"))
    with pytest.raises(InputError, match=rf"ijbc_{name}.txt: line 1 has a zero byte.*`iconv -f UTF-16LE -t UTF-8"):
        NistSet(folder)


def test_an_error_names_a_photo_that_cannot_be_used(tmp_path):
    folder = write_small_folder(tmp_path / "set")
    (folder / "loose_crop" / "5.jpg").write_bytes(b"no image")
    images = NistSet(folder)
    (folder / "loose_crop" / "3.jpg").unlink()
    with pytest.raises(InputError, match=r"loose_crop/3.jpg: listed in meta, but cannot be read .*fetch it again"):
        images[[0, 2]]
    with pytest.raises(InputError, match=r"loose_crop/5.jpg: its 8 bytes are not an image"):
        images[[4]]
    assert np.array_equal(images[[0]][0].numpy(), aligned(0))


@pytest.mark.parametrize(("removed", "first"), [([6], "6.jpg"), ([7, 4, 5], "4.jpg"), (range(1, 8), "1.jpg")])
def test_missing_photos_are_counted_before_any_is_read_and_the_first_is_named(tmp_path, removed, first):
    folder = write_small_folder(tmp_path / "set")
    for number in removed:
        (folder / "loose_crop" / f"{number}.jpg").unlink()
    message = f"loose_crop: {len(removed)} of the 7 photos that are listed in meta are missing, the first is '{first}'"
    with pytest.raises(NistSetError, match=message):
        NistSet(folder)
