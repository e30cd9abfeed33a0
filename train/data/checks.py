"""What images and labels must be, wherever they come from.

`check_images` and `check_label_shape` need only shape and dtype, so that a file can be refused by its header,
before its content is read.
"""

from typing import Any

import numpy as np

from nscjax.check import InputError, error


def check_images(name: str, shape: tuple[int, ...], dtype: Any) -> None:
    """Raises an `InputError` unless these are uint8 images [N, H, W] or [N, H, W, C] with C from 1 to 4."""
    if np.dtype(dtype) != np.uint8:
        raise error(f"the dtype of {name}", str(dtype), "uint8", "Scale the images to 0..255 and convert them.")
    is_images = len(shape) == 3 or (len(shape) == 4 and 1 <= shape[3] <= 4)
    if not is_images or min(shape[1:]) < 1:
        raise error(f"the shape of {name}", tuple(shape), "[N, H, W] or [N, H, W, C] with 1 to 4 channels last")
    if shape[0] < 1:
        raise error(f"the number of images in {name}", shape[0], "at least 1")


def check_label_shape(name: str, shape: tuple[int, ...], dtype: Any, num_images: int) -> None:
    """Raises an `InputError` unless these are integers [num_images] or [num_images, 1]."""
    if np.dtype(dtype).kind not in "iu":
        raise error(f"the dtype of {name}", str(dtype), "an integer type, one class number for each image")
    if len(shape) != 1 and not (len(shape) == 2 and shape[1] == 1):
        raise error(f"the shape of {name}", tuple(shape), "[N] or [N, 1], one class number for each image")
    if shape[0] != num_images:
        raise error(f"the number of labels in {name}", shape[0], f"{num_images}, one for each image")


def check_labels(name: str, labels: np.ndarray, num_images: int, num_classes: int) -> None:
    """Raises an `InputError` unless `labels`, [N] or [N, 1], are integers in 0..num_classes-1."""
    check_label_shape(name, labels.shape, labels.dtype, num_images)
    least, greatest = int(labels.min()), int(labels.max())
    if least < 0 or greatest >= num_classes:
        wrong = least if least < 0 else greatest
        raise error(f"a label in {name}", wrong, f"0 to {num_classes - 1}", "Number the classes from 0.")


def check_split(name: str, inputs: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
    """Raises an `InputError` unless there are finite inputs, with one label in 0..num_classes-1 for each."""
    if len(inputs) < 1:
        raise error(f"the number of samples in x_{name}", len(inputs), "at least 1")
    if np.issubdtype(inputs.dtype, np.floating) and not np.isfinite(inputs).all():
        wrong = int(np.argmin(np.isfinite(inputs).reshape(len(inputs), -1).all(axis=1)))
        raise error(f"sample {wrong} of x_{name}", "not finite", "finite numbers")
    if labels.ndim != 1:
        raise error(f"the shape of y_{name}", labels.shape, f"[{len(inputs)}], one class number for each sample")
    check_labels(f"y_{name}", labels, len(inputs), num_classes)


def check_classes(name: str, labels: np.ndarray) -> None:
    """Raises an `InputError` if all `labels` are one class: there is nothing to learn."""
    if labels.min() == labels.max():
        raise InputError(f"{name} holds the single class {int(labels.flat[0])}; allowed: 2 classes or more.")
