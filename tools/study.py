"""Train several methods with several seeds each, and compare them: means, deviations, differences with intervals.

    python tools/study.py --config config/lfw.py --presets plain_student,adadistill_arcface --seeds 5 \\
        --output output/study num_epoch=6

A method is a preset in config/ (or a .py file) on top of --config, perhaps with overrides after a space:
"adadistill_geometry geom_margin_w=2". Runs with the same seed begin with the same weights and see the images in the
same order. The teacher's embeddings are computed once, for all runs (unless teacher_embeddings says otherwise).

Each run is an ordinary run in <output>/<method>/seed<k>, with its results in seed<k>.json beside it. The same command
continues a study that was interrupted; it repeats no run that is complete. A run that fails does not stop the others.
A run is complete if its files say so, or study.csv if they are gone.
<output>/study.csv has a row per run, settings.json their settings, study.md the tables, study.png the learning curves;
they are written again after each run.

With --report, the studies in the named folders are copied to docs/studies/, and docs/results.md is rebuilt.
"""

import argparse
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import BASE
from config.paths import existing_input, output_path
from utils.errors import InputError, exit_on_input_error


def seeds(text: str) -> list[int]:
    """The seeds 1 .. n for a number n, or the numbers of a list with commas."""
    numbers = [int(part) for part in text.split(",") if part]
    chosen = list(range(1, numbers[0] + 1)) if len(numbers) == 1 and "," not in text else numbers
    if not chosen or min(chosen) < 0 or len(set(chosen)) < len(chosen):
        raise ValueError
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config", default=str(BASE), help="config or preset on which all methods build (default: config/config.py)")
    add("--presets", help="the methods, separated by commas; the others are compared with the first one")
    add("--seeds", type=seeds, default=seeds("5"), help="how many seeds, 1 to n, or a list such as 3,7, (default: 5)")
    add("--output", help="folder of the study; a relative path starts at the repository root")
    add("--jobs", type=int, default=1, help="how many runs at once; each gets its part of the CPU threads (default: 1)")
    add("--metrics", default="", help="more metrics for the tables, such as TAR_at_FAR_0.01,AUC")
    add("--report", nargs="+", metavar="FOLDER", help="rebuild docs/results.md with the studies in these folders")
    add("overrides", nargs="*", metavar="key=value", help="config keys of all methods, for example num_epoch=6")
    args = parser.parse_intermixed_args()
    if args.report:
        from tools.studies.results import rebuild

        print("\n".join(f"written: {path}" for path in rebuild([existing_input(folder) for folder in args.report])))
        return
    if not args.presets or not args.output:
        raise InputError("name the methods with --presets and the folder with --output")
    if args.jobs < 1:
        raise InputError(f"--jobs {args.jobs}: at least 1 is needed")

    # Imported here so that --help and errors in the command line come at once.
    from tools.studies.plan import Run, plan_methods
    from utils.files import lock_folder, make_writable_folder

    folder = make_writable_folder(output_path(args.output))
    lock = lock_folder(folder)
    methods = plan_methods(args.config, args.presets, folder, args.overrides)
    # All methods with one seed come before the next seed, so that an unfinished study has paired runs.
    runs = [Run(method, seed) for seed in args.seeds for method in methods]

    from tqdm import tqdm

    from eval.comparison import parse_metrics
    from tools.studies.records import DONE, NOT_FINISHED
    from tools.studies.report import write_study
    from tools.studies.runs import Scripts, is_done, require_same_settings, run_all

    require_same_settings(runs)
    metrics = parse_metrics(args.metrics)
    command = shlex.join(["python", *sys.argv])
    by_method = sorted(runs, key=lambda run: methods.index(run.method))
    status = {run: DONE if is_done(run) else NOT_FINISHED for run in by_method}
    to_do = [run for run in runs if status[run] != DONE]
    write_study(folder, command, status, metrics)  # so that damaged files are found before anything runs
    bar = tqdm(total=len(runs), initial=len(runs) - len(to_do), desc="study", unit="run")

    def finished(run: Run, failure: str | None) -> None:
        status[run] = f"failed: {failure}" if failure else DONE
        write_study(folder, command, status, metrics)
        bar.write(f"{run.name}: {status[run]}", file=sys.stderr)
        bar.update()

    run_all(to_do, Scripts(args.jobs), finished)
    bar.close()
    print("\n".join(f"written: {folder / name}" for name in write_study(folder, command, status, metrics)))
    lock.close()
    if failed := [run.name for run in runs if status[run] != DONE]:
        raise InputError(
            f"{len(failed)} of {len(runs)} runs failed: {'; '.join(failed)}; {folder / 'study.md'} says why"
        )


if __name__ == "__main__":
    with exit_on_input_error():
        main()
