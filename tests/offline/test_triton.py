"""Every Triton kernel compiles for sm_80 and sm_90 with no GPU, spills nothing and holds the expected opcodes."""

import functools
import importlib
import inspect

import pytest
import triton
from support import cubin
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dcfast.ops import _registry

ARCHITECTURES = (80, 90)
PACKAGES = sorted({op.package for op in _registry.ops.values() if "triton" in op.backends})
MODULES = {package.rsplit(".", 1)[1]: importlib.import_module(f"{package}.triton") for package in PACKAGES}
CASES = [(op, case) for op, module in MODULES.items() for case in module.compile_cases()]


def compiled(case, arch, directory):
    """The kernel's machine code for one architecture."""
    arguments = {name: case.signature.get(name, "constexpr") for name in case.kernel.arg_names}
    aligned = [
        position
        for position, (name, kind) in enumerate(arguments.items())
        if kind.startswith("*") or name in case.divisible
    ]
    source = ASTSource(
        case.kernel,
        arguments,
        constexprs=dict(case.constexprs),
        attrs={(position,): [["tt.divisibility", 16]] for position in aligned},
    )
    kernel = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=dict(case.options))
    binary = directory / "kernel.cubin"
    binary.write_bytes(kernel.asm["cubin"])
    (function,) = cubin.functions(binary)
    return function


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("op", "case"), CASES, ids=[f"{op}-{case.name}" for op, case in CASES])
def test_compiles_without_spills(op, case, arch, tmp_path, count_backend):
    function = compiled(case, arch, tmp_path)
    count_backend("triton-offline")
    print(f"{op} {case.name} sm_{arch}: {function.registers} registers, {function.stack_bytes} bytes of stack")
    assert function.arch == arch
    assert function.registers > 0
    assert function.spills == 0
    assert function.stack_bytes == function.local_bytes == 0
    for opcode in case.expect.get(arch, ()):
        assert function.has(opcode), f"{opcode} does not appear"
    for opcode in (*case.forbid, *(["DFMA"] if "d64" in case.name else [])):
        assert not function.has(opcode), f"{opcode} appears"


@functools.cache
def kernels_of(module):
    """Names of the module's kernels that no other kernel of it calls: those that are launched."""
    kernels = {name: value for name, value in vars(module).items() if isinstance(value, triton.JITFunction)}
    sources = {name: inspect.getsource(kernel.fn) for name, kernel in kernels.items()}
    return {
        name
        for name, kernel in kernels.items()
        if kernel.fn.__module__ == module.__name__
        and not any(f"{name}(" in source for other, source in sources.items() if other != name)
    }


# Made of other ops' kernels, with none of their own.
COMPOSED = {"bisect", "draw_rows", "kmeans_plusplus", "linear_weighted_cross_entropy", "lloyd", "minibatch_step"}


@pytest.mark.parametrize("op", MODULES)
def test_every_kernel_has_a_case(op):
    module = MODULES[op]
    cased = {case.kernel.fn.__name__ for o, case in CASES if o == op}
    assert bool(kernels_of(module)) == (op not in COMPOSED)
    assert kernels_of(module) <= cased
