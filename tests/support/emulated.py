"""csrc/cuda on a processor: the extension of tests/emulator, and tests served by its kernels in place of a GPU's."""

import concurrent.futures
import importlib.util
import os
import subprocess
import sysconfig
from pathlib import Path

import pybind11

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
