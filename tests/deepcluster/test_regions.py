"""Crops scaled on the device: those of Pillow but for rounding, whatever else is in the batch."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from dcfast.deepcluster import TrainConfig, load_run, resume, start
from dcfast.deepcluster.crops import Batches, CentreCrops, RandomCrops, centre_box, random_box, resized
from dcfast.deepcluster.data import check_images
from dcfast.deepcluster.regions import Regions, regions
from dcfast.deepcluster.sources import open_source

SHAPES = {"grey photographs": ((90, 140), (80, 150), 56, 1), "small, in colour": ((24, 40), (24, 40), 32, 3)}


def batch(shapes, n=40):
    """Images of smooth noise, and boxes of every kind."""
    heights, widths, size, channels = shapes
    draw = np.random.default_rng(0)
    images, boxes = [], []
    for number in range(n):
        shape = (int(draw.integers(*heights)), int(draw.integers(*widths)), channels)
        pixels = draw.integers(0, 256, shape).astype(np.uint8)
        images.append(Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels))
        whole = (0.0, 0.0, float(shape[1]), float(shape[0]))
        kinds = (random_box(images[-1].size, draw.random(24), 0.08), centre_box(images[-1].size, size), whole)
        boxes.append(kinds[number % 3])
    return images, boxes, [bool(number % 2) for number in range(n)], size


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_the_crops_are_pillow_s_but_for_rounding(shapes):
    images, boxes, flips, size = batch(shapes)
    found = regions(images, boxes, flips, size).scaled()
    assert found.dtype == torch.uint8
    assert found.is_contiguous(memory_format=torch.channels_last)
    crops = [resized(image, box, size) for image, box in zip(images, boxes, strict=True)]
    crops = [crop[:, ::-1] if flip else crop for crop, flip in zip(crops, flips, strict=True)]
    away = (found.permute(0, 2, 3, 1).numpy().astype(int) - np.stack(crops)).__abs__()
    assert away.max() <= 2
    assert away.mean() < 0.2


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_whole_images_are_torch_s_but_for_rounding(shapes):
    images, _, _, size = batch(shapes, 6)
    boxes = [(0.0, 0.0, float(image.width), float(image.height)) for image in images]
    found = regions(images, boxes, [False] * len(images), size).scaled()
    for crop, image in zip(found, images, strict=True):
        pixels = (
            torch.from_numpy(np.array(image)).double().reshape(1, image.height, image.width, -1).permute(0, 3, 1, 2)
        )
        expected = torch.nn.functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)[0]
        assert (crop - expected).abs().max() <= 1  # half of the rows' rounding and half of the columns'


def test_a_crop_does_not_depend_on_its_batch():
    images, boxes, flips, size = batch(SHAPES["grey photographs"])
    together = regions(images, boxes, flips, size).scaled()
    for number in range(0, len(images), 7):
        one = slice(number, number + 1)
        assert torch.equal(regions(images[one], boxes[one], flips[one], size).scaled(), together[one])


def test_a_batch_is_scaled_in_parts_that_bound_its_memory(monkeypatch):
    images, boxes, flips, size = batch(SHAPES["grey photographs"], 10)
    parts = regions(images, boxes, flips, size)
    together, at_once, sizes = parts.scaled(), Regions._scaled_at_once, []
    monkeypatch.setattr(Regions, "_scaled_at_once", lambda self: sizes.append(len(self.flips)) or at_once(self))
    for room, expected in ((4, [4, 4, 2]), (0, [1] * 10), (99, [10])):
        monkeypatch.setattr("dcfast.deepcluster.regions._CHUNK_BYTES", 8 * room * parts.pixels[0].numel())
        found = parts.scaled()
        assert torch.equal(found, together)
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert sizes == expected
        sizes.clear()


@pytest.mark.gpu
def test_a_crop_does_not_depend_on_the_device():
    for shapes in SHAPES.values():
        parts = regions(*batch(shapes))
        assert torch.equal(parts.to(torch.device("cuda")).scaled().cpu(), parts.scaled())


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_a_data_set(workers):
    data = check_images(open_source("digits"), 50, 0, 0)
    data.image_size = 12
    order = np.arange(50)[::-1].copy()
    options = {"seed": 3, "epoch": 1, "min_crop": 0.3, "flip": True}
    kinds = (
        lambda on_device: CentreCrops(data, 16, on_device=on_device),
        lambda on_device: RandomCrops(data, order, 16, on_device=on_device, **options),
    )
    for crops in kinds:
        by_workers, by_device = (
            torch.cat(list(Batches(crops(on_device), workers, torch.device("cpu")))) for on_device in (False, True)
        )
        assert by_workers.shape == by_device.shape == (50, 3, 12, 12)
        assert (by_workers.int() - by_device.int()).abs().max() <= 2


def test_a_run_on_the_device(tmp_path, monkeypatch):
    monkeypatch.setattr("dcfast.deepcluster.report.write_report", lambda *_: None)
    scale, batches = Regions.scaled, []
    monkeypatch.setattr(Regions, "scaled", lambda self: batches.append(len(self.flips)) or scale(self))
    config = TrainConfig(n_clusters=10, epochs=2, limit=100, batch_size=32, pca=8, threads=1, scale_on="device")
    start("digits", tmp_path / "whole", config).fit()
    start("digits", tmp_path / "parts", dataclasses.replace(config, epochs=1)).fit()
    resume(tmp_path / "parts", epochs=2).fit()
    assert sum(batches) == 2 * 2 * 2 * 100
    start("digits", tmp_path / "workers", dataclasses.replace(config, scale_on="workers")).fit()
    assert sum(batches) == 2 * 2 * 2 * 100
    whole, parts, workers = (load_run(tmp_path / name).metrics for name in ("whole", "parts", "workers"))
    assert [one["loss"] for one in whole] == [one["loss"] for one in parts]
    assert whole[0]["loss"] == pytest.approx(workers[0]["loss"], rel=0.02)
    with pytest.raises(ValueError, match="scale_on must be one of 'workers', 'device', got 'gpu'"):
        TrainConfig(scale_on="gpu")
