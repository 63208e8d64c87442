"""What each key of the config may hold: its type, its range, and how a command-line text becomes a value."""

import ast
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from config import names


@dataclass(frozen=True)
class Rule:
    """`check(value)` says whether a value is allowed; `allowed()` words it; `path` marks a file or folder."""

    check: Callable[[Any], bool]
    allowed: Callable[[], str]
    text: bool = False  # the command line's text is taken as it is, not read as a Python literal
    path: bool = False

    def parse(self, text: str) -> Any:
        """The value that a command-line text stands for; `check` judges it afterwards."""
        if self.text:
            return text
        literal = {"true": "True", "false": "False", "none": "None"}.get(text.lower(), text)
        try:
            return ast.literal_eval(literal)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return text


def _is_number(value: Any) -> bool:
    """Whether a value is a number that a float holds, and finite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def number(words: str, test: Callable[[float], bool], optional: bool = False) -> Rule:
    """A finite number for which `test` holds; `words` say the range."""

    def check(value: Any) -> bool:
        if value is None:
            return optional
        return _is_number(value) and test(value)

    return Rule(check, lambda: f"a number {words}" + (" or None" if optional else ""))


def integer(low: int, optional: bool = False) -> Rule:
    """An integer of at least `low`."""

    def check(value: Any) -> bool:
        if value is None:
            return optional
        return isinstance(value, int) and not isinstance(value, bool) and low <= value < 2**63

    return Rule(check, lambda: f"an integer of at least {low}" + (" or None" if optional else ""))


def one_of(choices: Iterable[str]) -> Rule:
    """One of the names `choices`."""
    return Rule(lambda value: value in list(choices), lambda: "one of " + ", ".join(choices), text=True)


def list_of_names() -> Rule:
    """A list of names; on the command line also a,b,c."""

    class Names(Rule):
        def parse(self, text: str) -> Any:
            value = super().parse(text)
            if isinstance(value, str):
                return [name.strip() for name in value.split(",") if name.strip()]
            return list(value) if isinstance(value, tuple) else value

    return Names(
        lambda value: isinstance(value, list) and all(isinstance(name, str) and name for name in value),
        lambda: "a list of names, as a,b,c",
    )


def numbers() -> Rule:
    """A list of numbers, as [8, 14]."""
    return Rule(
        lambda value: isinstance(value, list) and all(map(_is_number, value)),
        lambda: "a list of numbers, as [8,14]",
    )


flag = Rule(lambda value: isinstance(value, bool), lambda: "True or False")
path = Rule(lambda value: isinstance(value, str), lambda: "a path, or empty", text=True, path=True)
needed_path = Rule(lambda value: isinstance(value, str) and value != "", lambda: "a path", text=True, path=True)
npy_path = Rule(
    lambda value: isinstance(value, str) and (not value or value.endswith(".npy")),
    lambda: "a path that ends in .npy, or empty",
    text=True,
    path=True,
)
words = Rule(lambda value: isinstance(value, str), lambda: "a text, or empty", text=True)
positive = number("above 0", lambda value: value > 0)
not_negative = number("of at least 0", lambda value: value >= 0)
probability = number("in [0, 1]", lambda value: 0 <= value <= 1)
any_number = number("", lambda value: True)

RULES: dict[str, Rule] = {
    "dataset": words,  # held against the table of data sets when it is applied
    "rec": path,
    "data_path": path,
    "db_file_format": one_of(names.FILE_FORMATS),
    "sample": integer(0),
    "num_classes": integer(1, optional=True),
    "num_image": integer(1, optional=True),
    "num_workers": integer(0),
    "train_flip": flag,
    "crop_augmentation_prob": probability,
    "low_res_augmentation_prob": probability,
    "photometric_augmentation_prob": probability,
    "network": one_of(names.NETWORKS),
    "embedding_size": integer(1),
    "width": positive,
    "SE": flag,
    "init_from": path,
    "teacher": one_of(names.TEACHERS),
    "teacher_width": positive,
    "pretrained_teacher_path": path,
    "pretrained_teacher_header_path": path,
    "teacher_repo_id": words,
    "teacher_revision": words,
    "teacher_cache": path,
    "teacher_embeddings": npy_path,
    "teacher_view": one_of(["same", "clean"]),
    "sync_bn": flag,
    "loss": one_of(names.MARGINS),
    "s": positive,
    "m": number("of at least 0", lambda value: value >= 0, optional=True),
    "h": positive,
    "t_alpha": number("in (0, 1]", lambda value: 0 < value <= 1),
    "centers": one_of(names.CENTERS),
    "adaptive_alpha": flag,
    "use_geom_margin": flag,
    "geom_margin": one_of(names.GEOMETRY),
    "geom_margin_w": not_negative,
    "geom_margin_k": not_negative,
    "geom_margin_mask": number("in [-1, 1]", lambda value: -1 <= value <= 1),
    "geom_margin_baseline": not_negative,
    "geom_margin_warmup_epoch": not_negative,
    "feature_kd": one_of(names.FEATURE_KD),
    "feature_kd_weight": not_negative,
    "batch_size": integer(1),
    "accumulate_steps": integer(1),
    "num_epoch": integer(1),
    "max_steps": integer(0),
    "lr": positive,
    "lr_schedule": one_of(names.LR_SCHEDULES),
    "lr_milestones": numbers(),
    "warmup_epoch": any_number,
    "momentum": number("in [0, 1)", lambda value: 0 <= value < 1),
    "weight_decay": not_negative,
    "clip_grad_norm": positive,
    "dtype": one_of(["auto", "float32", "bfloat16", "float16"]),
    "compile": one_of(["auto", "on", "off"]),
    "max_bad_steps": integer(0),
    "rank_timeout": positive,
    "seed": integer(0),
    "output": needed_path,
    "global_step": integer(0),
    "resume": one_of(["none", "auto"]),
    "log_every": integer(1),
    "checkpoint_every": integer(0),
    "keep_checkpoints": integer(0),
    "profile": integer(0),
    "val_rec": path,
    "val_targets": list_of_names(),
    "val_batch_size": integer(1),
    "val_num_workers": integer(0),
    "val_flip": flag,
    "val_eval_every_n_epoch": integer(0),
    "run_eval_at_start": flag,
    "eval_every_n_epoch": integer(0),
    "ijb_root": path,
    "ijb_targets": list_of_names(),
    "ijb_batch_size": integer(1),
    "ijb_num_workers": integer(0),
    "ijb_flip": flag,
    "tinyface_root": path,
    "tinyface_targets": list_of_names(),
    "tinyface_batch_size": integer(1),
    "tinyface_num_workers": integer(0),
    "tinyface_flip": flag,
}

# Keys that earlier versions had, and what says the same now.
REMOVED = {
    "eval_ijb": "for False, set ijb_targets=[]",
    "eval_tinyface": "for False, set tinyface_targets=[]",
}
