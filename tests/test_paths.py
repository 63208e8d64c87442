"""Where relative paths start: inputs in the current folder or the repository, outputs in the repository."""

import pytest
from config_files import write_file
from conftest import ROOT

from config import ConfigError, load_config
from eval import arguments


@pytest.fixture
def here(monkeypatch, tmp_path):
    """The current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_relative_input_is_found_in_the_current_folder_and_else_in_the_repository(here, capsys):
    assert load_config("config/demo.py").rec == [str(ROOT / "output/demo/data")]  # the config is one of the repository
    (here / "mine").mkdir()
    write_file(here / "mine/preset.py", "preset = dict(dataset='custom', rec='mine', output='mine')")
    cfg = load_config("mine/preset.py", ["val_rec=mine", "data_path=tests"])
    assert cfg.rec == [cfg.val_rec] == [str(here / "mine")] and cfg.data_path == str(ROOT / "tests")
    assert cfg.output == str(ROOT / "mine")  # outputs start at the repository
    args = arguments.make_parser("A script.").parse_intermixed_args(["--val-data", "mine", "--ijb-root", "tests"])
    cfg = arguments.read_config(args, init_from="mine/preset.py")
    assert (cfg.val_rec, cfg.ijb_root, cfg.init_from) == (
        str(here / "mine"), str(ROOT / "tests"), str(here / "mine/preset.py")
    )  # fmt: skip
    assert capsys.readouterr().err == ""


def test_of_two_inputs_with_one_name_that_of_the_current_folder_is_used_and_named_once(here, capsys):
    (here / "config").mkdir()
    write_file(here / "config/demo.py", "preset = dict(num_epoch=7)")
    assert load_config("config/demo.py").num_epoch == load_config("config/demo.py").num_epoch == 7
    said = capsys.readouterr().err
    assert said.count(str(here / "config/demo.py")) == 1 and str(ROOT / "config/demo.py") in said


def test_the_error_for_an_absent_config_names_both_places(here):
    with pytest.raises(ConfigError) as error:
        load_config("config/absent.py")
    assert str(here / "config/absent.py") in str(error.value) and str(ROOT / "config/absent.py") in str(error.value)
