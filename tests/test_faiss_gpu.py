"""What code written for faiss-gpu calls: on a machine without a GPU it runs on the CPU, and says so.

The tests run with and without a GPU; with one it is what serves them.
"""

import contextlib
import errno
import os
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch

import dcfast.faiss as ours


@pytest.fixture(autouse=True)
def _one_pool_of_threads():
    """faiss brings an OpenMP pool of its own, which fights with torch's over the cores."""
    faiss.omp_set_num_threads(1)


def normal(n, d, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)).astype("float32")


def told():
    """The warning where there is no GPU."""
    if torch.cuda.is_available():
        return contextlib.nullcontext()
    return pytest.warns(UserWarning, match="torch sees no CUDA device here, so the CPU is used")


def plain(metric="L2", d=4):
    return getattr(ours, f"IndexFlat{metric}")(d)


def by_constructor(metric, d=4):
    resources = ours.StandardGpuResources()
    resources.noTempMemory()
    resources.setTempMemory(2**30)
    config = ours.GpuIndexFlatConfig()
    config.useFloat16 = metric == "IP"
    config.storeTransposed = False
    config.device = 0
    return getattr(ours, f"GpuIndexFlat{metric}")(resources, d, config)


MADE = {
    "constructor": by_constructor,
    "constructor without a configuration": lambda metric: getattr(ours, f"GpuIndexFlat{metric}")(
        ours.StandardGpuResources(), 4
    ),
    "to gpu": lambda metric: ours.index_cpu_to_gpu(ours.StandardGpuResources(), 0, plain(metric)),
    "to all gpus": lambda metric: ours.index_cpu_to_all_gpus(plain(metric)),
}


@pytest.fixture(params=MADE)
def made(request):
    def make(metric="L2"):
        with told():
            return MADE[request.param](metric)

    return make


@pytest.mark.parametrize("metric", ["L2", "IP"])
def test_a_clustering_with_it_is_that_of_the_cpu(made, metric):
    x, weights = normal(900, 4), np.linspace(0, 1, 900, dtype="float32")
    results = []
    for index in (plain(metric), made(metric)):
        clustering = ours.Clustering(4, 7)
        clustering.niter = 20
        clustering.seed = 31
        clustering.spherical = metric == "IP"
        clustering.max_points_per_centroid = 100
        for given in (None, weights):
            clustering.train(x, index, given)
        distances, labels = index.search(x, 1)
        assert isinstance(labels, np.ndarray)
        losses, centroids = map(ours.vector_to_array, (clustering.obj, clustering.centroids))
        results.append([losses.tobytes(), centroids.tobytes(), distances.tobytes(), labels.tobytes()])
        assert index.ntotal == 7
    assert results[0] == results[1]
    assert isinstance(index, getattr(ours, f"GpuIndexFlat{metric}"))
    assert isinstance(index, getattr(ours, f"IndexFlat{metric}"))


@pytest.mark.parametrize("metric", ["L2", "IP"])
def test_it_answers_as_the_index_of_the_cpu(made, metric):
    x = normal(50, 4)
    expected, index = plain(metric), made(metric)
    for each in (expected, index):
        each.train(x)
        each.add(x[:20])
        each.add(torch.tensor(x[20:]))
        assert each.remove_ids([3, 5]) == 2
    assert (index.d, index.ntotal, index.metric_type) == (4, 48, expected.metric_type)
    for kind in (np.asarray, torch.tensor, np.ndarray.tolist):
        queries = kind(normal(30, 4, seed=1))
        answers = [
            [*each.search(queries, 1), *each.search(queries, 5), *each.range_search(queries, 2.0)]
            for each in (expected, index)
        ]
        for mine, its in zip(*answers, strict=True):
            assert type(mine) is type(its)
            assert mine.dtype == its.dtype
            np.testing.assert_array_equal(mine, its)
    np.testing.assert_array_equal(index.reconstruct_batch([7, 1]), expected.reconstruct_batch([7, 1]))
    np.testing.assert_array_equal(ours.serialize_index(index), ours.serialize_index(expected))
    index.reset()
    assert (index.search(x, 1)[1] == -1).all()


@pytest.mark.parametrize("metric", ["L2", "IP"])
def test_indices_are_copied_to_the_gpu_and_back(metric):
    index = plain(metric)
    index.add(normal(20, 4))
    with told():
        there = ours.index_cpu_to_gpu(ours.StandardGpuResources(), 0, index)
    with told():
        again = ours.index_cpu_to_all_gpus(there)
    back = ours.index_gpu_to_cpu(again)
    assert type(there) is type(again) is getattr(ours, f"GpuIndexFlat{metric}")
    assert type(back) is type(index)
    for each in (there, again, back):
        np.testing.assert_array_equal(each.reconstruct_n(), index.reconstruct_n())
    for each in (index, there, again):
        each.reset()
    assert back.ntotal == 20


def test_only_flat_indices_are_copied():
    for call in (
        lambda index: ours.index_cpu_to_gpu(ours.StandardGpuResources(), 0, index),
        ours.index_cpu_to_all_gpus,
        ours.index_gpu_to_cpu,
    ):
        with pytest.raises(TypeError, match="index is a IndexFlatL2: expected an IndexFlatL2 or an IndexFlatIP"):
            call(faiss.IndexFlatL2(4))


def test_without_a_gpu_every_construction_warns_once_where_it_stands(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = ours.GpuIndexFlatConfig()
    config.device = 3
    calls = {
        "device=0": (
            lambda: ours.GpuIndexFlatIP(ours.StandardGpuResources(), 4),
            lambda: ours.index_cpu_to_all_gpus(plain()),
        ),
        "device=3": (
            lambda: ours.GpuIndexFlatL2(ours.StandardGpuResources(), 4, config),
            lambda: ours.index_cpu_to_gpu(ours.StandardGpuResources(), 3, plain()),
        ),
    }
    for message, made in calls.items():
        for call in made:
            with pytest.warns(UserWarning, match=f"{message}: torch sees no CUDA device") as caught:
                index = call()
            assert [Path(each.filename).name for each in caught] == [Path(__file__).name]
            index.add(normal(5, 4))
            assert index._vectors.device.type == "cpu"


def test_the_device_is_the_one_asked_for(monkeypatch):
    """Only the choice is looked at: no CUDA call follows."""
    from dcfast.faiss import gpu

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert gpu._chosen(0) == torch.device("cuda", 0)
    chosen = []
    monkeypatch.setattr(gpu, "_copy", lambda index, device: chosen.append(device))
    ours.index_cpu_to_gpu(ours.StandardGpuResources(), 1, plain())
    ours.index_cpu_to_all_gpus(plain())
    assert chosen == [torch.device("cuda", 1)] * 2
    for device in (2, -1):
        message = f"device={device}: expected 0 <= device < 2, the number of CUDA devices that torch sees"
        with pytest.raises(ValueError, match=message):
            ours.index_cpu_to_gpu(ours.StandardGpuResources(), device, plain())
        with pytest.raises(ValueError, match=message):
            ours.GpuIndexFlatL2(ours.StandardGpuResources(), 4, ours.GpuIndexFlatConfig(device=device))


def test_vectors_stay_on_the_device():
    """On one that knows shapes only."""
    from dcfast.faiss import gpu

    index = plain()
    index.add(normal(5, 4))
    there = gpu._copy(index, torch.device("meta"))
    assert (there._vectors.device.type, there.ntotal) == ("meta", 5)
    there.reset()
    assert (there._vectors.device.type, there.ntotal) == ("meta", 0)
    for count in (5, 10):
        there.add(normal(5, 4))
        assert (there._vectors.device.type, there.ntotal) == ("meta", count)


@pytest.mark.gpu
@pytest.mark.parametrize("metric", ["L2", "IP"])
def test_a_clustering_on_the_device_equals_the_cpu_to_the_bit(metric):
    x = normal(5000, 9)
    results = []
    for index in (plain(metric, 9), by_constructor(metric, 9)):
        clustering = ours.Clustering(9, 40)
        clustering.niter = 6
        clustering.train(x, index)
        answers = *index.search(x, 1), *map(ours.vector_to_array, (clustering.obj, clustering.centroids))
        assert all(isinstance(answer, np.ndarray) for answer in answers)
        results.append([answer.tobytes() for answer in answers])
    assert results[0] == results[1]
    assert index._vectors.device == torch.device("cuda", 0)
    labels = index.search(torch.tensor(x, device="cuda"), 1)[1]
    assert labels.is_cuda
    assert index.search(torch.tensor(x), 1)[1].device.type == "cpu"
    assert ours.index_gpu_to_cpu(index)._vectors.device.type == "cpu"


# Files


@pytest.mark.parametrize("target", ["whole", "linked"])
def test_a_file_is_written_as_a_whole_or_not_at_all(monkeypatch, tmp_path, target):
    index = plain()
    index.add(normal(20, 4))
    ours.write_index(index, tmp_path / "whole")
    (tmp_path / "linked").symlink_to("whole")
    before = (tmp_path / "whole").read_bytes()
    index.add(normal(20, 4, seed=1))

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"the disk is full: .*whole was not written\. Make room for 685 bytes"):
            ours.write_index(index, tmp_path / target)
    assert (tmp_path / target).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["linked", "whole"]
    ours.write_index(index, str(tmp_path / target))
    assert ours.read_index(tmp_path / "whole").ntotal == 40
    assert (tmp_path / "linked").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["linked", "whole"]
    with pytest.raises(FileNotFoundError):
        ours.write_index(index, tmp_path / "absent" / "index")
    with pytest.raises(IsADirectoryError):
        ours.write_index(index, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["linked", "whole"]


def test_a_pipe_is_written_and_not_replaced(tmp_path):
    index = plain()
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        ours.write_index(index, tmp_path / "pipe")
        assert os.read(reader, 1000) == ours.serialize_index(index).tobytes()
    finally:
        os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


def trained(module, dout=3, power=0.0, rotated=False):
    pca = module.PCAMatrix(5, dout, power, rotated)
    pca.epsilon = 0.25
    pca.train(normal(200, 5) * np.arange(1, 6, dtype="float32") + 2)
    return pca


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("power", [0.0, -0.5])
@pytest.mark.parametrize("dout", [3, 5])
def test_files_of_pca_are_those_of_faiss(dout, power, rotated, tmp_path):
    x = normal(30, 5, seed=1) + 2
    path = str(tmp_path / "pca")
    for writer, reader in ((faiss, ours), (ours, faiss), (ours, ours)):
        written = trained(writer, dout, power, rotated)
        assert writer.write_VectorTransform(written, path) is None
        read = reader.read_VectorTransform(path)
        assert type(read) is reader.PCAMatrix
        for name in ("d_in", "d_out", "eigen_power", "epsilon", "random_rotation", "is_trained"):
            assert getattr(read, name) == getattr(written, name), name
        for name in ("mean", "eigenvalues", "A", "b"):
            own, its = reader.vector_to_array(getattr(read, name)), writer.vector_to_array(getattr(written, name))
            np.testing.assert_allclose(own, its, rtol=1e-5 if name == "b" else 0, atol=1e-6 if name == "b" else 0)
        transformed = read.apply(x)
        np.testing.assert_allclose(transformed, written.apply(x), rtol=1e-4, atol=1e-5)
        if power == 0:
            np.testing.assert_allclose(
                read.reverse_transform(transformed), written.reverse_transform(transformed), rtol=1e-4, atol=1e-4
            )
    faiss.write_VectorTransform(faiss.read_VectorTransform(path), path)
    np.testing.assert_array_equal(ours.read_VectorTransform(path).apply(x), transformed)


def test_a_pca_that_is_not_trained(tmp_path):
    faiss.write_VectorTransform(faiss.PCAMatrix(5, 3, -0.5), str(tmp_path / "pca"))
    pca = ours.read_VectorTransform(tmp_path / "pca")
    assert (pca.d_in, pca.d_out, pca.eigen_power, pca.is_trained) == (5, 3, -0.5, False)
    pca.train(normal(200, 5))
    with pytest.raises(ValueError, match="not trained"):
        ours.write_VectorTransform(ours.PCAMatrix(5, 3), tmp_path / "none")
    with pytest.raises(TypeError, match="vt is a PCAMatrix: expected a PCAMatrix"):
        ours.write_VectorTransform(faiss.PCAMatrix(5, 3), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_files_of_other_transforms_are_refused(tmp_path):
    path = tmp_path / "transform"
    ours.write_VectorTransform(trained(ours), path)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"begins with|not those of the PCAMatrix"):
            ours.read_VectorTransform(path)
    for change in (b"\0", b"\0" * 4):
        path.write_bytes(whole + change)
        with pytest.raises(ValueError, match="of other parts"):
            ours.read_VectorTransform(path)
    for at in range(4, len(whole)):
        path.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
        with contextlib.suppress(ValueError):  # no byte makes it another error
            ours.read_VectorTransform(path)
    for vector in ("mean", "A", "b"):
        for value, message in ((np.nan, "with NaN or infinity"), (9.0, r"A x \+ b is not A \(x - mean\)")):
            pca = trained(ours)
            getattr(pca, vector)._items[0] = value
            ours.write_VectorTransform(pca, path)
            with pytest.raises(ValueError, match=message):
                ours.read_VectorTransform(path)
    faiss.write_VectorTransform(faiss.LinearTransform(5, 3, True), str(path))
    with pytest.raises(ValueError, match=r"begins with b'LTra': it holds no PCAMatrix"):
        ours.read_VectorTransform(path)
    with pytest.raises(FileNotFoundError):
        ours.read_VectorTransform(tmp_path / "absent")
