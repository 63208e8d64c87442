"""Score a checkpoint of the student (or of any network in config/names.py) on the sets that the config names."""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config.paths import existing_input, existing_weights
from eval.arguments import NO_SET_FOUND, make_parser, read_config
from utils.errors import InputError, exit_on_input_error


def main() -> None:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--checkpoint", required=True, help="the student's weights: <step>backbone.pth, or a folder or hf://owner/name "
        "that deploy/to_hub.py made")  # fmt: skip
    add("--results-json", metavar="FILE", help="write the metrics to this file, and each pair's score and decision to "
        "the .npz beside it")  # fmt: skip
    add("--force", action="store_true", help="overwrite the file of --results-json even if it holds no results")
    add("--plots", metavar="DIR", help="write plots as PNG files and report.html to this folder")
    args = parser.parse_intermixed_args()
    cfg = read_config(args, init_from=args.checkpoint)
    existing_weights(args.checkpoint)

    # Imported here so that --help and errors in the config come at once.
    import torch

    from backbones import build_backbone
    from backbones.model_folder import weights_file
    from eval.protocols import build_evaluation_sets, evaluate, open_images
    from eval.report import ScoredCheckpoint, format_results, refuse_to_overwrite, write_json, write_report
    from eval.sets import SetCache
    from utils.about import run_facts
    from utils.distributed import on_rank_0, process_group, rank
    from utils.files import sha256
    from utils.precision import compute_type

    sets, cache = build_evaluation_sets(cfg), SetCache()
    with process_group(args.device) as device:
        if args.results_json and not args.force:
            on_rank_0(lambda: refuse_to_overwrite(args.results_json, with_arrays=True))
        network = build_backbone(cfg)
        if rank() == 0:
            print(f"{args.checkpoint}: {network.loaded}", flush=True)
        network = network.to(device, memory_format=torch.channels_last)
        dtype, folder = compute_type(cfg.dtype, device), args.save_embeddings
        results = evaluate(network, sets, device, dtype, cache, folder)
        weights = sha256(weights_file(cfg.init_from))
        about = {
            "checkpoint": cfg.init_from,
            "checkpoint_sha256": weights,
            "config": str(existing_input(args.config)),
            "val_flip": str(cfg.val_flip),
            **run_facts(),
        }
        if rank() != 0:
            return
    print(format_results(results))
    if args.results_json:
        write_json(args.results_json, results, about)
        print(f"written: {args.results_json}, and each pair's score beside it (.npz)")
    if args.plots:
        scored, page = ScoredCheckpoint(Path(cfg.init_from).stem, results), Path(args.plots, "report.html")
        write_report(page, args.plots, [scored], about, partial(open_images, sets, cache), [])
        print(f"written: {page}, and the plots beside it (.png)")
    if not results.metrics and not results.failed:
        raise InputError(NO_SET_FOUND)
    if results.failed:
        raise InputError(f"some sets could not be scored: {'; '.join(results.failed)}")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
