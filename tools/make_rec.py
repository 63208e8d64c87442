"""Turn a folder with one subfolder per identity into a record set in the layout of InsightFace."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config.paths import existing_input
from data.folder_set import FolderDataset
from data.images import SIZE
from data.recordio import write_record_set
from utils.errors import exit_on_input_error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help=f"one subfolder per identity, with faces aligned to {SIZE}x{SIZE}")
    parser.add_argument("output", type=Path, help="folder for train.rec, train.idx and property")
    parser.add_argument(
        "--sample", type=int, default=0, help="maximum number of images per identity; 0: all (default: 0)"
    )
    args = parser.parse_args()
    folder = FolderDataset(existing_input(args.folder), args.sample)
    write_record_set(args.output, folder.encoded(), folder.labels, folder.num_classes)
    print(f"{args.output / 'train.rec'}: {len(folder)} images of {folder.num_classes} identities")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
