import os
from pathlib import Path

import numpy as np
import pytest

from nscjax.check import InputError
from tests.train.data_files import (
    Settings,
    cifar_contents,
    made_images,
    made_labels,
    made_splits,
    write_folder,
    write_idx,
)
from train.data import can_flip, load
from train.data.dataset import statistics


def test_digits():
    dataset = load(Settings("digits"))
    assert dataset.x_train.shape == (1437, 8, 8, 1)
    assert dataset.x_test.shape == (360, 8, 8, 1)
    assert dataset.x_train.dtype == dataset.x_test.dtype == np.uint8
    assert dataset.y_train.dtype == dataset.y_test.dtype == np.int32
    assert dataset.x_train.max() == 255
    assert dataset.num_classes == 10
    assert dataset.class_names == tuple("0123456789")
    shares = np.bincount(dataset.y_test) / np.bincount(dataset.y_train)
    np.testing.assert_allclose(shares, 360 / 1437, rtol=0.05)


def test_digits_split_is_fixed_and_disjoint():
    first, second = load(Settings("digits")), load(Settings("digits"))
    np.testing.assert_array_equal(first.x_train, second.x_train)
    train = {image.tobytes() for image in first.x_train}
    assert not any(image.tobytes() in train for image in first.x_test)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("is_packed", [False, True])
def test_idx_sets(tmp_path, name, is_packed):
    splits = made_splits(28, 28)
    write_idx(tmp_path, splits, is_packed)
    dataset = load(Settings(name, str(tmp_path)))
    np.testing.assert_array_equal(dataset.x_train, splits["x_train"][..., None])
    np.testing.assert_array_equal(dataset.y_test, splits["y_test"])
    assert dataset.num_classes == 10
    assert dataset.class_names[9] == {"mnist": "9", "fashion_mnist": "Ankle boot"}[name]


def test_default_folder_is_named_after_the_data_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data/mnist").mkdir(parents=True)
    write_idx(Path("data/mnist"), made_splits(28, 28))
    assert load(Settings("mnist")).x_train.shape == (40, 28, 28, 1)


def test_cifar10_batches_and_npz_are_equal(tmp_path):
    splits = made_splits(32, 32, 3)
    (tmp_path / "npz").mkdir()
    np.savez(tmp_path / "npz" / "cifar10.npz", **splits)
    write_folder(tmp_path / "cifar-10-batches-py", cifar_contents(splits))
    first = load(Settings("cifar10", str(tmp_path)))
    second = load(Settings("cifar10", str(tmp_path / "npz")))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
    assert first.class_names[:2] == ("airplane", "automobile")
    assert first.x_test.flags.c_contiguous


def test_npz_without_class_names_counts_classes(tmp_path):
    splits = made_splits(8, 6)
    np.savez(tmp_path / "made.npz", **{**splits, "y_train": made_labels(40, 7)[:, None], "y_test": made_labels(20, 7)})
    dataset = load(Settings("npz", str(tmp_path / "made.npz")))
    assert dataset.num_classes == 7
    assert dataset.class_names == tuple("0123456")
    assert dataset.y_train.shape == (40,)
    assert dataset.x_train.shape == (40, 8, 6, 1)


def test_npz_with_class_names_may_leave_classes_out(tmp_path):
    np.savez(tmp_path / "made.npz", **made_splits(8, 6), class_names=np.array(list("abcdefghijkl")))
    dataset = load(Settings("npz", str(tmp_path / "made.npz")))
    assert dataset.num_classes == 12
    assert dataset.class_names == tuple("abcdefghijkl")


def test_subsets_are_nested_and_fixed():
    whole = load(Settings("digits"))
    large = load(Settings("digits", num_train=100, num_test=30))
    small = load(Settings("digits", num_train=40))
    assert large.x_train.shape[0] == 100
    assert large.x_test.shape[0] == 30
    np.testing.assert_array_equal(large.x_train[:40], small.x_train)
    order = np.random.RandomState(0).permutation(1437)
    np.testing.assert_array_equal(small.y_train, whole.y_train[order[:40]])
    assert order[:4].tolist() == [52, 34, 987, 1334]
    assert small.num_classes == 10


def test_statistics_are_those_of_the_images_used():
    dataset = load(Settings("digits", num_train=50))
    scaled = dataset.x_train.astype(np.float64) / 255
    np.testing.assert_allclose(dataset.mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(dataset.std, scaled.std(axis=(0, 1, 2)), rtol=1e-6)
    assert dataset.mean.dtype == dataset.std.dtype == np.float32


def test_statistics_of_each_channel_over_several_blocks(monkeypatch):
    images = made_images(50, 4, 4, 3)
    images[..., 1] = 51
    monkeypatch.setattr("train.data.dataset._BLOCK", 16)
    mean, std = statistics(images)
    np.testing.assert_allclose(mean, images.mean(axis=(0, 1, 2)) / 255, rtol=1e-6)
    np.testing.assert_allclose(mean[1], 0.2, rtol=1e-6)
    np.testing.assert_allclose(std[[0, 2]], images.std(axis=(0, 1, 2))[[0, 2]] / 255, rtol=1e-6)
    assert std[1] == np.float32(1 / 255)


def test_digits_are_not_flipped():
    assert [name for name in ("digits", "mnist", "fashion_mnist", "cifar10", "npz") if not can_flip(name)] == [
        "digits",
        "mnist",
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings("cifar_10"), r"data.name is 'cifar_10'; allowed: 'digits', .*\. Did you mean 'cifar10'\?"),
        (Settings("npz"), r"data.dir is None; allowed: the .npz file\. Give it by `--data.dir PATH`\."),
        (Settings("image_folder"), r"data.dir is None; allowed: the folder that holds train/ and test/"),
        (Settings("digits", num_train=1438), "data.num_train is 1438; allowed: at most 1437, the images there are"),
        (Settings("digits", num_test=361), "data.num_test is 361; allowed: at most 360, the images there are"),
        (Settings("digits", num_train=0), "data.num_train is 0; allowed: a whole number >= 1"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        load(settings)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"y_train": np.full(40, 3)}, "y_train of .* holds the single class 3; allowed: 2 classes or more"),
        ({"y_train": np.arange(40) - 1}, "a label in y_train of .* is -1; allowed: 0 to 39"),
        ({"y_train": np.array([0] * 39 + [10**9])}, "a label in y_train of .* is 1000000000; allowed: 0 to 39"),
        ({"y_test": np.arange(20)}, "a label in y_test of .* is 19; allowed: 0 to 9. Number the classes from 0"),
        ({"x_test": np.zeros((20, 8, 9), np.uint8)}, r"image shape of x_test of .* is \(8, 9\); allowed: \(8, 8\)"),
        ({"class_names": np.array(["a", "b"])}, "a label in y_train of .* is 9; allowed: 0 to 1"),
    ],
)
def test_bad_labels_and_shapes_are_named(tmp_path, changed, message):
    np.savez(tmp_path / "made.npz", **{**made_splits(8, 8), **changed})
    with pytest.raises(InputError, match=message):
        load(Settings("npz", str(tmp_path / "made.npz")))


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("y_train", made_labels(39), "the number of labels in y_train of .* is 39; allowed: 40"),
        ("y_train", made_labels(40, 11), "a label in y_train of .* is 10; allowed: 0 to 9"),
        ("x_test", made_images(0, 28, 28), "the number of images in x_test of .* is 0; allowed: at least 1"),
        ("x_test", made_images(20, 0, 28), r"the shape of x_test of .* is \(20, 0, 28\)"),
    ],
)
def test_bad_idx_sets_are_named(tmp_path, name, array, message):
    write_idx(tmp_path, {**made_splits(28, 28), name: array})
    with pytest.raises(InputError, match=message):
        load(Settings("mnist", str(tmp_path)))


def _real(name):
    """Returns the settings of real files, or skips the test."""
    folder = os.environ.get("NSCJAX_DATA")
    if not folder or not (Path(folder) / name).is_dir():
        pytest.skip(f"the environment variable NSCJAX_DATA names no folder that holds {name}/")
    return Settings(name, str(Path(folder) / name))


def test_real_fashion_mnist():
    dataset = load(_real("fashion_mnist"))
    assert dataset.x_train.shape == (60_000, 28, 28, 1)
    assert np.bincount(dataset.y_train).tolist() == [6000] * 10
    assert np.bincount(dataset.y_test).tolist() == [1000] * 10
    np.testing.assert_allclose(dataset.mean, 0.2860, atol=1e-4)
    np.testing.assert_allclose(dataset.std, 0.3530, atol=1e-4)


def test_real_cifar10():
    dataset = load(_real("cifar10"))
    assert dataset.x_train.shape == (50_000, 32, 32, 3)
    assert np.bincount(dataset.y_train).tolist() == [5000] * 10
    assert np.bincount(dataset.y_test).tolist() == [1000] * 10
    np.testing.assert_allclose(dataset.mean, [0.49140, 0.48216, 0.44653], atol=1e-5)
    np.testing.assert_allclose(dataset.std, [0.24703, 0.24349, 0.26159], atol=1e-5)
