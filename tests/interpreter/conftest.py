"""This process runs the Triton kernels on CPU tensors in Triton's interpreter, which must be chosen before import.

`tl.dot` of bfloat16 is wrong there: the tests use float16 and float32. It hides races and the fusion of
multiplications with additions: tests/offline reads the machine code for the latter.
"""

import os
import sys

import pytest

from dcfast import ops

if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
    raise RuntimeError("Triton was imported before its interpreter was chosen: run tests/interpreter by itself")
os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def _served_by_triton():
    """Every op of these tests is served by Triton, unless a test asks for another backend itself."""
    with ops.backend("triton"):
        yield
