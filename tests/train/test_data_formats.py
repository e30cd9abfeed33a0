import contextlib
import gzip
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nscjax.check import InputError
from tests.train.data_files import idx_bytes, idx_header, made_images, made_splits, npy_header
from train.data.formats import read_idx, read_npz


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("shape", [(7,), (3, 5, 4)])
def test_idx_is_read_as_written(tmp_path, suffix, shape):
    array = made_images(*shape)
    path = tmp_path / f"made{suffix}"
    path.write_bytes(gzip.compress(idx_bytes(array)) if suffix else idx_bytes(array))
    np.testing.assert_array_equal(read_idx(path, len(shape)), array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it begins with nothing, not 00000803"),
        (idx_bytes(made_images(5)), "it begins with 00000801, not 00000803"),
        (b"\x00\x00\x0d\x03" + bytes(100), "it begins with 00000d03, not 00000803"),
        (idx_header(2, 2, 2)[:9], "unpack requires"),
        (idx_bytes(made_images(2, 4, 4))[:-1], "its header announces 32 bytes and there are 31"),
        (idx_bytes(made_images(2, 4, 4)) + b"\x00", "its header announces 32 bytes and there are more"),
        (idx_header(2**32 - 1, 2**32 - 1, 2**32 - 1) + b"1", "bytes and there are 1"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_bad_idx_is_named(tmp_path, content, message, suffix):
    path = tmp_path / f"images{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(InputError) as raised:
        read_idx(path, 3)
    assert str(raised.value).startswith(f"the file {path} cannot be read (")
    assert message in str(raised.value)
    assert str(raised.value).endswith("allowed: an idx file of bytes in 3 dimensions, whole. Put a good copy there.")


def test_bad_gzip_is_named(tmp_path):
    packed = gzip.compress(idx_bytes(made_images(50, 4, 4)))
    path = tmp_path / "images.gz"
    for content, message in (
        (b"not gzip at all", "Not a gzipped file"),
        (packed[:-20], "end-of-stream"),
        (packed[:-8] + b"\x00\x00\x00\x00" + packed[-4:], "CRC"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_idx(path, 3)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot be read \(\[Errno 2\] No such file .*absent.npz"):
        read_npz(tmp_path / "absent.npz")


def _peak_bytes(read, *arguments):
    tracemalloc.start()
    with pytest.raises(InputError):
        read(*arguments)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_announced_sizes_cost_no_memory(tmp_path):
    idx = tmp_path / "images"
    idx.write_bytes(idx_header(2**31, 2**10, 2**10) + bytes(1000))
    assert _peak_bytes(read_idx, idx, 3) < 8e6
    npz = tmp_path / "made.npz"
    with zipfile.ZipFile(npz, "w") as archive:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            archive.writestr(f"{name}.npy", npy_header((2**31, 2**10, 2**10)) + bytes(1000))
    assert _peak_bytes(read_npz, npz) < 8e6


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_npz_is_read_as_written(tmp_path, compression):
    splits = made_splits(6, 5, 3)
    splits["x_test"] = np.asfortranarray(splits["x_test"])
    splits["y_test"] = splits["y_test"].astype(">i8")[:, None]
    with zipfile.ZipFile(tmp_path / "made.npz", "w", compression) as archive:
        for name, array in {**splits, "class_names": np.array(list("abcdefghij"))}.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array)
    arrays = read_npz(tmp_path / "made.npz")
    for read, written in zip(arrays, splits.values()):
        np.testing.assert_array_equal(read, written)
    assert arrays.class_names == tuple("abcdefghij")


def test_medmnist_names_are_read(tmp_path):
    written = made_splits(6, 5)
    names = ("train_images", "train_labels", "test_images", "test_labels")
    others = {"val_images": np.array(["not read"], dtype=object)}
    np.savez(tmp_path / "made.npz", **dict(zip(names, written.values())), **others, allow_pickle=True)
    arrays = read_npz(tmp_path / "made.npz")
    for read, array in zip(arrays, written.values()):
        np.testing.assert_array_equal(read, array)
    assert arrays.class_names is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x_train": np.zeros((4, 2, 2), np.float32)}, "the dtype of x_train of .* is 'float32'; allowed: uint8"),
        ({"x_test": np.zeros((4, 3, 8, 8), np.uint8)}, r"the shape of x_test of .* is \(4, 3, 8, 8\); allowed: "),
        ({"x_train": np.zeros((0, 8, 8), np.uint8)}, "the number of images in x_train of .* is 0; allowed: at least 1"),
        ({"y_train": np.zeros(40)}, "the dtype of y_train of .* is 'float64'; allowed: an integer type"),
        ({"y_train": np.zeros(40, bool)}, "the dtype of y_train of .* is 'bool'"),
        ({"y_train": np.array([print] * 40)}, "the dtype of y_train of .* is 'object'"),
        ({"y_test": np.zeros((20, 14), int)}, r"the shape of y_test of .* is \(20, 14\); allowed: \[N\] or \[N, 1\]"),
        ({"y_test": np.zeros(19, int)}, "the number of labels in y_test of .* is 19; allowed: 20, one for each image"),
        ({"class_names": np.arange(10)}, "class_names has the shape .* not .N. of text"),
    ],
)
def test_bad_npz_member_is_named(tmp_path, changed, message):
    np.savez(tmp_path / "made.npz", **{**made_splits(8, 8), **changed}, allow_pickle=True)
    with pytest.raises(InputError, match=message):
        read_npz(tmp_path / "made.npz")


def test_npz_without_its_members_says_what_it_has(tmp_path):
    np.savez(tmp_path / "made.npz", data=np.zeros(3), labels=np.zeros(3))
    with pytest.raises(InputError) as raised:
        read_npz(tmp_path / "made.npz")
    assert str(raised.value) == (
        f"the content of {tmp_path / 'made.npz'} is ['data', 'labels']; allowed: x_train, y_train, x_test, y_test "
        "or train_images, train_labels, test_images, test_labels."
    )


@pytest.mark.parametrize("shape", [(-1,), (2**40,), (40, -1)])
def test_lying_npy_header_is_refused(tmp_path, shape):
    splits = made_splits(2, 2)
    with zipfile.ZipFile(tmp_path / "made.npz", "w") as archive:
        for name, array in splits.items():
            header = npy_header(shape if name == "y_train" else array.shape)
            archive.writestr(f"{name}.npy", header + array.tobytes())
    with pytest.raises(InputError, match="y_train of"):
        read_npz(tmp_path / "made.npz")


def test_header_and_content_of_different_length_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "made.npz", "w") as archive:
        for name in made_splits(2, 2):
            archive.writestr(f"{name}.npy", npy_header((40, 2, 2)) + bytes(100))
    with pytest.raises(InputError, match="its header announces 160 bytes and there are 100"):
        read_npz(tmp_path / "made.npz")


@given(st.integers(0, 10_000), st.integers(1, 255), st.sampled_from(["flip", "cut"]))
def test_damaged_npz_is_read_or_refused(tmp_path_factory, position, change, kind):
    path = tmp_path_factory.mktemp("damaged") / "made.npz"
    np.savez_compressed(path, **made_splits(4, 4))
    content = bytearray(path.read_bytes())
    position %= len(content)
    if kind == "flip":
        content[position] ^= change
    path.write_bytes(content if kind == "flip" else content[:position])
    with contextlib.suppress(InputError):
        assert read_npz(path).x_train.shape == (40, 4, 4)


@given(st.binary(max_size=64))
def test_random_bytes_are_no_idx(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("random") / "made"
    path.write_bytes(content)
    with contextlib.suppress(InputError):
        assert read_idx(path, 1).nbytes == len(content) - 8
