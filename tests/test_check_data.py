"""tools/check_data.py on record sets: it finds and names everything that is wrong with a set."""

import struct

import cv2
import numpy as np
import pytest
from checked_sets import LABELS, check, drawn_faces, write_cvlface_set
from conftest import run_script

from data.recordio import MAGIC, RecordWriter, write_record_set
from tools.examine import Report


def index_of(folder):
    return [tuple(map(int, line.split("\t"))) for line in (folder / "train.idx").read_text().splitlines()]


def write_index(folder, entries):
    (folder / "train.idx").write_text("".join(f"{key}\t{offset}\n" for key, offset in entries))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_valid_set_has_no_problems_and_its_images_are_counted(tmp_path, num_workers):
    faces = drawn_faces()
    write_record_set(tmp_path / "set", faces, LABELS, 4)
    code, report = check(tmp_path / "set", "--num-workers", num_workers)
    assert (code, report["problems"], report["notes"]) == (0, {}, {})
    figures = report["figures"]
    assert (figures["images"], figures["identities"]) == (12, 4)
    assert [figures[f"{which}_images_an_identity"] for which in ("smallest", "mean", "largest")] == [3, 3, 3]


def test_a_set_without_record_0_and_property_is_counted(tmp_path):
    faces = drawn_faces()
    code, report = check(write_cvlface_set(tmp_path, faces, LABELS))
    assert (code, report["figures"]["images"], report["figures"]["identities"]) == (0, 12, 4)


def test_images_with_two_labels_are_not_taken_for_record_0_of_insightface(tmp_path):
    labels = [[label, 5 + label] for label in LABELS]
    code, report = check(write_cvlface_set(tmp_path, drawn_faces(), labels, 4))
    assert (code, report["problems"]) == (0, {})
    assert (report["figures"]["images"], report["figures"]["identities"]) == (12, 4)


def test_all_problems_are_found_in_one_run(tmp_path):
    """Each fault is in another record; nothing else is reported."""
    faces = drawn_faces()
    rng = np.random.default_rng(0)
    small = cv2.imencode(".png", rng.integers(0, 255, (50, 60, 3), dtype=np.uint8))[1].tobytes()
    grey = cv2.imencode(".png", np.full((112, 112, 3), 7, np.uint8))[1].tobytes()
    images = {
        1: b"no image", 2: small, 3: faces[3][: len(faces[3]) // 2], 4: grey, 5: faces[5], 6: faces[6], 7: faces[7],
        8: faces[0], 9: faces[0], 10: faces[0], 11: faces[11],
    }  # fmt: skip
    labels = {1: 0, 2: 0, 3: 1, 4: 1, 5: 9, 6: 1.5, 7: -1, 8: 0, 9: 0, 10: 1, 11: 3}
    with RecordWriter(tmp_path / "train") as writer:
        writer.write(0, [14, 14 + 5], b"")  # states 13 images; keys 12 and 13 are missing
        for key, image in images.items():
            writer.write(key, labels[key], image)
    (tmp_path / "property").write_text("6,112,112")
    code, report = check(tmp_path)
    assert code == 1
    found = {kind: (found["count"], found["examples"]) for kind, found in report["problems"].items()}
    assert found == {
        "image that does not decode": (2, ["record 1", "record 3"]),
        "image that is not 112x112": (1, ["record 2"]),
        "image of a single brightness": (1, ["record 4"]),
        "label that is not one of 0..4": (3, ["record 5: 9", "record 6: 1.5", "record 7: -1"]),
        "image that the index does not list": (2, ["record 12", "record 13"]),
        "property file that disagrees with record 0": (1, ["6 identities, not 5"]),
        "identity without an image": (2, ["identity 2", "identity 4"]),
        "image that occurs in two identities": (1, ["records 9 and 10 of identities 0 and 1"]),
    }
    assert report["notes"] == {
        "image that occurs twice in an identity": {"count": 1, "examples": ["records 8 and 9"]},
        "identity with only one image": {"count": 1, "examples": ["identity 3"]},
    }


def test_an_index_that_does_not_fit_its_file_is_reported(tmp_path):
    faces = drawn_faces()
    write_cvlface_set(tmp_path, faces, LABELS, 4)
    at = dict(index_of(tmp_path))
    size = (tmp_path / "train.rec").stat().st_size
    entries = {**at, 2: at[2] + 4, 4: at[3], 6: size + 400, 7: at[7] + 2}
    del entries[9]
    write_index(tmp_path, [*entries.items(), (1, at[5])])
    code, report = check(tmp_path)
    problems = report["problems"]
    assert code == 1
    assert problems["index entry that points where no record can be"]["examples"] == [
        f"record 6 at byte {size + 400}", f"record 7 at byte {at[7] + 2}",
    ]  # fmt: skip
    assert problems["key that the index lists twice"] == {"count": 1, "examples": ["record 1"]}
    assert problems["record that cannot be read"]["examples"] == [
        f"record 2: no record at byte {at[2] + 4}, but the index has key 2 there; fetch both again"
    ]
    assert problems["record that begins inside the one before"]["examples"] == [f"record 4 at byte {at[3]}"]
    unlisted = problems["record that the index does not list"]
    assert unlisted == {"count": 5, "examples": [f"byte {at[key]} (id {key})" for key in (2, 4, 6, 7, 9)]}


def test_bytes_between_and_after_the_records_are_reported(tmp_path):
    faces = drawn_faces()
    write_cvlface_set(tmp_path, faces, LABELS, 4)
    at, data = dict(index_of(tmp_path)), bytearray((tmp_path / "train.rec").read_bytes())
    struct.pack_into("<I", data, at[5], MAGIC + 1)
    (tmp_path / "train.rec").write_bytes(data + b"left over ..")
    code, report = check(tmp_path)
    assert code == 1 and set(report["problems"]) == {
        "record that cannot be read",
        "bytes that are not part of a record",
    }
    assert report["problems"]["record that cannot be read"]["examples"][0].startswith("record 5: no record at byte")
    assert report["problems"]["bytes that are not part of a record"]["examples"] == [f"12 from byte {len(data)}"]


@pytest.mark.parametrize("limits", [[5, 3], [float("nan"), 17], None])
def test_an_unusable_first_record_is_reported(tmp_path, limits):
    faces = drawn_faces()
    write_record_set(tmp_path / "set", faces, LABELS, 4)
    data = bytearray((tmp_path / "set" / "train.rec").read_bytes())
    if limits:
        struct.pack_into("<2f", data, 32, *limits)
    else:
        data[0] ^= 1
    (tmp_path / "set" / "train.rec").write_bytes(data)
    code, report = check(tmp_path / "set")
    kind = "first record does not state which records are images (all are treated as images)"
    assert code == 1 and report["problems"][kind]["examples"][0].startswith("record 0: ")


def test_a_file_that_was_cut_short_loses_only_the_records_after_the_cut(tmp_path):
    faces = drawn_faces()
    write_cvlface_set(tmp_path, faces, LABELS, 4)
    at, data = dict(index_of(tmp_path)), (tmp_path / "train.rec").read_bytes()
    (tmp_path / "train.rec").write_bytes(data[: at[8] + 100])
    code, report = check(tmp_path)
    problems = {kind: found["count"] for kind, found in report["problems"].items()}
    assert (code, report["figures"]["images"]) == (1, 8)
    assert problems == {
        "index entry that points where no record can be": 3,
        "record that cannot be read": 1,
        "identity without an image": 1,
    }
    assert "record 8 is cut off" in report["problems"]["record that cannot be read"]["examples"][0]


def test_the_exit_code_is_0_for_a_valid_set_1_for_problems_2_for_an_unreadable_set(tmp_path):
    faces = drawn_faces()
    write_record_set(tmp_path / "valid", faces, LABELS, 4)
    valid = run_script("tools/check_data.py", tmp_path / "valid", "--num-workers", 1)
    assert (valid.returncode, valid.stdout.splitlines()[-1]) == (0, "no problems"), valid.stderr
    (tmp_path / "valid" / "property").write_text("5,112,112")
    wrong = run_script("tools/check_data.py", tmp_path / "valid", "--num-workers", 0)
    assert (
        wrong.returncode == 1 and "property file that disagrees with record 0: 1 (5 identities, not 4)" in wrong.stdout
    )
    (tmp_path / "valid" / "train.idx").write_text("no index")
    unreadable = run_script("tools/check_data.py", tmp_path / "valid")
    assert unreadable.returncode == 2 and "train.idx" in unreadable.stderr


def test_only_reports_are_overwritten_without_force(tmp_path):
    faces = drawn_faces()
    write_record_set(tmp_path / "set", faces, LABELS, 4)
    command = ["tools/check_data.py", tmp_path / "set", "--num-workers", 0, "--json"]
    for _ in range(2):
        assert run_script(*command, tmp_path / "report.json").returncode == 0
    other = tmp_path / "set" / "property"
    refused = run_script(*command, other)
    assert refused.returncode == 2 and "property: exists and is not a report" in refused.stderr
    assert other.read_text().startswith("4,112,112")


def test_all_findings_are_counted_and_the_first_examples_are_kept():
    report = Report("set")
    for start in (0, 3, 6):
        report.problem("odd", (str(number) for number in range(start, start + 3)))
    report.problem("absent", [])
    assert report.problems == {"odd": {"count": 9, "examples": ["0", "1", "2", "3", "4"]}}
