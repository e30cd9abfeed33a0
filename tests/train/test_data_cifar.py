import contextlib
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nscjax.check import InputError
from tests.train.data_files import (
    binary_batch,
    cifar_contents,
    made_images,
    made_labels,
    made_splits,
    python_2_pickle,
    python_3_pickle,
    write_folder,
    write_tar,
)
from train.data.cifar import _decode_pickle, read_cifar
from train.data.formats import reading


@pytest.fixture(scope="module")
def splits():
    return made_splits(32, 32, 3)


def _assert_equal(arrays, splits):
    for read, written in zip(arrays, splits.values()):
        np.testing.assert_array_equal(read, written)


@pytest.mark.parametrize("write", [python_2_pickle, python_3_pickle])
@pytest.mark.parametrize("is_packed", [False, True])
def test_python_batches(tmp_path, splits, write, is_packed):
    contents = cifar_contents(splits, write)
    path = tmp_path / ("cifar-10-python.tar.gz" if is_packed else "cifar-10-batches-py")
    if is_packed:
        write_tar(path, {"batches.meta": b"not read", **contents}, "cifar-10-batches-py")
    else:
        write_folder(path, contents)
    _assert_equal(read_cifar(path), splits)


@pytest.mark.parametrize("is_packed", [False, True])
def test_binary_batches(tmp_path, splits, is_packed):
    contents = cifar_contents(splits, binary_batch, ".bin")
    path = tmp_path / ("cifar-10-binary.tar.gz" if is_packed else "cifar-10-batches-bin")
    if is_packed:
        write_tar(path, contents, "./cifar-10-batches-bin")
    else:
        write_folder(path, contents)
    _assert_equal(read_cifar(path), splits)


def test_made_pickle_is_one_that_the_standard_library_reads():
    images, labels = made_images(3, 32, 32, 3), made_labels(3)
    batch = pickle.loads(python_2_pickle(images, labels), encoding="bytes")
    assert batch[b"labels"] == labels.tolist()
    assert batch[b"data"].shape == (3, 3072)


def _read_one(directory, content):
    """Reads a folder whose first batch has this content."""
    path = directory / "cifar-10-batches-py"
    write_folder(path, {**cifar_contents(made_splits(32, 32, 3)), "data_batch_1": content})
    return read_cifar(path)


class _Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickle_that_calls_something_is_refused_and_not_run(tmp_path):
    attack = pickle.dumps({b"data": _Attack(tmp_path / "attacked"), b"labels": []}, protocol=2)
    with pytest.raises(InputError, match=r"data_batch_1 cannot be read \(it asks for posix.mkdir, which is not part"):
        _read_one(tmp_path, attack)
    assert not (tmp_path / "attacked").exists()


_GOOD = python_2_pickle(made_images(2, 32, 32, 3), made_labels(2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Ran out of input|EOFError"),
        (b"garbage", "cannot be read"),
        (_GOOD[:1000], "truncated|exhausted|EOFError"),
        (pickle.dumps([1, 2], protocol=2), "it holds a list, not a dict"),
        (pickle.dumps({b"labels": [1]}, protocol=2), "it lacks the array `data` or the list `labels`"),
        (_GOOD.replace(b"K\x00K\x01e", b"K\x00Ne"), "holds something other than integers"),
        (_GOOD.replace(b"U\x02u1", b"U\x02f4"), "its array `data` is not one of bytes in C order"),
        (
            python_2_pickle(made_images(2, 32, 32, 3), made_labels(2), shape=(2**30, 3072)),
            r"its array `data` is not one of \[N, 3072\] bytes, or lacks some",
        ),
        (b"\x80\x02Nr" + struct.pack("<I", 2**32 - 1) + b".", "it holds a NoneType"),  # a huge memo
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b".", "EOFError"),  # huge bytes
    ],
)
def test_bad_pickle_is_named(tmp_path, content, message):
    with pytest.raises(InputError, match=message) as raised:
        _read_one(tmp_path, content)
    assert "data_batch_1 cannot be read" in str(raised.value)


@given(st.integers(0, len(_GOOD) - 6144 - 1), st.integers(1, 255))
def test_damaged_pickle_is_read_or_refused(position, change):
    content = bytearray(_GOOD)
    content[position if position < 200 else -(position - 199)] ^= change
    with contextlib.suppress(InputError), reading(Path("made"), "a batch"):
        images, labels = _decode_pickle(bytes(content))
        assert images.shape[1:] == (32, 32, 3)
        assert labels.ndim == 1


def test_missing_batch_is_named(tmp_path, splits):
    contents = cifar_contents(splits)
    del contents["data_batch_4"]
    write_folder(tmp_path / "cifar-10-batches-py", contents)
    with pytest.raises(InputError, match=r"cifar-10-batches-py/data_batch_4 cannot be read .*No such file"):
        read_cifar(tmp_path / "cifar-10-batches-py")
    write_tar(tmp_path / "cifar-10-python.tar.gz", contents, "cifar-10-batches-py")
    with pytest.raises(InputError, match=r"cifar-10-python.tar.gz cannot be read .it lacks data_batch_4"):
        read_cifar(tmp_path / "cifar-10-python.tar.gz")


def test_broken_archive_is_named(tmp_path, splits):
    path = tmp_path / "cifar-10-python.tar.gz"
    write_tar(path, cifar_contents(splits), "cifar-10-batches-py")
    content = path.read_bytes()
    for broken in (b"not a tar", content[: len(content) // 2], b""):
        path.write_bytes(broken)
        with pytest.raises(InputError, match=r"cifar-10-python.tar.gz.* cannot be read"):
            read_cifar(path)


def test_oversized_batch_is_refused_before_it_is_read(tmp_path, splits):
    path = tmp_path / "cifar-10-batches-bin"
    write_folder(path, cifar_contents(splits, binary_batch, ".bin"))
    with (path / "test_batch.bin").open("r+b") as file:
        file.truncate(2**26 + 1)
    with pytest.raises(InputError, match=r"a batch has 67108865 bytes, more than 67108864"):
        read_cifar(path)


def test_binary_batch_of_odd_length_is_refused(tmp_path, splits):
    path = tmp_path / "cifar-10-batches-bin"
    write_folder(path, {**cifar_contents(splits, binary_batch, ".bin"), "data_batch_2.bin": bytes(3074)})
    with pytest.raises(InputError, match=r"its 3074 bytes are no whole number of records of 3073 bytes"):
        read_cifar(path)
