"""Seconds and memory from embeddings to metrics at the full size of IJB-C and TinyFace, compared with plain arithmetic.

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python benchmarks/protocols.py    # 2 minutes and 4 GB on 2 CPU cores

The embeddings are random: a direction for each identity, and noise and a length for each image. The lists are random
too, with the published sizes. Each measurement runs in a separate process (Linux). Memory is the peak of this process,
with Python, its libraries and the lists, but without the embeddings. At a tenth of the size (for IJB-C, of the images,
templates and pairs; for TinyFace, of the probes), plain loops, NumPy in float64 and scikit-learn compute the same
metrics. The script checks that they are equal.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
from sklearn.metrics import roc_curve

from eval.ijb import FPRS, VARIANTS, evaluate_templates
from eval.tinyface import RANKS, evaluate_identification
from utils.about import describe_run

DIMENSIONS = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CASES, help="measure only this case, in this process, and print JSON")
    parser.add_argument("--scale", type=float, default=1.0, help="with --only: share of the full size")
    parser.add_argument("--plain", action="store_true", help="with --only: measure plain arithmetic too")
    args = parser.parse_intermixed_args()
    if args.only:
        print(json.dumps(measure(args.only, args.scale, args.plain)))
        return
    rows = []
    for case in CASES:
        full, tenth = _child(case, "--scale=1"), _child(case, "--scale=0.1", "--plain")
        speedup = tenth["plain"] / tenth["seconds"]
        rows.append(
            f"| {full['size']} | {full['seconds']:.1f} | {full['memory'] / 1e9:.1f} "
            f"| {tenth['seconds']:.2f} | {tenth['plain']:.1f} | {speedup:.0f} |"
        )
    print(f"{describe_run()}\n")
    print(
        "| from embeddings to metrics | s | GB besides the embeddings | a tenth: s | plain: s | ratio |\n"
        "|---|---|---|---|---|---|"
    )
    print("\n".join(rows))


def measure(case: str, scale: float, plain: bool) -> dict[str, float | str]:
    """Return seconds, bytes in addition to the embeddings and, with `plain`, the seconds of plain arithmetic.

    Raises SystemExit if the metrics differ from those of plain arithmetic.
    """
    draw, evaluate, evaluate_plainly = CASES[case]
    size, arrays = draw(scale)
    start = time.perf_counter()
    metrics = evaluate(*arrays)
    result = {"size": size, "seconds": time.perf_counter() - start}
    result["memory"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - arrays[0].nbytes
    if plain:
        start = time.perf_counter()
        expected = evaluate_plainly(*arrays)
        result["plain"] = time.perf_counter() - start
        for name, value in metrics.items():
            plain_value = expected[name]
            if value != plain_value and not math.isclose(value, plain_value, rel_tol=1e-7, abs_tol=1e-9):
                raise SystemExit(f"{name} is {value}, but {plain_value} by plain arithmetic")
    return result


def draw_faces(generator: np.random.Generator, identities: np.ndarray, noise: float) -> np.ndarray:
    """Draw embeddings, float32 [N, D], of images of `identities` [N]; noisier images have shorter embeddings."""
    centers = generator.standard_normal((identities.max() + 1, DIMENSIONS), dtype=np.float32)
    embeddings = generator.standard_normal((len(identities), DIMENSIONS), dtype=np.float32)
    blur = noise * generator.lognormal(0, 0.5, (len(identities), 1)).astype(np.float32)
    for start in range(0, len(embeddings), 10_000):
        chunk = slice(start, start + 10_000)
        embeddings[chunk] = (blur[chunk] * embeddings[chunk] + centers[identities[chunk]]) / (1 + blur[chunk] ** 2)
    return embeddings


def draw_templates(scale: float) -> tuple[str, tuple[np.ndarray, ...]]:
    """Return the size as text, and the arguments of evaluate_templates. scale: share of the size of IJB-C."""
    generator = np.random.default_rng(0)
    images, count, people, pairs, genuine = (round(scale * n) for n in (469_375, 23_124, 3_531, 15_658_489, 19_557))
    identity = np.arange(count) % people
    weight = generator.pareto(1.2, count).clip(max=100) + 0.01  # many templates have one image, some have hundreds
    template = np.append(np.arange(count), generator.choice(count, images - count, p=weight / weight.sum()))
    generator.shuffle(template)

    first, second = generator.integers(0, count, (2, pairs))
    while len(same := np.flatnonzero(identity[first] == identity[second])):
        second[same] = generator.integers(0, count, len(same))
    label = np.zeros(pairs, dtype=np.int64)
    chosen = generator.choice(pairs, genuine, replace=False)
    label[chosen] = 1
    rounds = count // people  # templates of each identity, `people` apart
    first[chosen] = generator.integers(0, rounds * people, genuine)
    second[chosen] = (first[chosen] + people * generator.integers(1, rounds, genuine)) % (rounds * people)

    ids = generator.choice(4 * count, count, replace=False)
    return f"IJB-C: {images:,} images, {count:,} templates, {pairs:,} pairs", (
        draw_faces(generator, identity[template], 2.0),
        generator.uniform(0.5, 1, images),
        ids[template],
        generator.integers(0, 5, images),
        label,
        ids[first],
        ids[second],
    )


def draw_identification(scale: float) -> tuple[str, tuple[np.ndarray, list[str], dict[str, list[str]]]]:
    """Return the size as text, and the arguments of evaluate_identification. scale: share of TinyFace's probes."""
    generator = np.random.default_rng(0)
    people, gallery, distractors, probes = 2_570, 4_443, 153_428, round(scale * 3_728)
    identities = np.concatenate(
        [np.arange(gallery) % people, people + np.arange(distractors), generator.integers(0, people, probes)]
    )
    names = [f"{identity}_{number}.jpg" for number, identity in enumerate(identities)]
    lists = {
        "gallery_paths": names[:gallery],
        "distractor_paths": names[gallery : gallery + distractors],
        "probe_paths": names[gallery + distractors :],
    }
    size = f"TinyFace: {probes:,} probes, {gallery + distractors:,} in the gallery"
    return size, (draw_faces(generator, identities, 1.5), names, lists)


def plain_templates(
    embeddings: np.ndarray,
    faceness_scores: np.ndarray,
    templates: np.ndarray,
    medias: np.ndarray,
    label: np.ndarray,
    p1: np.ndarray,
    p2: np.ndarray,
) -> dict[str, float | None]:
    """Compute what evaluate_templates computes, template by template, with scikit-learn's ROC curve."""
    images: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for image, (template, medium) in enumerate(zip(templates.tolist(), medias.tolist(), strict=True)):
        images[template][medium].append(image)
    row = {template: number for number, template in enumerate(images)}
    first, second = (np.array([row[template] for template in part.tolist()]) for part in (p1, p2))
    metrics: dict[str, float | None] = {}
    for variant, (keep_norm, use_faceness) in VARIANTS.items():
        weighted = embeddings.astype(np.float64)
        if not keep_norm:
            weighted /= np.linalg.norm(weighted, axis=1, keepdims=True)
        if use_faceness:
            weighted *= faceness_scores[:, None]
        pooled = np.array(
            [sum(weighted[medium].mean(axis=0) for medium in of_template.values()) for of_template in images.values()]
        )
        pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
        scores = np.concatenate(
            [
                (pooled[first[start : start + 100_000]] * pooled[second[start : start + 100_000]]).sum(axis=1)
                for start in range(0, len(label), 100_000)
            ]
        )
        fpr, tpr, thresholds = roc_curve(label, scores.round(12))
        for wanted in FPRS:
            distance = np.abs(fpr - wanted)
            last = np.flatnonzero(distance == distance.min())[-1]
            threshold = None if np.isinf(thresholds[last]) else thresholds[last]
            metrics[f"{variant}_tpr_at_fpr_{wanted}"] = 100 * tpr[last]
            metrics[f"{variant}_thresh_at_fpr_{wanted}"] = threshold
    return metrics


def plain_identification(
    embeddings: np.ndarray, image_paths: Sequence[str], metadata: dict[str, Sequence[str]]
) -> dict[str, float]:
    """Compute what evaluate_identification computes, probe by probe, by sorting. At ties, mates come last."""
    unit = embeddings.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    position = {name: number for number, name in enumerate(image_paths)}
    names = [*metadata["gallery_paths"], *metadata["distractor_paths"]]
    gallery = unit[[position[name] for name in names]]
    owner = np.array([name.split("_")[0] for name in names])
    owner[len(metadata["gallery_paths"]) :] = "nobody"
    ranks = []
    for probe in metadata["probe_paths"]:
        cosines = (gallery @ unit[position[probe]]).round(12)
        mate = owner == probe.split("_")[0]
        ranks.append(np.flatnonzero(mate[np.lexsort((mate, -cosines))])[0])
    return {f"rank-{k}": 100 * float(np.mean(np.array(ranks) < k)) for k in RANKS}


def _child(case: str, *arguments: str) -> dict:
    """Run `measure` in a separate process, whose memory holds nothing else."""
    command = [sys.executable, __file__, f"--only={case}", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{case} failed")
    return json.loads(done.stdout)


CASES = {
    "ijb": (draw_templates, evaluate_templates, plain_templates),
    "tinyface": (draw_identification, evaluate_identification, plain_identification),
}

if __name__ == "__main__":
    main()
