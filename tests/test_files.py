"""Atomic writes: a file appears complete or not at all."""

import pytest

from utils.files import atomic_write, make_writable_folder, size_text


def test_a_file_appears_only_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "file.bin"
    with atomic_write(path) as file:
        file.write(b"half")
        file.flush()
        assert not path.exists()
        file.write(b" and half")
    assert path.read_bytes() == b"half and half"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_while_writing_leaves_no_file(tmp_path, error):
    with pytest.raises(error), atomic_write(tmp_path / "file.bin") as file:
        file.write(b"half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_completely_or_not_at_all(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"a long old content")
    with pytest.raises(ValueError, match="stop"), atomic_write(path) as file:
        file.write(b"half")
        raise ValueError("stop")
    assert path.read_bytes() == b"a long old content"
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"a long old content"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_names_a_folder_that_cannot_be_written(tmp_path):
    assert list(make_writable_folder(tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "taken").write_bytes(b"")
    with pytest.raises(OSError, match=r"taken.*cannot be written"):
        make_writable_folder(tmp_path / "taken" / "folder")


def test_a_number_of_bytes_has_a_unit_in_which_it_is_not_zero():
    texts = {0: "0 B", 999: "999 B", 3072: "3.072 kB", 1_505_280: "1.505 MB", 11_924_793_344: "11.92 GB"}
    assert {count: size_text(count) for count in texts} == texts


def test_the_error_of_a_full_disk_names_the_file(tmp_path, file_size_limit):
    message = r"File too large: .*file.bin"
    with file_size_limit(1000), pytest.raises(OSError, match=message), atomic_write(tmp_path / "file.bin") as file:
        file.write(bytes(1001))
    assert list(tmp_path.iterdir()) == []
