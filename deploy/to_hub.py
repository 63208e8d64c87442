"""Make a folder for the Hugging Face hub from a checkpoint, and upload it.

    python deploy/to_hub.py --config output/lfw/config.py --checkpoint output/lfw/660backbone.pth \\
        --results lfw.json --folder hub/lfw --license cc-by-nc-sa-4.0 --upload owner/name

The folder has model.safetensors, config.json, model.onnx and README.md, the model card with the metrics. `init_from`,
`--checkpoint` and `pretrained_teacher_path` take it, and hf://owner/name, back. An upload needs a token that may write:
set HF_TOKEN, or run `hf auth login`.
"""

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config.paths import HUB, existing_input, split_repository
from deploy.arguments import read_checkpoint_config
from utils.errors import InputError, exit_on_input_error
from utils.packages import require_packages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", required=True, help="the student's weights, <step>backbone.pth")
    add("--config", required=True, help="config of the run, <output>/config.py; the card states its settings")
    add("--results", required=True, metavar="FILE.json", help="results of run_full_eval.py (--results-json)")
    add("--folder", required=True, help="folder to write; an earlier one is replaced")
    add("--license", metavar="ID", help="licence of the weights, such as cc-by-nc-sa-4.0; needed for --upload")
    add("--upload", metavar="OWNER/NAME", help="repository on the hub, which is created if it does not exist")
    add("--private", action="store_true", help="create the repository as a private one")
    add("overrides", nargs="*", metavar="key=value", help="keys of the config")
    args = parser.parse_intermixed_args()
    check(args)
    cfg = read_checkpoint_config(args.config, args.checkpoint, args.overrides)
    require_packages("a model with an ONNX file", "deploy.txt", "onnx", "onnxscript", "onnxruntime")

    # Imported here so that --help and errors in the config come at once.
    from backbones import build_backbone
    from backbones.model_folder import weights_file
    from deploy.hub_folder import model_folder, write_description, write_onnx, write_weights
    from deploy.model_card import model_card, training_script
    from deploy.results import read_results
    from deploy.upload import require_token, upload
    from utils.files import sha256, write_text

    if args.upload:
        require_token()
    checksum = sha256(weights_file(cfg.init_from))
    metrics = read_results(args.results, checksum).metrics
    network = build_backbone(cfg).eval()
    print(f"{args.checkpoint}: {network.loaded}", flush=True)
    with model_folder(args.folder) as folder:
        write_weights(folder, network)
        write_description(folder, cfg)
        print(write_onnx(folder, cfg, network, checksum, metrics), flush=True)
        name = args.upload or Path(args.folder).resolve().name
        script = training_script(existing_input(args.config))
        card = model_card(cfg, script, network, metrics, name, args.license, bool(args.upload))
        write_text(folder / "README.md", card)
    print(f"written: {args.folder}")
    if args.upload:
        print(f"uploaded: {upload(Path(args.folder), args.upload, args.private)}")


def check(args: argparse.Namespace) -> None:
    """Raise InputError for flags that contradict each other or have a wrong form."""
    if args.upload:
        split_repository(f"{HUB}{args.upload}")
    if args.upload and not args.license:
        raise InputError(
            "--upload needs --license, the licence under which others may use the weights, such as cc-by-nc-sa-4.0, "
            "that of this repository; the training images and the teacher may restrict it"
        )
    if args.license and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", args.license):
        raise InputError(
            f"--license {args.license}: not the identifier of a licence, such as mit, cc-by-nc-sa-4.0 or other; "
            "https://huggingface.co/docs/hub/repositories-licenses lists them"
        )
    if args.private and not args.upload:
        raise InputError("--private is about the repository of --upload; add --upload owner/name")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
