"""Embed all images of a folder, and of the folders in it: an .npy file with one row per image, and their names.

    python deploy/embed.py faces --model lfw.onnx --output faces.npy

Row i of faces.npy, float32 [images, D], is the embedding of line i of faces.txt, a path relative to the folder; the
paths are sorted. An embedding is the sum of those of the image and of its mirror image, as in evaluation, and is not
normalised. Images of 112x112 pixels are taken as aligned faces; in others, the face is found first, as in compare.py.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from deploy.arguments import add_model_arguments, read_model_config
from utils.errors import InputError, exit_on_input_error


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folder", help="folder with the images")
    add("--output", required=True, metavar="FILE.npy", help="file to write; the names go to FILE.txt")
    add("--skip-bad", action="store_true", help="list images that cannot be used and go on, instead of ending")
    add("--device", choices=["cpu", "cuda"], help="default: cuda if there is a GPU, else cpu")
    add_model_arguments(parser)
    args = parser.parse_intermixed_args()
    return args


def output_files(path: str) -> tuple[Path, Path]:
    """The files for the embeddings and for the names of the images. Raises InputError."""
    output = Path(path)
    if output.suffix != ".npy":
        raise InputError(f"--output {output}: must end in .npy")
    names_file = output.with_suffix(".txt")
    for file in (output, names_file):
        if file.is_dir():
            raise InputError(f"--output {output}: {file} is a folder; choose another name")
    if names_file.exists() and not output.exists():
        raise InputError(f"{names_file}: exists without {output.name}, so it has other content; choose another name")
    return output, names_file


def main() -> None:
    args = parse_arguments()
    output, names_file = output_files(args.output)
    cfg = read_model_config(args)

    # Imported here so that --help and errors in the config come at once.
    import numpy as np
    from tqdm import tqdm

    from data.folder_set import find_images
    from data.images import ImageError
    from deploy.embedder import build_embedder
    from deploy.faces import FaceError, build_face_reader
    from utils.distributed import process_group
    from utils.files import atomic_write, make_writable_folder

    paths = find_images(args.folder)
    if broken := [path for path in paths if "\n" in path]:
        raise InputError(
            f"{broken[0]!r}: a line break in its name; rename it, because {names_file} has a name per line"
        )
    make_writable_folder(output.parent)  # an error now, and not after all the work
    reader = build_face_reader(cfg, args.aligned, args.detector, args.largest)
    names, rows = [], []
    with process_group(args.device) as device, tqdm(total=len(paths), desc="embedding", unit="image") as bar:
        embedder = build_embedder(cfg, args.model, device)
        for start in range(0, len(paths), cfg.val_batch_size):
            faces = []
            for path in paths[start : start + cfg.val_batch_size]:
                try:
                    faces.append(reader.read(Path(args.folder, path)).pixels)
                    names.append(path)
                except (ImageError, FaceError) as error:
                    if not args.skip_bad:
                        raise InputError(f"{error} (or leave out such images: --skip-bad)") from error
                    bar.write(f"left out: {error}", file=sys.stderr)
                bar.update()
            if faces:
                rows.append(embedder(np.stack(faces)))
    if not rows:
        raise InputError(f"{args.folder}: none of its {len(paths)} images can be used")
    embeddings = np.concatenate(rows)
    with atomic_write(output) as file, atomic_write(names_file) as text:
        np.save(file, embeddings)
        text.write(b"".join(os.fsencode(name) + b"\n" for name in names))
    left_out = f"; left out: {len(paths) - len(names)} images" if len(names) < len(paths) else ""
    print(f"written: {output}, float32 {list(embeddings.shape)}, and {names_file}{left_out}")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
