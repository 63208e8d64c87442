"""Turn a folder with one subfolder per identity into a record set in the layout of InsightFace."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config.paths import existing_input
from tools.aligned import EXPECTED, AlignedImages
from utils.errors import exit_on_input_error


def main() -> None:
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\n{EXPECTED}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="one subfolder of aligned faces per identity")
    parser.add_argument("output", type=Path, help="folder for train.rec, train.idx and property")
    parser.add_argument(
        "--sample", type=int, default=0, help="maximum number of images per identity; 0: all (default: 0)"
    )
    parser.add_argument(
        "--resize", action="store_true", help="resize images that are not 112x112 (default: refuse them)"
    )
    args = parser.parse_args()

    # Imported here so that --help answers at once.
    from data.folder_set import FolderDataset
    from data.recordio import write_record_set

    folder, images = FolderDataset(existing_input(args.folder), args.sample), AlignedImages(args.resize)
    encoded = (images.check(folder.read(position)[0], folder.name(position)) for position in range(len(folder)))
    write_record_set(args.output, encoded, folder.labels, folder.num_classes)
    print(
        f"{args.output / 'train.rec'}: {len(folder)} images of {folder.num_classes} identities{images.summary()}",
        *folder.notes, sep="\n",
    )  # fmt: skip


if __name__ == "__main__":
    with exit_on_input_error():
        main()
