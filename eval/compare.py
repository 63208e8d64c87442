"""Compare results of eval/run_full_eval.py: one row per method, one column per metric in percent.

A method is a JSON file of results, or a folder of them: several runs of the method, named after their seeds. Then the
table has the means and standard deviations over the runs.

The other methods are compared with the first one: their differences in points and, for the .bin sets, McNemar's exact
test on the pairs. Its p is the probability that chance alone splits the pairs that only one of the two methods decides
correctly at least as unevenly. With folders, runs whose files have the same name are paired: the table has the mean
difference with its 95 % interval (Student's t over the paired runs), and McNemar's counts are added up over the runs.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config.paths import existing_input
from utils.errors import InputError, exit_on_input_error

if TYPE_CHECKING:
    from eval.protocols import Results


def method_names(paths: list[Path]) -> list[str]:
    """The names of the files without extension or of the folders, or the paths if two of the names are the same."""
    names = [path.name if path.is_dir() else path.stem for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def read_runs(path: Path) -> "dict[str, Results]":
    """The results in all JSON files of a folder, by the names of the files without extension; or those in one file."""
    from eval.comparison import pair_protocols
    from eval.report import read_json

    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path}: has no JSON files of results; run eval/run_full_eval.py with --results-json")
    return {file.stem if path.is_dir() else "": read_json(file, pair_protocols()) for file in files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "results", nargs="+", type=Path, help="JSON files of results, with the .npz beside them, or folders of them"
    )
    parser.add_argument("--metrics", default="", help="more metrics to show, such as TAR_at_FAR_0.01,AUC")
    parser.add_argument("--latex", action="store_true", help="print tables for a paper (booktabs)")
    args = parser.parse_intermixed_args()

    # Imported here so that --help answers at once.
    from eval.comparison import comparison, parse_metrics
    from eval.report import latex, markdown

    metrics = parse_metrics(args.metrics)
    paths = [existing_input(path) for path in args.results]
    runs = {name: read_runs(path) for name, path in zip(method_names(paths), paths, strict=True)}
    tables = comparison(runs, metrics)
    print("\n\n".join((latex if args.latex else markdown)(table) for table in tables))


if __name__ == "__main__":
    with exit_on_input_error():
        main()
