"""What several processes do together; run by torchrun, every process writes what it found.

torchrun --standalone --nproc-per-node 2 tests/support/team.py FOLDER
"""

import contextlib
import io
import os
import pickle
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits

from dcfast import DeepCluster
from dcfast.cli import app
from dcfast.deepcluster.torchrun import joined

N_IMAGES = 1089  # a block of PCA's rows and more; and one image is left for the last batch of 64
SMALL = ["--n-clusters", "30", "--limit", "1100", "--pca", "16"]
# name: options of a network without batch normalisation, which does not show how many processes train it
RUNS = {
    "sampler": {"balance": "sampler", "warm_start": True, "epochs": 2},
    "loss": {"balance": "loss", "accumulate": 3, "reassign": 2, "epochs": 2},
}
# command line: what it says
ERRORS = {
    ("no-such-folder",): "no folder",
    ("digits", "--limit", "900"): "900 images are 1 blocks of 1024, too few for 2 processes: run fewer",
    ("digits", *SMALL, "--clusterer", "MiniBatchKMeans"): "start the run without torchrun",
    ("digits", *SMALL, "--lr", "1e30"): "the loss is",
}


class Digits(torch.utils.data.Dataset):
    def __init__(self, n_images=N_IMAGES):
        self.images = torch.from_numpy(load_digits().images[:n_images] / 16).float()[:, None]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


class Network(torch.nn.Module):
    """With a parameter that no feature depends on."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, 2), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(72, 24)
        )
        self.unused = torch.nn.Parameter(torch.ones(3))

    def forward(self, images):
        return self.layers(images)


class NormalizedNetwork(Network):
    """With batch normalisation of one value per image and channel, which refuses a single image."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(24)

    def forward(self, images):
        return self.norm(self.layers(images))


def unpickled():
    """The network, of a class that cannot be pickled."""
    return type("Local", (Network,), {})()


def fit(options, output, network=Network, n_images=N_IMAGES):
    """What a run ends with: labels and weights."""
    model = DeepCluster(
        network(), 24, n_clusters=30, image_size=8, batch_size=64, lr=0.01, output=output, overwrite=True, **options
    ).fit(Digits(n_images))
    return torch.from_numpy(model.labels_), model.model_.state_dict()


def train(*arguments):
    """What a command line says, and its status."""
    status, said = 0, io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            app(["train", *map(str, arguments)])
        except SystemExit as end:
            status = end.code
    return said.getvalue(), status


def unwritten(run):
    """What a command line says where the metrics cannot be written."""
    obstacle = run / "metrics.jsonl.partial"
    obstacle.mkdir(exist_ok=True)
    said = train("--resume", run)
    dist.barrier()
    if dist.get_rank() == 0:
        obstacle.rmdir()
    return said


def main(folder):
    # A process cannot join twice: torch's second group would read what the first has left in the store.
    with joined("cpu"):
        found = {"started": train("digits", "--output", folder / "2", "--epochs", 1, *SMALL)}
        found["resumed"] = train("--resume", folder / "1", "--epochs", 2)
        found["patience"] = dist.group.WORLD._get_backend(torch.device("cpu")).options._timeout
        found["unwritten"] = unwritten(folder / "2")
        for arguments in ERRORS:
            found[arguments] = train(*arguments, "--output", folder / "error", "--overwrite")
        for name, options in RUNS.items():
            found[name] = fit(options, folder / "run")
        found["normalised"] = fit({"epochs": 1}, folder / "run", NormalizedNetwork, N_IMAGES + 1)
        found["unpickled"] = fit(RUNS["loss"], folder / "run", unpickled)
    Path(folder, f"{os.environ['RANK']}.pickle").write_bytes(pickle.dumps(found))
    # Threads of torch may outlive the group and, once in a hundred runs, abort a process whose interpreter is ending.
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
