"""Look a training set or a verification set over, whole, and say everything that is wrong with it.

Of a record set: whether the index fits the file and lists all of it; whether record 0, property and labels agree;
whether every image decodes; whether one stands there twice. Of a .bin: whether every image decodes and pairs do not
contradict each other. With --teacher also whether a trained network finds images of one identity more alike than images
of two, with the colours as they are (RGB) and swapped (BGR): wrong labels and another colour order show there.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import BASE, load_config
from utils.errors import InputError, exit_on_input_error

EPILOG = """
Problems are what training or evaluation would stop at or get wrong: also an identity without an image, one image in
two identities, a teacher that finds no difference between pairs, or a clearly larger one in BGR. Notes are what good
sets have as well: identities with one image, an image twice in one identity, a pair that stands twice in a .bin, images
of a .bin that have to be resized.

The teacher is measured by the mean cosine of same-identity pairs minus that of different-identity pairs. It must be
above 0 by three standard errors; BGR is better where its difference, pair by pair, is higher by three. The area under
the ROC curve is stated as well.

Exit code: 0 nothing wrong, 1 problems, 2 it cannot be read at all.

examples:
  python tools/check_data.py dataset/faces_emore --num-workers 8 --json output/faces_emore.json
  python tools/check_data.py dataset/faces_emore --teacher
  python tools/check_data.py dataset/faces_emore/lfw.bin --teacher teacher=mobilefacenet embedding_size=128 \\
      pretrained_teacher_path=path/to/weights.pth
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, help="a folder with train.rec, train.idx (and property), or a .bin file")
    parser.add_argument("--num-workers", type=int, default=4, help="processes that decode; 0: this one (default: 4)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there as well")
    parser.add_argument("--force", action="store_true", help="write over a file that is no report of this script")
    parser.add_argument("--teacher", action="store_true", help="also ask the teacher that the config names")
    parser.add_argument("--config", default=str(BASE), help="config or preset file (default: config/config.py)")
    parser.add_argument("--pairs", type=int, default=1000, help="pairs of each kind for it (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of their choice (default: 0)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the config, as train scripts take")
    args = parser.parse_intermixed_args()
    if args.overrides and not args.teacher:
        parser.error(f"{args.overrides[0]}: keys of the config say which teacher; give --teacher as well")
    if args.pairs < 2 or args.num_workers < 0:
        parser.error("--pairs is at least 2, --num-workers at least 0")
    cfg = load_config(args.config, args.overrides)
    if args.json and args.json.exists() and not (args.force or is_report(args.json)):
        raise InputError(f"{args.json}: exists, and is no report; name another file, or write over it with --force")

    # After the command line: --help answers at once, without torch.
    import numpy as np

    from data.bin_set import read_bin
    from data.pairs import Pairs, sample_pairs
    from tools.examine import Report, examine_bin, examine_records
    from utils.about import describe_run
    from utils.files import write_text

    report, rng = Report(str(args.path)), np.random.default_rng(args.seed)
    if args.path.is_dir():
        images, positions, labels = examine_records(args.path, report, args.num_workers)
        pairs = sample_pairs(positions, labels, args.pairs, rng)
    elif args.path.is_file():
        images, pairs = examine_bin(read_bin(args.path), report, args.num_workers)
        pairs = Pairs(*(rng.permutation(kind)[: args.pairs] for kind in pairs))
    else:
        raise InputError(f"{args.path}: neither a folder with train.rec and train.idx nor a .bin file")
    if args.teacher:
        ask_teacher(cfg, images, pairs, report, args.num_workers)
    print("\n".join(report.lines()))
    if args.json:
        write_text(args.json, json.dumps({**vars(report), "about": describe_run()}, indent=1) + "\n")
    return 1 if report.problems else 0


def is_report(path: Path) -> bool:
    """Whether a file is what --json writes."""
    try:
        return {"source", "figures", "problems"} <= json.loads(path.read_text()).keys()
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def ask_teacher(cfg, images, pairs, report, num_workers: int) -> None:
    """Add to `report` what the teacher says of the pairs of `images` (tools.examine), in RGB and in BGR."""
    import numpy as np
    from tqdm import tqdm

    from backbones import find_teacher
    from data.pairs import pair_cosines, significantly_higher
    from eval.embeddings import embed_batches
    from eval.verification import roc_metrics
    from tools.examine import Pixels
    from train.teachers import live_teacher
    from utils.distributed import process_group
    from utils.precision import compute_type

    release = find_teacher(cfg)
    report.figures["teacher"] = f"{release.network} from {release.origin}"
    report.figures["pairs_embedded"] = f"{len(pairs.same)} same identity, {len(pairs.different)} different"
    if not (len(pairs.same) and len(pairs.different)):
        report.note("no pairs for the teacher to be asked about", [report.source])
        return
    positions = pairs.positions()
    batches = np.array_split(positions, -(-len(positions) // cfg.val_batch_size))
    is_same = np.repeat([True, False], [len(kind) for kind in pairs])
    cosines = {}
    with process_group() as device:
        teacher, dtype = live_teacher(cfg, device, release), compute_type(cfg.dtype, device)
        for colours in ("RGB", "BGR"):
            pixels = Pixels(images, swapped=colours == "BGR")
            embedded = embed_batches(teacher, pixels, batches, device, dtype, flip=False, num_workers=num_workers)
            bar = tqdm(embedded, f"embedding in {colours}", len(batches), unit="batch")
            embeddings = np.concatenate([views[0].cpu().numpy() for _, views in bar])
            if not np.isfinite(embeddings).all():
                raise InputError(f"{release.origin}: gives embeddings that are not finite; the weights are broken")
            found = cosines[colours] = pair_cosines(pairs, positions, embeddings)
            report.figures[f"{colours}_same"], report.figures[f"{colours}_different"] = (
                round(float(kind.mean()), 4) for kind in found
            )
            report.figures[f"{colours}_AUC"] = round(roc_metrics(is_same, np.concatenate(found))["AUC"], 5)
    rgb, bgr = cosines["RGB"], cosines["BGR"]
    if not (significantly_higher(*rgb) or significantly_higher(*bgr)):
        report.problem("labels that say nothing to the teacher", [str(rgb)])
    if significantly_higher(bgr.same - rgb.same, bgr.different - rgb.different):
        report.problem("colours that are swapped, to the teacher", [f"RGB: {rgb}", f"BGR: {bgr}"])


if __name__ == "__main__":
    with exit_on_input_error():
        sys.exit(main())
