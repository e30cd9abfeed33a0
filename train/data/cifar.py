"""Readers of CIFAR-10 as its authors publish it: Python or binary batches, unpacked or as .tar.gz.

The Python batches are pickles. They are read by an unpickler that runs nothing: what a pickle calls is only
recorded, and the recorded image array is then checked and rebuilt here. Archives are read in place, never
unpacked to disk.
"""

import io
import pickle
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from train.data.formats import Arrays, reading

FOLDERS = ("cifar-10-batches-py", "cifar-10-python.tar.gz", "cifar-10-batches-bin", "cifar-10-binary.tar.gz")
_TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_TEST_BATCH = "test_batch"
_PIXELS = 3 * 32 * 32
_LARGEST_BATCH_BYTES = 2**26  # a real one has 31 MB


def read_cifar(path: Path) -> Arrays:
    """Returns CIFAR-10 from one of `FOLDERS`, in the order of its files.

    Raises:
        InputError: a file is missing, broken, or not made as the authors made it.

    Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """
    is_binary = path.name in FOLDERS[2:]
    suffix, decode = (".bin", _decode_binary) if is_binary else ("", _decode_pickle)
    wanted = tuple(name + suffix for name in (*_TRAIN_BATCHES, _TEST_BATCH))
    batches = {}
    for name, content in _tar_members(path, wanted) if path.is_file() else _folder_members(path, wanted):
        with reading(path / name, "a batch of CIFAR-10"):
            batches[name] = decode(content)
    x_test, y_test = batches[wanted[-1]]
    return Arrays(
        np.concatenate([batches[name][0] for name in wanted[:-1]]),
        np.concatenate([batches[name][1] for name in wanted[:-1]]),
        x_test,
        y_test,
    )


def _folder_members(path: Path, wanted: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    for name in wanted:
        with reading(path / name, "a batch of CIFAR-10"):
            _check_size((path / name).stat().st_size)
            content = (path / name).read_bytes()
        yield name, content


def _tar_members(path: Path, wanted: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """Yields the wanted files of a .tar.gz in its order, whatever folder they are in."""
    missing = set(wanted)
    with reading(path, f"a .tar.gz with {', '.join(wanted)}"), tarfile.open(path, "r|gz") as archive:
        for member in archive:
            name = PurePosixPath(member.name).name
            if name not in missing or not member.isfile():
                continue
            _check_size(member.size)
            file = archive.extractfile(member)
            content = file.read() if file else b""
            missing.remove(name)
            yield name, content
            if not missing:
                return
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")


def _check_size(num_bytes: int) -> None:
    if num_bytes > _LARGEST_BATCH_BYTES:
        raise ValueError(f"a batch has {num_bytes} bytes, more than {_LARGEST_BATCH_BYTES}")


def _decode_binary(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Returns images [N, 32, 32, 3] and labels [N] of records: a label, then red, green and blue."""
    if not content or len(content) % (1 + _PIXELS):
        raise ValueError(f"its {len(content)} bytes are no whole number of records of {1 + _PIXELS} bytes")
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + _PIXELS)
    return _as_images(records[:, 1:]), records[:, 0]


def _decode_pickle(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Returns images [N, 32, 32, 3] and labels [N] of a pickled dict of `data` [N, 3072] and `labels`."""
    found = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__}, not a dict")
    batch = {key.decode() if isinstance(key, bytes) else key: value for key, value in found.items()}
    if not isinstance(batch.get("data"), _Call) or not isinstance(batch.get("labels"), list):
        raise ValueError("it lacks the array `data` or the list `labels`")
    if not all(type(label) is int for label in batch["labels"]):
        raise ValueError("its list `labels` holds something other than integers")
    return _as_images(_rebuild(batch["data"])), np.asarray(batch["labels"], np.int64)


def _as_images(rows: np.ndarray) -> np.ndarray:
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


class _Call:
    """A call that a pickle asked for: recorded, not made."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


# The Python version of the unpickler: the C version allocates whatever a pickle announces.
class _Unpickler(pickle._Unpickler):  # type: ignore[name-defined]
    """Admits dicts, lists, tuples, numbers, text and bytes; records arrays as `_Call`s; refuses all else."""

    _ARRAY = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        }
    )

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """Returns a stand-in for what arrays are made by; raises an `UnpicklingError` for all else."""
        if (module, name) in self._ARRAY:
            return lambda *arguments: _Call(arguments)
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return lambda text, _encoding: text.encode("latin1")
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not part of an array")


def _rebuild(call: _Call) -> np.ndarray:
    """Returns the uint8 array [N, 3072] that was recorded; raises a `ValueError` if it is anything else."""
    _, shape, dtype, is_fortran, content = call.state
    if not isinstance(dtype, _Call) or dtype.arguments[0] not in ("u1", b"u1") or is_fortran:
        raise ValueError("its array `data` is not one of bytes in C order")
    if shape[1:] != (_PIXELS,) or not isinstance(content, bytes) or len(content) != shape[0] * _PIXELS:
        raise ValueError(f"its array `data` is not one of [N, {_PIXELS}] bytes, or lacks some")
    return np.frombuffer(content, np.uint8).reshape(shape)
