"""Batches of data sets larger than the device's memory, read ahead by grain (the extra `nscjax[stream]`).

The batches are those of `batches.take_batch` on `batches.epoch_order`, to the bit: where the data lie changes
nothing about a run. Images come from anything indexed by an array of sample ids: a memory-mapped .npy file or
an `images.ImageFolder`.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nscjax.check import InputError, count, error
from train.data.batches import epoch_key, epoch_order
from train.data.checks import check_images, check_label_shape
from train.data.formats import reading


class Batch(NamedTuple):
    """One training batch on the host."""

    x: np.ndarray  # uint8 [B, H, W, C]
    y: np.ndarray  # int32 [B]
    sample_ids: np.ndarray  # int32 [B]


def memory_map(path: str | Path) -> np.ndarray:
    """Returns the array of an .npy file without reading it; its pages are read when they are used.

    Raises:
        InputError: the file is missing, broken, shorter than its header says, or pickled.
    """
    with reading(Path(path), "an .npy file of numbers"):
        return np.load(path, mmap_mode="r", allow_pickle=False)


def batches(
    x: Any,
    y: np.ndarray,
    *,
    seed: int,
    batch_size: int,
    num_steps: int,
    start_step: int = 0,
    num_threads: int = 4,
) -> Iterator[Batch]:
    """Returns an iterator over the batches of the steps start_step to num_steps - 1.

    What a step gets follows from (seed, step) alone: starting at step k is the same as leaving out k batches.

    Args:
        x: images, uint8 [N, H, W, C] or [N, H, W]: an array, or an object with `shape`, `dtype`, `len` and
            indexing by an array of ids.
        y: labels, integers [N] or [N, 1].
        seed: of the order.
        batch_size: 1 to N.
        num_steps: the length of the whole run; an epoch has N // batch_size steps.
        start_step: the first step to give, for a resumed run.
        num_threads: how many threads read ahead, and how many batches they keep ready.

    Raises:
        InputError: sizes that do not fit, or grain is not installed. While iterating: a broken image.
    """
    count("batch_size", batch_size, 1)
    count("start_step", start_step, 0)
    count("num_steps", num_steps, 0)
    count("num_threads", num_threads, 1)
    if batch_size > len(x):
        raise error("batch_size", batch_size, f"at most {len(x)}, the training images there are")
    check_images("x", x.shape, x.dtype)
    check_label_shape("y", y.shape, y.dtype, len(x))
    grain = _grain()
    steps = grain.MapDataset.source(_Steps(x, y, seed, batch_size, num_steps))[start_step:]
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads)
    return iter(steps.to_iter_dataset(options))


class _Steps:
    """The batches of a run by their step: what grain calls a random access data source."""

    def __init__(self, x: Any, y: np.ndarray, seed: int, batch_size: int, num_steps: int) -> None:
        self._x, self._y = x, y
        self._batch_size, self._num_steps = batch_size, num_steps

        @functools.lru_cache(maxsize=2)  # threads read ahead across the end of an epoch
        def order(epoch: int) -> np.ndarray:
            return np.asarray(epoch_order(epoch_key(seed, epoch), len(x)))

        self._order = order

    def __len__(self) -> int:
        return self._num_steps

    def __getitem__(self, step: int) -> Batch:
        epoch, step_in_epoch = divmod(int(step), len(self._x) // self._batch_size)
        start = step_in_epoch * self._batch_size
        ids = self._order(epoch)[start : start + self._batch_size]
        images = np.asarray(self._x[ids])
        labels = np.asarray(self._y[ids], np.int32)
        return Batch(images.reshape(*images.shape[:3], -1), labels.reshape(-1), ids)


def _grain() -> Any:
    try:
        import grain
    except ImportError as failure:
        raise InputError(
            "streaming was asked for, and grain is not installed; allowed: with grain. "
            "Install it by `.venv/bin/pip install -e '.[stream]'` in the project's folder."
        ) from failure
    return grain
