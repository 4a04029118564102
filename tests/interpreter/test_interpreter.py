"""The process itself: every op that has a Triton backend is served by it on CPU tensors."""

import pytest

from dcfast.ops import _registry


def test_triton_is_interpreted():
    import triton

    assert triton.knobs.runtime.interpret


@pytest.mark.parametrize("op", [op for op in _registry.ops.values() if "triton" in op.backends], ids=lambda op: op.name)
def test_serves_cpu_tensors(op):
    choice = _registry.select(op, "cpu", _registry.installed(), "triton")
    assert choice.backend == "triton", choice.why_not
