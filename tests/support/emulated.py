"""csrc/cuda on a processor: the extension of tests/emulator, and tests served by its kernels in place of a GPU's."""

import concurrent.futures
import ctypes
import importlib.util
import mmap
import os
import subprocess
import sysconfig
from pathlib import Path

import pybind11
import torch

ROOT = Path(__file__).parents[2]
EMULATOR = ROOT / "tests" / "emulator"
FLAGS = [
    "-std=c++17",
    "-O1",
    "-mf16c",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Werror",
]
# What nvcc accepts without a word.
FLAGS += ["-Wno-unknown-pragmas", "-Wno-unused-variable", "-Wno-unused-function", "-Wno-unused-parameter"]
# What is read before it is written is neither 0 nor an address, and what is read ahead is read; from GCC 12 on.
_PATTERN = "-ftrivial-auto-var-init=pattern"
if subprocess.run(["g++", _PATTERN, "-E", "-x", "c++", os.devnull], capture_output=True).returncode == 0:
    FLAGS += [_PATTERN]
INCLUDES = [EMULATOR / "include", ROOT / "csrc" / "cuda", ROOT / "csrc" / "include"]
INCLUDES += [pybind11.get_include(), sysconfig.get_paths()["include"]]


def build(folder):
    """Compile every CUDA file as C++ against tests/emulator/include, and load the module whose `cuda` holds the ops."""
    sources = [ROOT / "csrc" / "bindings.cpp", *EMULATOR.glob("*.cpp"), *sorted((ROOT / "csrc/cuda").glob("*.cu"))]
    flags = [*FLAGS, "-DDCFAST_HAS_CUDA", "-DDCFAST_HAS_SM90", *(f"-I{include}" for include in INCLUDES)]

    def compiled(source):
        to = folder / f"{source.name}.o"
        # Of the bindings only the compilation takes time.
        speed = ["-O0"] if source.name == "bindings.cpp" else []
        subprocess.run(["g++", *flags, *speed, "-x", "c++", "-c", source, "-o", to], check=True)
        return to

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources))
    library = folder / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run(["g++", "-shared", *objects, "-o", library], check=True)
    spec = importlib.util.spec_from_file_location("_C", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fenced(tensor):
    """A copy that ends where the process may read nothing: a kernel that goes past it ends the tests."""
    page = mmap.PAGESIZE
    room = -(-max(1, tensor.nbytes) // page) * page
    memory = mmap.mmap(-1, room + page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protected = ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + room), ctypes.c_size_t(page), 0)
    assert protected == 0
    count, at = tensor.numel(), room - tensor.nbytes
    return torch.frombuffer(memory, dtype=tensor.dtype, count=count, offset=at).view(tensor.shape).copy_(tensor)
