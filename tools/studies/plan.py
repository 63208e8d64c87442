"""The methods of a study: presets with overrides, their configs, and the folders of their runs."""

import hashlib
import json
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easydict import EasyDict

from config import BASE, ROOT, load_config, preset_files
from config.conflicts import DISTILLATION, STANDALONE
from config.paths import existing_input
from config.rule import most_similar
from utils.errors import InputError
from utils.files import write_text

WITHOUT_TEACHER = ("plain_student", "demo_teacher")  # the presets for train/train_standalone.py
# The keys on which the teacher's embeddings of a training set depend.
TEACHER_KEYS = (
    "rec", "shared_labels", "data_path", "db_file_format", "sample", "teacher", "teacher_width",
    "pretrained_teacher_path", "teacher_repo_id", "teacher_revision", "landmarks_path", "landmarks_repo_id",
    "landmarks_revision", "onnx_mean", "onnx_std", "onnx_colours", "teacher_embeddings_type", "teacher_projection",
    "dtype",
)  # fmt: skip
OF_THE_STUDY = {"seed": "--seeds", "output": "--output", "resume": "the study, which always resumes"}
SAME_IN_ALL_RUNS = ("dtype", "compile")  # they change the rounding, and so the results


@dataclass(frozen=True, eq=False)
class Method:
    """A preset on top of the study's config, with overrides, to be trained with every seed.

    name: as on the command line, such as "adadistill_geometry geom_margin_w=2"; preset: the file that joins the two
    configs; overrides: of the study, then of the method; script: the training script; cfg: the config that results,
    apart from seed and output.
    """

    name: str
    preset: Path
    overrides: tuple[str, ...]
    script: str
    cfg: EasyDict

    @property
    def study(self) -> Path:
        """The folder of the study."""
        return self.preset.parent.parent

    @property
    def embeddings(self) -> list[str]:
        """The files of the teachers' embeddings."""
        return self.cfg.teacher_embeddings if self.script.endswith("train_AdaDistill.py") else []


@dataclass(frozen=True, eq=False)
class Run:
    """A method with a seed. Its checkpoints and logs are in `folder`, its results in `results` and the .npz beside."""

    method: Method
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method.name}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        return self.method.preset.parent / f"seed{self.seed}"

    @property
    def results(self) -> Path:
        return self.folder.with_suffix(".json")

    @property
    def console(self) -> Path:
        """What the scripts print."""
        return self.folder.with_suffix(".log")

    @property
    def overrides(self) -> list[str]:
        """The overrides of the training script, besides --config."""
        return [*self.method.overrides, f"seed={self.seed}", f"output={self.folder}", "resume=auto"]

    def config(self) -> EasyDict:
        """The config of this run."""
        return EasyDict(self.method.cfg, seed=self.seed, output=str(self.folder), resume="auto")


def plan_methods(config: str, presets: str, output: Path, overrides: Sequence[str]) -> list[Method]:
    """The methods of a study, whose configs are checked and whose preset files are written.

    config: the config or preset on which all methods build; presets: names of presets, each perhaps with overrides
    after a space, separated by commas; overrides: of all methods. Raises InputError.
    """
    base = existing_input(config)
    methods = [_plan(base, " ".join(text.split()), output, overrides) for text in split_presets(presets)]
    for number, method in enumerate(methods):
        for other in methods[:number]:
            if (method.script, _without_files(method.cfg)) == (other.script, _without_files(other.cfg)):
                raise InputError(f"--presets: {method.name!r} has the same config as {other.name!r}; leave one out")
        for key in SAME_IN_ALL_RUNS:
            if method.cfg[key] != methods[0].cfg[key]:
                raise InputError(
                    f"{method.name}: {key} = {method.cfg[key]!r}, but {methods[0].cfg[key]!r} for {methods[0].name}; "
                    "it must be the same in all runs of a study"
                )
    return methods


def _without_files(cfg: EasyDict) -> dict[str, Any]:
    """A config without the files that it writes."""
    return {key: value for key, value in cfg.items() if key not in ("output", "teacher_embeddings")}


def split_presets(text: str) -> list[str]:
    """The parts between commas that are not in brackets."""
    parts = [part.strip() for part in re.split(r",(?![^\[(]*[\])])", text)]
    return [part for part in parts if part]


def _plan(base: Path, text: str, output: Path, overrides: Sequence[str]) -> Method:
    try:
        name, *own = shlex.split(text)
    except ValueError as error:
        raise InputError(f"--presets: {text!r}: {error}") from None
    folder = output / re.sub(r"[^\w.=+-]+", "_", text)
    preset, own_preset, all_overrides = folder / "preset.py", _preset_path(name), [*overrides, *own]
    for key, setting in OF_THE_STUDY.items():
        if any(override.startswith(f"{key}=") for override in all_overrides):
            raise InputError(f"{key} is not an override of a study; it is set by {setting}")
    if own_preset.resolve() in preset_files(base)[:-1]:
        raise InputError(f"{name} is a part of {base.name}, so it cannot be on top of it; name another --config")
    write_text(
        preset,
        f'"""{name} on top of {base.name}, for tools/study.py."""\n\n'
        f"base = {[str(base), str(own_preset)]}\npreset = {{}}\n",
    )
    standalone = any(file.parent == BASE.parent and file.stem in WITHOUT_TEACHER for file in preset_files(own_preset))
    try:
        cfg = load_config(preset, all_overrides, conflicts=())
        named = any(override.startswith("teacher_embeddings=") for override in all_overrides)
        if not (standalone or named or cfg.teacher_embeddings):
            all_overrides.append(f"teacher_embeddings={output / 'teacher' / _embeddings_name(cfg, output)}")
        cfg = load_config(preset, all_overrides, STANDALONE if standalone else DISTILLATION)
    except InputError as error:
        raise InputError(f"{text}: {error}") from None
    script = f"train/train_{'standalone' if standalone else 'AdaDistill'}.py"
    return Method(text, preset, tuple(all_overrides), script, cfg)


def _preset_path(name: str) -> Path:
    """The file of a preset, from its name in config/ or its path. Raises InputError."""
    if name.endswith(".py"):
        return existing_input(name)
    presets = {
        path.stem: path for path in (ROOT / "config").glob("*.py") if "\npreset = " in path.read_text(encoding="utf-8")
    }
    if name not in presets:
        similar = most_similar(name, presets)
        suggestion = f", the most similar is {similar}" if similar else ""
        raise InputError(
            f"{name}: no such preset{suggestion}; the presets are {', '.join(sorted(presets))}, or name a .py file "
            "(a value with commas needs brackets: val_targets=[lfw,cfp_fp])"
        )
    return presets[name]


def _embeddings_name(cfg: EasyDict, study: Path) -> str:
    """The name of the file with a teacher's embeddings, which is another one for another teacher or training set."""
    size = cfg.embedding_size if cfg.teacher_projection == "none" else None  # a projection follows the file
    key = without_places(json.dumps([*(cfg[name] for name in TEACHER_KEYS), size]), study)
    return f"{cfg.teacher}-{hashlib.sha256(key.encode()).hexdigest()[:8]}.npy"


def without_places(text: str, study: Path) -> str:
    """JSON without the places of the study and of the repository, which may be moved."""
    for path, name in ((study, "study"), (ROOT, "repository")):
        text = text.replace(json.dumps(f"{path}/")[1:-1], f"<{name}>/")
    return text


def teacher_of(method: Method) -> str:
    """What the file of a method's embeddings and its projection depend on; "" without embeddings."""
    keys = ("teacher_embeddings", "embedding_size", *TEACHER_KEYS)
    return repr([method.cfg[key] for key in keys]) if method.embeddings else ""


def cache_command(method: Method) -> list[str]:
    """The command that computes the teacher's embeddings."""
    return _command("train/cache_teacher.py", "--config", str(method.preset), *method.overrides)


def train_command(run: Run) -> list[str]:
    """The command that trains a run, or resumes it."""
    return _command(run.method.script, "--config", str(run.method.preset), *run.overrides)


def score_command(run: Run, checkpoint: Path) -> list[str]:
    """The command that scores a checkpoint of a run."""
    evaluated = ["--checkpoint", str(checkpoint), "--results-json", str(run.results), "--force"]
    return _command("eval/run_full_eval.py", "--config", str(run.method.preset), *run.method.overrides, *evaluated)


def _command(script: str, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / script), *arguments]
