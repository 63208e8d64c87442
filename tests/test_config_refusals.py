"""Which configs are refused, and what the messages say."""

import pytest
from config_files import write_file
from conftest import run_script

from config import BASE, ConfigError, load_config
from config.conflicts import DISTILLATION
from config.rules import RULES

CACHED = "teacher_embeddings=teacher.npy"


def refusal(*overrides: str) -> str:
    """The message with which the default config and these overrides are refused."""
    with pytest.raises(ConfigError) as error:
        load_config(overrides=overrides)
    return str(error.value)


@pytest.mark.parametrize(
    ("key", "similar"), [("batchsize", "batch_size"), ("Loss", "loss"), ("geom_margin_weight", "geom_margin_w")]
)
def test_an_unknown_key_is_refused_with_the_most_similar_one(key, similar, tmp_path):
    assert key in refusal(f"{key}=1") and repr(similar) in refusal(f"{key}=1")
    with pytest.raises(ConfigError, match=f"{key}.*'{similar}'"):
        load_config(write_file(tmp_path / "preset.py", f"preset = dict({key}=1)\n"))


def test_an_unknown_key_that_is_similar_to_no_other_is_refused_too():
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
        # a name that does not exist
        "loss=adaface", "network=resnet", "teacher=vit", "dtype=float64", "centers=learned", "geom_margin=dynamic",
        "feature_kd=l1", "lr_schedule=linear", "db_file_format=zip", "resume=yes",
        # a file of another kind
        "teacher_embeddings=embeddings.bin",
    ],
)  # fmt: skip
def test_a_value_that_is_not_allowed_is_refused_with_the_key_and_what_is_allowed(override):
    key = override.split("=")[0]
    message = refusal(override)
    assert message.startswith(f"{key} = ") and f"must be {RULES[key].allowed}" in message


@pytest.mark.parametrize("text", ["{[]: 1}", "{[]}", "(", "1+", "[1,", "(" * 300, "\\"])
def test_a_string_that_is_not_a_value_is_refused_with_the_key(text):
    assert refusal(f"batch_size={text}").startswith("batch_size")
    assert refusal(f"lr_milestones={text}").startswith("lr_milestones")


def test_the_message_for_a_wrong_name_lists_the_allowed_names():
    message = refusal("loss=arcface")
    assert all(name in message for name in ("AdaFace", "ArcFace", "CosFace", "MLLoss"))


def test_an_unknown_dataset_is_refused_with_the_most_similar_and_all_entries():
    message = refusal("dataset=casia_webface")
    assert "the most similar is 'CASIA_WebFace'" in message
    assert all(name in message for name in ("emoreIresNet", "CASIA_WebFace", "Idifface", "custom"))


@pytest.mark.parametrize("dataset", [None, 5])
def test_a_dataset_that_is_not_a_string_is_refused_with_the_key(dataset, tmp_path):
    with pytest.raises(ConfigError, match="dataset = "):
        load_config(write_file(tmp_path / "preset.py", f"preset = dict(dataset={dataset})"))


def test_an_override_without_an_equals_sign_is_refused():
    assert "key=value" in refusal("batch_size")


def test_files_that_are_not_a_config_are_refused_with_their_name(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.py"):
        load_config(tmp_path / "absent.py")
    with pytest.raises(ConfigError, match=r"empty\.py"):
        load_config(write_file(tmp_path / "empty.py", "x = 1\n"))
    (tmp_path / "utf16.py").write_bytes("preset = dict()\n".encode("utf-16"))
    with pytest.raises(ConfigError, match=r"utf16\.py: has zero bytes, as UTF-16 has; save it as UTF-8"):
        load_config(tmp_path / "utf16.py")
    with pytest.raises(ConfigError, match=r"broken\.py: line 1 is not valid Python"):
        load_config(write_file(tmp_path / "broken.py", "preset = ("))
    with pytest.raises(ConfigError, match="3: no such key"):
        load_config(write_file(tmp_path / "odd.py", "preset = {3: 1}"))


def test_presets_that_are_based_on_each_other_are_refused(tmp_path):
    write_file(tmp_path / "first.py", "base = 'second.py'; preset = {}")
    second = write_file(tmp_path / "second.py", "base = 'first.py'; preset = {}")
    with pytest.raises(ConfigError, match="`base` leads back"):
        load_config(second)
    with pytest.raises(ConfigError, match="`base` leads back"):
        load_config(write_file(tmp_path / "circle.py", "base = 'circle.py'; preset = {}"))
    write_file(tmp_path / "harmless.py", "preset = {}")
    with pytest.raises(ConfigError, match="`base` leads back"):
        load_config(write_file(tmp_path / "list.py", "base = ['harmless.py', 'first.py']; preset = {}"))


def test_two_complete_configs_among_the_bases_are_refused(tmp_path):
    for name in ("one.py", "two.py"):
        write_file(tmp_path / name, BASE.read_text())
    with pytest.raises(ConfigError, match=r"both\.py: two files of `base` lead to complete configs; only one may"):
        load_config(write_file(tmp_path / "both.py", "base = ['one.py', 'two.py']; preset = {}"))


@pytest.mark.parametrize("key", ["momentum", "dataset"])
def test_a_complete_config_that_lacks_a_key_is_refused_with_the_key(key, tmp_path):
    text = "\n".join(line for line in BASE.read_text().splitlines() if not line.startswith(f"config.{key} "))
    with pytest.raises(ConfigError, match=f"lacks {key};"):
        load_config(write_file(tmp_path / "complete.py", text))


@pytest.mark.parametrize("override", ["eval_ijb=False", "eval_tinyface=True"])
def test_a_key_of_an_earlier_version_is_refused_with_the_new_way(override):
    key = override.partition("=")[0]
    assert refusal(override).startswith(f"{key}: no longer a key") and "_targets=[]" in refusal(override)


def test_a_config_file_of_an_earlier_version_is_named_with_all_its_old_keys(tmp_path):
    old = "config.eval_ijb = True\nconfig.eval_tinyface = False\n# --- output"
    texts = ["preset = dict(eval_ijb=True, eval_tinyface=False)", BASE.read_text().replace("# --- output", old)]
    for text in texts:
        with pytest.raises(
            ConfigError, match=r"old\.py: no longer keys: eval_ijb, eval_tinyface; remove them .*_targets"
        ):
            load_config(write_file(tmp_path / "old.py", text))


@pytest.mark.parametrize(
    ("script", "ignored"),
    [
        ("train/train_standalone.py", ["teacher=mobilefacenet", "pretrained_teacher_path=", "centers=fixed"]),
        ("train/train_standalone.py", [CACHED, "crop_augmentation_prob=0.1"]),
        ("train/cache_teacher.py", [CACHED, "crop_augmentation_prob=0.1", "batch_size=1"]),
        ("eval/run_full_eval.py", ["--checkpoint", "absent.pth", "teacher=iresnet50", "batch_size=1", "centers=fixed"]),
    ],
)
def test_a_script_does_not_refuse_conflicts_of_keys_that_it_ignores(script, ignored):
    done = run_script(script, *ignored, "rec=/absent")
    assert done.returncode == 2 and "absent" in done.stderr and "no such" in done.stderr, done.stderr


def test_an_unset_environment_variable_in_a_path_is_named(monkeypatch):
    monkeypatch.delenv("NO_SUCH_FOLDER", raising=False)
    message = refusal("rec=$NO_SUCH_FOLDER/lfw")
    assert "rec = " in message and "$NO_SUCH_FOLDER" in message and "not set" in message


CONTRADICTIONS = [
    # overrides that are refused; keys that the message names; further overrides that make the config valid
    (["rec="], ["db_file_format", "rec"], ["rec=faces"]),
    (["db_file_format=folder"], ["db_file_format", "data_path"], ["data_path=faces"]),
    (["sample=3"], ["sample", "db_file_format"], ["db_file_format=folder", "data_path=faces"]),
    (["teacher=iresnet50"], ["teacher", "pretrained_teacher_path"], ["pretrained_teacher_path=teacher.pth"]),
    (["teacher=mobilefacenet"], ["teacher", "pretrained_teacher_path"], [CACHED]),
    (["teacher=onnx", "pretrained_teacher_path=m.onnx"], ["teacher = 'onnx'", "teacher_embeddings"], [CACHED]),
    ([CACHED, "crop_augmentation_prob=0.1"], ["teacher_embeddings", "teacher_view"], ["teacher_view=clean"]),
    ([CACHED, "low_res_augmentation_prob=1"], ["teacher_embeddings", "teacher_view"], ["teacher_embeddings="]),
    ([CACHED, "photometric_augmentation_prob=1"], ["_augmentation_prob"], ["photometric_augmentation_prob=0"]),
    (["centers=fixed"], ["centers", "pretrained_teacher_header_path"], ["pretrained_teacher_header_path=header.pth"]),
    (["centers=mean"], ["centers", "teacher_embeddings"], [CACHED]),
    (["confidence_centers=mean"], ["confidence_centers", "teacher_embeddings"], [CACHED]),
    (["teacher_projection=pca"], ["teacher_projection", "teacher_embeddings"], [CACHED]),
    ([CACHED, "teacher_cosine_weights=[1,2]"], ["teacher_cosine_weights", "teacher_embeddings"], [f"{CACHED},b.npy"]),
    ([CACHED, "teacher_projection=pca", "centers=fixed", "pretrained_teacher_header_path=header.pth"],
     ["centers", "teacher_embeddings", "teacher_projection"], ["centers=ema"]),
    ([CACHED, "teacher_projection=pca", "norm_source=teacher"],
     ["norm_source", "teacher_embeddings", "teacher_projection"], ["norm_source=student"]),
    (["batch_size=1"], ["batch_size", "sync_bn"], ["sync_bn=True"]),
    (["global_step=4", "resume=auto"], ["global_step", "resume"], ["resume=none"]),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "keys", "fix"), CONTRADICTIONS, ids=lambda value: "-".join(value))
def test_keys_that_contradict_each_other_are_refused_with_their_names(overrides, keys, fix):
    message = refusal(*overrides)
    assert all(key in message for key in keys) and any(text.partition("=")[0] in message for text in fix)
    load_config(overrides=[*overrides, *fix])


def test_every_conflict_has_a_test():
    assert {refusal(*overrides) for overrides, _, _ in CONTRADICTIONS} == {
        conflict.message for conflict in DISTILLATION
    }


def test_a_script_refuses_contradicting_keys_before_it_opens_any_data():
    done = run_script("train/train_AdaDistill.py", "rec=/absent", "sample=3")
    assert done.returncode == 2 and "sample above 0 needs" in done.stderr and "/absent" not in done.stderr


def test_a_batch_of_one_image_on_one_rank_is_refused_with_sync_bn_too(small_run, tmp_path):
    overrides = [*small_run, f"output={tmp_path}", "batch_size=1", "sync_bn=True"]
    done = run_script("train/train_AdaDistill.py", *overrides)
    assert done.returncode == 2 and "batch_size = 1: BatchNorm needs two images" in done.stderr
