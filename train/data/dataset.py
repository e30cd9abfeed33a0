"""Every data set as one `Dataset`: arrays in memory, checked, with the statistics that training needs."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from nscjax.check import count, error, one_of
from train.data.checks import check_classes, check_images, check_labels
from train.data.cifar import FOLDERS, read_cifar
from train.data.download import SOURCES, find
from train.data.formats import Arrays, read_idx, read_labels, read_npz
from train.data.images import read_image_folder

_SEED = 0  # of the digits' split and of subsets: part of what a data set's name means
_LEAST_STD = 1 / 255  # one step of a pixel: a constant channel must not divide by zero
_BLOCK = 4096  # images counted at a time

_DIGITS = tuple("0123456789")
_FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class DataSettings(Protocol):
    """What `load` reads of the section `data` of a configuration."""

    @property
    def name(self) -> str:
        """One of `NAMES`."""

    @property
    def dir(self) -> str | None:
        """The folder with the files, by default data/NAME; for `npz` the file; not used for `digits`."""

    @property
    def num_train(self) -> int | None:
        """How many training images to use; None for all."""

    @property
    def num_test(self) -> int | None:
        """How many test images to use; None for all."""

    @property
    def download(self) -> bool:
        """Whether missing files are fetched."""


class Dataset(NamedTuple):
    """Images and labels of both splits, on the host."""

    name: str
    x_train: np.ndarray  # uint8 [N, H, W, C]
    y_train: np.ndarray  # int32 [N], in 0..num_classes-1
    x_test: np.ndarray  # uint8 [M, H, W, C]
    y_test: np.ndarray  # int32 [M]
    num_classes: int
    mean: np.ndarray  # float32 [C], of x_train / 255
    std: np.ndarray  # float32 [C], of x_train / 255, at least 1/255
    class_names: tuple[str, ...]


def load(data_config: DataSettings) -> Dataset:
    """Reads a data set, checks it and takes the wanted number of images.

    `num_train` and `num_test` take the first so many of a fixed seeded permutation of the split, so that a
    larger subset contains a smaller one and all runs see the same images; None takes all in the files' order.
    Classes are counted, and labels checked, before that.

    Args:
        data_config: the section `data` of a configuration, or any object with these attributes.

    Raises:
        InputError: an unknown name, a missing or broken file, images or labels that cannot be used, or more
            images wanted than there are.
    """
    name = one_of("data.name", data_config.name, NAMES)
    directory = _directory(name, data_config.dir)
    arrays = _READERS[name](directory, data_config.download)
    where = name if name == "digits" else str(directory)
    num_classes = _check(arrays, where)
    x_train, y_train = _take(arrays.x_train, arrays.y_train, data_config.num_train, "data.num_train")
    x_test, y_test = _take(arrays.x_test, arrays.y_test, data_config.num_test, "data.num_test")
    mean, std = statistics(x_train)
    class_names = arrays.class_names or tuple(map(str, range(num_classes)))
    return Dataset(name, x_train, y_train, x_test, y_test, num_classes, mean, std, class_names)


def load_labels(path: Path, data_config: DataSettings) -> tuple[np.ndarray, np.ndarray]:
    """Returns the training and the test labels of an .npz file, int32, for a party that has no images.

    They are taken as `load` takes images and labels, so that they belong to the other party's images in their order.

    Args:
        path: of the file.
        data_config: as of `load`; of it `num_train` and `num_test` count.

    Raises:
        InputError: the file cannot be used, or there are fewer labels than wanted.
    """
    y_train, y_test = (labels.reshape(-1).astype(np.int32) for labels in read_labels(path))
    if data_config.num_train is not None:
        y_train = y_train[_chosen(len(y_train), data_config.num_train, "data.num_train")]
    if data_config.num_test is not None:
        y_test = y_test[_chosen(len(y_test), data_config.num_test, "data.num_test")]
    return y_train, y_test


def statistics(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation of each channel of `x` / 255, the latter at least 1/255.

    Computed from exact counts of the 256 values, so that they do not depend on the order of summation.

    Shapes:
        x: uint8 [N, H, W, C].
        return: two float32 [C].
    """
    num_channels = x.shape[-1]
    counts = np.zeros((num_channels, 256), np.int64)
    for start in range(0, len(x), _BLOCK):
        pixels = x[start : start + _BLOCK].reshape(-1, num_channels)
        for channel in range(num_channels):
            counts[channel] += np.bincount(pixels[:, channel], minlength=256)
    values = np.arange(256) / 255
    shares = counts / counts.sum(axis=1, keepdims=True)
    mean = shares @ values
    std = np.sqrt(np.sum(shares * (values - mean[:, None]) ** 2, axis=1))
    return mean.astype(np.float32), np.maximum(std, _LEAST_STD).astype(np.float32)


def can_flip(name: str) -> bool:
    """Returns whether a mirrored image is still one of its class: not so for written digits."""
    return name not in ("digits", "mnist")


def _check(arrays: Arrays, where: str) -> int:
    """Raises an `InputError` if images or labels cannot be used; returns the number of classes."""
    x_train, y_train, x_test, y_test, class_names = arrays
    check_images(f"x_train of {where}", x_train.shape, x_train.dtype)
    check_images(f"x_test of {where}", x_test.shape, x_test.dtype)
    if x_test.shape[1:] != x_train.shape[1:]:
        raise error(f"the image shape of x_test of {where}", x_test.shape[1:], f"{x_train.shape[1:]}, as in x_train")
    # Without names, no more classes than images: a stray label must not size the model's last layer.
    check_labels(f"y_train of {where}", y_train, len(x_train), len(class_names or x_train))
    check_classes(f"y_train of {where}", y_train)
    num_classes = len(class_names) if class_names else int(y_train.max()) + 1
    check_labels(f"y_test of {where}", y_test, len(x_test), num_classes)
    return num_classes


def _directory(name: str, given: str | None) -> Path:
    """Returns the folder of a data set, or the file for `npz`; one's own data have no default place."""
    if not given and name in ("npz", "image_folder"):
        kind = "the .npz file" if name == "npz" else "the folder that holds train/ and test/"
        raise error("data.dir", given, kind, "Give it by `--data.dir PATH`.")
    return Path(given or f"data/{name}")


def _take(x: Any, y: np.ndarray, number: int | None, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns `number` images as uint8 [number, H, W, C] and their labels as int32 [number]."""
    y = y.reshape(-1).astype(np.int32)
    if number is not None:
        ids = _chosen(len(x), number, key)
        x, y = x[ids], y[ids]
    x = np.asarray(x)
    return np.ascontiguousarray(x.reshape(*x.shape[:3], -1)), y


def _chosen(num_images: int, number: int, key: str) -> np.ndarray:
    """Returns the places of `number` images: the first so many of a fixed seeded permutation."""
    count(key, number, 1)
    if number > num_images:
        raise error(key, number, f"at most {num_images}, the images there are")
    # This generator's stream is the same in every version of numpy.
    return np.random.RandomState(_SEED).permutation(num_images)[:number]


def _read_digits(_directory: Path, _download: bool) -> Arrays:
    """Returns scikit-learn's bundled digits, 8 x 8: 1,437 and 360, with equal shares of each class."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # 0..16 in the source
    x_train, x_test, y_train, y_test = train_test_split(
        images, digits.target, test_size=0.2, random_state=_SEED, stratify=digits.target
    )
    return Arrays(x_train, y_train, x_test, y_test, _DIGITS)


def _read_mnist(directory: Path, download: bool, name: str = "mnist", class_names: tuple[str, ...] = _DIGITS) -> Arrays:
    """Returns MNIST, or a data set published in the same four files, packed or not."""

    def array(stem: str, num_dims: int) -> np.ndarray:
        return read_idx(find(SOURCES[name], directory, (f"{stem}.gz", stem), download), num_dims)

    return Arrays(
        array("train-images-idx3-ubyte", 3),
        array("train-labels-idx1-ubyte", 1),
        array("t10k-images-idx3-ubyte", 3),
        array("t10k-labels-idx1-ubyte", 1),
        class_names,
    )


def _read_cifar10(directory: Path, download: bool) -> Arrays:
    """Returns CIFAR-10 in the first form of it that is found."""
    path = find(SOURCES["cifar10"], directory, (*FOLDERS, "cifar10.npz"), download)
    arrays = read_npz(path) if path.name == "cifar10.npz" else read_cifar(path)
    return arrays._replace(class_names=_CIFAR10)


_READERS: dict[str, Callable[[Path, bool], Arrays]] = {
    "digits": _read_digits,
    "mnist": _read_mnist,
    "fashion_mnist": partial(_read_mnist, name="fashion_mnist", class_names=_FASHION),
    "cifar10": _read_cifar10,
    "npz": lambda path, _download: read_npz(path),
    "image_folder": lambda directory, _download: read_image_folder(directory),
}
NAMES = tuple(_READERS)
