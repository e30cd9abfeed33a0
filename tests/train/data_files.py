"""Made data for the tests of `train.data`: settings, images, and files in the formats that it reads."""

import dataclasses
import gzip
import io
import math
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np

IDX_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
CIFAR_NAMES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")


@dataclasses.dataclass(frozen=True)
class Settings:
    name: str
    dir: str | None = None
    num_train: int | None = None
    num_test: int | None = None
    augment: bool = False
    download: bool = False


def made_images(num_images: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_images, *shape), dtype=np.uint8)


def made_labels(num_images: int, num_classes: int = 10) -> np.ndarray:
    return np.arange(num_images, dtype=np.uint8) % num_classes


def made_splits(*shape: int) -> dict[str, np.ndarray]:
    return {
        "x_train": made_images(40, *shape),
        "y_train": made_labels(40),
        "x_test": made_images(20, *shape, seed=1),
        "y_test": made_labels(20),
    }


def idx_header(*shape: int) -> bytes:
    return struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape)


def idx_bytes(array: np.ndarray) -> bytes:
    return idx_header(*array.shape) + array.tobytes()


def write_idx(directory: Path, splits: dict[str, np.ndarray], is_packed: bool = True) -> None:
    for name, array in zip(IDX_NAMES, splits.values(), strict=True):
        content = idx_bytes(array)
        if is_packed:
            (directory / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (directory / name).write_bytes(content)


def npy_header(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


def as_planes(images: np.ndarray) -> np.ndarray:
    """Returns images [N, 32, 32, 3] as CIFAR's rows [N, 3072]: all red, all green, all blue."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), 3072)


def python_2_pickle(images: np.ndarray, labels: np.ndarray, shape: tuple[int, int] | None = None) -> bytes:
    """Returns the bytes that Python 2 and numpy 1 wrote for a batch of CIFAR-10, opcode by opcode."""
    rows = as_planes(images)
    num_rows, num_columns = shape or rows.shape
    return b"".join(
        (
            b"\x80\x02}q\x01(",
            *(b"U\x0bbatch_labelq\x02", b"U\x15training batch 1 of 5q\x03"),
            *(b"U\x06labelsq\x04", b"]q\x05(", *(b"K" + bytes([label]) for label in labels), b"e"),
            *(b"U\x04dataq\x06", b"cnumpy.core.multiarray\n_reconstruct\nq\x07"),
            *(b"cnumpy\nndarray\nq\x08", b"K\x00\x85", b"U\x01b", b"\x87R", b"("),
            *(b"K\x01", b"J" + struct.pack("<i", num_rows), b"J" + struct.pack("<i", num_columns), b"\x86"),
            *(b"cnumpy\ndtype\nq\x09", b"U\x02u1K\x00K\x01\x87R"),
            *(b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb", b"\x89"),
            *(b"T" + struct.pack("<i", rows.size), rows.tobytes(), b"tb"),
            *(b"U\x09filenamesq\x0a", b"]q\x0bU\x05a.pnga", b"u."),
        )
    )


def python_3_pickle(images: np.ndarray, labels: np.ndarray) -> bytes:
    batch = {b"data": as_planes(images), b"labels": labels.tolist(), b"batch_label": b"made"}
    return pickle.dumps(batch, protocol=2)


def binary_batch(images: np.ndarray, labels: np.ndarray) -> bytes:
    return np.concatenate([labels[:, None], as_planes(images)], axis=1).tobytes()


def cifar_contents(splits: dict[str, np.ndarray], write=python_2_pickle, suffix: str = "") -> dict[str, bytes]:
    """Returns name -> content of the six batches."""
    images = [*np.split(splits["x_train"], 5), splits["x_test"]]
    labels = [*np.split(splits["y_train"], 5), splits["y_test"]]
    return {name + suffix: write(x, y) for name, x, y in zip(CIFAR_NAMES, images, labels, strict=True)}


def write_folder(directory: Path, contents: dict[str, bytes]) -> None:
    directory.mkdir()
    for name, content in contents.items():
        (directory / name).write_bytes(content)


def write_tar(path: Path, contents: dict[str, bytes], folder: str) -> None:
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_images(directory: Path, num_per_class: dict[str, int], shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Writes PNG files and returns their pixels in the order of their paths."""
    from PIL import Image

    pixels = made_images(sum(num_per_class.values()), *shape, seed=seed)
    row = 0
    for name, number in num_per_class.items():
        (directory / name).mkdir(parents=True)
        for index in range(number):
            Image.fromarray(pixels[row]).save(directory / name / f"{index:03d}.png")
            row += 1
    return pixels.reshape(*pixels.shape[:3], math.prod(shape[2:]))
