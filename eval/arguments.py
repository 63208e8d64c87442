"""The command line that the scripts here share. What is not given there comes from the config."""

import argparse
import os
import re

from easydict import EasyDict

from config import BASE, load_config
from config.rules import RULES

# What a benchmark's keys of the config are called after its prefix, so that its flags follow from them.
_SETTINGS = ("rec", "root", "targets", "batch_size", "num_workers", "flip")
NOTHING_THERE = "none of the sets is there: name their folders (--val-data, --ijb-root, ...) and targets"
_ALIASES = {"val_rec": ["--val-data"]}


def settings() -> list[str]:
    """Keys of the config that say where a benchmark's sets lie and how they are embedded."""
    prefixes = [key.removesuffix("_targets") for key in RULES if key.endswith("_targets")]
    return [key for prefix in prefixes for suffix in _SETTINGS if (key := f"{prefix}_{suffix}") in RULES]


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with all flags that scoring needs, whatever is scored."""
    made = argparse.ArgumentParser(
        description=description,
        epilog="Other keys of the config follow as key=value, for example network=iresnet50 embedding_size=512. "
        "With several GPUs launch it by torchrun: the images are shared out and the figures stay the same. "
        "Exit code 0: all that is there was scored. 2: something failed, as the error says; what did not is written.",
    )
    made.add_argument("--config", default=str(BASE), help="config or preset file (default: config/config.py)")
    made.add_argument("--device", choices=["cpu", "cuda"], help="default: a GPU where there is one")
    comments = dict(re.findall(r"^config\.(\w+) = .*?  # (.*)", BASE.read_text(), re.MULTILINE))
    for key in settings():
        rule, flags = RULES[key], ["--" + key.replace("_", "-"), *_ALIASES.get(key, [])]
        kind = (
            {"action": argparse.BooleanOptionalAction}
            if rule.check(True)
            else {"metavar": "DIR" if rule.path else "N" if rule.check(1) else "A,B"}
        )
        made.add_argument(*flags, dest=key, help=f"{comments[key]} (config: {key})".replace("%", "%%"), **kind)
    made.add_argument("--save-embeddings", metavar="DIR", help="write each set's embeddings there, float32 .npy")
    made.add_argument("overrides", nargs="*", metavar="key=value", help="any other key of the config")
    return made


def read_config(args: argparse.Namespace, **given: str) -> EasyDict:
    """The config under the command line's overrides and flags. `given` comes last."""
    overrides = [*args.overrides]
    for key in settings():
        value = getattr(args, key)
        if value is not None:
            overrides.append(f"{key}={os.path.abspath(value) if RULES[key].path else value}")
    overrides += [f"{key}={value}" for key, value in given.items()]
    return load_config(args.config, overrides)
