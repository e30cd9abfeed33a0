"""Readers of idx files (MNIST's format) and .npz archives.

Files come from outside: nothing in them is executed, and memory grows only with bytes that are really there,
never with what a header announces. A file that cannot be used ends in an `InputError` that names it.
"""

import gzip
import math
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from nscjax.check import InputError, error
from train.data.checks import check_images, check_label_shape

_CHUNK_BYTES = 2**20


class Arrays(NamedTuple):
    """What a reader found, not yet checked. Images: any object with `shape`, `dtype` and indexing by ids."""

    x_train: Any  # uint8 [N, H, W] or [N, H, W, C]
    y_train: np.ndarray  # integers [N] or [N, 1]
    x_test: Any
    y_test: np.ndarray
    class_names: tuple[str, ...] | None = None


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turns what goes wrong while `path` is read into an `InputError` naming it and what it should be."""
    try:
        yield
    except InputError:
        raise
    except Exception as failure:  # a broken file can make a parser raise anything
        reason = str(failure) or type(failure).__name__
        raise InputError(
            f"the file {path} cannot be read ({reason}); allowed: {kind}, whole. Put a good copy there."
        ) from failure


def read_exactly(file: IO[bytes], num_bytes: int) -> bytearray:
    """Returns the rest of `file` if it is `num_bytes` long.

    Reads piece by piece, so that an announced length that is not there costs nothing.

    Raises:
        ValueError: there are fewer or more bytes.
    """
    if num_bytes < 0:
        raise ValueError(f"its header announces {num_bytes} bytes")
    content = bytearray()
    while piece := file.read(min(_CHUNK_BYTES, num_bytes + 1 - len(content))):
        content += piece
        if len(content) > num_bytes:
            raise ValueError(f"its header announces {num_bytes} bytes and there are more")
    if len(content) < num_bytes:
        raise ValueError(f"its header announces {num_bytes} bytes and there are {len(content)}")
    return content


def read_idx(path: Path, num_dims: int) -> np.ndarray:
    """Returns the uint8 array of an idx file with `num_dims` dimensions; gzip unpacks it if it ends in .gz.

    Raises:
        InputError: the file is no such idx file, or cut short, or too long.

    Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database", file formats.
    """
    with reading(path, f"an idx file of bytes in {num_dims} dimensions"), _open(path) as file:
        magic = file.read(4)
        expected = bytes((0, 0, 8, num_dims))
        if magic != expected:
            raise ValueError(f"it begins with {magic.hex() or 'nothing'}, not {expected.hex()}")
        shape = struct.unpack(f">{num_dims}I", file.read(4 * num_dims))
        content = read_exactly(file, math.prod(shape))
    return np.frombuffer(content, np.uint8).reshape(shape)


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


_NPZ_LAYOUTS = (
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),  # MedMNIST
)


def read_npz(path: Path) -> Arrays:
    """Returns the arrays of an .npz file, with `class_names` if it has strings of that name.

    Members are x_train, y_train, x_test, y_test or MedMNIST's train_images, train_labels, test_images,
    test_labels; others are not read. Each header is checked before its content is read; nothing is unpickled.

    Raises:
        InputError: the file is broken, lacks a member, or a header is not that of images or of their labels.
    """
    with reading(path, "an .npz file"), zipfile.ZipFile(path) as archive:
        layout, members = _layout(archive, path, _NPZ_LAYOUTS)

        def images(name: str) -> np.ndarray:
            return _read_member(archive, name, lambda *header: check_images(f"{name} of {path}", *header))

        def labels(name: str, num_images: int) -> np.ndarray:
            def check(shape: tuple[int, ...], dtype: np.dtype) -> None:
                check_label_shape(f"{name} of {path}", shape, dtype, num_images)

            return _read_member(archive, name, check)

        x_train = images(layout[0])
        y_train = labels(layout[1], len(x_train))
        x_test = images(layout[2])
        y_test = labels(layout[3], len(x_test))
        names = _read_member(archive, "class_names", _check_text) if "class_names" in members else None
    return Arrays(x_train, y_train, x_test, y_test, None if names is None else tuple(names.tolist()))


def _layout(
    archive: zipfile.ZipFile, path: Path, layouts: Sequence[tuple[str, ...]]
) -> tuple[tuple[str, ...], set[str]]:
    """Returns the first of the layouts of which the archive has all members, and the members."""
    members = {name.removesuffix(".npy") for name in archive.namelist()}
    layout = next((names for names in layouts if members.issuperset(names)), None)
    if layout is None:
        allowed = " or ".join(", ".join(names) for names in layouts)
        raise error(f"the content of {path}", sorted(members)[:10], allowed)
    return layout, members


def read_labels(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns y_train and y_test of an .npz file, by the names of `read_npz`; it need not have images.

    Raises:
        InputError: the file is broken, lacks a member, or a header is not that of labels.
    """
    with reading(path, "an .npz file"), zipfile.ZipFile(path) as archive:
        layout, _ = _layout(archive, path, [(names[1], names[3]) for names in _NPZ_LAYOUTS])

        def labels(name: str) -> np.ndarray:
            def check(shape: tuple[int, ...], dtype: np.dtype) -> None:
                check_label_shape(f"{name} of {path}", shape, dtype, shape[0] if shape else 0)

            return _read_member(archive, name, check)

        return labels(layout[0]), labels(layout[1])


def _read_member(archive: zipfile.ZipFile, name: str, check: Callable[[tuple[int, ...], np.dtype], None]) -> np.ndarray:
    """Returns one array of an .npz file, after `check` has passed its shape and dtype."""
    with archive.open(f"{name}.npy") as file:
        is_first_version = np.lib.format.read_magic(file) == (1, 0)
        read_header = np.lib.format.read_array_header_1_0 if is_first_version else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read_header(file)
        check(shape, dtype)
        content = read_exactly(file, math.prod(shape) * dtype.itemsize)
    return np.frombuffer(content, dtype).reshape(shape, order="F" if is_fortran else "C")


def _check_text(shape: tuple[int, ...], dtype: np.dtype) -> None:
    if dtype.kind != "U" or len(shape) != 1:
        raise ValueError(f"class_names has the shape {shape} and the dtype {dtype}, not [N] of text")
