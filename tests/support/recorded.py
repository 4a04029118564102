"""What a CUDA graph does to the code that it captures, on a processor: what ran once runs again on the same memory."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recorded(TorchDispatchMode):
    """Records the calls of operators; `replay` repeats them, and nothing of the Python around them.

    Every tensor keeps its memory, so that a repeated call reads what the tensors of the first one hold by then. Unlike
    the capture of a graph, recording runs the calls. To ask for the value of a tensor is an error, as in a capture.
    """

    def __init__(self):
        super().__init__()
        self._calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("a value is asked for while a graph is captured")
        out = func(*args, **(kwargs or {}))
        self._calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self):
        for func, args, kwargs, out in self._calls:
            again = func(*args, **kwargs)
            # What returns its argument, or a view of one, is already where it belongs.
            if all(returned.alias_info is None for returned in func._schema.returns):
                for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                    if isinstance(old, torch.Tensor):
                        old.copy_(new)


class Exhausted(TorchDispatchMode):
    """A capture that finds no memory at one of its operators: what was called before it has changed nothing."""

    def __init__(self, n_calls):
        super().__init__()
        self._left, self._before = n_calls, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self._left -= 1
        if self._left < 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        given = {**dict(zip((each.name for each in func._schema.arguments), args, strict=False)), **(kwargs or {})}
        for each in func._schema.arguments:
            if each.alias_info is not None and each.alias_info.is_write:
                self._before.append((given[each.name], given[each.name].clone()))
        return func(*args, **(kwargs or {}))

    def undo(self):
        for tensor, before in reversed(self._before):
            tensor.copy_(before)


class Crossings(TorchDispatchMode):
    """Counts the calls of operators, and names those that have tensors on more than one device."""

    def __init__(self):
        super().__init__()
        self.n_calls, self.found = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
        self.n_calls += 1
        if len({tensor.device.type for tensor in tensors}) > 1:
            self.found.append(str(func))
        return out
