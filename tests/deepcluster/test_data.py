"""Images from anywhere: order, labels, corrupt files, crops that do not depend on the workers."""

import multiprocessing
import os
import signal
import subprocess
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from dcfast.deepcluster.crops import Batches, CentreCrops, RandomCrops, centre_box, random_box, resized
from dcfast.deepcluster.data import check_images
from dcfast.deepcluster.loader import Loader
from dcfast.deepcluster.sources import DatasetSource, FolderSource, open_source


def _write(path, seed=0, size=(20, 30), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(("cat/b.png", "cat/a.jpg", "dog/x/deep.png", "dog/c.PNG")):
        _write(tmp_path / name, number)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    _write(tmp_path / "cat" / ".hidden.png")
    return tmp_path


def _check(source, **options):
    return check_images(source, **{"limit": None, "seed": 0, "workers": 0, **options})


def test_digits():
    data = _check(open_source("digits"))
    assert len(data) == 1797
    assert data.class_names == list("0123456789")
    np.testing.assert_array_equal(np.unique(data.labels), np.arange(10))
    assert data.side == 8
    data.image_size = 16
    image = data.eval_image(5)
    assert image.shape == (3, 16, 16)
    assert image.dtype == torch.uint8
    assert image.max() > 200


def test_folder_with_classes(folder):
    data = _check(open_source(folder))
    assert data.names == ["cat/a.jpg", "cat/b.png", "dog/c.PNG", "dog/x/deep.png"]
    assert data.class_names == ["cat", "dog"]
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert data.thumbnail(0, 10).size == (10, 10)
    assert data.side == 20


def test_flat_folder_has_no_labels(tmp_path):
    for mode in ("L", "P", "RGBA", "CMYK"):
        _write(tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}", mode=mode)
    data = _check(FolderSource(tmp_path))
    assert len(data) == 4
    assert data.class_names == []
    assert data.labels.tolist() == [-1] * 4
    data.image_size = 8
    assert all(data.eval_image(i).shape == (3, 8, 8) for i in range(4))


def test_every_folder_counts_once_however_links_lead_to_it(folder):
    before = FolderSource(folder).names
    (folder / "cat" / "up").symlink_to("..")
    (folder / "dog" / "up").symlink_to("..")
    (folder / "cat" / "friends").symlink_to(folder / "dog")  # deeper than dog itself, if earlier in the alphabet
    (folder / "wolf").symlink_to("dog")  # as deep as dog, and later
    assert FolderSource(folder).names == before


def test_links_to_folders_elsewhere_are_followed(folder, tmp_path_factory):
    linked = tmp_path_factory.mktemp("linked")
    (linked / "feline").symlink_to(folder / "cat")
    assert FolderSource(linked).names == ["feline/a.jpg", "feline/b.png"]
    assert FolderSource(linked).class_names == ["feline"]


def test_sixteen_bit_greys_keep_their_range(tmp_path):
    grey = np.linspace(0, 65535, 100).astype(np.uint16).reshape(10, 10)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    pixels = np.asarray(_check(FolderSource(tmp_path)).image(0))
    np.testing.assert_array_equal(pixels, (grey >> 8).astype(np.uint8)[:, :, None].repeat(3, 2))


@pytest.mark.parametrize("white", [1, 255, 65535])
@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_wide_greys_keep_the_range_that_they_use(tmp_path, white, dtype):
    share = np.arange(256).reshape(16, 16) / 255
    grey = (share > 0.5 if white == 1 and dtype == np.int32 else share * white).astype(dtype)
    Image.fromarray(grey).save(tmp_path / "wide.tif")
    pixels = np.asarray(_check(FolderSource(tmp_path)).image(0))[:, :, 0].astype(float)
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert np.abs(pixels - grey * (255.0 / white)).max() <= 1


def test_sixteen_bits_are_never_taken_for_eight(tmp_path):
    dark = np.arange(256).astype(np.uint16).reshape(16, 16)
    for name in ("dark.png", "dark.pgm", "dark.tif"):
        Image.fromarray(dark).save(tmp_path / name)
    data = _check(FolderSource(tmp_path))
    assert not any(np.asarray(data.image(index)).any() for index in range(3))


@pytest.mark.parametrize("value", [-1.0, 65536.0, np.nan])
def test_greys_without_a_scale_are_skipped(tmp_path, value):
    _write(tmp_path / "a.png")
    Image.fromarray(np.array([[value, 1.0]], np.float32)).save(tmp_path / "b.tif")
    with pytest.warns(UserWarning, match=r"skipped b\.tif: ValueError: its greys go from .* scale them to 0..1"):
        assert len(_check(FolderSource(tmp_path))) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_cannot_be_read_any_more_are_named(folder, workers):
    data = _check(FolderSource(folder))
    data.image_size = 8
    whole = (folder / "cat" / "b.png").read_bytes()
    for change in (lambda path: path.write_bytes(whole[:60]), lambda path: path.unlink()):
        change(folder / "cat" / "b.png")
        with pytest.raises(OSError, match=r"^image cat/b\.png of .*cannot be any more .*: bring it back") as raised:
            list(Batches(CentreCrops(data, 2), workers, torch.device("cpu")))
        assert str(folder) in str(raised.value)
        assert "\n" not in str(raised.value)


def test_a_name_of_several_lines_is_shown_on_one(tmp_path):
    _write(tmp_path / "good\nname.png")
    (tmp_path / "bad\nn\xe4me.png").write_bytes(b"x")
    with pytest.warns(UserWarning, match=r"skipped bad\\nn\xe4me\.png: [^\n]*$"):
        data = _check(FolderSource(tmp_path))
    assert data.names == ["good\nname.png"]


class Failing(torch.utils.data.Dataset):
    """Raises for its second item."""

    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 2

    def __getitem__(self, index):
        if index:
            raise self.error
        return PIXELS


class Stubborn(RuntimeError):
    """Cannot be made again from its arguments, as unpickling does."""

    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_come_from_workers_as_they_were_raised(workers):
    for error in (KeyError("a"), FloatingPointError("b"), MemoryError("c")):
        with pytest.raises(type(error)) as raised:
            list(Loader(Failing(error), workers))
        assert raised.value.args == error.args
    with pytest.raises(TypeError, match=r"^item 1 of the dataset list is int 3: "):
        _check(DatasetSource([PIXELS, 3]), workers=workers)
    with pytest.raises(RuntimeError, match=r"^(Stubborn: )?no such$"):
        list(Loader(Failing(Stubborn("no", "such")), workers))


KEPT = {signal.SIGINT, signal.SIGTERM}


def _blocked():
    return signal.pthread_sigmask(signal.SIG_BLOCK, []) >= KEPT


class Blocked(torch.utils.data.Dataset):
    """Whether SIGINT and SIGTERM were kept from the process when it began; SIGINT is ignored since."""

    def __len__(self):
        return 1

    def __getitem__(self, number):
        return _blocked() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_workers_never_hear_an_interrupt():
    assert list(Loader(Blocked(), 1)) == [True]
    assert not KEPT & signal.pthread_sigmask(signal.SIG_BLOCK, [])


class Own(torch.utils.data.Dataset):
    """The number of the process that makes the items."""

    def __len__(self):
        return 20

    def __getitem__(self, number):
        return os.getpid()


def test_workers_outlive_the_end_that_a_scheduler_asks_of_all_processes():
    items = iter(Loader(Own(), 1))
    worker = next(items)
    # From another process than the one that they obey.
    subprocess.run(["kill", "-TERM", str(worker)], check=True)
    assert list(items) == [worker] * 19
    items = iter(Loader(Own(), 1))
    worker = next(items)
    process = next(one for one in multiprocessing.active_children() if one.pid == worker)
    process.terminate()
    process.join(10)
    assert process.exitcode == 0


def test_corrupt_files_are_named_and_skipped(folder):
    whole = (folder / "cat" / "b.png").read_bytes()
    (folder / "cat" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "dog" / "empty.jpg").write_bytes(b"")
    (folder / "dog" / "text.gif").write_text("this is no image")
    found = {}
    for workers in (0, 2):
        with pytest.warns(UserWarning, match="skipped") as caught:
            found[workers] = _check(FolderSource(folder), workers=workers)
        said = [str(warning.message) for warning in caught if "skipped" in str(warning.message)]
        assert [text.split()[1].rstrip(":") for text in said] == ["cat/cut.png", "dog/empty.jpg", "dog/text.gif"]
    data = found[0]
    assert data.corrupt == ["cat/cut.png", "dog/empty.jpg", "dog/text.gif"]
    assert data.names == ["cat/a.jpg", "cat/b.png", "dog/c.PNG", "dog/x/deep.png"]
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert found[2].fingerprint == data.fingerprint


def test_the_fingerprint_sees_names_and_pixels(folder):
    before = _check(FolderSource(folder)).fingerprint
    assert _check(FolderSource(folder)).fingerprint == before
    original = (folder / "cat" / "b.png").read_bytes()
    _write(folder / "cat" / "b.png", seed=99)
    assert _check(FolderSource(folder)).fingerprint != before
    (folder / "cat" / "b.png").write_bytes(original)
    assert _check(FolderSource(folder)).fingerprint == before
    (folder / "cat" / "b.png").rename(folder / "cat" / "z.png")
    assert _check(FolderSource(folder)).fingerprint != before


def test_a_name_that_is_no_text(folder):
    before = _check(FolderSource(folder)).fingerprint
    os.rename(os.fsencode(folder / "cat" / "b.png"), os.fsencode(folder / "cat") + b"/b\xff.png")
    assert _check(FolderSource(folder)).fingerprint != before


def test_what_is_no_data_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        open_source(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="no images in"):
        open_source(tmp_path)
    (tmp_path / "bad.png").write_bytes(b"x")
    with pytest.raises(NotADirectoryError, match="is a file"):
        open_source(tmp_path / "bad.png")
    with pytest.warns(UserWarning, match=r"bad\.png"), pytest.raises(ValueError, match="none of the 1 images"):
        _check(open_source(tmp_path))
    with pytest.raises(TypeError, match="must have a length"):
        DatasetSource(iter([1]))
    with pytest.raises(ValueError, match="empty"):
        DatasetSource([])


def test_a_limit_is_a_sorted_keyed_subset():
    everything = open_source("digits")
    data = _check(everything, limit=100, seed=5)
    assert len(data) == 100
    assert (np.diff(data.indices) > 0).all()
    np.testing.assert_array_equal(data.indices, _check(everything, limit=100, seed=5).indices)
    assert (data.indices != _check(everything, limit=100, seed=6).indices).any()
    assert len(np.unique(data.labels)) == 10  # not the head of a sorted folder


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("pil", [-1] * 3), ("hwc", [0, 1, 2]), ("tensor", [0, 1, 2]), ("float", [-1] * 3), ("grey", [-1] * 3)],
)
def test_any_dataset(kind, expected):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 10, 12, 3), dtype=np.uint8)
    tensors = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    items = {
        "pil": [Image.fromarray(p) for p in pixels],
        "hwc": [(p, i) for i, p in enumerate(pixels)],
        "tensor": [(t, torch.tensor(i)) for i, t in enumerate(tensors)],
        "float": list(tensors.float() / 255),
        "grey": [p[:, :, 0] for p in pixels],
    }[kind]
    data = _check(open_source(items))
    assert data.labels.tolist() == expected
    image = np.asarray(data.image(1))
    np.testing.assert_array_equal(image, pixels[1][:, :, :1].repeat(3, 2) if kind == "grey" else pixels[1])


def test_a_dataset_of_something_else_is_refused():
    with pytest.raises(TypeError, match="item 0 of the dataset list is str 'an image'"):
        _check(DatasetSource(["an image"]))
    with pytest.raises(TypeError, match="must be \\(1, H, W\\)"):
        _check(DatasetSource([torch.zeros(2, 4, 4)]))
    with pytest.raises(TypeError, match=r"is Tensor of torch.int64 \(3, 4, 4\): .* uint8 or floats in 0..1"):
        _check(DatasetSource([torch.zeros(3, 4, 4, dtype=torch.int64)]))
    with pytest.raises(TypeError, match="item 0 of the dataset list is tuple"):
        _check(DatasetSource([()]))


PIXELS = np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize("label", ["cat", 1.0, [0, 1], np.eye(10)[3], torch.eye(10)[3]], ids=str)
def test_labels_that_are_no_numbers_of_classes_are_refused(label):
    with pytest.raises(TypeError, match=r"the label of item 1 of the dataset list is .*: give the number") as raised:
        _check(DatasetSource([(PIXELS, 0), (PIXELS, label)]))
    assert "\n" not in str(raised.value)


def test_items_without_a_label():
    items = [(PIXELS,), (PIXELS, None), [PIXELS], (PIXELS, -5), (PIXELS, np.int64(2)), (PIXELS, 1, "more")]
    assert _check(DatasetSource(items)).labels.tolist() == [-1, -1, -1, -1, 2, 1]


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 255.0), (-2.1, 2.6), (0.0, 1.01), (-0.01, 1.0), (0.0, np.nan), (0.0, np.inf)]
)
def test_floats_outside_their_range_are_refused(low, high):
    image = torch.linspace(0, 1, 48).reshape(3, 4, 4)
    image[0, 0, 0], image[0, 0, 1] = low, high
    with pytest.raises(ValueError, match=r"values from \S+ to \S+, not in 0..1: divide by 255, or leave norm"):
        _check(DatasetSource([image]))


def test_floats_may_leave_their_range_by_a_rounding():
    image = torch.full((1, 2, 2), 1 + 1e-6)
    image[0, 0, 0] = -1e-6
    pixels = np.asarray(_check(DatasetSource([image.half(), image])).image(1))
    assert (pixels.min(), pixels.max()) == (0, 255)


def test_the_centre():
    assert centre_box((20, 10), 32) == (5, 0, 15, 10)
    # 224 of 256 pixels: 7/8 of the shorter side.
    assert centre_box((256, 512), 224) == (16, 144, 240, 368)
    assert centre_box((256, 512), 224, whole=True) == (0, 128, 256, 384)


@pytest.mark.parametrize("size", [(8, 8), (300, 20), (20, 300), (31, 33)])
def test_random_boxes_lie_in_the_image(size):
    draws = np.random.default_rng(0).random((500, 24))
    areas = []
    for row in draws:
        left, top, right, bottom = random_box(size, row, 0.3)
        assert left >= 0
        assert top >= 0
        assert right <= size[0] + 1e-9
        assert bottom <= size[1] + 1e-9
        assert 3 / 4 - 1e-9 <= (right - left) / (bottom - top) <= 4 / 3 + 1e-9
        areas.append((right - left) * (bottom - top) / (size[0] * size[1]))
    if max(size) < 2 * min(size):
        assert 0.3 <= min(areas) < 0.35
        assert max(areas) > 0.9


def test_extreme_draws_stay_within_what_pillow_accepts():
    image = Image.new("RGB", (7, 13))
    for low in (0.0, np.nextafter(1.0, 0.0)):
        row = np.full(24, low)
        assert resized(image, random_box(image.size, row, 1e-3), 5).shape == (5, 5, 3)


def test_crops_do_not_depend_on_the_workers():
    data = _check(open_source("digits"), limit=50)
    data.image_size = 16
    order = np.arange(50)[::-1]
    options = {"seed": 1, "epoch": 2, "min_crop": 0.5, "flip": True}
    cpu = torch.device("cpu")
    alone = torch.cat(list(Batches(RandomCrops(data, order, 8, **options), 0, cpu)))
    others = torch.cat(list(Batches(RandomCrops(data, order, 8, **options), 2, cpu)))
    assert torch.equal(alone, others)
    assert alone.shape == (50, 3, 16, 16)
    # Keyed by position: another batch size cuts the same crops.
    assert torch.equal(alone, torch.cat(list(Batches(RandomCrops(data, order, 50, **options), 0, cpu))))
    next_epoch = {**options, "epoch": 3}
    assert not torch.equal(alone, torch.cat(list(Batches(RandomCrops(data, order, 8, **next_epoch), 0, cpu))))


def test_flips_mirror_half_of_the_crops():
    data = _check(open_source("digits"), limit=200)
    data.image_size = 8
    order, options = np.arange(200), {"seed": 1, "epoch": 0, "min_crop": 1.0}
    plain = RandomCrops(data, order, 200, flip=False, **options)[0]
    flipped = RandomCrops(data, order, 200, flip=True, **options)[0]
    same = (plain == flipped).flatten(1).all(1)
    mirrored = (plain.flip(3) == flipped).flatten(1).all(1)
    assert (same | mirrored).all()
    assert 60 < int(mirrored.sum()) < 140


def test_centre_crops_are_the_eval_images():
    data = _check(open_source("digits"), limit=10)
    data.image_size = 12
    together = torch.cat(list(Batches(CentreCrops(data, 4), 0, torch.device("cpu"))))
    assert torch.equal(together, torch.stack([data.eval_image(i) for i in range(10)]))


def test_reading_images_draws_from_no_global_generator():
    data = _check(open_source("digits"), limit=10)
    data.image_size = 8
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - the legacy generator is the one that must stay put
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        crops = RandomCrops(data, np.arange(10), 4, seed=0, epoch=0, min_crop=0.5, flip=True)
        for workers in (0, 1):
            _check(open_source("digits"), limit=10, workers=workers)
            list(Batches(crops, workers, torch.device("cpu")))
    assert torch.equal(torch.get_rng_state(), states[0])
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
