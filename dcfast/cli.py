"""The command line: ``dcfast train``, ``scout``, ``probe``, ``export``, ``embed``, ``cluster``, ``info``."""

from __future__ import annotations

import os
import shlex
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

app = typer.Typer(
    help="Exact, reproducible k-means and DeepCluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# Options that a resumed run may be given anew: they change how far or how fast it goes, not what it computes.
_RESUMABLE = frozenset({"resume", "epochs", "workers", "cache", "max_memory"})

# Options that several commands share.
_Arch = Annotated[str | None, typer.Option(help="alexnet, vgg16, small, micro, resnet18 or resnet50; by image size.")]
_Filters = Annotated[float, typer.Option(help="Factor on the filters of the small and the micro network.")]
_Sobel = Annotated[bool, typer.Option(help="Look at Sobel gradients, or at colours.")]
_ImageSize = Annotated[
    int | None, typer.Option(help="Side of the crops: 16 for digits, 32 for small and micro, else 224.")
]
_Pca = Annotated[int, typer.Option(help="Principal components that k-means sees, at most one per four images.")]
_KMeansIterations = Annotated[int, typer.Option(help="Lloyd iterations per clustering.")]
_BatchSize = Annotated[int | None, typer.Option(help="Images per step: 64 for digits, else 256.")]
_Limit = Annotated[int | None, typer.Option(help="Use this many images, chosen with the seed.")]
_Threads = Annotated[int | None, typer.Option(help="CPU threads; what torch chooses.")]
_Workers = Annotated[int | None, typer.Option(help="Processes that decode images.")]
_Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
_Cache = Annotated[str | None, typer.Option(help="File to decode the images into, once.")]
_CacheSide = Annotated[int, typer.Option(help="Shorter side of larger images in the cache.")]
_ScaleOn = Annotated[str, typer.Option(help="workers or device: where crops are scaled to their size.")]
_Precision = Annotated[str, typer.Option(help="float32, bfloat16 or float16: what the network computes in.")]
_MaxMemory = Annotated[
    str | None, typer.Option(help="Of features, such as 8GiB; more go to a file. Half of the device's memory.")
]


@app.callback()
def _commands() -> None:
    # Waiting threads that spin take the processor from those that work wherever other processes want it too: training
    # was 4 times slower on a busy machine of 2 cores. OpenMP reads this once, when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@app.command()
def train(
    context: typer.Context,
    data: Annotated[
        str | None, typer.Argument(help="'digits', or a folder of images (one sub-folder per class, or flat).")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Run directory to make.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Run directory to go on with.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --output.")] = False,
    arch: _Arch = None,
    filters: _Filters = 1.0,
    init: Annotated[
        str | None, typer.Option(help="Start from these weights: a run, an export, a published checkpoint.")
    ] = None,
    sobel: _Sobel = True,
    image_size: _ImageSize = None,
    n_clusters: Annotated[int | None, typer.Option(help="k; one cluster per 50 images. PIC finds it.")] = None,
    pca: _Pca = 256,
    kmeans_iterations: _KMeansIterations = 20,
    warm_start: Annotated[
        bool, typer.Option("--warm-start/--no-warm-start", help="Start k-means from the last clusters.")
    ] = False,
    clusterer: Annotated[
        str, typer.Option(help="kmeans, head, pic, or a scikit-learn clusterer by plain or dotted name.")
    ] = "kmeans",
    reassign: Annotated[int, typer.Option(help="Epochs from one clustering to the next.")] = 1,
    stop_clustering: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto",
            parser=lambda text: int(text) if text.isdecimal() else text,
            help="Go on with the last labels after N clusterings, or when they have settled.",
        ),
    ] = None,
    balance: Annotated[str, typer.Option(help="sampler, loss or none: how large clusters are held back.")] = "sampler",
    epochs: Annotated[int | None, typer.Option(help="20 for digits, 30 for small and micro, else 500.")] = None,
    batch_size: _BatchSize = None,
    lr: Annotated[float, typer.Option(help="Learning rate of SGD.")] = 0.05,
    momentum: Annotated[float, typer.Option(help="Momentum of the network's SGD.")] = 0.9,
    weight_decay: Annotated[float, typer.Option(help="Weight decay of SGD.")] = 1e-5,
    lr_schedule: Annotated[str, typer.Option(help="constant, or cosine: down to 0 over the run.")] = "constant",
    dropout: Annotated[float, typer.Option(help="Of the fully connected layers.")] = 0.5,
    min_crop: Annotated[float | None, typer.Option(help="Smallest share of an image that a crop shows.")] = None,
    flip: Annotated[
        bool | None, typer.Option("--flip/--no-flip", help="Mirror every other crop; off for digits.")
    ] = None,
    limit: _Limit = None,
    seed: Annotated[int, typer.Option(help="Key of every random draw.")] = 0,
    threads: _Threads = None,
    workers: _Workers = None,
    device: _Device = "auto",
    cache: _Cache = None,
    cache_side: _CacheSide = 256,
    scale_on: _ScaleOn = "workers",
    precision: _Precision = "float32",
    compile: Annotated[bool, typer.Option(help="Compile the network by torch.compile.")] = False,
    accumulate: Annotated[int, typer.Option(help="Parts of a batch that make a step: less memory.")] = 1,
    max_memory: _MaxMemory = None,
) -> None:
    """Train a network by DeepCluster, or go on with a run that was interrupted."""
    if resume is not None:
        given = [name for name in context.params if name not in _RESUMABLE and _was_given(context, name)]
        if given:
            _fail(
                f"--resume takes {given[0].replace('_', '-')} from the run: give only "
                "--epochs, --workers, --cache or --max-memory with it"
            )
    elif data is None:
        _fail("give 'digits' or a folder of images, or --resume RUN")
    elif output is None:
        _fail("give --output RUN, the directory to write the run to")
    where = resume or output
    assert where is not None  # one of the two is there, or the checks above have failed
    run = None

    def interrupted(stop: KeyboardInterrupt) -> str:
        # A run that is to be replaced is another one.
        if not (where / "config.json").exists() or (overwrite and run is None):
            return "interrupted before it began; give the same command again"
        metrics = where / "metrics.jsonl"
        n_epochs = len(metrics.read_text().splitlines()) if metrics.exists() else 0
        steps = getattr(stop, "step", 0)
        parts = ["epoch 1" if n_epochs == 1 else f"epochs 1 to {n_epochs}"] if n_epochs else []
        parts += [f"{'one step' if steps == 1 else f'{steps} steps'} of epoch {n_epochs + 1}"] if steps else []
        verb = "is" if n_epochs + steps == 1 else "are"
        saved = f"{' and '.join(parts)} {verb} saved" if parts else "no epoch had ended"
        n_ranks = int(os.environ.get("WORLD_SIZE", "1"))
        program = "dcfast" if n_ranks == 1 else f"torchrun --nproc-per-node {n_ranks} -m dcfast"
        return f"interrupted; {saved}; go on with: {program} train --resume {shlex.quote(str(where))}"

    with _clean_errors(interrupted):
        # Importing torch takes a second, which --help and mistakes should not have to wait for.
        from dcfast.deepcluster import trainer as deepcluster
        from dcfast.deepcluster.config import TrainConfig
        from dcfast.deepcluster.torchrun import joined

        with joined(device):
            if resume is not None:
                run = deepcluster.resume(resume, epochs=epochs, workers=workers, cache=cache, max_memory=max_memory)
            else:
                assert data is not None
                assert output is not None
                options: dict[str, Any] = {
                    name: value
                    for name, value in context.params.items()
                    if name not in {"data", "output", "resume", "overwrite"}
                }
                run = deepcluster.start(data, output, TrainConfig(**options), overwrite=overwrite)
            run.fit()
            run.summary()


@app.command()
def scout(
    context: typer.Context,
    data: Annotated[str, typer.Argument(help="'digits', or a folder of images (one sub-folder per class, or flat).")],
    output: Annotated[Path, typer.Option(help="Directory for scout.json and report.html; goes on with what it holds.")],
    seeds: Annotated[int, typer.Option(help="How many seeds to try, from --seed on.")] = 5,
    n_clusters: Annotated[
        list[int] | None,
        typer.Option(help="k; give it again for more. One cluster per 1,000, 250, 50 and 10 images."),
    ] = None,
    labelled: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE|N",
            parser=lambda text: int(text) if text.isdecimal() else float(text),
            help="Look at this share (0.1) or number (500) of the labels, of each class its share. All there are.",
        ),
    ] = None,
    arch: _Arch = None,
    filters: _Filters = 1.0,
    sobel: _Sobel = True,
    image_size: _ImageSize = None,
    pca: _Pca = 256,
    kmeans_iterations: _KMeansIterations = 20,
    batch_size: _BatchSize = None,
    limit: _Limit = None,
    seed: Annotated[int, typer.Option(help="The first seed; the labels looked at are drawn by it.")] = 0,
    threads: _Threads = None,
    workers: _Workers = None,
    device: _Device = "auto",
    cache: _Cache = None,
    cache_side: _CacheSide = 256,
    scale_on: _ScaleOn = "workers",
    precision: _Precision = "float32",
    max_memory: _MaxMemory = None,
) -> None:
    """Choose a seed and k before training, by k-means on untrained networks as the first epoch of train does it."""

    def interrupted(stop: KeyboardInterrupt) -> str:
        kept = output / "scout.json"
        done = f"; the seeds and k that are done are in {kept}" if kept.exists() else " before the first seed and k"
        return f"interrupted{done}; the same command goes on"

    with _clean_errors(interrupted):
        from dcfast.deepcluster import scout as scouting
        from dcfast.deepcluster.config import TrainConfig

        own = {"data", "output", "seeds", "n_clusters", "labelled"}
        options = {name: value for name, value in context.params.items() if name not in own}
        result = scouting.scout(
            data, output, TrainConfig(**options), seeds=seeds, n_clusters=n_clusters, labelled=labelled
        )
    console = Console()
    console.print(result.table())
    for line in (f"train   {result.command}", f"report  {result.report}"):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


@app.command()
def probe(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    epochs: Annotated[int, typer.Option(help="Of every classifier.")] = 90,
    lr: Annotated[float, typer.Option(help="Learning rate of SGD.")] = 0.01,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 256,
    weight_decay: Annotated[float, typer.Option(help="Weight decay of SGD.")] = 1e-4,
    layer: Annotated[
        list[int] | None, typer.Option(help="Convolution block, counted from 1; give it again for more. All of them.")
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="Folder of test images by class; a fifth of the run's own images.")
    ] = None,
    device: _Device = "auto",
) -> None:
    """Compare a run's network with the same network untrained, by a linear classifier on every convolution block."""
    with _clean_errors(lambda stop: "interrupted; nothing was written"):
        from dcfast.deepcluster import probe as probing

        result = probing.probe(
            run,
            epochs=epochs,
            lr=lr,
            batch_size=batch_size,
            weight_decay=weight_decay,
            layers=layer,
            test=test,
            device=device,
        )
    Console().print(result.table())
    _say(f"report  {run / 'report.html'}")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    format: Annotated[str, typer.Option(help="state_dict, safetensors, or published (alexnet, vgg16).")] = "state_dict",
    output: Annotated[Path | None, typer.Option(help="File to write; one in the run directory.")] = None,
) -> None:
    """Write a run's network to a file of its own."""
    with _clean_errors(lambda stop: "interrupted; nothing was written"):
        from dcfast.deepcluster import load_run, weights

        written = weights.export(load_run(run), format, output)
        _say(str(written))


@app.command()
def embed(
    data: Annotated[str, typer.Argument(help="'digits', or a folder of images (one sub-folder per class, or flat).")],
    weights: Annotated[
        Path,
        typer.Option(help="A run, an export, a published checkpoint, or a ViT: DINO, DINOv2, DeiT, MAE, timm's names."),
    ],
    output: Annotated[Path, typer.Option(help="Folder for features.npy, images.npz and embedding.json.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the embedding in --output.")] = False,
    image_size: Annotated[
        int | None, typer.Option(help="Side of the crops; what the run had, or what the weights tell, at most 224.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 64,
    workers: _Workers = None,
    device: _Device = "auto",
    precision: _Precision = "float32",
    limit: _Limit = None,
    seed: Annotated[int, typer.Option(help="Key of that draw.")] = 0,
) -> None:
    """Write the features of images by a network that is trained already; its shape is read from the weights."""
    with _clean_errors(lambda stop: "interrupted; nothing was written"):
        from dcfast.deepcluster import embed as embedding

        n_images, width = embedding.embed(
            data,
            weights,
            output,
            image_size=image_size,
            batch_size=batch_size,
            workers=workers,
            device=device,
            precision=precision,
            limit=limit,
            seed=seed,
            overwrite=overwrite,
        )
    _say(f"{width} features of {n_images} images in {output}")


@app.command()
def cluster(
    embedding: Annotated[Path, typer.Argument(help="Folder of dcfast embed, or an .npy file (images, features).")],
    output: Annotated[
        Path, typer.Option(help="Folder for assignments.npz, clusters.json, report.html, and head.pt of a head.")
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the clusters in --output.")] = False,
    n_clusters: Annotated[
        int | None, typer.Option(help="k; left out for a method that finds the number itself.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="kmeans, head, pic, or a scikit-learn clusterer by plain or dotted name.")
    ] = "kmeans",
    pca: Annotated[int | None, typer.Option(help="Whiten this many principal components first.")] = None,
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Scale rows to length 1, after PCA if there is any.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the method, where it draws.")] = 0,
) -> None:
    """Cluster the features of an embedding; labels, where images have them, only judge the clusters."""
    with _clean_errors(lambda stop: "interrupted; nothing was written"):
        from dcfast.deepcluster import partition

        found = partition.partition(
            embedding,
            output,
            n_clusters=n_clusters,
            method=method,
            pca=pca,
            normalize=normalize,
            seed=seed,
            overwrite=overwrite,
        )
    Console().print(found.table())
    for what, name in (("report", partition.REPORT), ("assignments", partition.ASSIGNMENTS), ("head", partition.HEAD)):
        if (output / name).exists():
            _say(f"{what:>12}  {output / name}")


@app.command()
def info() -> None:
    """Show the version, the native build, the machine, and which backend serves each op, and why not the others."""
    from dcfast.info import show

    show()


def _say(text: str) -> None:
    Console().print(text, highlight=False, markup=False, soft_wrap=True)


def _was_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _fail(message: str, status: int = 2) -> None:
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        message = f"process {rank}: {message}"
    Console(stderr=True).print(f"error: {message}", style="red", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(status)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    Console(stderr=True).print(f"warning: {message}", style="yellow", highlight=False, markup=False, soft_wrap=True)


class _Terminated(KeyboardInterrupt):
    """SIGTERM: schedulers ask a process to end by it, and torchrun does where another one has failed."""


def _terminated(*_: object) -> None:
    raise _Terminated


@contextmanager
def _said_elsewhere() -> Iterator[None]:
    """End quietly on an error that another of torchrun's processes has raised, and says."""
    try:
        yield
    except Exception as error:
        if any(note.startswith("raised on rank") for note in getattr(error, "__notes__", ())):
            raise typer.Exit(1) from None
        raise


@contextmanager
def _clean_errors(interrupted: Callable[[KeyboardInterrupt], str]) -> Iterator[None]:
    """Turn warnings and what a user can put right into one line each, and Ctrl-C into how to go on."""
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        with warnings.catch_warnings(), _said_elsewhere():
            warnings.showwarning = _show_warning
            try:
                yield
            finally:
                # What comes from here on only tells why the process ends. One that has lost another of its run learns
                # it twice, from the connection and from torchrun, and the second must not cut the word on the first.
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
    except KeyboardInterrupt as stop:
        if os.environ.get("RANK", "0") != "0" and not isinstance(stop, _Terminated):
            raise typer.Exit(130) from None  # the first process has it from the terminal too, and says so
        _fail(interrupted(stop), 130)
    except FloatingPointError as error:
        _fail(str(error), 1)
    except (
        ValueError,
        TypeError,
        FileNotFoundError,
        FileExistsError,
        NotADirectoryError,
        ModuleNotFoundError,
    ) as error:
        _fail(str(error))
    except (OSError, MemoryError) as error:
        _fail(str(error) or "out of memory", 1)
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def main() -> None:
    """Run the command line."""
    app()
