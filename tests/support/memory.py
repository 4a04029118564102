"""Prints the bytes that one fit takes beyond its input, and what is promised for it.

PYTHONPATH=tests python -m support.memory N D K DTYPE THREADS INIT KIND
"""

import ctypes
import os
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import scipy.sparse
import torch

from dcfast import KMeans


def taken(program, *arguments):
    """What a program of this folder prints: bytes. It is a process of its own, so that no other test's peak counts."""
    settings = {
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONPATH": str(Path(__file__).parents[1]),
        # A fixed threshold: glibc's own moves with what is freed, and what it then keeps comes to a multiple of the
        # largest block, another one each time.
        "MALLOC_MMAP_THRESHOLD_": "131072",
    }
    command = [sys.executable, "-m", program.__name__, *map(str, arguments)]
    environment = {**os.environ, **settings}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    return int(ended.stdout)


def status(name):
    """Bytes of a field of /proc/self/status. `getrusage` would count the process that started this one as well."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found, name
    return int(found[1]) * 1024


def resident():
    """Bytes in memory now, after what is free has been given back."""
    ctypes.CDLL(None).malloc_trim(0)
    return status("VmRSS")


def promised(n, d, k, dtype):
    return 64 * n + (48 if dtype == "float32" else 64) * k * d + 64 * 2**20


def rows(path, n, d, dtype):
    """A file of random rows, written block by block."""
    random = np.random.default_rng(0)
    with open(path, "wb") as file:
        header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (n, d)}
        np.lib.format.write_array_header_1_0(file, header)
        step = max(1, 100_000 // d)
        for start in range(0, n, step):
            (100 * random.standard_normal((min(step, n - start), d))).astype(dtype).tofile(file)


def source(path, kind, n, d):
    if kind == "path":
        return path
    if kind == "chunks":
        return lambda: (np.load(path, mmap_mode="r")[start : start + 1000].copy() for start in range(0, n, 1000))
    if kind == "sparse":  # one element in a row
        random = np.random.default_rng(0)
        return scipy.sparse.csr_array((random.random(n), random.integers(d, size=n), np.arange(n + 1)), (n, d))
    X = np.load(path)
    return X.T if kind == "turned" else X


def main():
    n, d, k = map(int, sys.argv[1:4])
    dtype, threads, init, kind = sys.argv[4:]
    torch.set_num_threads(int(threads))
    warnings.simplefilter("ignore")
    stored = "int32" if kind == "integers" else dtype
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/x.npy"
        rows(path, *((d, n) if kind == "turned" else (n, d)), stored)
        arguments = {"init": init, "n_init": 1, "max_iter": 2, "random_state": 0, "spherical": kind == "spherical"}
        # What a first fit loads and keeps is no memory of the second.
        KMeans(3, **arguments).fit(np.random.default_rng(0).standard_normal((2000, 8)).astype(dtype))
        X = source(path, kind, n, d)
        weight = np.random.default_rng(1).random(n) if kind == "weighted" else None
        before = resident()
        KMeans(k, **arguments).fit(X, sample_weight=weight)
        # The peak of all that was before counts too, so that the difference is never too small.
        print(status("VmHWM") - before)


if __name__ == "__main__":
    main()
