"""Builds csrc/ with CMake into the one extension module, `dcfast._C`; everything static is in pyproject.toml."""

import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
# nvcc and its parts, which must be of one version: that of the cuda-toolkit that torch brings, if it does.
WHEELS = "cuda-toolkit[nvcc,nvvm,crt,cccl]"


def wheel_toolkits() -> list[Path]:
    """Where NVIDIA's wheels make up a toolkit; not where other projects left nvcc without all the headers it needs."""
    # Build isolation takes the user's packages off sys.path, while sysconfig still knows where they are.
    sites = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *sys.path, site.getusersitepackages()]
    parts = ["nvvm/bin/cicc", "include/crt/host_config.h", "include/cuda_runtime.h", "include/nv/target"]
    found = [home for folder in sites for home in sorted(Path(folder).glob("nvidia/cu*"), reverse=True)]
    return [home for home in found if all((home / part).exists() for part in parts)]


def find_nvcc() -> str | None:
    """What CUDACXX names; without it the first on PATH, in CUDA_HOME, in CUDA_PATH, in NVIDIA's wheels."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), *wheel_toolkits()]
    folders = [os.environ.get("PATH", os.defpath), *(os.path.join(home, "bin") for home in homes if home)]
    named = os.environ.get("CUDACXX")
    nvcc = shutil.which(named or "nvcc", path=os.pathsep.join(folders))
    if named and nvcc is None:
        raise SystemExit(f"CUDACXX={named!r} is no program: name an nvcc, or unset it")
    return nvcc and os.path.abspath(nvcc)


def chosen_nvcc() -> str | None:
    """By DCFAST_CUDA: 'auto' builds the CUDA objects where nvcc is found, 'on' insists, 'off' leaves them out."""
    choice = os.environ.get("DCFAST_CUDA", "auto").lower()
    if choice not in {"auto", "on", "off"}:
        raise SystemExit(f"DCFAST_CUDA={choice!r} is not a choice: use 'auto', 'on' or 'off'")
    nvcc = None if choice == "off" else find_nvcc()
    if choice == "on" and nvcc is None:
        remedy = f"pip install '{WHEELS}', put a toolkit's on the PATH, set CUDACXX, or use auto"
        raise SystemExit(f"DCFAST_CUDA=on, but there is no nvcc with all its parts: {remedy}")
    print(f"dcfast: CUDA kernels {f'on: {nvcc}' if nvcc else f'off (DCFAST_CUDA={choice}, nvcc {nvcc})'}")
    return nvcc


def names_another(cache: Path, nvcc: str) -> bool:
    """Whether CMake's cache is of a build by another nvcc."""
    line = re.search(r"^CMAKE_CUDA_COMPILER:\w+=(.*)$", cache.read_text() if cache.exists() else "", re.MULTILINE)
    return line is not None and line[1] != nvcc


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve() / "cmake"
        build.mkdir(parents=True, exist_ok=True)
        ninja = shutil.which("ninja")
        nvcc = chosen_nvcc()
        environment = dict(os.environ)
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
            f"-DDCFAST_CUDA={'ON' if nvcc else 'OFF'}",
            f"-DDCFAST_CUDA_ARCHS={os.environ.get('DCFAST_CUDA_ARCHS', '')}",
            f"-DDCFAST_WERROR={os.environ.get('DCFAST_WERROR', 'OFF')}",
            f"-DDCFAST_OUTPUT_DIR={target.parent}",
        ]
        if nvcc:
            configure.append(f"-DCMAKE_CUDA_COMPILER={nvcc}")
            # By itself CMake would start anew as well, but without the rest of what it is told here.
            configure += ["--fresh"] if names_another(build / "CMakeCache.txt", nvcc) else []
            home = Path(nvcc).parents[1]
            if home.parent.name == "nvidia":
                # Wheels have their libraries in lib, while nvcc up to 13.2 looks for them in lib64.
                libraries = filter(None, [str(home / "lib"), os.environ.get("LIBRARY_PATH")])
                environment["LIBRARY_PATH"] = os.pathsep.join(libraries)
        subprocess.run(configure, cwd=build, check=True, env=environment)
        subprocess.run(["cmake", "--build", str(build)], check=True, env=environment)


setup(ext_modules=[Extension("dcfast._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
