"""The table of rules: what each key of the config means and which values it may have.

The sections and their order are those of config/config.py, and each `meaning` is the comment of its key there. After a
change, run `python docs/write_config_page.py`, which writes docs/config.md from this table.
"""

from copy import copy
from typing import Any

from config import names
from config.rule import (
    Choice,
    Flag,
    Integer,
    NameList,
    NetworkName,
    Number,
    NumberList,
    Path,
    PathList,
    Rule,
    Text,
    Weights,
)

DATA: dict[str, Rule] = {
    "dataset": Text("name of an entry of `datasets`, whose values replace the defaults here"),
    "rec": PathList('folder, or several, with train.rec, train.idx and property (db_file_format "rec")'),
    "shared_labels": Flag("whether a label is the same person in all folders of rec; False: label ranges are joined"),
    "data_path": Path('folder with one folder of images per identity, for db_file_format "folder"'),
    "db_file_format": Choice('"rec": MXNet record files in `rec`; "folder": images in `data_path`', names.FILE_FORMATS),
    "sample": Integer('use at most this many images per identity (only with "folder"); 0: all'),
    "num_classes": Integer("number of identities; None: count them. Must match the data", at_least=1, or_none=True),
    "num_image": Integer("number of images; None: count them. Must match the data", at_least=1, or_none=True),
    "num_workers": Integer("processes per rank that decode images; 0: decode in the training process"),
    "order": Choice(
        'how to shuffle an epoch; "permutation": the whole set; "blocks": for a slow disk',
        ["permutation", "blocks"],
    ),
    "order_block": Integer('"blocks": neighbouring images that are read together; fewer mix better', at_least=1),
    "order_window": Integer('"blocks": images that are shuffled together; memory must hold twice as many', at_least=16),
    "train_flip": Flag("mirror each training image with probability 0.5"),
    "crop_augmentation_prob": Number(
        "probability of blacking out all but a rectangle of the student's image", at_least=0, at_most=1
    ),
    "low_res_augmentation_prob": Number(
        "probability of scaling the student's image down and up again", at_least=0, at_most=1
    ),
    "photometric_augmentation_prob": Number(
        "probability of changing brightness, contrast and saturation", at_least=0, at_most=1
    ),
    "similarity_augmentation_prob": Number(
        "probability of rotating, scaling and shifting, as errors of alignment do", at_least=0, at_most=1
    ),
    "defocus_augmentation_prob": Number("probability of blurring with a disk", at_least=0, at_most=1),
    "motion_blur_augmentation_prob": Number("probability of blurring along a line", at_least=0, at_most=1),
    "noise_augmentation_prob": Number("probability of adding the noise of a camera's sensor", at_least=0, at_most=1),
    "jpeg_augmentation_prob": Number("probability of compressing as JPEG", at_least=0, at_most=1),
}

NETWORKS: dict[str, Rule] = {
    "network": NetworkName(
        "the student; a name in NETWORKS of config/names.py, torchvision/NAME or timm/NAME",
        names.NETWORKS,
        names.LIBRARIES,
        names.library_networks,
    ),
    "embedding_size": Integer(
        "dimensions of the student's embeddings, and of the teacher's, after a projection", at_least=1
    ),
    "width": Number("multiplier of the student's channels (mobilefacenet only)", above=0),
    "SE": Flag("use squeeze-and-excitation blocks in the student (mobilefacenet and iresnet only)"),
    "activation": Choice(
        'the student\'s activation (mobilefacenet only); the slope of "leaky_relu" is 0.25',
        ["prelu", "relu", "leaky_relu"],
    ),
    "init_from": Weights('file, folder or hf://owner/name with the student\'s initial weights; "": random weights'),
    "teacher": Choice("the teacher; a name in TEACHERS of config/names.py", names.TEACHERS),
    "teacher_width": Number("multiplier of the teacher's channels (mobilefacenet only)", above=0),
    "pretrained_teacher_path": Weights('teacher\'s weights: a file, a folder or hf://owner/name; "": download'),
    "pretrained_teacher_header_path": Path('header.pth with the teacher\'s class centers, for centers "fixed"'),
    "teacher_repo_id": Text('Hugging Face repository of the teacher; "": the published one (cvlface only)'),
    "teacher_revision": Text('branch, tag or commit of the repository; "": main. A commit pins the weights'),
    "teacher_cache": Path('folder for downloaded teachers; "": the cache of huggingface_hub', is_output=True),
    "landmarks_path": Path('weights of the network for key points (KP-RPE, photos): a file or folder; "": download'),
    "landmarks_repo_id": Text("Hugging Face repository of this network"),
    "landmarks_revision": Text('branch, tag or commit of this repository; "": main'),
    "onnx_mean": Number(
        'teacher "onnx" takes (pixel - onnx_mean) / onnx_std; None: by InsightFace\'s rule', or_none=True
    ),
    "onnx_std": Number("see onnx_mean; None: by InsightFace's rule", above=0, or_none=True),
    "onnx_colours": Choice('colour order that teacher "onnx" takes', ["RGB", "BGR"]),
    "teacher_embeddings": PathList(
        ".npy file of the teacher's embeddings, created if missing; or several; []: run it live", ".npy", is_output=True
    ),
    "teacher_embeddings_type": Choice(
        'how a number is stored in the file: "float16"; "int8": half the size', ["float16", "int8"]
    ),
    "teacher_cosine_weights": NumberList(
        "weights of the cosines of several teachers, one per file; []: equal", positive=True
    ),
    "teacher_projection": Choice(
        '"pca": project teacher_embeddings to embedding_size dimensions; "none": do not', ["none", "pca"]
    ),
    "teacher_view": Choice(
        'images for the teacher; "same": augmented as for the student; "clean": not augmented', ["same", "clean"]
    ),
    "sync_bn": Flag("compute BatchNorm statistics over all ranks; False: on each rank, as published"),
}

HEAD: dict[str, Rule] = {
    "loss": Choice("margin loss: AdaFace, ArcFace, CosFace, MLLoss (no margin)", names.MARGINS),
    "s": Number("scale of the logits", above=0),
    "m": Number("margin; None: AdaFace 0.4, ArcFace 0.45 (radians), CosFace 0.35", at_least=0, or_none=True),
    "h": Number("AdaFace: how strongly the norm of an embedding changes the margin", above=0),
    "t_alpha": Number(
        "AdaFace: weight of a batch in the running mean and standard deviation of the norms", above=0, at_most=1
    ),
    "norm_statistics_start": Choice(
        'AdaFace: their start; "published": 20 and 100; "first_batch": its own', ["published", "first_batch"]
    ),
    "norm_source": Choice(
        'AdaFace: whose norms n show the quality of an image: "student" or "teacher"', ["student", "teacher"]
    ),
    "centers": Choice(
        '"ema": moving averages of teacher embeddings; "mean": their means; "fixed": from a header.pth', names.CENTERS
    ),
    "confidence_centers": Choice(
        'centers of conf_t; "moving": those of the loss; "mean": mean teacher embeddings', ["moving", "mean"]
    ),
    "image_share": Number(
        "part of the image's own teacher embedding in the target; 0: only the center of its class", at_least=-1, at_most=1
    ),
    "shard_centers": Choice(
        'split the centers over the ranks: "on", "off"; "auto": from 500,000 identities on', ["auto", "on", "off"]
    ),
    "sample_rate": Number(
        "part of the trained centers in each step (Partial FC); only train_standalone.py uses it", above=0, at_most=1
    ),
    "adaptive_alpha": Flag("alpha = cos_st * conf_t; False: alpha = cos_st"),
    "use_geom_margin": Flag("add the geometry-aware term to the margin; only AdaFace uses it"),
    "geom_margin": Choice(
        '"adaptive": by the teacher\'s confidence; "static": by a threshold; see docs/method.md', names.GEOMETRY
    ),
    "geom_margin_w": Number("weight of the term (static version as published: 0.2)", at_least=0),
    "geom_margin_k": Number("slope of the term (static version as published: 1)", at_least=0),
    "geom_margin_mask": Number("static version: the term acts where cos_st is below this", at_least=-1, at_most=1),
    "geom_margin_baseline": Number("static version: subtracted from the penalty", at_least=0),
    "geom_margin_warmup_epoch": Number(
        "epochs in which the term grows from 0 (static version as published: 0)", at_least=0
    ),
    "feature_kd": Choice(
        'additional loss between the embeddings, for comparison: "none", "cosine" or "l2"', names.FEATURE_KD
    ),
    "feature_kd_weight": Number("weight of this loss", at_least=0),
}

OPTIMISATION: dict[str, Rule] = {
    "batch_size": Integer("images per rank and forward pass", at_least=1),
    "accumulate_steps": Integer("forward passes per optimiser step, for GPUs with little memory", at_least=1),
    "num_epoch": Integer("number of epochs", at_least=1),
    "max_steps": Integer("stop after this many steps, for a quick test; 0: run all epochs"),
    "lr": Number("learning rate per 512 images; a step has ranks * batch_size * accumulate_steps images", above=0),
    "lr_schedule": Choice('"step": see lr_milestones; "cosine": half a cosine, from lr to 0', names.LR_SCHEDULES),
    "lr_milestones": NumberList('"step": lr is divided by 10 once for each m in the list with m - 1 <= epoch'),
    "warmup_epoch": Number("W: while epoch e < W, lr is multiplied by ((e + 1) / (W + 1))^2; <= 0: no warm-up"),
    "momentum": Number("momentum of SGD", at_least=0, below=1),
    "weight_decay": Number("weight decay of SGD", at_least=0),
    "clip_grad_norm": Number("maximum norm of the gradient; a larger gradient is scaled down to it", above=0),
    "dtype": Choice(
        '"float32", "bfloat16", "float16" (scales the loss); "auto": bfloat16 on GPUs, float32 on CPUs',
        ["auto", "float32", "bfloat16", "float16"],
    ),
    "compile": Choice(
        'whether to compile student, live teacher and head: "on", "off"; "auto": on GPUs only', ["auto", "on", "off"]
    ),
    "max_bad_steps": Integer("consecutive steps that may be skipped because the loss or gradient is not finite"),
    "rank_timeout": Number("seconds that ranks wait for another rank before the run ends", above=0),
    "seed": Integer("seed of weights, centers, order, flips and augmentation"),
}

OUTPUT: dict[str, Rule] = {
    "output": Path("folder for checkpoints and logs", may_be_empty=False, is_output=True),
    "global_step": Integer("resume from the checkpoint of this step; 0: none, so start a new run or see resume"),
    "resume": Choice(
        '"auto": resume from the newest complete checkpoint, if any; "none": see global_step', ["none", "auto"]
    ),
    "log_every": Integer("steps between log lines", at_least=1),
    "checkpoint_every": Integer("steps between checkpoints within an epoch; 0: only after each epoch"),
    "keep_checkpoints": Integer("how many of the newest checkpoints to keep; 0: all"),
    "keep_best": Text('metric (a result name, or "mean") whose best checkpoint is also kept; "": none'),
    "profile": Integer("number of steps to profile, shortly after the start; 0: none"),
}


def _benchmark_rules(prefix: str, root: str, targets: str, root_key: str = "root") -> dict[str, Rule]:
    """The rules of the keys that every benchmark has."""
    return {
        f"{prefix}_{root_key}": Path(root),
        f"{prefix}_targets": NameList(targets),
        f"{prefix}_batch_size": Integer("images per rank and forward pass", at_least=1),
        f"{prefix}_num_workers": Integer("processes per rank that decode images; 0: decode in the main process"),
        f"{prefix}_flip": Flag("also embed the mirrored image, and add the two embeddings"),
    }


EVALUATION: dict[str, Rule] = {
    **_benchmark_rules("val", "folder with the verification sets", "set names, without .bin; []: none", root_key="rec"),
    "val_eval_every_n_epoch": Integer("epochs between evaluations on the verification sets; 0: never"),
    "run_eval_at_start": Flag("also evaluate before the first step"),
    "eval_every_n_epoch": Integer("epochs between evaluations on all other benchmarks; 0: never"),
    **_benchmark_rules("ijb", "folder with the IJB sets", "set names (folders); []: none"),
    **_benchmark_rules("tinyface", "folder with the TinyFace sets", "set names (folders); []: none"),
}

SECTIONS: dict[str, dict[str, Rule]] = {
    "data": DATA,
    "networks": NETWORKS,
    "head": HEAD,
    "optimisation": OPTIMISATION,
    "output": OUTPUT,
    "evaluation": EVALUATION,
}

# The rules of the keys in config/config.py.
RULES: dict[str, Rule] = {key: rule for section in SECTIONS.values() for key, rule in section.items()}

# Keys that may change when a run is resumed. With any other change it would be another run. Paths are listed, because
# the teacher and the training set are recognised by their content.
MAY_CHANGE = frozenset(
    {
        *("dataset", "rec", "data_path", "db_file_format", "sample", "num_workers"),
        *("init_from", "teacher", "pretrained_teacher_path", "pretrained_teacher_header_path", "teacher_repo_id"),
        *(
            "teacher_revision",
            "teacher_cache",
            "landmarks_path",
            "landmarks_repo_id",
            "landmarks_revision",
            "teacher_embeddings",
        ),
        *("onnx_mean", "onnx_std", "onnx_colours"),
        *("teacher_embeddings_type", "teacher_cosine_weights", "teacher_projection"),
        *("batch_size", "accumulate_steps"),  # as long as the number of images per step is the same
        *("num_epoch", "max_steps", "lr", "lr_schedule", "lr_milestones", "warmup_epoch"),
        *("shard_centers", "dtype", "compile", "max_bad_steps", "rank_timeout"),
        *OUTPUT,
        *EVALUATION,
    }
)

# Defaults of a benchmark that is in names.PROTOCOLS but has no keys in config/config.py: <name>_root and so on.
BENCHMARK_DEFAULTS: dict[str, Any] = {
    "root": "dataset/facerec_val",
    "targets": [],
    "batch_size": 128,
    "num_workers": 4,
    "flip": True,
}

# Keys of earlier versions, and what to set instead.
REMOVED: dict[str, str] = {
    "eval_ijb": "instead of False, set ijb_targets=[]; instead of True, name the sets in ijb_targets",
    "eval_tinyface": "instead of False, set tinyface_targets=[]; instead of True, name the sets in tinyface_targets",
}


def known_rules() -> dict[str, Rule]:
    """The rules of all keys: the keys in config/config.py, and those of benchmarks that have no keys there."""
    rules = dict(RULES)
    for name in _benchmarks_without_keys():
        rules |= _benchmark_rules(name, f"folder with the sets of {name}", "set names; []: none")
    return rules


def benchmark_defaults() -> dict[str, Any]:
    """The default values, by key, of the benchmarks that have no keys in config/config.py."""
    return {
        f"{name}_{setting}": copy(default)
        for name in _benchmarks_without_keys()
        for setting, default in BENCHMARK_DEFAULTS.items()
    }


def _benchmarks_without_keys() -> list[str]:
    return [name for name in names.PROTOCOLS if f"{names.key_prefix(name)}_targets" not in RULES]
