"""Write a contact sheet of drawn faces."""

import argparse
import sys
from pathlib import Path

import cv2

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from demo.faces import contact_sheet
from utils.errors import exit_on_input_error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sheet", type=Path, required=True, metavar="PATH", help="PNG file to write")
    parser.add_argument("--identities", type=int, default=6, help="rows (default 6)")
    parser.add_argument("--views", type=int, default=10, help="columns, the first a clean portrait (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default 0)")
    options = parser.parse_args()
    sheet = contact_sheet(options.identities, options.views, options.seed)
    options.sheet.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(options.sheet), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 9]):
        raise OSError(f"{options.sheet}: cannot be written; choose another path")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
