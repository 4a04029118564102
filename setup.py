"""Builds csrc/ with CMake into the one extension module, `dcfast._C`; everything static is in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def cuda_choice() -> str:
    """DCFAST_CUDA: 'auto' builds the CUDA objects where nvcc is found, 'on' insists, 'off' leaves them out."""
    choice = os.environ.get("DCFAST_CUDA", "auto").lower()
    if choice not in {"auto", "on", "off"}:
        raise SystemExit(f"DCFAST_CUDA={choice!r} is not a choice: use 'auto', 'on' or 'off'")
    nvcc = shutil.which(os.environ.get("CUDACXX") or "nvcc")
    if choice == "on" and nvcc is None:
        raise SystemExit("DCFAST_CUDA=on, but there is no nvcc: put it on the PATH, set CUDACXX, or use auto")
    enabled = choice != "off" and nvcc is not None
    print(f"dcfast: CUDA kernels {'on: ' + str(nvcc) if enabled else f'off (DCFAST_CUDA={choice}, nvcc {nvcc})'}")
    return "ON" if enabled else "OFF"


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve() / "cmake"
        build.mkdir(parents=True, exist_ok=True)
        ninja = shutil.which("ninja")
        configure = [
            "cmake",
            str(ROOT),
            "-GNinja",
            # Under build isolation these tools live in an environment that is gone at the next build, while
            # CMake's cache remembers their paths: name them anew each time.
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DDCFAST_CUDA={cuda_choice()}",
            f"-DDCFAST_CUDA_ARCHS={os.environ.get('DCFAST_CUDA_ARCHS', '')}",
            f"-DDCFAST_WERROR={os.environ.get('DCFAST_WERROR', 'OFF')}",
            f"-DDCFAST_OUTPUT_DIR={target.parent}",
        ]
        subprocess.run(configure, cwd=build, check=True)
        subprocess.run(["cmake", "--build", str(build)], check=True)


setup(ext_modules=[Extension("dcfast._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
