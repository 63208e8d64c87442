"""The config: what wins over what, what is refused and how, and that each key has a rule and a comment."""

import ast
import re
from pathlib import Path

import pytest

from config import BASE, ROOT, ConfigError, dump_config, load_config
from config.rules import RULES

FOLDER = ROOT / "config"
PRESETS = sorted(path for path in FOLDER.glob("*.py") if re.search(r"^preset\b", path.read_text(), re.MULTILINE))


def write_preset(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(overrides=overrides)
    return str(error.value)


@pytest.mark.parametrize(
    ("key", "nearest"), [("batchsize", "batch_size"), ("Loss", "loss"), ("geom_margin_weight", "geom_margin_w")]
)
def test_an_unknown_key_is_refused_with_the_nearest_one(key, nearest, tmp_path):
    assert key in refusal(f"{key}=1") and repr(nearest) in refusal(f"{key}=1")
    with pytest.raises(ConfigError, match=f"{key}.*'{nearest}'"):
        load_config(write_preset(tmp_path / "preset.py", f"preset = dict({key}=1)\n"))


def test_an_unknown_key_that_resembles_none_is_refused_too():
    assert "qqqqqqqq" in refusal("qqqqqqqq=1")


@pytest.mark.parametrize(
    "override",
    [
        # a wrong type
        "batch_size=many", "batch_size=64.0", "batch_size=True", "batch_size=None", "lr=fast", "lr=None", "lr=True",
        "sync_bn=1", "sync_bn=yes", "val_targets=3", "lr_milestones=8", "lr_milestones=['a']", "num_classes=ten",
        # out of range
        "batch_size=0", "batch_size=-1", "lr=0", "lr=-0.1", "lr=1e999", "momentum=1", "momentum=-0.1", "t_alpha=0",
        "t_alpha=1.1", "geom_margin_mask=1.5", "s=0", "h=-1", "m=-0.1", "width=0", "num_workers=-1", "output=",
        "clip_grad_norm=0", "num_classes=0", "geom_margin_w=-1", "weight_decay=-1", "num_epoch=0", "seed=-1",
        # no such name
        "loss=adaface", "network=resnet", "teacher=vit", "dtype=float64", "centers=learned", "geom_margin=dynamic",
        "feature_kd=l1", "lr_schedule=linear", "db_file_format=zip", "resume=yes",
    ],
)  # fmt: skip
def test_a_wrong_type_and_a_value_out_of_range_are_refused_with_the_key_and_what_is_allowed(override):
    key = override.split("=")[0]
    message = refusal(override)
    assert message.startswith(f"{key} = ") and RULES[key].allowed() in message


@pytest.mark.parametrize("text", ["{[]: 1}", "{[]}", "(", "1+", "[1,", "(" * 300, "\\"])
def test_a_text_that_is_no_value_is_refused_by_its_key(text):
    assert refusal(f"batch_size={text}").startswith("batch_size")
    assert refusal(f"lr_milestones={text}").startswith("lr_milestones")


def test_a_wrong_name_is_answered_with_the_names_there_are():
    message = refusal("loss=arcface")
    assert all(name in message for name in ("AdaFace", "ArcFace", "CosFace", "MLLoss"))


def test_an_unknown_dataset_is_refused_with_the_nearest_and_all_entries():
    message = refusal("dataset=casia_webface")
    assert "'CASIA_WebFace'" in message
    assert all(name in message for name in ("emoreIresNet", "CASIA_WebFace", "Idifface", "custom"))


def test_an_override_without_an_equals_sign_is_refused():
    assert "key=value" in refusal("batch_size")


def test_files_that_are_no_config_are_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.py"):
        load_config(tmp_path / "absent.py")
    with pytest.raises(ConfigError, match=r"empty\.py"):
        load_config(write_preset(tmp_path / "empty.py", "x = 1\n"))


def test_the_dataset_comes_first_then_the_preset_then_the_overrides(tmp_path):
    preset = write_preset(
        tmp_path / "preset.py", "preset = dict(dataset='CASIA_WebFace', num_epoch=7, batch_size=11)\n"
    )
    base, cfg = load_config(), load_config(preset)
    assert base.num_epoch == 26 and base.lr_milestones == [8, 14, 20, 25] and base.batch_size == 384
    assert cfg.lr_milestones == [40, 48, 52] and cfg.num_classes == 10_572  # the data set's, over config.py
    assert cfg.num_epoch == 7 and cfg.batch_size == 11  # the preset's, over the data set's and config.py
    overridden = load_config(preset, ["num_epoch=3", "batch_size=5"])
    assert overridden.num_epoch == 3 and overridden.batch_size == 5 and overridden.lr_milestones == [40, 48, 52]


def test_an_override_of_the_dataset_takes_its_entry_below_the_preset(tmp_path):
    preset = write_preset(tmp_path / "preset.py", "preset = dict(dataset='CASIA_WebFace', num_epoch=7)\n")
    cfg = load_config(preset, ["num_epoch=3", "dataset=Idifface"])
    assert cfg.dataset == "Idifface" and cfg.db_file_format == "folder" and cfg.sample == 50
    assert cfg.num_epoch == 3 and cfg.num_classes == 10_049
    assert load_config(preset, ["dataset=Idifface"]).num_epoch == 7


def test_a_preset_lies_on_top_of_the_preset_that_it_names(tmp_path):
    write_preset(tmp_path / "lower.py", "preset = dict(batch_size=8, num_epoch=9)\n")
    upper = write_preset(tmp_path / "upper.py", "base = 'lower.py'\npreset = dict(num_epoch=2)\n")
    cfg = load_config(upper)
    assert cfg.batch_size == 8 and cfg.num_epoch == 2


def test_command_line_texts_become_values():
    cfg = load_config(
        overrides=["sync_bn=true", "m=none", "lr_milestones=[2,3]", "val_targets=lfw,cfp_fp", "lr=1", "output=out/a=b"]
    )
    assert cfg.sync_bn is True and cfg.m is None and cfg.lr == 1 and cfg.lr_milestones == [2, 3]
    assert cfg.val_targets == ["lfw", "cfp_fp"] and cfg.output == str(ROOT / "out/a=b")
    assert load_config(overrides=["val_targets=['lfw']"]).val_targets == ["lfw"]


def test_reading_a_config_leaves_nothing_behind_for_the_next():
    load_config(overrides=["batch_size=1"]).val_targets.append("more")
    cfg = load_config()
    assert cfg.batch_size == 384 and "more" not in cfg.val_targets


def stated_keys() -> dict[str, int]:
    """The keys that config.py assigns, with their line; read from its text, not by running it."""
    return {
        node.targets[0].attr: node.lineno
        for node in ast.parse(BASE.read_text()).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute)
    }


def test_every_key_has_a_rule_and_every_rule_a_key():
    assert set(stated_keys()) == set(RULES)


def test_every_key_has_a_comment():
    lines = BASE.read_text().splitlines()
    bare = [key for key, line in stated_keys().items() if not re.search(r"  # \S.{2,}", lines[line - 1])]
    assert not bare


def test_a_config_without_some_key_is_refused_by_that_key(tmp_path):
    text = "\n".join(line for line in BASE.read_text().splitlines() if not line.startswith("config.momentum"))
    with pytest.raises(ConfigError, match="momentum"):
        load_config(write_preset(tmp_path / "whole.py", text))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.name)
def test_every_preset_loads(path, monkeypatch):
    monkeypatch.setenv("FACE_DATA", "/faces")
    assert set(load_config(path)) == set(RULES)


def test_the_published_presets_are_among_the_presets():
    assert {"adadistill_geometry.py", "adadistill_adaface.py", "adadistill_arcface.py"} <= {p.name for p in PRESETS}


def test_a_preset_states_only_what_differs(tmp_path, monkeypatch):
    monkeypatch.setenv("FACE_DATA", "/faces")
    for path in PRESETS:
        names = {}
        exec(compile(path.read_text(), str(path), "exec"), names)  # noqa: S102 (our own)
        below = load_config(path.parent / names["base"]) if "base" in names else load_config()
        cfg = load_config(path)
        assert not [key for key in names["preset"] if cfg[key] == below[key]], path.name


def test_an_unset_environment_variable_in_a_path_is_named(monkeypatch):
    monkeypatch.delenv("NO_SUCH_FOLDER", raising=False)
    message = refusal("rec=$NO_SUCH_FOLDER/lfw")
    assert "rec = " in message and "$NO_SUCH_FOLDER" in message and "not set" in message
    monkeypatch.setenv("NO_SUCH_FOLDER", "/somewhere")
    assert load_config(overrides=["rec=$NO_SUCH_FOLDER/lfw"]).rec == "/somewhere/lfw"


def test_relative_paths_come_back_absolute_under_the_repository_root(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    cfg = load_config(overrides=["output=out/run", "rec=/abs/rec", "val_rec=~/bins"])
    root = Path(__file__).resolve().parent.parent
    assert cfg.output == str(root / "out/run") and cfg.ijb_root == str(root / "dataset/facerec_val")
    assert cfg.rec == "/abs/rec" and cfg.val_rec == str(tmp_path / "bins")
    assert cfg.pretrained_teacher_path == ""  # empty stays empty


@pytest.mark.parametrize("path", [BASE, *PRESETS], ids=lambda path: path.name)
def test_a_dumped_config_loads_to_the_same_values(path, monkeypatch, tmp_path):
    monkeypatch.setenv("FACE_DATA", "/faces")
    cfg = load_config(path, ["seed=5", "val_targets=a,b"])
    note = 'As it """was\\".\nTwo lines.'
    text = dump_config(cfg, note)
    monkeypatch.delenv("FACE_DATA")
    again = load_config(write_preset(tmp_path / "dumped.py", text))
    assert dict(again) == dict(cfg) and {key: type(again[key]) for key in cfg} == {key: type(cfg[key]) for key in cfg}
    assert text.startswith("".join(f"# {line}\n" for line in note.splitlines()))


@pytest.mark.parametrize("dataset", [None, 5])
def test_a_data_set_that_is_no_name_is_refused_by_its_key(dataset, tmp_path):
    with pytest.raises(ConfigError, match="dataset = "):
        load_config(write_preset(tmp_path / "odd.py", f"preset = dict(dataset={dataset})"))


def test_presets_that_are_broken_or_lead_back_to_themselves_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"broken\.py: line 1 is no Python"):
        load_config(write_preset(tmp_path / "broken.py", "preset = ("))
    with pytest.raises(ConfigError, match="`base` leads back"):
        load_config(write_preset(tmp_path / "circle.py", "base = 'circle.py'; preset = {}"))
    with pytest.raises(ConfigError, match="3: no such key"):
        load_config(write_preset(tmp_path / "odd.py", "preset = {3: 1}"))


@pytest.mark.parametrize("override", ["eval_ijb=False", "eval_tinyface=True"])
def test_a_key_of_an_earlier_version_is_refused_with_what_says_the_same_now(override):
    key = override.partition("=")[0]
    assert refusal(override).startswith(f"{key}: no longer a key") and "_targets=[]" in refusal(override)
