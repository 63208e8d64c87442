"""Score a checkpoint of the student (or any network of backbones.NETWORKS) on the sets that the config names."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from eval.arguments import NOTHING_THERE, parser, read_config
from utils.errors import InputError, exit_on_input_error


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--checkpoint", required=True, help="the student's weights, <step>backbone.pth")
    arguments.add_argument("--results-json", metavar="FILE", help="write the figures there, and each pair's score and "
        "decision beside it as .npz")  # fmt: skip
    arguments.add_argument("--force", action="store_true", help="write over what is there: a file that --results-json "
        "names and that holds no results")  # fmt: skip
    arguments.add_argument("--plots", metavar="DIR", help="write plots as PNG there, and report.html")
    args = arguments.parse_args()
    cfg = read_config(args, init_from=os.path.abspath(args.checkpoint))

    # After the config: --help and a wrong key answer at once, without torch.
    import torch

    from backbones import build_backbone
    from eval.protocols import PROTOCOLS, evaluate, open_set
    from eval.report.results import refuse_to_overwrite, screen, write_json
    from eval.report.writing import ScoredCheckpoint, write_report
    from eval.sets import Sets
    from utils.about import describe_run
    from utils.distributed import on_rank_0, process_group, rank
    from utils.precision import compute_type

    sets = Sets()
    with process_group(args.device) as device:
        if args.results_json and not args.force:
            on_rank_0(lambda: refuse_to_overwrite(args.results_json, with_arrays=True))
        network = build_backbone(cfg).to(device, memory_format=torch.channels_last)
        dtype, folder = compute_type(cfg.dtype, device), args.save_embeddings
        results = evaluate(network, cfg, PROTOCOLS, device, dtype, sets, folder)
        about = {"checkpoint": args.checkpoint, "config": args.config, "run": describe_run()}
        if rank() != 0:
            return
    print(screen(results))
    if args.results_json:
        write_json(args.results_json, results, about)
        print(f"written: {args.results_json}, and each pair's score beside it (.npz)")
    if args.plots:
        scored, page = ScoredCheckpoint(Path(args.checkpoint).stem, results), Path(args.plots, "report.html")
        write_report(page, args.plots, [scored], about, lambda target: open_set(cfg, "verification", target, sets), [])
        print(f"written: {page}, and the plots beside it (.png)")
    if not results.figures and not results.failed:
        raise InputError(NOTHING_THERE)
    if results.failed:
        raise InputError(f"not every set could be scored: {'; '.join(results.failed)}")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
