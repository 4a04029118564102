"""Tests of csrc/cuda where there is no GPU: the kernels run on the processor, over CPU tensors."""

import pytest
from support import emulated

from dcfast.ops import _native


@pytest.fixture(scope="session")
def emulated_gpu(tmp_path_factory):
    return emulated.build(tmp_path_factory.mktemp("emulator"))


@pytest.fixture(autouse=True)
def _served_by_the_emulated_gpu(monkeypatch, emulated_gpu, count_backend):
    """The launchers of the CUDA kernels find the emulated ones."""
    monkeypatch.setattr(_native, "cuda", lambda: emulated_gpu.cuda)
    monkeypatch.setattr(_native, "stream", lambda device: 0)
    count_backend("cuda-emulated")
