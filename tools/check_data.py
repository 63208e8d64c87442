"""Check a complete training set or verification set and report everything that is wrong with it.

Record sets: the index must fit the file and list all of its records; record 0, property and labels must agree; every
image must decode; no image may occur in two identities. Verification sets (.bin or Arrow): every image must decode,
and pairs must not contradict each other. With --teacher, a trained network also checks labels and colour order: for
this network, pairs of one identity must be more similar than pairs of two, and RGB must not be worse than BGR.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import BASE, load_config
from config.paths import existing_input
from data import WHERE_TO_GET
from utils.errors import InputError, exit_on_input_error

EPILOG = """
Problems stop training or evaluation, or make the result wrong. Examples: an identity without images, an image in two
identities, a teacher that finds no difference between same and different pairs, or a clearly larger one in BGR.
A warning says that results need care: a fold of a verification set with only same or only different pairs. Notes are
about things that also occur in good sets: identities with one image, an image that occurs twice in an identity, a pair
that occurs twice, images of a verification set that must be resized.

The teacher is measured by the mean cosine of same pairs minus the mean cosine of different pairs. The difference must
exceed 0 by three standard errors. BGR counts as better if its difference exceeds that of RGB, compared pair by pair, by
three standard errors. The area under the ROC curve is also reported.

Exit code: 0 no problems, 1 problems, 2 the set cannot be read at all.

examples:
  python tools/check_data.py dataset/faces_emore --num-workers 8 --json output/faces_emore.json
  python tools/check_data.py dataset/faces_emore --teacher
  python tools/check_data.py dataset/faces_emore/lfw.bin --teacher teacher=mobilefacenet embedding_size=128 \\
      pretrained_teacher_path=path/to/weights.pth
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "path",
        type=Path,
        help="folder with train.rec and train.idx, .bin file, or folder of an Arrow verification set",
    )
    parser.add_argument(
        "--num-workers",
        type=int,
        default=4,
        help="decoding processes; 0: use the main one (default: 4)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report to this file")
    parser.add_argument("--force", action="store_true", help="overwrite FILE even if it is not a report")
    parser.add_argument("--teacher", action="store_true", help="also check with the teacher that the config names")
    parser.add_argument("--config", default=str(BASE), help="config or preset file (default: config/config.py)")
    parser.add_argument("--pairs", type=int, default=1000, help="pairs of each kind for the teacher (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of pairs (default: 0)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config keys, for --teacher")
    args = parser.parse_intermixed_args()
    if args.overrides and not args.teacher:
        parser.error(f"{args.overrides[0]}: config keys need --teacher")
    if args.pairs < 2 or args.num_workers < 0:
        parser.error("--pairs must be at least 2, --num-workers at least 0")
    return args


def main() -> int:
    args = parse_args()
    cfg = load_config(args.config, args.overrides, conflicts=())
    args.path = existing_input(args.path, WHERE_TO_GET)
    if args.json and args.json.exists() and not (args.force or is_report(args.json)):
        raise InputError(f"{args.json}: exists and is not a report; choose another file, or overwrite it with --force")

    # Imported after the command line is parsed: --help answers at once, without torch.
    import numpy as np

    from data.arrow_set import ArrowVerificationSet
    from data.bin_set import read_bin
    from data.pairs import Pairs, sample_pairs
    from tools.examine import Report, examine_records, examine_verification_set
    from utils.about import describe_run
    from utils.files import write_text

    report, rng = Report(str(args.path)), np.random.default_rng(args.seed)
    is_arrow = (args.path / "state.json").is_file()
    if args.path.is_dir() and not is_arrow:
        images, positions, labels = examine_records(args.path, report, args.num_workers)
        pairs = sample_pairs(positions, labels, args.pairs, rng)
    elif is_arrow or args.path.is_file():
        verification_set = ArrowVerificationSet(args.path) if is_arrow else read_bin(args.path)
        images, pairs = examine_verification_set(verification_set, report, args.num_workers)
        pairs = Pairs(*(rng.permutation(rows)[: args.pairs] for rows in pairs))
    else:
        raise InputError(f"{args.path}: neither a folder nor a file (expected a record set, a .bin or an Arrow set)")
    if args.teacher:
        check_with_teacher(cfg, images, pairs, report, args.num_workers)
    print("\n".join(report.lines()))
    if args.json:
        content = {**vars(report), "about": describe_run()}
        write_text(args.json, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return 1 if report.problems else 0


def is_report(path: Path) -> bool:
    """Whether a file was written by --json."""
    try:
        return {"source", "figures", "problems"} <= json.loads(path.read_text(encoding="utf-8")).keys()
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def check_with_teacher(cfg, images, pairs, report, num_workers: int) -> None:
    """Embed the `pairs` of `images` (an ImageSource) with the teacher, in RGB and BGR; add findings to `report`."""
    import numpy as np
    from tqdm import tqdm

    from backbones import find_teacher
    from data.pairs import pair_cosines, significantly_higher
    from eval.embeddings import embed_batches
    from eval.metrics import unit_length
    from eval.verification import roc_metrics
    from tools.examine import Pixels
    from train.teachers import build_live_teacher
    from utils.distributed import process_group
    from utils.precision import compute_type

    release = find_teacher(cfg)
    report.figures["teacher"] = f"{release.network} from {release.origin}"
    report.figures["pairs_embedded"] = f"{len(pairs.same)} same identity, {len(pairs.different)} different"
    if not (len(pairs.same) and len(pairs.different)):
        report.note("no pairs to check with the teacher", [report.source])
        return
    positions = pairs.positions()
    batches = np.array_split(positions, -(-len(positions) // cfg.val_batch_size))
    is_same = np.repeat([True, False], [len(rows) for rows in pairs])
    cosines = {}
    with process_group() as device:
        teacher, dtype = build_live_teacher(cfg, device, release), compute_type(cfg.dtype, device)
        report.figures["teacher"] += f": {teacher.loaded}"
        for colours in ("RGB", "BGR"):
            pixels = Pixels(images, swapped=colours == "BGR")
            embedded = embed_batches(teacher, pixels, batches, device, dtype, flip=False, num_workers=num_workers)
            bar = tqdm(embedded, f"embedding in {colours}", len(batches), unit="batch")
            embeddings = np.concatenate([views[0].numpy() for _, views in bar])
            if not np.isfinite(embeddings).all():
                raise InputError(f"{release.origin}: its embeddings are not finite; download the weights again")
            measured = cosines[colours] = pair_cosines(pairs, positions, unit_length(embeddings))
            report.figures[f"{colours}_same"] = round(float(measured.same.mean()), 4)
            report.figures[f"{colours}_different"] = round(float(measured.different.mean()), 4)
            report.figures[f"{colours}_AUC"] = round(roc_metrics(is_same, np.concatenate(measured))["AUC"], 5)
    rgb, bgr = cosines["RGB"], cosines["BGR"]
    if not (significantly_higher(*rgb) or significantly_higher(*bgr)):
        report.problem("labels that do not agree with the teacher", [str(rgb)])
    if significantly_higher(bgr.same - rgb.same, bgr.different - rgb.different):
        report.problem("colours that are swapped according to the teacher", [f"RGB: {rgb}", f"BGR: {bgr}"])


if __name__ == "__main__":
    with exit_on_input_error():
        sys.exit(main())
