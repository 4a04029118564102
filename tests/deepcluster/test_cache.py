"""The cache of decoded images: the same training, no image decoded twice, and every kind of damage is found."""

import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from support.locks import locked_by_another
from support.training import Silent
from typer.testing import CliRunner

from dcfast.cli import app
from dcfast.deepcluster import TrainConfig, load_run, report, resume, start
from dcfast.deepcluster import cache as caching
from dcfast.deepcluster.cache import CacheLayout
from dcfast.deepcluster.crops import Batches, CentreCrops
from dcfast.deepcluster.data import check_images
from dcfast.deepcluster.models import build_model
from dcfast.deepcluster.rundir import RunDir
from dcfast.deepcluster.sources import FolderSource, open_source

OPTIONS = {"n_clusters": 4, "epochs": 1, "image_size": 16, "batch_size": 16, "pca": 4, "threads": 1, "workers": 0}


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr(report, "write_report", lambda *_: None)


@pytest.fixture
def folder(tmp_path):
    """24 colour images of 26 x 20 pixels in two classes."""
    rng = np.random.default_rng(0)
    for number in range(24):
        where = tmp_path / "images" / ("a" if number % 2 else "b") / f"{number:02d}.png"
        where.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 26, 3), dtype=np.uint8)).save(where)
    return tmp_path / "images"


@pytest.fixture
def grey(tmp_path):
    return CacheLayout(str(tmp_path / "cache"), 20, grey=True)


@pytest.fixture
def colour(tmp_path):
    return CacheLayout(str(tmp_path / "cache"), 20, grey=False)


def check(folder, layout, **options):
    return check_images(FolderSource(folder), **{"limit": None, "seed": 0, "workers": 0, "layout": layout, **options})


def never(*_):
    raise AssertionError("an image was decoded")


def test_one_process_makes_a_cache(folder, grey):
    with (
        locked_by_another(f"{grey.path}.lock"),
        pytest.raises(FileExistsError, match="another process is making the cache"),
    ):
        check(folder, grey)
    assert len(check(folder, grey)) == 24
    assert sorted(os.listdir(folder.parent)) == ["cache", "images"]


@pytest.mark.parametrize("sobel", [True, False])
def test_training_is_the_same_with_a_cache(tmp_path, sobel):
    """The digits are grey and smaller than the cache's side: both kinds of cache keep them to the byte."""
    saved = {}
    for name, cache in (("plain", None), ("cached", str(tmp_path / "digits.cache"))):
        config = TrainConfig(**OPTIONS, sobel=sobel, limit=40, cache=cache)
        start("digits", tmp_path / name, config, display=Silent()).fit()
        saved[name] = RunDir(tmp_path / name).read_checkpoint()
    plain, cached = (saved[name]["model"] for name in ("plain", "cached"))
    assert all(torch.equal(plain[key], cached[key]) for key in plain)
    assert torch.equal(saved["plain"]["assignments"], saved["cached"]["assignments"])
    pixels = 40 * 8 * 8 * (1 if sobel else 3)
    assert pixels < os.path.getsize(tmp_path / "digits.cache") < pixels + 6000


def test_nothing_is_decoded_twice(tmp_path, folder, monkeypatch):
    cache = str(tmp_path / "cache")
    (folder / "a" / "bad.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"skipped a/bad\.png"):
        decoded = check(folder, None).fingerprint
    with pytest.warns(UserWarning, match=r"skipped a/bad\.png"):
        trainer = start(folder, tmp_path / "run", TrainConfig(**OPTIONS, cache=cache), display=Silent())
    assert trainer.data.fingerprint == decoded
    monkeypatch.setattr(FolderSource, "item", never)
    trainer.fit()
    assert load_run(tmp_path / "run").options.cache == cache
    os.rename(cache, tmp_path / "elsewhere")
    with pytest.warns(UserWarning, match=r"skipped a/bad\.png: UnidentifiedImageError"):
        trainer = resume(tmp_path / "run", epochs=2, cache=str(tmp_path / "elsewhere"), display=Silent())
    trainer.fit()
    assert trainer.finished == 2
    assert trainer.data.corrupt == ["a/bad.png"]
    assert trainer.data.labels.tolist() == [0] * 12 + [1] * 12


def test_colour_images_are_kept_to_the_byte(folder, colour):
    plain, cached = check(folder, None), check(folder, colour)
    for index in range(len(plain)):
        np.testing.assert_array_equal(plain.image(index), cached.image(index))
    # A process that has read the file can send its images, not the bytes that it has mapped.
    sent = pickle.dumps(cached.cache)
    assert len(sent) < 10_000
    np.testing.assert_array_equal(pickle.loads(sent).image(3), plain.image(3))


def test_workers_write_and_read_the_same_cache(folder, grey):
    alone = check(folder, grey)
    with open(grey.path, "rb") as file:
        written = file.read()
    os.unlink(grey.path)
    data = check(folder, grey, workers=2)
    with open(grey.path, "rb") as file:
        assert file.read() == written
    data.image_size = alone.image_size = 16
    crops = [torch.cat(list(Batches(CentreCrops(data, 8), workers, torch.device("cpu")))) for workers in (0, 2)]
    assert torch.equal(*crops)


def test_a_grey_cache_is_what_sobel_sees_but_for_rounding(folder, grey):
    plain, cached = check(folder, None), check(folder, grey)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    level = (1 / std).sum() / (3 * 255)  # of grey, in units of the normalised image
    for index in range(len(plain)):
        exact = ((np.asarray(plain.image(index)) / 255 - mean) / std).mean(2)
        seen = ((np.asarray(cached.image(index))[:, :, None] / 255 - mean) / std).mean(2)
        assert np.abs(seen - exact).max() <= 0.5001 * level
    images = {}
    for name, data in (("plain", plain), ("cached", cached)):
        data.image_size = 20
        images[name] = next(iter(Batches(CentreCrops(data, 24), 0, torch.device("cpu"))))
        assert images[name].shape == (24, 3, 20, 20)
    assert images["cached"].untyped_storage().nbytes() == 24 * 20 * 20
    conv = build_model("small", 20).features[0]
    with torch.no_grad():
        error = (conv(images["cached"]) - conv(images["plain"])).abs()
        bound = 0.5001 * level * 8 * conv.weight.abs().sum((1, 2, 3))  # Sobel's weights have the sum 8
    assert (error.amax((0, 2, 3)) <= bound).all()
    assert error.max() > 0


def test_larger_images_keep_their_frame(tmp_path):
    (tmp_path / "images").mkdir()
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8))
    photo = coarse.resize((640, 480), Image.Resampling.BICUBIC)
    photo.save(tmp_path / "images" / "photo.png")
    data = check(tmp_path / "images", CacheLayout(str(tmp_path / "cache"), 256, grey=False))
    assert data.side == 480
    assert data.image(0).size == (341, 256)
    plain = check(tmp_path / "images", None)
    for one in (data, plain):
        one.image_size = 224
    # Scaled to 256 and cut, as published, or in one step.
    assert (data.eval_image(0).int() - plain.eval_image(0).int()).abs().max() <= 3
    assert data.thumbnail(0).tobytes() == plain.thumbnail(0).tobytes()


def test_a_stale_cache_is_made_again(folder, colour):
    before = check(folder, colour)
    changed = folder / "a" / "05.png"
    Image.fromarray(255 - np.asarray(before.image(before.names.index("a/05.png")))).save(changed)
    with pytest.warns(UserWarning, match="1 of 24 images are not in the cache"):
        after = check(folder, colour)
    assert after.fingerprint == check(folder, None).fingerprint != before.fingerprint
    os.utime(changed, ns=(0, 10**18))  # the same bytes at another time
    with pytest.warns(UserWarning, match="1 of 24"):
        check(folder, colour)
    Image.new("RGB", (20, 20)).save(folder / "b" / "new.png")
    with pytest.warns(UserWarning, match="1 of 25"):
        check(folder, colour)
    # A class before the others changes the number of every label.
    (folder / "B").mkdir()
    changed.rename(folder / "B" / "05.png")
    with pytest.warns(UserWarning, match="25 of 25"):
        assert check(folder, colour).labels.max() == 2


def test_fewer_images_are_read_from_the_cache_of_all(folder, grey, monkeypatch):
    check(folder, grey)
    names = check(folder, None, limit=10, seed=3).names
    monkeypatch.setattr(FolderSource, "item", never)
    part, whole = check(folder, grey, limit=10, seed=3), check(folder, grey)
    assert part.names == names
    for index, name in enumerate(names):
        np.testing.assert_array_equal(part.image(index), whole.image(whole.names.index(name)))


@pytest.mark.parametrize(
    "damage", ["cut in the pixels", "cut at the end", "a bit of the table", "only the first bytes"]
)
def test_a_damaged_cache_is_made_again(folder, grey, damage):
    check(folder, grey)
    with open(grey.path, "rb") as file:
        whole = file.read()
    table = bytearray(whole)
    table[-100] ^= 1
    damaged = {
        "cut in the pixels": whole[:2000],
        "cut at the end": whole[:-1],
        "a bit of the table": bytes(table),
        "only the first bytes": whole[:8],
    }[damage]
    with open(grey.path, "wb") as file:
        file.write(damaged)
    with pytest.warns(UserWarning, match="is damaged, and is made again"):
        check(folder, grey)
    with open(grey.path, "rb") as file:
        assert file.read() == whole


def test_damaged_pixels_are_found_when_they_are_read(folder, grey):
    check(folder, grey)
    with open(grey.path, "r+b") as file:
        file.seek(8 + 20 * 26)
        first = file.read(1)[0]
        file.seek(8 + 20 * 26)
        file.write(bytes([first ^ 1]))
    data = check(folder, grey)
    data.image(0)
    with pytest.raises(OSError, match=r"image 1 of the cache .* is damaged: delete the file"):
        data.image(1)


def test_what_is_something_else_is_left_alone(tmp_path, folder, grey, colour):
    path = tmp_path / "cache"
    path.write_text("my thesis")
    with pytest.raises(ValueError, match="is no cache of images"):
        check(folder, grey)
    assert path.read_text() == "my thesis"
    path.unlink()
    check(folder, grey)
    for other in (colour, CacheLayout(str(path), 30, grey=True)):
        with pytest.raises(ValueError, match=r"was made with (grey True|side 20), this run has (False|30)"):
            check(folder, other)


def test_a_full_disk_names_the_option_and_the_bytes(tmp_path, folder, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caching.os, "fsync", full)
    words = ["train", folder, "--output", tmp_path / "run", "--cache", tmp_path / "cache", "--image-size", 16]
    done = CliRunner().invoke(app, [str(word) for word in (*words, "--workers", 0, "--n-clusters", 4)])
    assert done.exit_code == 1
    assert f"error: no space left for --cache {tmp_path / 'cache'}: it needs about 12,488 bytes" in done.stderr
    assert "lower --cache-side" in done.stderr
    assert os.listdir(tmp_path) == ["images"]


def test_an_interruption_leaves_no_half_of_a_cache(tmp_path, folder, monkeypatch):
    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(caching.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        start(folder, tmp_path / "run", TrainConfig(**OPTIONS, cache=str(tmp_path / "cache")), display=Silent())
    assert os.listdir(tmp_path) == ["images"]


def test_options_that_do_not_fit_are_refused(tmp_path):
    config = TrainConfig(**OPTIONS, cache=str(tmp_path / "cache"), cache_side=12, limit=20)
    with pytest.raises(ValueError, match="cache_side=12 is less than the crops' 16 pixels"):
        start("digits", tmp_path / "run", config, display=Silent())
    start("digits", tmp_path / "run", TrainConfig(**OPTIONS, limit=20), display=Silent())
    with pytest.raises(ValueError, match="was started without --cache"):
        resume(tmp_path / "run", cache=str(tmp_path / "cache"))


def test_a_place_where_no_file_can_be_is_told_at_once(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    start("digits", tmp_path / "run", TrainConfig(**OPTIONS, limit=20, cache=str(tmp_path / "c")), display=Silent())
    before = RunDir(tmp_path / "run").config.read_bytes()
    monkeypatch.setattr("dcfast.deepcluster.trainer.check_images", None)
    for place, message in ((tmp_path, f"{tmp_path} is a folder"), (tmp_path / "file" / "c", "file is a file")):
        with pytest.raises(ValueError, match=f"{message}: give --cache the name of a file in a folder"):
            start("digits", tmp_path / "other", TrainConfig(**OPTIONS, cache=str(place)), display=Silent())
        with pytest.raises(ValueError, match=f"{message}: give --cache the name of a file in a folder"):
            resume(tmp_path / "run", cache=str(place), display=Silent())
    assert RunDir(tmp_path / "run").config.read_bytes() == before


def test_a_dataset_is_decoded_at_every_start(colour):
    for shade in (10, 200):
        data = check_images(open_source([np.full((9, 9, 3), shade, np.uint8)] * 3), None, 0, 0, layout=colour)
        assert np.asarray(data.image(2)).mean() == shade
