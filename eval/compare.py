"""Put results of eval/run_full_eval.py side by side: a row a result, a column a set, accuracies in percent."""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.errors import InputError, clear_errors


def accuracies(path: Path) -> dict[str, str]:
    """Set name -> accuracy in percent with its deviation over folds. Raises InputError naming the file."""
    try:
        sets = json.loads(path.read_text())["verification"]
        return {name: f"{100 * f['Accuracy-Flip']:.2f} ({100 * f['Accuracy-Std']:.2f})" for name, f in sets.items()}
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError, UnicodeDecodeError):
        raise InputError(f"{path}: holds no verification results of run_full_eval.py --results-json") from None


def table(rows: dict[str, dict[str, str]]) -> str:
    """Markdown, aligned; a set that a row lacks is a dash."""
    sets = list(dict.fromkeys(name for row in rows.values() for name in row))
    cells = [["accuracy [%] (std over folds)", *sets]]
    cells += [[name, *(row.get(column, "-") for column in sets)] for name, row in rows.items()]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in cells]
    lines = [f"| {' | '.join(row)} |" for row in padded]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, help="JSON files of results; a row is named after its file")
    args = parser.parse_args()
    print(table({path.stem: accuracies(path) for path in args.results}))


if __name__ == "__main__":
    with clear_errors():
        main()
