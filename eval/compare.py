"""Compare results of eval/run_full_eval.py: one row per method, one column per metric in percent.

The other methods are compared with the first one: their differences in points and, for the .bin sets, McNemar's exact
test on the pairs. Its p is the probability that chance alone splits the pairs that only one of the two methods decides
correctly at least as unevenly.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config.paths import existing_input
from utils.errors import exit_on_input_error

if TYPE_CHECKING:
    from eval.protocols import Results
    from eval.report import Table

SIGNIFICANCE_LEVEL = 0.05


def method_names(paths: list[Path]) -> list[str]:
    """The names of the files without extension, or their paths if two files have the same name."""
    stems = [path.stem for path in paths]
    return stems if len(set(stems)) == len(stems) else [str(path) for path in paths]


def differences(results: "dict[str, Results]", first: str) -> "Table":
    """The differences of the other methods from the first one, in points."""
    from eval.report import Table, headlines

    columns = headlines({name: method_results.metrics for name, method_results in results.items()})

    def cell(column, name: str) -> str:
        value, reference = column.values()[name], column.values()[first]
        if value is None or reference is None:
            return "-"
        return f"{column.display.scale * (value - reference):+.2f}{column.mark(name) or column.mark(first)}"

    header = [f"minus {first} [points]", *(column.label for column in columns)]
    rows = [[name, *(cell(column, name) for column in columns)] for name in results if name != first]
    return Table("", header, rows, set())


def significance(results: "dict[str, Results]", first: str) -> "Table":
    """McNemar's test of every other method against the first one, on every set of pairs that both have."""
    from eval.protocols import PROTOCOLS
    from eval.report import Table

    counts = [f"pairs that only {first} decides correctly", "pairs that only this method decides correctly"]
    header = [f"compared with {first}", "set", *counts, "p (McNemar)"]
    rows = [
        [name, target, *_mcnemar_cells(results[first], results[name], protocol, target)]
        for name in results
        if name != first
        for protocol in pair_protocols()
        for target, metrics in results[name].metrics.get(protocol, {}).items()
        if target in results[first].metrics.get(protocol, {}) and not PROTOCOLS[protocol].is_summary(target, metrics)
    ]
    return Table("", [*header, f"difference at {SIGNIFICANCE_LEVEL}"], rows, set())


def pair_protocols() -> list[str]:
    """The protocols that decide pairs."""
    from eval.protocols import PROTOCOLS

    return [name for name, protocol in PROTOCOLS.items() if protocol.decides_pairs]


def _mcnemar_cells(first: "Results", other: "Results", protocol: str, target: str) -> list[str]:
    """The cells of the table of `significance` that follow the names of the method and of the set."""
    import numpy as np

    from eval.metrics import mcnemar

    arrays = [results.arrays.get(protocol, {}).get(target) for results in (first, other)]
    if None in arrays:
        return ["-", "-", "-", "unknown: the .npz beside the JSON is missing"]
    first_arrays, other_arrays = arrays
    if not np.array_equal(first_arrays["is_same"], other_arrays["is_same"]):
        return ["-", "-", "-", "unknown: the sets have different pairs"]
    only_first, only_other, p = mcnemar(
        first_arrays["decision"] == first_arrays["is_same"], other_arrays["decision"] == other_arrays["is_same"]
    )
    verdict = "larger than chance" if p < SIGNIFICANCE_LEVEL else "may be chance"
    return [str(only_first), str(only_other), f"{p:.2g}", verdict]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="JSON files of results, with the .npz beside them")
    parser.add_argument("--latex", action="store_true", help="print tables for a paper (booktabs)")
    args = parser.parse_intermixed_args()

    # Imported here so that --help answers at once.
    from eval.report import latex, markdown, methods_table, read_json

    names = method_names(args.results)
    results = {
        name: read_json(existing_input(path), pair_protocols()) for name, path in zip(names, args.results, strict=True)
    }
    metrics = {name: method_results.metrics for name, method_results in results.items()}
    tables = [methods_table("", metrics, "[%] (std over folds)")]
    if len(results) > 1:
        tables += [differences(results, names[0]), significance(results, names[0])]
    print("\n\n".join((latex if args.latex else markdown)(table) for table in tables if table.rows))


if __name__ == "__main__":
    with exit_on_input_error():
        main()
