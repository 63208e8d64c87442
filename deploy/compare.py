"""Compare two faces: the cosine of their embeddings, and whether it means the same person.

    python deploy/compare.py a.jpg b.jpg --model lfw.onnx
    python deploy/compare.py a.jpg b.jpg --model lfw.onnx --results lfw.json --far 1e-3

An image of 112x112 pixels is taken as an aligned face. In any other image, the face is found and aligned first: by
CVLFace's landmark network, for photos of one face, or with --detector by OpenCV's YuNet. The verdict needs the results
that run_full_eval.py measured for the same weights (--results-json): they have the threshold for a false accept rate.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from deploy.arguments import add_model_arguments, read_model_config
from utils.errors import InputError, exit_on_input_error


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Exit code 0 for either verdict, 2 if an image or a file cannot be used.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("images", nargs=2, metavar="IMAGE", help="the two images")
    add("--results", metavar="FILE.json", help="results of run_full_eval.py (--results-json) for these weights")
    add("--far", type=float, help="false accept rate of the threshold: 1e-2, 1e-3, 1e-4 or 1e-5 (default: 1e-3)")
    add("--set", metavar="NAME", help="the verification set of the threshold, if the results have several")
    add("--save", metavar="FOLDER", help="write the aligned faces to this folder, as PNG files")
    add_model_arguments(parser)
    args = parser.parse_intermixed_args()
    if not args.results and (args.far is not None or args.set):
        raise InputError("--far and --set are about --results; name the file of results")
    cfg = read_model_config(args)

    # Imported here so that --help and errors in the config come at once.
    import numpy as np
    import torch

    from data.images import encode_png
    from deploy.embedder import build_embedder
    from deploy.faces import build_face_reader
    from deploy.threshold import read_threshold
    from eval.verification import squared_distances
    from utils.files import atomic_write

    embedder = build_embedder(cfg, args.model, torch.device("cpu"))
    threshold = None
    if args.results:
        if embedder.difference:
            raise InputError(
                f"{args.model}: {embedder.difference}, so its cosines are not those that the thresholds belong to; "
                "name a plain float32 file of deploy/export_onnx.py, or leave out --results"
            )
        far = 1e-3 if args.far is None else args.far
        threshold = read_threshold(args.results, args.set, far, embedder.checksum)
    reader = build_face_reader(cfg, args.aligned, args.detector, args.largest)
    faces = [reader.read(path) for path in args.images]
    for number, (path, face) in enumerate(zip(args.images, faces, strict=True), 1):
        saved = ""
        if args.save:
            file = Path(args.save, f"{number}_{Path(path).stem}.png")
            with atomic_write(file) as opened:
                opened.write(encode_png(face.pixels))
            saved = f"; saved as {file}"
        print(f"{path}: {face.source}{saved}")
    embeddings = embedder(np.stack([face.pixels for face in faces]), flip=threshold is None or threshold.flip)
    cosine = 1 - float(squared_distances(embeddings)[0]) / 2
    print(f"cosine: {cosine:.4f}")
    if threshold is None:
        print("verdict: none; --results names the file of thresholds that eval/run_full_eval.py --results-json writes")
    else:
        print(f"verdict: {threshold.verdict(cosine)}\n{threshold.describe()}")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
