"""Put results of eval/run_full_eval.py side by side: a row a method, a column a figure in percent.

The other methods are compared with the first: the differences in points and, for the .bin sets, McNemar's exact test on
the pairs. Its p is how likely so uneven a split of the pairs that only one of the two gets right would be by chance.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from utils.errors import exit_on_input_error

LEVEL = 0.05


def mcnemar(first: np.ndarray, second: np.ndarray) -> tuple[int, int, float]:
    """Right decisions bool [P] of two methods -> pairs that only the first, only the second gets right, and p.

    Were both equally good, each of these pairs would be the first's with probability 1/2; p is two-sided (McNemar,
    Psychometrika 1947, in its exact form).
    """
    from scipy.stats import binomtest

    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    differing = only_first + only_second
    return only_first, only_second, float(binomtest(only_first, differing).pvalue) if differing else 1.0


def names(paths: list[Path]) -> list[str]:
    """How the methods are called: by their files' names, or by the paths where two files have one name."""
    stems = [path.stem for path in paths]
    return stems if len(set(stems)) == len(stems) else [str(path) for path in paths]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="JSON files of results, with the .npz beside them")
    parser.add_argument("--latex", action="store_true", help="print tables for a paper (booktabs)")
    args = parser.parse_args()

    from eval.report.figures import reading
    from eval.report.results import read_json
    from eval.report.tables import Table, headlines, latex, markdown, methods_table

    results = {
        name: read_json(path, ["verification"]) for name, path in zip(names(args.results), args.results, strict=True)
    }
    figures = {name: one.figures for name, one in results.items()}
    first, *others = results
    columns = headlines(figures)

    def differences(name: str) -> list[str]:
        cells = []
        for column in columns:
            values, factor = column.values(), reading(column.column.figure).factor
            absent = values[first] is None or values[name] is None
            cells.append("-" if absent else f"{factor * (values[name] - values[first]):+.2f}")
        return cells

    def chance(name: str, target: str) -> list[str]:
        sides = [results[method].arrays.get("verification", {}).get(target) for method in (first, name)]
        if None in sides:
            return ["-", "-", "-", "no scores of its pairs: the .npz beside the JSON is missing"]
        if not np.array_equal(*(side["is_same"] for side in sides)):
            return ["-", "-", "-", "not the same pairs"]
        only_first, only_other, p = mcnemar(*(side["decision"] == side["is_same"] for side in sides))
        return [str(only_first), str(only_other), f"{p:.2g}", "larger than chance" if p < LEVEL else "may be chance"]

    tables = [methods_table("", figures, "[%] (std over folds)")]
    if others:
        header = [f"minus {first} [points]", *(column.label for column in columns)]
        tables.append(Table("", header, [[name, *differences(name)] for name in others], set()))
    of_first = figures[first].get("verification", {})
    shared = [
        (name, target) for name in others for target in figures[name].get("verification", {}) if target in of_first
    ]
    if shared:
        header = [
            f"against {first}",
            "set",
            "only it right",
            "only this right",
            "p (McNemar)",
            f"difference at {LEVEL}",
        ]
        tables.append(Table("", header, [[name, target, *chance(name, target)] for name, target in shared], set()))
    print("\n\n".join((latex if args.latex else markdown)(table) for table in tables))


if __name__ == "__main__":
    with exit_on_input_error():
        main()
