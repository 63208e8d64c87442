"""The names that the config may use, each with the object that implements it, as "module:object".

To add your own margin, backbone, schedule or benchmark, write one new file and add one line here. The other folders
look names up in these tables, so the config can be checked without importing any of those folders.
"""

from pkgutil import resolve_name
from typing import Any

# `network` and `teacher`: functions that build the network from the config.
NETWORKS = {
    "mobilefacenet": "backbones.mobilefacenet:build",
    "iresnet18": "backbones.iresnet:build",
    "iresnet34": "backbones.iresnet:build",
    "iresnet50": "backbones.iresnet:build",
    "iresnet100": "backbones.iresnet:build",
    "cvlface_ir18": "backbones.cvlface_ir:build",
    "cvlface_ir50": "backbones.cvlface_ir:build",
    "cvlface_ir101": "backbones.cvlface_ir:build",
    "cvlface_vit_small": "backbones.cvlface_vit:build",
    "cvlface_vit_base": "backbones.cvlface_vit:build",
}

# Networks that can be teachers but not students, because they need more than the image: key points.
TEACHER_NETWORKS = {"cvlface_vit_base_kprpe": "backbones.cvlface_vit:build"}

# Libraries whose networks `network` accepts as LIBRARY/NAME, each with the function that builds them from the config.
LIBRARIES = {"torchvision": "backbones.library:build", "timm": "backbones.library:build"}

# For teachers that are a file, pretrained_teacher_path; only WEIGHTS_FILE takes a folder or repository as well.
WEIGHTS_FILE, ONNX_FILE = "backbones.teacher:find_plain", "backbones.onnx_teacher:find"

# `teacher`: a name in NETWORKS or TEACHER_NETWORKS, or "onnx" -> a function that finds the weights from the config.
TEACHERS = {
    "mobilefacenet": WEIGHTS_FILE,
    "iresnet18": WEIGHTS_FILE,
    "iresnet34": WEIGHTS_FILE,
    "iresnet50": WEIGHTS_FILE,
    "iresnet100": WEIGHTS_FILE,
    "cvlface_ir18": "backbones.teacher:find_cvlface",
    "cvlface_ir50": "backbones.teacher:find_cvlface",
    "cvlface_ir101": "backbones.teacher:find_cvlface",
    "cvlface_vit_small": "backbones.teacher:find_cvlface",
    "cvlface_vit_base": "backbones.teacher:find_cvlface",
    "cvlface_vit_base_kprpe": "backbones.teacher:find_cvlface",
    "onnx": ONNX_FILE,
}

# `loss`: subclasses of heads.margins.Margin.
MARGINS = {
    "AdaFace": "heads.margins:AdaFace",
    "ArcFace": "heads.margins:ArcFace",
    "CosFace": "heads.margins:CosFace",
    "MLLoss": "heads.margins:MLLoss",
}

# `centers`: functions that return the initial class centers for the config. With "mean", the task replaces them.
CENTERS = {"ema": "heads:initial_centers", "mean": "heads:initial_centers", "fixed": "heads:teacher_centers"}

# `geom_margin`: functions that build the penalty P of the geometry-aware term from the config.
GEOMETRY = {
    "adaptive": "heads.geometry:adaptive",
    "static": "heads.geometry:static",
    "progress": "heads.geometry:progress",
    "confidence": "heads.geometry:confidence",
}

# `feature_kd`: losses between the embeddings of the student and the teacher.
FEATURE_KD = {"none": "heads.feature_kd:none", "cosine": "heads.feature_kd:cosine", "l2": "heads.feature_kd:l2"}

# `lr_schedule`: functions that build the schedule from the config: fractional epoch -> factor on the learning rate.
LR_SCHEDULES = {"step": "train.schedules:step_decay", "cosine": "train.schedules:cosine"}

# `db_file_format`: functions that open the training set that the config names.
FILE_FORMATS = {"rec": "data.joined_set:open_records", "folder": "data.folder_set:open_folder"}

# Benchmarks: objects of type eval.protocol.Protocol. A benchmark has the config keys <name>_root, <name>_targets,
# <name>_batch_size, <name>_num_workers and <name>_flip. They exist as soon as the benchmark is in this table; their
# defaults are BENCHMARK_DEFAULTS in config/rules.py.
PROTOCOLS = {
    "verification": "eval.verification:PROTOCOL",
    "ijb": "eval.ijb:PROTOCOL",
    "tinyface": "eval.tinyface:PROTOCOL",
}


# Prefixes of the config keys, for benchmarks whose prefix is not their name.
_KEY_PREFIXES = {"verification": "val"}


def key_prefix(protocol: str) -> str:
    """What the config keys of a benchmark begin with, without the underscore."""
    return _KEY_PREFIXES.get(protocol, protocol)


def library_networks(library: str) -> list[str]:
    """The names of the networks for images in a library of LIBRARIES. Raises ImportError if it is not installed."""
    models = resolve_name(f"{library}.models")
    return [name for name in models.list_models() if hasattr(models, name)]  # torchvision lists other kinds as well


def resolve(table: dict[str, str]) -> dict[str, Any]:
    """Import the objects that a table names."""
    return {name: resolve_name(location) for name, location in table.items()}
