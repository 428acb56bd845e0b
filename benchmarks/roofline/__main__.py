"""What the fused contrastive loss should take on five GPUs, from counts of its compiled kernels, beside what was measured.

python -m benchmarks.roofline                # prints tables
python -m benchmarks.roofline --count        # compiles and counts again first, into counts.json; needs Triton, no GPU
python -m benchmarks.roofline --write        # puts the tables into docs/notes/roofline.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.markdown import replace_between
from benchmarks.results import REPOSITORY
from benchmarks.roofline import counts
from benchmarks.roofline.tables import TABLES

PAGE = REPOSITORY / "docs" / "notes" / "roofline.md"


def main(arguments: list[str] | None = None, page: Path = PAGE) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", action="store_true", help="compile and count the kernels again")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/notes/roofline.md")
    options = parser.parse_args(arguments)
    if options.count:
        counts.write()
    known = counts.read()
    for name, table in TABLES.items():
        if options.write:
            replace_between(page, name, table(known))
        else:
            print(f"{name}\n\n{table(known)}\n")


if __name__ == "__main__":
    main()
