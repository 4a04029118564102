"""Measures the device's limits and notes which backend serves each op on it, in a process of its own.

python -m gpu.device FILE [--small] [--device cpu]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import torch

from dcfast.info import serving

from .measure import measured_limits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--small", action="store_true", help="sizes that only show that everything runs")
    parser.add_argument("--device", type=torch.device, default="cuda")
    arguments = parser.parse_args()
    limits = measured_limits(arguments.device, small=arguments.small)
    backends = {op: backend for op, (backend, _) in serving(arguments.device.type).items()}
    arguments.file.write_text(json.dumps({"limits": dataclasses.asdict(limits), "serving": backends}))


if __name__ == "__main__":
    main()
