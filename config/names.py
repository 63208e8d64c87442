"""The names that values of the config may have, and where each is implemented, as "module:object".

To add a margin, a backbone, a schedule or a benchmark of your own, write one new file and add one line here. The rooms
look their tables up here, so that the config can be checked without importing any of them.
"""

from pkgutil import resolve_name
from typing import Any

# `network`: functions of the config that build the network.
NETWORKS = {
    "mobilefacenet": "backbones.mobilefacenet:build",
    "iresnet18": "backbones.iresnet:build",
    "iresnet34": "backbones.iresnet:build",
    "iresnet50": "backbones.iresnet:build",
    "iresnet100": "backbones.iresnet:build",
    "cvlface_ir18": "backbones.cvlface_ir:build",
    "cvlface_ir50": "backbones.cvlface_ir:build",
    "cvlface_ir101": "backbones.cvlface_ir:build",
}

# `teacher`: a name of NETWORKS, and the function of the config that finds its weights.
TEACHERS = {
    "mobilefacenet": "backbones.teacher:find_plain",
    "iresnet18": "backbones.teacher:find_plain",
    "iresnet34": "backbones.teacher:find_plain",
    "iresnet50": "backbones.teacher:find_plain",
    "iresnet100": "backbones.teacher:find_plain",
    "cvlface_ir18": "backbones.teacher:find_cvlface",
    "cvlface_ir50": "backbones.teacher:find_cvlface",
    "cvlface_ir101": "backbones.teacher:find_cvlface",
}

# `loss`: subclasses of heads.margins.Margin.
MARGINS = {
    "AdaFace": "heads.margins:AdaFace",
    "ArcFace": "heads.margins:ArcFace",
    "CosFace": "heads.margins:CosFace",
    "MLLoss": "heads.margins:MLLoss",
}

# `centers`: functions of the config that give the initial class centers.
CENTERS = {"ema": "heads:initial_centers", "fixed": "heads:teacher_centers"}

# `geom_margin`: the penalty P of the geometry-aware term.
GEOMETRY = {"adaptive": "heads.geometry:adaptive", "static": "heads.geometry:static"}

# `feature_kd`: losses between the embeddings of student and teacher.
FEATURE_KD = {"none": "heads.feature_kd:none", "cosine": "heads.feature_kd:cosine", "l2": "heads.feature_kd:l2"}

# `lr_schedule`: functions of the fractional epoch and the config that give the factor of the learning rate.
LR_SCHEDULES = {"step": "train.schedules:step", "cosine": "train.schedules:cosine"}

# `db_file_format`: functions of the config that open the training set.
FILE_FORMATS = {"rec": "data.dataset:open_records", "folder": "data.dataset:open_folder"}

# Benchmarks: descriptions of type eval.protocol.Protocol. Their config keys begin with the name here, <name>_targets,
# <name>_root and so on; those of "verification" begin with val_.
PROTOCOLS = {
    "verification": "eval.verification:PROTOCOL",
    "ijb": "eval.ijb:PROTOCOL",
    "tinyface": "eval.tinyface:PROTOCOL",
}


def resolve(table: dict[str, str]) -> dict[str, Any]:
    """The objects that a table names. Imports their modules."""
    return {name: resolve_name(place) for name, place in table.items()}
