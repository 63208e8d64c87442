"""What users see of an error of the operating system: one line with the file, what happened and what to do."""

import os

import pytest

from utils.errors import describe_error, exit_on_input_error
from utils.files import atomic_write


def message_of(act, capsys) -> str:
    """The line with which a script ends if `act` fails."""
    with pytest.raises(SystemExit) as end, exit_on_input_error():
        act()
    assert end.value.code == 2
    return capsys.readouterr().err


def test_an_error_of_the_operating_system_reads_as_a_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("", encoding="utf-8")
    cases = [
        (lambda: (tmp_path / "absent").read_bytes(), "absent: no such file or directory; check the path"),
        (lambda: tmp_path.read_bytes(), f"{tmp_path}: is a directory; name a file, not a folder"),
        (lambda: os.listdir(tmp_path / "file" / "x"), "not a directory; a part of the path is a file, not a folder"),
    ]
    for act, words in cases:
        line = message_of(act, capsys)
        assert line.startswith("error: ") and words in line and "Errno" not in line


def test_an_error_while_a_file_is_written_names_the_file_and_not_its_temporary_name(tmp_path):
    with pytest.raises(OSError) as full, atomic_write(tmp_path / "file.json"):
        raise OSError(28, "No space left on device")
    assert describe_error(full.value) == f"{tmp_path / 'file.json'}: no space left on device; free disk space"
    (tmp_path / "folder").mkdir(mode=0o500)
    if os.geteuid() != 0:  # root may write everywhere
        with pytest.raises(OSError) as denied, atomic_write(tmp_path / "folder" / "file.json"):
            pass
        assert describe_error(denied.value) == (
            f"{tmp_path / 'folder' / 'file.json'}: permission denied; check the permissions"
        )
    with pytest.raises(OSError) as other, atomic_write(tmp_path / "file.json"):
        (tmp_path / "absent").read_bytes()
    assert str(tmp_path / "absent") in describe_error(other.value)


def test_a_name_that_is_not_utf_8_is_named(capsys):
    line = message_of(lambda: "name \udce9".encode(), capsys)
    assert r"name \udce9" in line and "rename it" in line
