"""What the command lines of this folder share. This module does not import torch, so `--help` is fast."""

import argparse

from easydict import EasyDict

from config import BASE, load_config
from config.paths import existing_input, existing_weights
from eval.arguments import network_overrides
from utils.errors import InputError


def is_onnx(model: str) -> bool:
    """Whether --model names an ONNX file and not a checkpoint."""
    return model.lower().endswith(".onnx")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which network to use, and how faces are found in photos."""
    add = parser.add_argument
    add("--model", required=True, help="an ONNX file, such as that of export_onnx.py, or the student's weights: "
        "<step>backbone.pth, or a folder or hf://owner/name that deploy/to_hub.py made")  # fmt: skip
    add("--config", default=str(BASE), help="for <step>backbone.pth: config of the run, <output>/config.py")
    add("--aligned", action="store_true", help="the images are aligned faces: refuse those of another size than "
        "112x112 instead of looking for a face in them")  # fmt: skip
    add("--detector", metavar="YUNET.onnx", help="find faces with OpenCV's YuNet, in this file (default: with "
        "CVLFace's landmark network, for photos of one face)")  # fmt: skip
    add("--largest", action="store_true", help="with --detector: take the largest of several faces")
    add("overrides", nargs="*", metavar="key=value", help="keys of the config, such as landmarks_path=FOLDER")


def read_model_config(args: argparse.Namespace) -> EasyDict:
    """The config of the network. Raises InputError, also for flags that contradict each other or files that are
    missing."""
    if args.aligned and args.detector:
        raise InputError("--aligned and --detector exclude each other: aligned faces need no detector")
    if args.largest and not args.detector:
        raise InputError("--largest needs --detector, which finds several faces")
    if is_onnx(args.model):
        args.model = str(existing_input(args.model, "export_onnx.py makes it"))
        return load_config(args.config, args.overrides, conflicts=())
    return read_checkpoint_config(args.config, args.model, args.overrides)


def read_checkpoint_config(config: str, checkpoint: str, overrides: list[str]) -> EasyDict:
    """The config of the network in a checkpoint, or in a folder or repository of deploy/to_hub.py. Raises InputError,
    also if the weights are missing."""
    overrides = [*network_overrides(checkpoint), *overrides, f"init_from={checkpoint}"]
    cfg = load_config(config, overrides, conflicts=())
    existing_weights(checkpoint)
    return cfg
