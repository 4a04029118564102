"""What was built and installed. tests/conftest.py makes this file the first: nothing else means much if it fails."""

import json
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from support import native_objects

import dcfast
from dcfast.ops import _native, _registry

ROOT = native_objects.ROOT
SITE = Path(sysconfig.get_path("platlib"))
# The ops outside the promise of equal bits: they may fuse a multiplication with an addition in double.
FLOAT_OPS = {"sobel_conv2d", "weighted_cross_entropy", "winograd_conv2d"}

x86 = pytest.mark.skipif(platform.machine() not in {"x86_64", "AMD64"}, reason="not an x86-64 processor")


def python(code, *, timeout=120, **environment):
    """Run `code` in a fresh interpreter outside the source tree."""
    return subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=os.sep,
        env={**os.environ, **environment},
    )


def test_every_cpu_op_is_served_by_the_native_core():
    have = _registry.installed()
    assert have.native_error is None
    assert _registry.ops
    assert {name: _registry.select(op, "cpu", have).backend for name, op in _registry.ops.items()} == dict.fromkeys(
        _registry.ops, "native"
    )


def is_editable():
    url = distribution("dcfast").read_text("direct_url.json")
    return url is not None and json.loads(url).get("dir_info", {}).get("editable", False)


def test_the_installed_package_is_under_test():
    if is_editable():
        pytest.skip("an editable install is under test")
    assert Path(dcfast.__file__).parent == SITE / "dcfast", "the source tree shadows the installed wheel"
    assert Path(_native._C.__file__).parent == SITE / "dcfast"


def test_the_wheel_holds_the_package_and_nothing_else():
    if is_editable():
        pytest.skip("an editable install is under test")
    files = {str(f) for f in distribution("dcfast").files if "__pycache__" not in f.parts}
    tops = {f.split("/")[0] for f in files if not f.startswith("..")}
    assert tops == {"dcfast", f"dcfast-{dcfast.__version__}.dist-info"}
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "dcfast").rglob("*.py")}
    assert {f for f in files if f.startswith("dcfast/")} - sources == {
        "dcfast/py.typed",
        f"dcfast/{Path(_native._C.__file__).name}",
    }
    assert sources <= files


def test_the_source_distribution_can_be_built_from(tmp_path):
    pytest.importorskip("setuptools", reason="no build tools")
    pytest.importorskip("pybind11", reason="no build tools")
    ignored = shutil.ignore_patterns(".*", "build", "dist", "runs", "__pycache__", "*.so", "*.egg-info")
    tree = shutil.copytree(ROOT, tmp_path / "tree", ignore=ignored)
    subprocess.run(
        [sys.executable, "-c", "import setuptools.build_meta as b; b.build_sdist('.')"],
        cwd=tree,
        check=True,
        capture_output=True,
    )
    with tarfile.open(tree / f"dcfast-{dcfast.__version__}.tar.gz") as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    needed = ["setup.py", "pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE", "csrc/bindings.cpp"]
    needed += [str(p.relative_to(tree)) for folder in ("csrc", "dcfast") for p in (tree / folder).rglob("*.*")]
    assert set(needed) <= names


@pytest.fixture
def build_script(monkeypatch):
    """What setup.py defines."""
    setuptools = pytest.importorskip("setuptools", reason="no build tools")
    pytest.importorskip("pybind11", reason="no build tools")
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    return runpy.run_path(str(ROOT / "setup.py"))


def executable(path, text="#!/bin/sh\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def wheels(site):
    """As NVIDIA's wheels lie in `site`; the nvcc."""
    home = site / "nvidia" / "cu13"
    for part in ("nvvm/bin/cicc", "include/crt/host_config.h", "include/cuda_runtime.h", "include/nv/target"):
        executable(home / part)
    return executable(home / "bin" / "nvcc")


@pytest.fixture
def nvccs(tmp_path, monkeypatch):
    """Every place where nvcc is looked for, in that order, and nothing of this machine."""
    found = {"CUDACXX": executable(tmp_path / "named" / "nvcc-13"), "PATH": executable(tmp_path / "path" / "nvcc")}
    found |= {name: executable(tmp_path / name / "bin" / "nvcc") for name in ("CUDA_HOME", "CUDA_PATH")}
    found |= {name: wheels(tmp_path / name) for name in ("purelib", "platlib", "sys.path", "user")}
    monkeypatch.setenv("CUDACXX", str(found["CUDACXX"]))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "CUDA_HOME"))
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "CUDA_PATH"))
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / name))
    monkeypatch.setattr("sys.path", [str(tmp_path / "sys.path")])
    monkeypatch.setattr("site.getusersitepackages", lambda: str(tmp_path / "user"))
    return found


def test_nvcc_is_looked_for_in_order(build_script, nvccs, monkeypatch):
    for name, nvcc in nvccs.items():
        assert build_script["find_nvcc"]() == str(nvcc), name
        nvcc.unlink()
        monkeypatch.delenv("CUDACXX", raising=False)
    assert build_script["find_nvcc"]() is None
    monkeypatch.setenv("DCFAST_CUDA", "on")
    with pytest.raises(SystemExit, match=r"^DCFAST_CUDA=on, .* pip install 'cuda-toolkit\[nvcc,nvvm,crt,cccl\]'"):
        build_script["chosen_nvcc"]()


def test_wheels_without_all_that_nvcc_needs_are_passed_over(build_script, nvccs, monkeypatch):
    """JAX, for one, brings nvcc and no cccl, without which no kernel compiles."""
    for name in ("CUDACXX", "CUDA_HOME", "CUDA_PATH", "PATH"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "defpath", "")
    (nvccs["purelib"].parents[1] / "include" / "nv" / "target").unlink()
    assert build_script["find_nvcc"]() == str(nvccs["platlib"])


def test_nothing_is_looked_for_where_cuda_is_off(build_script, nvccs, monkeypatch, capsys):
    monkeypatch.setenv("CUDACXX", "nowhere")
    monkeypatch.setenv("DCFAST_CUDA", "off")
    assert build_script["chosen_nvcc"]() is None
    assert "CUDA kernels off (DCFAST_CUDA=off" in capsys.readouterr().out


def setup_py(scratch, **environment):
    pytest.importorskip("setuptools", reason="no build tools")
    pytest.importorskip("pybind11", reason="no build tools")
    return subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-temp", str(scratch), "--build-lib", str(scratch)],
        cwd=ROOT,
        env={**{name: value for name, value in os.environ.items() if name != "CUDACXX"}, **environment},
        capture_output=True,
        text=True,
    )


def test_cmake_is_told_of_the_nvcc_that_was_found(tmp_path):
    nvcc, log = wheels(tmp_path / "site"), tmp_path / "log"
    executable(tmp_path / "bin" / "cmake", f'#!/bin/sh\necho "$@" "LIBRARY_PATH=$LIBRARY_PATH" >> {log}\n')
    environment = {"DCFAST_CUDA": "on", "CUDACXX": str(nvcc), "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.defpath}"}
    fresh = []
    for cached in (None, nvcc, "/elsewhere/nvcc"):
        if cached is not None:
            (tmp_path / "cmake" / "CMakeCache.txt").write_text(f"A:STRING=b\nCMAKE_CUDA_COMPILER:FILEPATH={cached}\n")
        log.unlink(missing_ok=True)
        build = setup_py(tmp_path, LIBRARY_PATH="/mine", **environment)
        assert build.returncode == 0, build.stderr
        assert f"dcfast: CUDA kernels on: {nvcc}" in build.stdout
        configure, compile_ = log.read_text().splitlines()
        assert "-DDCFAST_CUDA=ON" in configure
        assert f"-DCMAKE_CUDA_COMPILER={nvcc}" in configure
        libraries = f"LIBRARY_PATH={nvcc.parents[1] / 'lib'}{os.pathsep}/mine"
        assert configure.endswith(libraries)
        assert compile_.endswith(libraries)
        fresh.append("--fresh" in configure)
    assert fresh == [False, False, True]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"DCFAST_CUDA": "maybe"}, "DCFAST_CUDA='maybe' is not a choice: use 'auto', 'on' or 'off'"),
        ({"CUDACXX": "nowhere/nvcc"}, "CUDACXX='nowhere/nvcc' is no program: name an nvcc, or unset it"),
    ],
)
def test_an_impossible_request_fails_with_one_clear_line(tmp_path, environment, message):
    build = setup_py(tmp_path, **{"DCFAST_CUDA": "auto", **environment})
    assert build.returncode == 1
    assert build.stderr.strip().splitlines()[-1] == message
    assert "Traceback" not in build.stderr


# ---- the sources ----------------------------------------------------------------------------------------------------


def csrc_files():
    return sorted(p for p in (ROOT / "csrc").rglob("*") if p.is_file())


@pytest.mark.parametrize("path", csrc_files(), ids=lambda p: str(p.relative_to(ROOT / "csrc")))
def test_the_core_includes_no_header_of_torch_and_only_the_bindings_know_python(path):
    includes = re.findall(r'#\s*include\s*[<"]([^>"]+)[>"]', path.read_text())
    assert not [i for i in includes if i.startswith(("torch/", "ATen/", "c10/"))]
    if path.name != "bindings.cpp":
        assert not [i for i in includes if i.startswith(("pybind11/", "Python.h"))]


@pytest.mark.parametrize("path", sorted((ROOT / "csrc" / "cpu").iterdir()), ids=lambda p: p.name)
def test_every_thread_computes_in_ieee_mode(path):
    """The mode belongs to a thread, and whoever made the pool's threads may have had another one."""
    lines = [line.strip() for line in path.read_text().splitlines()]
    for number, line in enumerate(lines):
        if line.startswith("#pragma omp parallel"):
            assert not line.startswith("#pragma omp parallel for"), f"{path.name}:{number + 1}"
            assert re.fullmatch(r"IeeeMode \w+;", lines[number + 2]), f"{path.name}:{number + 1}"


# ---- the shared library ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump or nm")
def test_nothing_links_torch_or_the_cuda_driver():
    listing = subprocess.run(["objdump", "-p", _native._C.__file__], check=True, capture_output=True, text=True).stdout
    needed = re.findall(r"NEEDED\s+(\S+)", listing)
    assert any(name.startswith("libc.") for name in needed)
    assert not [name for name in needed if re.match(r"lib(cuda|cudart|torch|c10)", name)]


def test_imports_and_runs_without_a_gpu():
    code = (
        "import dcfast, torch, sys\n"
        "assert not torch.cuda.is_available()\n"
        "print(dcfast.ops.assign(torch.tensor([[0.], [.9]]), torch.tensor([[0.], [1.]])).tolist())"
    )
    done = python(code, CUDA_VISIBLE_DEVICES="")
    assert (done.stdout.strip(), done.stderr, done.returncode) == ("[0, 1]", "", 0)


def test_importing_the_package_is_light():
    done = python("import dcfast, sys; print([m for m in ('torch', 'sklearn', 'triton') if m in sys.modules])")
    assert (done.stdout.strip(), done.returncode) == ("[]", 0)


def test_a_forked_child_does_not_hang():
    code = (
        "import os, sys, torch, dcfast\n"
        "torch.set_num_threads(2)\n"
        "x, c = torch.randn(5000, 16), torch.randn(50, 16)\n"
        "labels = dcfast.ops.assign(x, c)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if torch.equal(dcfast.ops.assign(x, c), labels) else 3)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    assert python(code, timeout=60).returncode == 0


def rows(values, d):
    return [values[start : start + d] for start in range(0, len(values), d)]


def nearest(x, c):
    """Labels by the definition."""
    distances = [[sum((a - b) ** 2 for a, b in zip(row, other, strict=True)) for other in c] for row in x]
    return [row.index(min(row)) for row in distances]


@x86
def test_the_baseline_runs_on_a_processor_of_2008():
    emulator = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
    if emulator is None:
        pytest.skip("no qemu-x86_64")
    script = str(ROOT / "tests" / "support" / "torchless.py")

    def found(isa, *interpreter):
        done = subprocess.run(
            [*interpreter, "-P", script, isa], capture_output=True, text=True, timeout=300, cwd=os.sep
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    emulated = found("baseline", emulator, "-cpu", "Nehalem", sys.executable)
    assert emulated["isas"] == ["baseline"]
    for isa in _native._C.isas:
        assert found(isa, sys.executable)["found"] == emulated["found"], isa
    for columns, result in emulated["found"].items():
        d = int(columns)
        for centroids, labels in (("centroids", "labels"), ("moved", "labels of moved")):
            assert result[labels] == nearest(rows(result["x"], d), rows(result[centroids], d))


# ---- the objects of each instruction set ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    """Instruction set -> objects; and under '' those that every processor runs."""
    if shutil.which("objdump") is None or shutil.which("nm") is None:
        pytest.skip("no objdump or nm")
    build = native_objects.build_tree(tmp_path_factory.mktemp("cmake"))
    if build is None:
        pytest.skip("no build tools")
    found = {isa: native_objects.objects(build, isa) for isa in native_objects.ISAS}
    return {**found, "": native_objects.shared_objects(build)}


@x86
@pytest.mark.parametrize("isa", native_objects.ISAS)
def test_an_instruction_set_defines_only_its_own_strong_symbols(objects, isa):
    """The linker keeps one copy of a weak symbol, of any file: AVX-512 code could then serve the baseline."""
    every = sorted(f"{path.name}.o" for path in (ROOT / "csrc" / "cpu").glob("*.cpp") if path.stem != "dispatch")
    assert [path.name for path in objects[isa]] == (native_objects.AMX if isa == "amx" else every)
    for path in objects[isa]:
        symbols = native_objects.symbols(path)
        assert any(kind == "T" for kind, _ in symbols)
        shared = [(kind, name) for kind, name in symbols if kind.isupper() or kind in "uvw"]
        alien = [name for kind, name in shared if kind != "T" or not name.startswith(f"dcfast::{isa}::")]
        assert alien == [], path.name


@x86
def test_no_wide_vector_reaches_the_baseline(objects):
    for path in objects["baseline"] + objects[""]:
        assert not re.search(r"%[yz]mm", native_objects.disassembly(path)), path.name
    for isa, register in (("avx2", "%ymm"), ("avx512", "%zmm")):
        code = "".join(native_objects.disassembly(path) for path in objects[isa])
        assert register in code
    assert "%zmm" not in "".join(native_objects.disassembly(path) for path in objects["avx2"])


@x86
@pytest.mark.parametrize("isa", native_objects.ISAS)
def test_no_double_is_fused_where_bits_are_promised(objects, isa):
    """D64 and every other step in double round each operation on its own."""
    checked = [path for path in objects[isa] if path.name.removesuffix(".cpp.o") not in FLOAT_OPS]
    assert "assign.cpp.o" in {path.name for path in checked}
    for path in checked:
        assert re.findall(r"\bvfn?m(?:add|sub|addsub|subadd)\d*[ps]d\b.*", native_objects.disassembly(path)) == []
    fused = any(re.search(r"\bvfnmadd\d*ps\b", native_objects.disassembly(path)) for path in checked)
    assert fused == (isa != "baseline")  # the float32 pass is: the search above would find its likes
