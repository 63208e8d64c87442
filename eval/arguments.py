"""The command line that the evaluation scripts share. Without a flag, the value in the config is used."""

import argparse

from easydict import EasyDict

from config import BASE, load_config, names
from config.paths import input_path, is_repository
from config.rules import known_rules
from data import WHERE_TO_GET

NO_SET_FOUND = (
    "none of the evaluation sets was found: name their folders (--val-data, --ijb-root, ...) and the sets "
    f"(--val-targets, --ijb-targets, ...); {WHERE_TO_GET}"
)
# The settings of a benchmark that have a flag; its config keys are <prefix>_<setting>.
_SETTINGS = ("rec", "root", "targets", "batch_size", "num_workers", "flip")
_ALIASES = {"val_rec": ["--val-data"]}


def keys_with_flag() -> list[str]:
    """The config keys that have a flag: those of each benchmark that say where its sets are and how to embed them."""
    keys = [f"{names.key_prefix(protocol)}_{setting}" for protocol in names.PROTOCOLS for setting in _SETTINGS]
    return [key for key in keys if key in known_rules()]


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the flags that every evaluation script needs."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog="Set other keys of the config as key=value, for example network=iresnet50 embedding_size=512. "
        "To use several GPUs, start the script with torchrun; the results are the same. "
        "Exit code 0: every set that was found was scored. Exit code 2: something failed, as the error message says; "
        "the other results are written.",
    )
    parser.add_argument("--config", default=str(BASE), help="config or preset file (default: config/config.py)")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda if there is a GPU, else cpu")
    rules = known_rules()
    for key in keys_with_flag():
        rule = rules[key]
        parser.add_argument(
            "--" + key.replace("_", "-"),
            *_ALIASES.get(key, []),
            dest=key,
            help=f"{rule.meaning} (config key {key})".replace("%", "%%"),
            **({"action": argparse.BooleanOptionalAction} if rule.is_flag else {"metavar": rule.placeholder}),
        )
    parser.add_argument("--save-embeddings", metavar="DIR", help="write the embeddings of each set there, as .npy")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any other key of the config")
    return parser


def network_overrides(checkpoint: str) -> list[str]:
    """The network in a folder or repository of deploy/to_hub.py, as overrides of the config; [] for a weights file.

    Raises InputError if its config.json is missing on the hub or cannot be used.
    """
    if not is_repository(checkpoint) and not (checkpoint and input_path(checkpoint).is_dir()):
        return []
    from backbones.model_folder import find_settings, is_model

    source = checkpoint if is_repository(checkpoint) else str(input_path(checkpoint))
    return [f"{key}={value}" for key, value in find_settings(source).items()] if is_model(source) else []


def read_config(args: argparse.Namespace, **extra: str) -> EasyDict:
    """The config, changed by the overrides of the command line, then by its flags, then by `extra`.

    If extra["init_from"] is a folder or repository of deploy/to_hub.py, the config names its network, unless an
    override names another one.
    """
    overrides = [*network_overrides(extra.get("init_from", "")), *args.overrides]
    for key in keys_with_flag():
        value = getattr(args, key)
        if value is not None:
            overrides.append(f"{key}={value}")
    overrides += [f"{key}={value}" for key, value in extra.items()]
    return load_config(args.config, overrides, conflicts=())
