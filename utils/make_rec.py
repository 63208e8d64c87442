"""Turn a folder of identity folders into a record set in InsightFace's layout: train.rec, train.idx and property."""

import argparse
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.dataset import FolderDataset
from utils.errors import clear_errors
from utils.files import make_writable_folder, written_whole
from utils.images import SIZE
from utils.recordio import RecordWriter


def write_record_set(output: Path, encoded, labels: np.ndarray, num_classes: int) -> None:
    """Write `encoded` images (an iterable of bytes) of identities `labels` [N], ascending, to a folder.

    Record 0 says where the images end and the identities begin; each identity's record, where its images begin and end.
    """
    make_writable_folder(output)
    end = len(labels) + 1
    first = np.searchsorted(labels, np.arange(num_classes), "left") + 1
    last = np.searchsorted(labels, np.arange(num_classes), "right") + 1
    with RecordWriter(output / "train") as writer:
        writer.write(0, [end, end + num_classes], b"")
        images = zip(labels, encoded, strict=True)
        for key, (label, image) in enumerate(tqdm(images, "writing images", len(labels), unit="image"), start=1):
            writer.write(key, float(label), image)
        for identity in range(num_classes):
            writer.write(end + identity, [first[identity], last[identity]], b"")
        with written_whole(output / "property") as file:
            file.write(f"{num_classes},{SIZE},{SIZE}".encode())


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
    with clear_errors():
        main()
