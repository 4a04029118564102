"""Runs one table in a process of its own and appends its rows to a file, one JSON object a line, as they come.

python -m gpu.table NAME FILE [--small] [--device cpu]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from . import epoch_table, kmeans_tables, loss_tables, sobel_table
from .case import run

TABLES = {
    "k-means": kmeans_tables.cases,
    "k-means++": kmeans_tables.plusplus_cases,
    "sobel": sobel_table.cases,
    "loss": loss_tables.cases,
    "linear-loss": loss_tables.linear_cases,
    "epoch": epoch_table.cases,
}


def write_rows(name: str, file: Path, device: torch.device, small: bool) -> None:
    """Append every row as soon as it is known, so that a hang or a crash leaves those before it."""
    with file.open("a") as out:
        began = time.perf_counter()
        for case in TABLES[name](device, small):
            for row in run(case, device):
                row["after"] = round(time.perf_counter() - began, 1)
                out.write(json.dumps(row) + "\n")
                out.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=TABLES)
    parser.add_argument("file", type=Path)
    parser.add_argument("--small", action="store_true", help="sizes that only show that everything runs")
    parser.add_argument("--device", type=torch.device, default="cuda")
    arguments = parser.parse_args()
    torch.backends.cudnn.benchmark = True  # the convolutions of peers at their best
    write_rows(arguments.name, arguments.file, arguments.device, arguments.small)


if __name__ == "__main__":
    main()
