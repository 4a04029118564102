"""Every CUDA kernel for sm_80 and sm_90, with no GPU: registers, spills, and no fused multiply-add in D64."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import cubin

from dcfast.ops import _native, _registry

ROOT = Path(__file__).parents[2]
ARCHITECTURES = {80, 90}


def compiled(scratch):
    """The CUDA objects by the project's own CMake rules, for a build without CUDA on a machine with nvcc."""
    tools = [os.environ.get("CUDACXX") or shutil.which("nvcc"), shutil.which("cmake"), shutil.which("ninja")]
    if not all(tools):
        pytest.skip("no nvcc, and the installed build holds no CUDA kernels")
    pybind11 = pytest.importorskip("pybind11", reason="no build tools")
    configure = ["cmake", str(ROOT), "-GNinja", "-DCMAKE_BUILD_TYPE=Release", "-DDCFAST_CUDA=ON"]
    configure += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}"]
    subprocess.run(configure, cwd=scratch, check=True)
    subprocess.run(["cmake", "--build", str(scratch), "--target", "dcfast_cuda", "dcfast_cuda_sm90"], check=True)
    return sorted((scratch / "CMakeFiles").glob("dcfast_cuda*.dir/**/*.o"))


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    core = _native._C
    binaries = [Path(core.__file__)] if core.has_cuda else compiled(tmp_path_factory.mktemp("cuda"))
    return [function for binary in binaries for function in cubin.functions(binary)]


def test_every_kernel_is_there_for_every_architecture(kernels, count_backend):
    count_backend("cuda-offline")
    by_arch = {arch: {k.name for k in kernels if k.arch == arch} for arch in ARCHITECTURES}
    assert {k.arch for k in kernels} == ARCHITECTURES
    assert by_arch[80]
    assert by_arch[80] <= by_arch[90]  # sm_90 may have kernels of its own
    for op in _registry.ops.values():
        # A kernel's name holds that of its file: of the op's function, or of its package.
        for function in op.native_cuda:
            own = {function, op.package.rsplit(".", 1)[1]}
            assert any(part in name for part in own for name in by_arch[80] | by_arch[90]), function


def test_no_kernel_spills(kernels, count_backend):
    count_backend("cuda-offline")
    for kernel in sorted(kernels, key=lambda k: (k.name, k.arch)):
        print(f"sm_{kernel.arch} {kernel.name}: {kernel.registers} registers, {kernel.stack_bytes} bytes of stack")
    assert [k for k in kernels if k.spills or k.local_bytes or k.stack_bytes] == []
    assert all(0 < k.registers <= 255 for k in kernels)


def test_logits_and_gradients_move_16_bytes_at_a_time(kernels, count_backend):
    count_backend("cuda-offline")
    rows = [k for k in kernels if re.search(r"weighted_cross_entropy_(backward_)?rows", k.name)]
    assert {k.arch for k in rows} == ARCHITECTURES
    for kernel in rows:
        # A load for each of the four that are under way, in either pass; a store for each, and one of zeros.
        wide = [sum(o.startswith(opcode) for o in kernel.opcodes) for opcode in ("LDG.E.128", "STG.E.128")]
        assert wide == [4 if "backward" in kernel.name else 8, 5]


def test_float32_logits_leave_registers_for_1024_threads(kernels, count_backend):
    count_backend("cuda-offline")
    long_rows = [k for k in kernels if re.search(r"weighted_cross_entropy_\w*rowsI\w+Li512E", k.name)]
    assert len(long_rows) == 2 * 2 * 4
    for kernel in long_rows:
        assert kernel.registers <= (128 if "rowsIdLi" in kernel.name else 64)


def test_no_d64_kernel_fuses(kernels, count_backend):
    count_backend("cuda-offline")
    exact = [k for k in kernels if "d64" in k.own_name.lower()]
    assert {k.arch for k in exact} == ARCHITECTURES
    assert [k.name for k in exact if k.has("DFMA")] == []


# What a kernel must be made of: tensor cores fed by copies that need no registers.
@pytest.mark.parametrize(
    ("kernel", "arch", "opcodes"),
    [
        ("certify_sm80", 80, ("HMMA", "LDSM", "LDGSTS")),
        ("certify_sm90", 90, ("HGMMA", "UBLKCP", "SYNCS", "USETMAXREG")),
        ("sobel_conv2d_forward", 80, ("HMMA", "LDSM")),
        ("sobel_conv2d_forward", 90, ("HMMA", "LDSM")),
        ("sobel_conv2d_gradient", 80, ("HMMA", "LDSM")),
        ("sobel_conv2d_gradient", 90, ("HMMA", "LDSM")),
    ],
)
def test_kernels_use_the_instructions_meant_for_them(kernels, kernel, arch, opcodes, count_backend):
    count_backend("cuda-offline")
    found = [k for k in kernels if kernel in k.name and k.arch == arch]
    assert found
    for function in found:
        for opcode in opcodes:
            assert function.has(opcode), f"{function.name}: {opcode} does not appear"


def test_an_image_gradient_reads_twice_for_16_products(kernels, count_backend):
    """From a tap to the next a run takes one gradient and the weights of both Sobel values, by one load."""
    count_backend("cuda-offline")
    found = [k for k in kernels if "sobel_conv2d_image_gradient" in k.name]
    assert len(found) == 2 * 4
    for kernel in found:
        pair, product, registers = (
            (" LDS.128 ", "DFMA", 128) if "gradientIdE" in kernel.name else (" LDS.64 ", "FFMA", 64)
        )
        loops = re.split(r" BRA(?:\.\S+)? ", " ".join(kernel.opcodes))
        assert max(loop.rpartition(pair)[2].split().count(product) for loop in loops) == 16
        assert kernel.registers <= registers


def test_products_of_a_k_block_follow_one_another(kernels, count_backend):
    """Where ptxas cannot keep wgmma asynchronous it waits after each one: no wait may lie among those of a k-block."""
    count_backend("cuda-offline")
    found = [k for k in kernels if "certify_sm90" in k.name and k.arch == 90]
    assert found
    for function in found:
        marks = [o.split(".")[0] for o in function.opcodes if o.startswith(("HGMMA", "WARPGROUP.DEPBAR"))]
        products = marks.count("HGMMA")
        # 4 steps of 16 elements, for one slab of rows or two.
        assert products in (4, 8)
        first = marks.index("HGMMA")
        assert marks[first : first + products] == ["HGMMA"] * products


@pytest.mark.parametrize(
    "name", ["accumulate_sum", "column_range_kernel", "point_distances_d64", "kmeans_plusplus_compare_d64"]
)
def test_loads_are_in_flight_together(kernels, name, count_backend):
    """A compiler that puts a load into a branch of its own waits for it there: memory is read at its latency."""
    count_backend("cuda-offline")
    wide = [k for k in kernels if re.search(rf"{name}I.*Lb1E", k.name)]  # kWide
    assert {k.arch for k in wide} == ARCHITECTURES
    for kernel in wide:
        opcodes = " ".join(kernel.opcodes)
        together = re.search(r"(LDG\.E\.(64|128)\.CONSTANT ((?!BRA|BSYNC|F2F|HADD2|DADD|DMUL)\S+ )*?){4}", opcodes)
        assert together, kernel.name
