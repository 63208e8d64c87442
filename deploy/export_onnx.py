"""Export a checkpoint of the student as one ONNX file that takes raw RGB pixels, and compare it with torch.

    python deploy/export_onnx.py --config output/lfw/config.py --checkpoint output/lfw/660backbone.pth --output lfw.onnx

The file has one input [N, 3, 112, 112] (float32, RGB, 0 to 255; N is free) and one output, the embeddings [N, D]. It
runs in onnxruntime, in InsightFace (ArcFaceONNX) and in OpenCV (FaceRecognizerSF). BatchNorms are folded. No file is
written if its embeddings differ from those of torch.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import BASE
from deploy.arguments import read_checkpoint_config
from utils.errors import InputError, exit_on_input_error
from utils.packages import require_packages

if TYPE_CHECKING:
    import onnx


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config", default=str(BASE), help="config of the run, <output>/config.py (default: config/config.py)")
    add("--checkpoint", required=True, help="the student's weights: <step>backbone.pth, or a folder or hf://owner/name "
        "that deploy/to_hub.py made")  # fmt: skip
    add("--output", required=True, metavar="FILE.onnx", help="file to write")
    add("--normalize", action="store_true", help="give embeddings of unit length")
    add("--fp16", action="store_true", help="compute in float16, which halves the file; input and output stay float32")
    add("--split-prelu", action="store_true", help="write PReLU as operations that are faster in onnxruntime on CPUs; "
        "same embeddings")  # fmt: skip
    add("--results", metavar="FILE.json", help="results of run_full_eval.py (--results-json), stored in the metadata")
    add("--images", metavar="FILE.bin", help="a verification set with the images to compare with (default: the first "
        "of val_targets that exists, else drawn patterns)")  # fmt: skip
    add("overrides", nargs="*", metavar="key=value", help="keys of the config, such as network=iresnet50")
    args = parser.parse_intermixed_args()
    cfg = read_checkpoint_config(args.config, args.checkpoint, args.overrides)
    output = Path(args.output)
    if output.suffix != ".onnx":
        raise InputError(f"--output {output}: must end in .onnx")
    require_packages("an export to ONNX", "deploy.txt", "onnx", "onnxscript", "onnxruntime")

    # Imported here so that --help and errors in the config come at once.
    from backbones import build_backbone
    from backbones.model_folder import weights_file
    from deploy.activations import split_prelu
    from deploy.exported_model import describe, export, facts
    from deploy.results import read_results
    from utils.about import run_facts
    from utils.files import atomic_write, sha256, size_text

    checksum = sha256(weights_file(cfg.init_from))
    metrics = read_results(args.results, checksum).metrics if args.results else None
    network = build_backbone(cfg).eval()
    print(f"{args.checkpoint}: {network.loaded}", flush=True)

    def change(model: "onnx.ModelProto") -> None:
        if args.split_prelu and (left := split_prelu(model)):
            print(f"{left} PReLUs could not be split")

    exported = export(cfg, network, args.images, args.normalize, args.fp16, change)
    print(exported)
    known = {"checkpoint": Path(cfg.init_from).name, **facts(cfg, checksum, exported, args.normalize, metrics)}
    describe(exported.model, {**known, **run_facts()})
    with atomic_write(output) as file:
        file.write(exported.model.SerializeToString())
    print(f"written: {output} ({size_text(output.stat().st_size)})")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
