"""Draw a record set of synthetic identities and a .bin verification set of other identities, in the real formats."""

import argparse
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.bin_set import write_bin
from data.recordio import write_record_set
from demo.faces import draw_face, make_identity, make_view
from utils.errors import exit_on_input_error

Face = tuple[int, int, int, float]  # seed, identity number, image number, difficulty


def encoded_face(face: Face) -> bytes:
    """Draw one image and encode it as JPEG. It depends only on the four numbers."""
    seed, identity, image, difficulty = face
    picture = draw_face(make_identity(seed, identity), make_view(seed, identity, image, difficulty))
    return cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def encoded_faces(faces: list[Face]) -> Iterator[bytes]:
    """Draw images on all cores and yield them as JPEG, in order."""
    with ProcessPoolExecutor(os.cpu_count(), initializer=cv2.setNumThreads, initargs=(0,)) as pool:
        yield from pool.map(encoded_face, faces, chunksize=32)


def make_pairs(seed: int, first: int, identities: int, pairs: int, difficulty: float) -> tuple[list[Face], list[bool]]:
    """Choose faces and labels; faces 2i and 2i + 1 are pair i. Same and different pairs alternate.

    The pairs are of `identities` identities, numbered from `first`.
    """
    rng = np.random.default_rng((seed, first))
    faces, is_same = [], []
    for number in range(pairs):
        one, other = first + rng.choice(identities, 2, replace=False)
        same = number % 2 == 0
        faces.append((seed, int(one), 2 * number, difficulty))
        faces.append((seed, int(one if same else other), 2 * number + 1, difficulty))
        is_same.append(same)
    return faces, is_same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for train.rec, train.idx, property and demo.bin")
    parser.add_argument("--identities", type=int, default=200, help="identities to train on")
    parser.add_argument("--images", type=int, default=16, help="images per identity")
    parser.add_argument("--first", type=int, default=0, help="number of the first identity")
    parser.add_argument("--pairs", type=int, default=600, help="pairs in the .bin file")
    parser.add_argument("--pair-identities", type=int, default=200, help="identities in the pairs")
    parser.add_argument("--pair-first", type=int, default=1_000_000, help="number of the first identity in the pairs")
    parser.add_argument(
        "--difficulty", type=float, default=0.6, help="strength of pose, light, occlusion and so on, from 0 to 1"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    args = parser.parse_args()
    labels = np.repeat(np.arange(args.identities), args.images)
    faces = [
        (args.seed, args.first + identity, image, args.difficulty)
        for identity in range(args.identities)
        for image in range(args.images)
    ]
    write_record_set(args.output, encoded_faces(faces), labels, args.identities)
    if args.pairs:
        faces, is_same = make_pairs(args.seed, args.pair_first, args.pair_identities, args.pairs, args.difficulty)
        encoded = list(tqdm(encoded_faces(faces), "drawing pairs", len(faces)))
        write_bin(args.output / "demo.bin", encoded, is_same, [identity for _, identity, _, _ in faces])
    print(f"{args.output}: {len(labels)} images of {args.identities} identities, {args.pairs} pairs of others")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
