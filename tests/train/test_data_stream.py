import itertools
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nscjax.check import InputError
from tests.train.data_files import made_images, made_labels, write_images
from train.data.batches import epoch_key, epoch_order, take_batch
from train.data.images import image_folder
from train.data.stream import batches, memory_map

pytest.importorskip("grain", reason="grain (the extra `stream`) is not installed")

_X, _Y = made_images(22, 3, 4, 3), made_labels(22)


def _assert_equal(first, second):
    for one, other in zip(first, second, strict=True):
        for array, same in zip(one, other, strict=True):
            assert array.dtype == same.dtype
            np.testing.assert_array_equal(array, same)


def test_streamed_batches_are_those_on_the_device():
    streamed = batches(_X, _Y, seed=3, batch_size=5, num_steps=10)
    x, y = jnp.asarray(_X), jnp.asarray(_Y, jnp.int32)
    resident = []
    for epoch, step in itertools.product(range(3), range(4)):
        order = epoch_order(epoch_key(3, epoch), 22)
        resident.append(take_batch(x, y, order, step, 5))
    _assert_equal(streamed, resident[:10])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 11), st.integers(1, 3))
def test_starting_at_a_step_is_leaving_out_those_before(start_step, num_threads):
    whole = list(batches(_X, _Y, seed=0, batch_size=5, num_steps=10, num_threads=1))
    resumed = batches(_X, _Y, seed=0, batch_size=5, num_steps=10, start_step=start_step, num_threads=num_threads)
    _assert_equal(resumed, whole[start_step:])


def test_memory_mapped_file_gives_the_same_batches(tmp_path):
    np.save(tmp_path / "x.npy", _X[..., 0])
    x = memory_map(tmp_path / "x.npy")
    assert isinstance(x, np.memmap)
    _assert_equal(
        batches(x, _Y[:, None], seed=0, batch_size=5, num_steps=6),
        batches(_X[..., :1], _Y, seed=0, batch_size=5, num_steps=6),
    )


def test_folder_of_images_gives_the_same_batches(tmp_path):
    pixels = write_images(tmp_path, {"cat": 6, "dog": 5}, (3, 4, 3))
    folder = image_folder(tmp_path)
    _assert_equal(
        batches(folder, folder.labels, seed=0, batch_size=4, num_steps=5),
        batches(pixels, folder.labels, seed=0, batch_size=4, num_steps=5),
    )


def test_broken_image_is_named_when_its_batch_comes(tmp_path):
    write_images(tmp_path, {"cat": 6, "dog": 6}, (3, 4))
    folder = image_folder(tmp_path)
    folder.paths[7].write_bytes(b"broken")
    with pytest.raises(InputError, match=r"dog/001.png cannot be read"):
        list(batches(folder, folder.labels, seed=0, batch_size=4, num_steps=3))


def test_bad_npy_files_are_named(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, _X)
    content = path.read_bytes()
    np.save(tmp_path / "object.npy", np.array([print]), allow_pickle=True)
    for broken in (b"not npy", content[:-1], (tmp_path / "object.npy").read_bytes(), b""):
        path.write_bytes(broken)
        with pytest.raises(InputError, match=r"x.npy cannot be read .*allowed: an .npy file of numbers, whole"):
            memory_map(path)
    with pytest.raises(InputError, match=r"absent.npy"):
        memory_map(tmp_path / "absent.npy")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_size": 23}, "batch_size is 23; allowed: at most 22, the training images there are"),
        ({"batch_size": 0}, "batch_size is 0; allowed: a whole number >= 1"),
        ({"start_step": -1}, "start_step is -1; allowed: a whole number >= 0"),
        ({"num_steps": -1}, "num_steps is -1; allowed: a whole number >= 0"),
        ({"y": _Y[:20]}, "the number of labels in y is 20; allowed: 22, one for each image"),
        ({"x": _X.astype(np.float32)}, "the dtype of x is 'float32'; allowed: uint8"),
    ],
)
def test_bad_sizes_are_named(changed, message):
    arguments = {"x": _X, "y": _Y, "seed": 0, "batch_size": 5, "num_steps": 3, **changed}
    with pytest.raises(InputError, match=message):
        batches(arguments.pop("x"), arguments.pop("y"), **arguments)


def test_without_grain_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(InputError, match=r"grain is not installed; .*pip install -e '\.\[stream\]'"):
        batches(_X, _Y, seed=0, batch_size=5, num_steps=3)
