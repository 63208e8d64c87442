"""Export a checkpoint of the student for phones: .tflite for LiteRT or .pte for ExecuTorch, compared with torch.

    python deploy/export_mobile.py --config output/lfw/config.py --checkpoint output/lfw/660backbone.pth \\
        --output lfw.pte

The file takes one image: float32 [1, 3, 112, 112], RGB, 0 to 255. It gives the embedding [1, D]. No file is written if
its embeddings differ from those of torch.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import Tensor, nn

from config import BASE
from deploy.arguments import read_checkpoint_config
from utils.errors import InputError, exit_on_input_error
from utils.packages import require_packages

IMAGES = 100  # that are compared
LARGEST_DIFFERENCE = 1e-5  # of a cosine from 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config", default=str(BASE), help="config of the run, <output>/config.py (default: config/config.py)")
    add("--checkpoint", required=True, help="the student's weights: <step>backbone.pth, or a folder or hf://owner/name "
        "that deploy/to_hub.py made")  # fmt: skip
    add("--output", required=True, metavar="FILE", help="file to write, .tflite or .pte")
    add("--images", metavar="FILE.bin", help="a verification set with the images to compare with (default: the first "
        "of val_targets that exists, else drawn patterns)")  # fmt: skip
    add("overrides", nargs="*", metavar="key=value", help="keys of the config, such as network=iresnet50")
    args = parser.parse_intermixed_args()
    cfg = read_checkpoint_config(args.config, args.checkpoint, args.overrides)
    output = Path(args.output)
    if output.suffix not in FORMATS:
        raise InputError(f"--output {output}: must end in {' or '.join(FORMATS)}")
    package, convert = FORMATS[output.suffix]
    require_packages(f"an export to {output.suffix}", "mobile.txt", package)

    from backbones import build_backbone
    from backbones.folding import fold_batch_norm
    from deploy.pixels import OfPixels, cosines
    from deploy.sample_images import sample_images
    from utils.files import atomic_write, size_text

    network = build_backbone(cfg).eval()
    folded = OfPixels(fold_batch_norm(build_backbone(cfg).eval()), False, torch.float32).eval()
    images, source = sample_images(cfg, args.images, IMAGES)
    pixels = images.permute(0, 3, 1, 2).float().contiguous()
    content, embeddings = convert(folded, pixels)
    with torch.inference_mode():
        expected = network((pixels - 127.5) / 127.5).numpy()
    difference = float(np.abs(1 - cosines(embeddings, expected)).max())
    print(f"{source}: the cosine between {output.suffix} and torch differs from 1 by at most {difference:.1e}")
    if not difference <= LARGEST_DIFFERENCE:
        raise InputError(
            f"the exported network gives other embeddings than torch (at most {LARGEST_DIFFERENCE:.0e} is allowed); no "
            "file was written. Try another version of the packages in requirements/mobile.txt"
        )
    with atomic_write(output) as file:
        file.write(content)
    print(f"written: {output} ({size_text(len(content))})")


def to_executorch(network: nn.Module, pixels: Tensor) -> tuple[bytes, np.ndarray]:
    """The content of a .pte file, computed by XNNPACK on CPUs, and its embeddings of pixels [N, 3, 112, 112]."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    exported = torch.export.export(network, (pixels[:1],))
    content = bytes(to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch().buffer)
    method = Runtime.get().load_program(content).load_method("forward")
    # Copies, because the next call overwrites the result.
    return content, np.concatenate([method.execute([image[None]])[0].numpy().copy() for image in pixels])


def to_litert(network: nn.Module, pixels: Tensor) -> tuple[bytes, np.ndarray]:
    """The content of a .tflite file, and its embeddings of pixels [N, 3, 112, 112]."""
    import litert_torch
    from ai_edge_litert.interpreter import Interpreter

    content = litert_torch.convert(network, (pixels[:1],)).model_content()
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    run = interpreter.get_signature_runner()
    (name,) = run.get_input_details()
    found = [next(iter(run(**{name: image[None].numpy()}).values())) for image in pixels]
    return content, np.concatenate(found)


FORMATS = {".tflite": ("litert_torch", to_litert), ".pte": ("executorch", to_executorch)}


if __name__ == "__main__":
    with exit_on_input_error():
        main()
