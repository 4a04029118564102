"""Imports point one way: cli -> deepcluster -> cluster, faiss, nn -> ops -> backends -> _native, _triton -> csrc.

Everything may write files by _files.
"""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dcfast"
BACKENDS = {"reference", "native", "triton"}
# Height of a layer: a module imports only from layers below its own, or from its own where that is allowed.
SHARED = {"_dtypes": 0, "_native": 0, "_validate": 0, "_triton": 0, "_registry": 1}


def module_name(path):
    parts = ("dcfast", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(name):
    """Absolute names that a module imports anywhere, functions included; `from a import b` gives a.b."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, [base, node.module]))
            yield from (f"{base}.{alias.name}" for alias in node.names)


def resolve(target):
    """The module of this package that an import names, or None."""
    while target and target not in MODULES:
        target = target.rpartition(".")[0]
    return target or None


def height(name):
    parts = name.split(".")
    match parts[1:]:
        case []:
            return 100  # the package itself: lazy, whoever imports it gets a version
        case ["cli" | "info" | "__main__", *_]:
            return 9
        case ["deepcluster", *_]:
            return 7
        case ["cluster" | "nn" | "faiss", *_]:
            return 6
        case ["_files"]:
            return 0
        case ["ops"]:
            return 5
        case ["ops", shared] if shared in SHARED:
            return SHARED[shared]
        case ["ops", _op]:
            return 4  # the contract
        case ["ops", _op, backend] if backend in BACKENDS:
            return 2
        case ["ops", _op, _helper]:
            return 3
    raise AssertionError(f"{name} belongs to no layer: give it one in {Path(__file__).name}")


def test_every_module_has_a_layer():
    assert len(MODULES) > 10
    for name in MODULES:
        height(name)


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name):
    for target in filter(None, map(resolve, imports(name))):
        if target == name or target == "dcfast":
            continue
        same_folder = target.rpartition(".")[0] == name.rpartition(".")[0] or name.startswith(target + ".")
        if height(target) == height(name) and height(name) != 2:
            continue  # peers, such as two modules of dcfast.cluster
        if height(name) == 2 and same_folder and height(target) == 3:
            continue  # a backend and the helpers of its own op
        assert height(target) < height(name), f"{name} imports {target}, which lies above it"


@pytest.mark.parametrize("name", [name for name in MODULES if height(name) == 2])
def test_backends_never_import_one_another(name):
    others = BACKENDS - {name.rpartition(".")[2]}
    for target in filter(None, map(resolve, imports(name))):
        parts = target.split(".")
        assert not (parts[1:2] == ["ops"] and parts[-1] in others and len(parts) == 4), f"{name} imports {target}"


@pytest.mark.parametrize("name", MODULES)
def test_only_contracts_and_the_registry_touch_torch_library(name):
    source = MODULES[name].read_text()
    touches = any(
        isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch.library")
        for node in ast.walk(ast.parse(source))
    ) or any(target.startswith("torch.library") for target in imports(name))
    assert not touches or name == "dcfast.ops._registry" or height(name) == 4


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith("dcfast.ops")])
def test_nothing_above_the_ops_knows_the_core_or_triton(name):
    if height(name) == 9:
        return  # `dcfast info` says what was built
    for target in imports(name):
        assert not target.startswith(("dcfast.ops._native", "dcfast.ops._triton", "dcfast._C", "triton"))
