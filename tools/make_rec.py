"""Turn a folder of identity folders into a record set in InsightFace's layout: train.rec, train.idx and property."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.folder_set import FolderDataset
from data.images import SIZE
from data.recordio import write_record_set
from utils.errors import exit_on_input_error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help=f"a folder an identity, of faces aligned to {SIZE}x{SIZE}")
    parser.add_argument("output", type=Path, help="folder for train.rec, train.idx and property")
    parser.add_argument("--sample", type=int, default=0, help="at most so many images of an identity; 0: all")
    args = parser.parse_args()
    folder = FolderDataset(args.folder, args.sample)
    write_record_set(args.output, folder.encoded(), folder.labels, folder.num_classes)
    print(f"{len(folder)} images of {folder.num_classes} identities: {args.output / 'train.rec'}")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
