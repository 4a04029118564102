"""Three processes, one of which is asked to end inside an epoch, go on; run by torchrun.

torchrun --standalone --nproc-per-node 3 tests/support/trio.py FOLDER
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dcfast.deepcluster import TrainConfig, report, resume, start
from dcfast.deepcluster.interrupt import Interrupted
from dcfast.deepcluster.torchrun import joined

N_IMAGES = 2100  # three blocks of PCA's rows
CONFIG = TrainConfig(
    arch="small", filters=0.25, image_size=8, n_clusters=10, pca=16, epochs=1, batch_size=256, threads=1, device="cpu"
)


def images():
    pixels = np.random.default_rng(0).integers(0, 256, (N_IMAGES, 8, 8), dtype=np.uint8)
    return torch.utils.data.Subset(list(pixels), range(N_IMAGES))


def main(folder):
    learn, steps = torch.optim.SGD.step, []

    def ask(optimizer, *args, **options):
        steps.append(optimizer)
        if len(steps) == 7 and os.environ["RANK"] == "1":  # in the fourth step
            os.kill(os.getpid(), signal.SIGTERM)
        return learn(optimizer, *args, **options)

    report.write_report = lambda *_: None  # it has tests of its own
    with joined("cpu"):
        start(images(), folder / "whole", CONFIG).fit()
        torch.optim.SGD.step = ask
        with pytest.raises(Interrupted) as stop:
            start(images(), folder / "parts", CONFIG).fit()
        assert stop.value.step == 4
        resume(folder / "parts", images()).fit()
    assert len(steps) == 2 * -(-N_IMAGES // CONFIG.batch_size)
    os._exit(0)  # as in team.py


if __name__ == "__main__":
    main(Path(sys.argv[1]))
