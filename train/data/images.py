"""Images as files, one folder a class: CLASS/NAME.png or .jpg, read by pillow (extra `nscjax[images]`).

Classes are the names of the subfolders in alphabetical order, and so are the images of a class. The first
training image decides about all: they must have its size, and have 1 channel if it is gray, 3 if it is not.
Gray images among coloured ones are converted; transparency is dropped.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from nscjax.check import InputError, error
from train.data.formats import Arrays, reading

_SUFFIXES = (".png", ".jpg", ".jpeg")
_GRAY_MODES = ("1", "L")
_COLOUR_MODES = ("P", "PA", "LA", "RGB", "RGBA", "CMYK", "YCbCr")


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """The images of one split, decoded when they are taken: `folder[ids]` is uint8 [len(ids), H, W, C].

    Attributes:
        paths: the N image files.
        labels: int32 [N].
        class_names: one name for each class.
        image_shape: (H, W, C).
        first: the file that decided about `image_shape`.
    """

    paths: tuple[Path, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    first: Path

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C), as an array has it."""
        return (len(self.paths), *self.image_shape)

    @property
    def dtype(self) -> np.dtype:
        """Of the decoded images: uint8."""
        return np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, ids: np.ndarray) -> np.ndarray:
        """Returns the images `ids`, integers [B], as uint8 [B, H, W, C].

        Raises:
            InputError: an image is broken, or unlike the first one in size or channels.
        """
        images = np.empty((len(ids), *self.image_shape), np.uint8)
        for row, index in enumerate(ids):
            images[row] = self._decode(self.paths[index])
        return images

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Returns all images, for `numpy.asarray`."""
        return self[np.arange(len(self))].astype(dtype or self.dtype, copy=False)

    def _decode(self, path: Path) -> np.ndarray:
        image = _decode(path)
        height, width, channels = self.image_shape
        if image.shape[:2] != (height, width):
            size = f"{image.shape[1]} x {image.shape[0]}"
            raise error(f"the size of {path}", size, f"{width} x {height}, as {self.first} has")
        if image.shape[2] > channels:
            raise error(f"the channels of {path}", "colour", f"gray, as in {self.first}", "Convert the images.")
        return image


def image_folder(directory: Path, like: ImageFolder | None = None) -> ImageFolder:
    """Returns the images of one split; only the first of them is decoded.

    Args:
        directory: has one subfolder for each class. In them, files with other suffixes are left out.
        like: another split, which decides about classes, image size and channels.

    Raises:
        InputError: no such folder, no classes, a class without images or unknown to `like`, a broken first
            image, or pillow is not installed.
    """
    classes = _subfolders(directory)
    if not classes:
        allowed = f"a folder that holds {directory.name}/CLASS/*.png or *.jpg"
        raise error("data.dir", str(directory.parent), allowed)
    class_names = like.class_names if like else tuple(classes)
    if unknown := set(classes) - set(class_names):
        raise error(f"a class in {directory}", min(unknown), f"those of training: {', '.join(class_names)}")
    files = [(path, class_names.index(name)) for name in classes for path in _image_files(directory / name)]
    paths, labels = zip(*files)
    first = like.first if like else paths[0]
    image_shape = like.image_shape if like else _decode(first).shape
    return ImageFolder(paths, np.asarray(labels, np.int32), class_names, image_shape, first)


def read_image_folder(directory: Path) -> Arrays:
    """Returns the splits `train` and `test` of a folder of images, not decoded yet; see `image_folder`."""
    train = image_folder(directory / "train")
    test = image_folder(directory / "test", like=train)
    return Arrays(train, train.labels, test, test.labels, train.class_names)


def _subfolders(directory: Path) -> list[str]:
    if not directory.is_dir():
        return []
    return sorted(entry.name for entry in directory.iterdir() if entry.is_dir() and entry.name[0] != ".")


def _image_files(directory: Path) -> list[Path]:
    paths = sorted(path for path in directory.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise error(f"the number of images in {directory}", 0, "at least 1, with a name in .png, .jpg or .jpeg")
    return paths


def _decode(path: Path) -> np.ndarray:
    """Returns an image as uint8 [H, W, 1 or 3]."""
    with reading(path, "a PNG or JPEG image"), _open(path) as image:
        if image.mode not in _GRAY_MODES + _COLOUR_MODES:
            raise ValueError(f"its mode {image.mode} is not gray or colour with 8 bits a channel")
        pixels = np.asarray(image.convert("L" if image.mode in _GRAY_MODES else "RGB"))
    return pixels.reshape(*pixels.shape[:2], -1)


def _open(path: Path) -> Any:
    try:
        from PIL import Image
    except ImportError as failure:
        raise InputError(
            "reading PNG and JPEG images was asked for, and pillow is not installed; allowed: with pillow. "
            "Install it by `.venv/bin/pip install -e '.[images]'` in the project's folder."
        ) from failure
    return Image.open(path, formats=("PNG", "JPEG"))
