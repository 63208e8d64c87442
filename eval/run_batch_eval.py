"""Score every checkpoint of a folder in the order of their steps, and compare them in one table and one report."""

import sys
from argparse import Namespace
from pathlib import Path

from easydict import EasyDict

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config.paths import existing_input
from eval.arguments import NO_SET_FOUND, make_parser, read_config
from utils.errors import InputError, exit_on_input_error


def gigabytes(text: str) -> float:
    """A finite number of at least 0."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError
    return value


def parse_arguments() -> Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--checkpoint-dir", required=True, metavar="DIR", help="the folder")
    add("--checkpoint-suffix", default="backbone.pth", metavar="TEXT",
        help="how the names of checkpoints end (default: %(default)s)")  # fmt: skip
    add("--report-dir", metavar="DIR", help="where <checkpoint>_metrics.csv, summary.csv, summary.md and report.html "
        "go (default: `reports` in the folder)")  # fmt: skip
    add("--save-json", action="store_true", help="also write <checkpoint>_metrics.json, and each pair's score as .npz")
    add("--best", metavar="METRIC", help="mark the checkpoint with the best value of this metric, for example "
        "verification.lfw.Accuracy-Flip (default: mean, the mean accuracy of the verification sets); of equal ones, "
        "the earliest")  # fmt: skip
    add("--results-json", metavar="FILE", help="write the metrics of all checkpoints to this file")
    add("--plots", metavar="DIR", help="where plots go as PNG files (default: `plots` in the report folder)")
    add("--latex", action="store_true", help="print the table for a paper, and write it to summary.tex")
    add("--cache-gb", type=gigabytes, default=8.0, metavar="GB", help="keep up to this many 10^9 bytes of decoded "
        "images, so that sets are not decoded again for each checkpoint (default: %(default)s; all public sets: 36)",
        )  # fmt: skip
    add("--force", action="store_true", help="also score checkpoints that have a report of the same weights, settings "
        "and sets, and overwrite the file of --results-json even if it holds no results")  # fmt: skip
    return parser.parse_intermixed_args()


def main() -> None:
    args = parse_arguments()
    cfg, folder = read_config(args), existing_input(args.checkpoint_dir)

    # Imported here so that --help and errors in the config come at once.
    from backbones import build_backbone
    from eval.batch import BatchEvaluation, find_checkpoints
    from eval.best import MEAN, build_criterion
    from eval.protocols import build_evaluation_sets
    from eval.report import latex, markdown, refuse_to_overwrite, write_collected_json
    from utils.about import run_facts
    from utils.distributed import on_rank_0, process_group, rank
    from utils.files import write_text
    from utils.precision import compute_type

    reports = Path(args.report_dir or folder / "reports")
    sets = build_evaluation_sets(cfg)
    existing = [evaluation_set for evaluation_set in sets if evaluation_set.find() is not None]
    has_pairs = any(evaluation_set.protocol == "verification" for evaluation_set in existing)
    criterion = build_criterion("--best", args.best or MEAN, existing) if args.best or has_pairs else None
    with process_group(args.device) as device:
        batch = BatchEvaluation(
            sets, lambda path: build_backbone(EasyDict(cfg, init_from=str(path))), compute_type(cfg.dtype, device),
            {key: cfg[key] for key in ("network", "embedding_size", "width", "SE", "activation")}, reports,
            args.save_json, args.save_embeddings, args.cache_gb, criterion,
        )  # fmt: skip
        if args.results_json and not args.force:
            on_rank_0(lambda: refuse_to_overwrite(args.results_json, with_arrays=False))
        checkpoints = on_rank_0(lambda: find_checkpoints(folder, args.checkpoint_suffix))
        for number, path in enumerate(checkpoints, 1):
            text = batch.score(path, device, args.force)
            if rank() == 0:
                print(f"[{number}/{len(checkpoints)}] {path.name}: {text}", flush=True)
        about = {"folder": str(folder), "config": str(existing_input(args.config)), **run_facts()}
        if rank() != 0:
            return
    table = batch.finish(Path(args.plots or reports / "plots"), about)
    print(f"\n{latex(table) if args.latex else markdown(table)}")
    if args.latex:
        write_text(reports / "summary.tex", latex(table) + "\n")
    if batch.best_note:
        print(f"\n{batch.best_note}")
    if args.results_json:
        results = {scored.name: scored.results for scored in batch.scored}
        write_collected_json(args.results_json, results, batch.best, about)
    print(f"written: {reports}, with report.html")
    failures = batch.failures()
    if failures:
        raise InputError(f"not everything could be scored: {'; '.join(failures)}")
    if not any(scored.results.metrics for scored in batch.scored):
        raise InputError(NO_SET_FOUND)


if __name__ == "__main__":
    with exit_on_input_error():
        main()
