"""Prints the bytes that one linear_weighted_cross_entropy, forward and backward, takes beyond its operands.

PYTHONPATH=tests python -m support.head_memory N D K DTYPE
"""

import sys

import torch

from dcfast import ops
from support.memory import resident, status


def promised(n, d, k, dtype):
    """The results, what the documentation says of the logits of a block, and 16 MiB for torch and the allocator."""
    size = torch.finfo(getattr(torch, dtype)).bits // 8
    logits = max(2**22, k * d // 4)
    # In half precision: another block, the weight's gradient in float32, and blocks that are widened where a processor
    # has no such arithmetic: two by weighted_cross_entropy, one by torch's products.
    half = 0 if size >= 4 else size * logits + 4 * k * d + 3 * 4 * logits
    return size * (n * d + k * d + logits) + half + 2**24


def main():
    n, d, k = map(int, sys.argv[1:4])
    dtype = getattr(torch, sys.argv[4])
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 9, (k,), generator=generator)

    def step(rows, classes):
        x, weight = (torch.randn(count, d, generator=generator).to(dtype).requires_grad_() for count in (rows, classes))
        target = torch.randint(classes, (rows,), generator=generator)
        before = resident()
        ops.linear_weighted_cross_entropy(x, weight, target, sizes[:classes]).backward()
        return before

    step(64, 64)  # what a first call loads is no memory of the second
    before = step(n, k)
    # The peak of all that was before counts too, so that the difference is never too small.
    print(status("VmHWM") - before)


if __name__ == "__main__":
    main()
