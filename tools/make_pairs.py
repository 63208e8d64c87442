"""Make evaluation sets with very many pairs of the people in a record set, and low-resolution sets.

The record set must hold people on whom the network was not trained. For a record set in the folder mine, these folders
in CVLFace's Arrow layout are written to OUTPUT:

  mine_pairs  All pairs of two images of one person, and pairs of two people, drawn at random. Each image is stored
              once, and evaluation embeds it once. The protocol of IJB scores the set: each image is a template. The set
              names the identities, so that evaluation gives intervals.
  mine_16     With --low-resolution 16: a set in the layout of TinyFace. The gallery has one image per person, drawn at
              random. The other images are probes, scaled down to 16 x 16 pixels and up again as
              tools/make_low_resolution.py does it. People with a single image are distractors.

With --sample K, at most K images per person are used, drawn at random. Otherwise a person with many images may decide
the results: n images make n (n - 1) / 2 pairs.

Except for probes, the bytes of the images are those in the record set. The images of a set must fit into memory.

To score a network on the sets:

  python eval/run_full_eval.py --config RUN/config.py --checkpoint FILE ijb_root=OUTPUT ijb_targets=mine_pairs \\
      tinyface_root=OUTPUT tinyface_targets=mine_16 val_targets=[]
"""

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config.paths import existing_input
from data import WHERE_TO_GET
from tools.make_low_resolution import LARGEST, low_resolution_copies
from utils.errors import InputError, exit_on_input_error
from utils.files import new_folder

if TYPE_CHECKING:
    from data.dataset import RecordDataset

MAKER = "tools/make_pairs.py"
FILES = ("data-*-of-*.arrow", "dataset_info.json", "state.json", "metadata.pt")  # of a set
IMPOSTORS = 1_000_000  # the default number of impostor pairs


def choose_images(labels: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """The positions of at most `most` images of each identity, drawn at random; 0: of all. labels: int [N]."""
    shuffled = rng.permutation(len(labels))
    order = shuffled[np.argsort(labels[shuffled], kind="stable")]  # identity by identity, each in random order
    ordered = labels[order]
    number = np.arange(len(order)) - np.searchsorted(ordered, ordered)  # of the image within its identity
    return np.sort(order[number < most]) if most else np.arange(len(labels))


def read_encoded(records: "RecordDataset", positions: np.ndarray) -> list[bytes]:
    """The encoded images of a record set at these positions. Raises ImageError for one that evaluation would refuse."""
    # Imported here so that --help answers at once.
    from tqdm import tqdm

    from data.images import decode_aligned

    encoded = []
    for position in tqdm(positions.tolist(), "reading images", unit="image"):
        image, _ = records.read(position)
        decode_aligned(image, records.name(position))
        encoded.append(bytes(image))
    return encoded


def genuine_pairs(labels: np.ndarray) -> np.ndarray:
    """All pairs of two images of one identity: positions, int64 [P, 2], the smaller one first. labels: int [N]."""
    order, after = _by_identity(labels)
    count = (after - 1 - np.arange(len(order))).cumsum()
    return _pairs_with_numbers(np.arange(count[-1]), order, after, count)


def impostor_pairs(labels: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """`number` different pairs of two identities, drawn at random: int64 [number, 2], as in `genuine_pairs`."""
    order, after = _by_identity(labels)
    count = (len(order) - after).cumsum()
    numbers = np.sort(rng.choice(count[-1], number, replace=False, shuffle=False))
    return _pairs_with_numbers(numbers, order, np.full_like(after, len(order)), count)


def _by_identity(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The positions of the images, identity by identity, [N]; and for each, where in this order its identity ends."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    return order, np.searchsorted(ordered, ordered, side="right")


def _pairs_with_numbers(numbers: np.ndarray, order: np.ndarray, end: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The pairs with these numbers, [P, 2].

    Each image in `order` is paired with images after it, the last of them before its `end`. Numbers go image by image;
    count: how many pairs there are up to each image.
    """
    first = np.searchsorted(count, numbers, side="right")
    second = end[first] - (count[first] - numbers)
    return np.sort(order[np.stack([first, second], axis=1)], axis=1)


def draw_gallery(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The position of one image of each identity, drawn at random. labels: int [N]."""
    shuffled = rng.permutation(len(labels))
    return shuffled[np.unique(labels[shuffled], return_index=True)[1]]


def template_metadata(labels: np.ndarray, genuine: np.ndarray, impostors: np.ndarray) -> dict[str, np.ndarray]:
    """metadata.pt of a set in which each image is a template."""
    positions, pairs = np.arange(len(labels)), np.concatenate([genuine, impostors])
    return {
        "faceness_scores": np.ones(len(labels)),
        "templates": positions,
        "medias": positions,
        "identities": labels,
        "label": np.repeat([1, 0], [len(genuine), len(impostors)]),
        "p1": pairs[:, 0],
        "p2": pairs[:, 1],
    }


def search_metadata(labels: np.ndarray, gallery: np.ndarray) -> tuple[dict[str, list[str]], np.ndarray]:
    """metadata.pt of a set of probes and gallery, and the positions of the probes. gallery: one image per identity."""
    names = [f"{label}_{position}" for position, label in enumerate(labels)]
    has_probes = np.bincount(labels)[labels[gallery]] > 1
    probes = np.setdiff1d(np.arange(len(labels)), gallery)
    lists = {"probe_paths": probes, "gallery_paths": gallery[has_probes], "distractor_paths": gallery[~has_probes]}
    metadata = {key: [names[position] for position in positions] for key, positions in lists.items()}
    return {"image_paths": names, **metadata}, probes


def _is_ours(folder: Path) -> bool:
    try:
        return json.loads((folder / "dataset_info.json").read_bytes())["description"].startswith(MAKER)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", type=Path, help="the folder with train.rec and train.idx")
    parser.add_argument("output", type=Path, help="folder for the sets; it may hold others")
    parser.add_argument(
        "--impostors",
        type=int,
        metavar="N",
        help="number of pairs of two people (default: 1,000,000, or all)",
    )
    parser.add_argument(
        "--low-resolution", type=int, nargs="+", default=[], metavar="N", help="also make sets with N x N pixels"
    )
    parser.add_argument("--sample", type=int, default=0, metavar="K", help="at most K images per person (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything that is drawn (default: 0)")
    args = parser.parse_intermixed_args()
    if args.impostors is not None and args.impostors < 1:
        parser.error("--impostors must be at least 1")
    if not all(1 <= size <= LARGEST for size in args.low_resolution):
        parser.error(f"--low-resolution must be from 1 to {LARGEST}")
    if args.seed < 0 or args.sample < 0:
        parser.error("--seed and --sample must be at least 0")
    return args


def main() -> None:
    args = parse_args()

    # Imported here so that --help answers at once.
    from data.arrow_set import write_template_set
    from data.dataset import RecordDataset

    source = existing_input(args.set, WHERE_TO_GET)
    records = RecordDataset(source)
    labels = records.read_labels(np.arange(len(records)))
    chosen = choose_images(labels, args.sample, np.random.default_rng(args.seed))
    labels = labels[chosen]
    sizes = np.bincount(labels)
    existing = (len(labels) ** 2 - int((sizes**2).sum())) // 2
    count = min(existing, IMPOSTORS) if args.impostors is None else args.impostors
    if sizes.max() < 2:
        raise InputError(f"{source}: no person has two images, so there is no pair of one person; name another set")
    if not 0 < count <= existing:
        fix = f"--impostors must be at most {existing:,}" if existing else "name a set of several people"
        raise InputError(f"{source}: has {existing:,} pairs of two people; {fix}")

    def folder(end: str) -> Path:
        return args.output / f"{source.resolve().name}_{end}"

    with ExitStack() as stack:  # all sets appear at the end, or none
        new = {
            end: stack.enter_context(new_folder(folder(end), MAKER, FILES, _is_ours))
            for end in dict.fromkeys(["pairs", *map(str, args.low_resolution)])
        }
        encoded = read_encoded(records, chosen)
        genuine = genuine_pairs(labels)
        impostors = impostor_pairs(labels, count, np.random.default_rng(args.seed))
        drawn = f"{len(genuine):,} genuine pairs (all), {count:,} impostor pairs (of {existing:,})"
        about = f"{len(labels):,} images of {np.count_nonzero(sizes):,} people"
        metadata = template_metadata(labels, genuine, impostors)
        write_template_set(new["pairs"], encoded, metadata, f"{MAKER}: {about}, {drawn}, seed {args.seed}")
        made = {"pairs": f"{about}, {drawn}"}

        metadata, probes = search_metadata(labels, draw_gallery(labels, np.random.default_rng(args.seed)))
        for size in dict.fromkeys(args.low_resolution):
            copies = low_resolution_copies(records, chosen[probes], size, args.seed)
            small = dict(zip(probes.tolist(), copies, strict=True))
            images = [small.get(position, image) for position, image in enumerate(encoded)]
            searched, distractors = len(metadata["gallery_paths"]), len(metadata["distractor_paths"])
            made[str(size)] = (
                f"{len(probes):,} probes with {size} x {size} pixels, {searched:,} images in the gallery, "
                f"{distractors:,} distractors"
            )
            write_template_set(new[str(size)], images, metadata, f"{MAKER}: {made[str(size)]}, seed {args.seed}")
    for end, text in made.items():
        print(f"{folder(end)}: {text}")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
