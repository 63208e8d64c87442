"""How a config is read and written: the order of its layers, values on the command line, and paths."""

import subprocess
import sys
from pathlib import Path

import pytest
from config_files import PRESETS, write_file

from config import BASE, ROOT, dump_config, load_config, names
from config.rules import RULES, known_rules


def test_the_dataset_entry_overrides_the_defaults_and_preset_and_command_line_override_both(tmp_path):
    preset = write_file(tmp_path / "preset.py", "preset = dict(dataset='CASIA_WebFace', num_epoch=7, batch_size=11)\n")
    base, cfg = load_config(), load_config(preset)
    assert base.num_epoch == 26 and base.lr_milestones == [8, 14, 20, 25] and base.batch_size == 384
    assert cfg.lr_milestones == [40, 48, 52] and cfg.num_classes == 10_572  # from the entry of the dataset
    assert cfg.num_epoch == 7 and cfg.batch_size == 11  # from the preset
    overridden = load_config(preset, ["num_epoch=3", "batch_size=5"])
    assert overridden.num_epoch == 3 and overridden.batch_size == 5 and overridden.lr_milestones == [40, 48, 52]


def test_the_entry_of_a_dataset_on_the_command_line_is_applied_below_the_preset(tmp_path):
    preset = write_file(tmp_path / "preset.py", "preset = dict(dataset='CASIA_WebFace', num_epoch=7)\n")
    cfg = load_config(preset, ["num_epoch=3", "dataset=Idifface"])
    assert cfg.dataset == "Idifface" and cfg.db_file_format == "folder" and cfg.sample == 50
    assert cfg.num_epoch == 3 and cfg.num_classes == 10_049
    assert load_config(preset, ["dataset=Idifface"]).num_epoch == 7


def test_a_preset_is_applied_on_top_of_its_base(tmp_path):
    write_file(tmp_path / "lower.py", "preset = dict(batch_size=8, num_epoch=9)\n")
    cfg = load_config(write_file(tmp_path / "upper.py", "base = 'lower.py'\npreset = dict(num_epoch=2)\n"))
    assert cfg.batch_size == 8 and cfg.num_epoch == 2


def test_a_preset_with_several_bases_applies_them_in_turn_and_each_file_once(tmp_path):
    write_file(tmp_path / "lowest.py", "preset = dict(batch_size=8, num_epoch=9, lr=0.5)\n")
    write_file(tmp_path / "first.py", "base = 'lowest.py'\npreset = dict(batch_size=16, s=32.0)\n")
    write_file(tmp_path / "second.py", "base = 'lowest.py'\npreset = dict(num_epoch=3, s=48.0)\n")
    upper = write_file(tmp_path / "upper.py", "base = ['first.py', 'second.py']\npreset = dict(lr=0.25)\n")
    cfg = load_config(upper, ["m=0.1"])
    assert (cfg.batch_size, cfg.num_epoch, cfg.s, cfg.lr, cfg.m) == (16, 3, 48.0, 0.25, 0.1)
    assert load_config(write_file(upper, "base = ['second.py', 'first.py']\npreset = {}\n")).s == 32.0


def test_a_list_of_bases_may_contain_one_complete_config(tmp_path):
    text = BASE.read_text().replace("config.num_epoch = 26", "config.num_epoch = 5")
    write_file(tmp_path / "complete.py", text)
    write_file(tmp_path / "small.py", "preset = dict(batch_size=8)\n")
    upper = write_file(tmp_path / "upper.py", "base = ['small.py', 'complete.py']\npreset = {}\n")
    assert load_config(upper).num_epoch == 5 and load_config(upper).batch_size == 8


def test_the_preset_for_low_resolution_can_be_combined_with_lfw(monkeypatch):
    monkeypatch.setenv("FACE_DATA", "/faces")
    plain, alone, both = (
        load_config(BASE.parent / f"{name}.py") for name in ("lfw", "low_resolution", "lfw_low_resolution")
    )
    changed = [key for key in alone if key.endswith("_augmentation_prob") and alone[key] > 0]
    assert len(changed) == 7 and alone.teacher_view == both.teacher_view == "clean"
    assert [both[key] for key in changed] == [alone[key] for key in changed]
    paths = {"teacher_embeddings", "output"}
    assert {key for key in both if both[key] != plain[key]} == {*changed, *paths, "teacher_view"}
    assert all(len({str(cfg[key]) for cfg in (plain, alone, both)}) == 3 for key in paths)


def test_a_complete_config_replaces_config_py(tmp_path):
    text = BASE.read_text().replace("config.num_epoch = 26", "config.num_epoch = 5")
    complete = write_file(tmp_path / "complete.py", text.replace('"custom": {}', '"mine": dict(rec="mine", lr=0.3)'))
    assert load_config(complete).num_epoch == 5
    cfg = load_config(complete, ["dataset=mine"])
    assert cfg.rec == [str(ROOT / "mine")] and cfg.lr == 0.3 and cfg.num_classes is None


def test_strings_on_the_command_line_become_values():
    cfg = load_config(
        overrides=["sync_bn=true", "m=none", "lr_milestones=[2,3]", "val_targets=lfw,cfp_fp", "lr=1", "output=out/a=b"]
    )
    assert cfg.sync_bn is True and cfg.m is None and cfg.lr == 1 and cfg.lr_milestones == [2, 3]
    assert cfg.val_targets == ["lfw", "cfp_fp"] and cfg.output == str(ROOT / "out/a=b")
    assert load_config(overrides=["val_targets=['lfw']"]).val_targets == ["lfw"]
    assert load_config(overrides=["val_targets=[lfw, x_1.0]"]).val_targets == ["lfw", "x_1.0"]
    joined = load_config(overrides=["rec=[/a,/b c]", "teacher_embeddings=[/a.npy,/b,c.npy]"])
    assert (joined.rec, joined.teacher_embeddings) == (["/a", "/b c"], ["/a.npy", "/b,c.npy"])
    assert load_config(overrides=["val_targets=[]"]).val_targets == load_config(overrides=["val_targets="]).val_targets


def test_changing_a_config_does_not_change_the_next_one():
    load_config(overrides=["batch_size=2"]).val_targets.append("more")
    cfg = load_config()
    assert cfg.batch_size == 384 and "more" not in cfg.val_targets


def test_relative_paths_become_absolute_paths_in_the_repository(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    cfg = load_config(overrides=["output=out/run", "rec=/abs/rec", "val_rec=~/bins"])
    root = Path(__file__).resolve().parent.parent
    assert cfg.output == str(root / "out/run") and cfg.ijb_root == str(root / "dataset/facerec_val")
    assert cfg.rec == ["/abs/rec"] and cfg.val_rec == str(tmp_path / "bins")
    assert cfg.pretrained_teacher_path == ""


def test_environment_variables_in_paths_are_expanded(monkeypatch):
    monkeypatch.setenv("SOME_FOLDER", "/somewhere")
    assert load_config(overrides=["rec=$SOME_FOLDER/lfw"]).rec == ["/somewhere/lfw"]


@pytest.mark.parametrize("path", [BASE, *PRESETS], ids=lambda path: path.name)
def test_a_dumped_config_loads_with_the_same_values(path, monkeypatch, tmp_path):
    monkeypatch.setenv("FACE_DATA", "/faces")
    cfg = load_config(path, ["seed=5", "val_targets=a,b"])
    note = 'Quotes """and\\".\nTwo lines.'
    text = dump_config(cfg, note)
    monkeypatch.delenv("FACE_DATA")
    loaded = load_config(write_file(tmp_path / "dumped.py", text))
    assert dict(loaded) == dict(cfg)
    assert {key: type(loaded[key]) for key in cfg} == {key: type(cfg[key]) for key in cfg}
    assert text.startswith("".join(f"# {line}\n" for line in note.splitlines()))


def test_a_benchmark_in_the_table_of_names_has_config_keys_with_defaults(monkeypatch, tmp_path):
    monkeypatch.setitem(names.PROTOCOLS, "survface", "eval.survface:PROTOCOL")
    cfg = load_config(overrides=["survface_targets=a,b"])
    assert set(cfg) == set(known_rules()) > set(RULES)
    assert cfg.survface_root == str(ROOT / "dataset/facerec_val") and cfg.survface_targets == ["a", "b"]
    assert (cfg.survface_batch_size, cfg.survface_num_workers, cfg.survface_flip) == (128, 4, True)
    assert dict(load_config(write_file(tmp_path / "dumped.py", dump_config(cfg, "")))) == dict(cfg)
    cfg.survface_targets.append("c")
    assert load_config().survface_targets == []


def test_every_benchmark_of_the_repository_has_the_same_settings():
    for protocol in names.PROTOCOLS:
        prefix = names.key_prefix(protocol)
        root = "rec" if prefix == "val" else "root"
        assert {f"{prefix}_{setting}" for setting in (root, "targets", "batch_size", "num_workers", "flip")} <= set(
            RULES
        )


def test_the_config_is_read_without_importing_torch():
    code = "import sys, config; config.load_config(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
