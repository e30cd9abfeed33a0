"""Batches on the device: order, gather, augmentation and normalisation as pure functions for use inside jit.

The order of an epoch follows from (seed, epoch) alone, so that a resumed run goes on exactly where it
stopped. An epoch has `num_train // batch_size` steps; the samples left over by the division come in other
epochs.
"""

import jax
import jax.numpy as jnp

_ORDER_KEY = 0x64617461  # keeps the order's random numbers apart from others drawn from the same seed


def epoch_key(seed: int | jax.Array, epoch: int | jax.Array) -> jax.Array:
    """Returns the key of an epoch's order; both arguments may be traced."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _ORDER_KEY), epoch)


def epoch_order(key: jax.Array, num_train: int) -> jax.Array:
    """Returns a random permutation of 0..num_train-1 as int32 [num_train]."""
    return jax.random.permutation(key, jnp.arange(num_train, dtype=jnp.int32))


def take_batch(
    x: jax.Array, y: jax.Array, order: jax.Array, step_in_epoch: int | jax.Array, batch_size: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns batch number `step_in_epoch` of an epoch: images, labels and sample ids.

    Args:
        x: all images of the split.
        y: their labels.
        order: from `epoch_order`.
        step_in_epoch: 0 to N // batch_size - 1, may be traced; a larger one would repeat the last samples.
        batch_size: at most N, static.

    Shapes:
        x: uint8 [N, H, W, C].
        y: int32 [N].
        order: int32 [N].
        return: uint8 [batch_size, H, W, C], int32 [batch_size], int32 [batch_size].
    """
    ids = jax.lax.dynamic_slice(order, (step_in_epoch * batch_size,), (batch_size,))
    return _take(x, ids), _take(y, ids), ids


def augment(key: jax.Array, x: jax.Array, *, flip: bool = True) -> jax.Array:
    """Returns each image mirrored with probability 1/2 and moved by up to max(1, H // 8) pixels each way.

    Moving is a random crop of the image padded with zeros: 4 pixels for 32 x 32, 1 for 8 x 8. Rows and
    columns are gathered one after the other: about a fifth faster on a CPU than a `dynamic_slice` for each
    sample.

    Args:
        key: of this step.
        x: images of any dtype.
        flip: whether to mirror at all; see `train.data.can_flip`.

    Shapes:
        x: [B, H, W, C].
        return: the same.

    Source: K. He et al., "Deep Residual Learning for Image Recognition", 2016, section 4.2.
    """
    num_images, height, width, _ = x.shape
    shift = max(1, height // 8)
    flip_key, shift_key = jax.random.split(key)
    is_flipped = jax.random.bernoulli(flip_key, 0.5, (num_images, 1)) & flip
    offsets = jax.random.randint(shift_key, (2, num_images, 1), 0, 2 * shift + 1, dtype=jnp.int32)
    columns = jnp.arange(width, dtype=jnp.int32)[None, :]
    rows = offsets[0] + jnp.arange(height, dtype=jnp.int32)[None, :]
    columns = offsets[1] + jnp.where(is_flipped, columns[:, ::-1], columns)
    padded = jnp.pad(x, ((0, 0), (shift, shift), (shift, shift), (0, 0)))
    moved = jnp.take_along_axis(padded, rows[:, :, None, None], axis=1, mode="promise_in_bounds")
    return jnp.take_along_axis(moved, columns[:, None, :, None], axis=2, mode="promise_in_bounds")


def normalise(x: jax.Array, mean: jax.Array, std: jax.Array, dtype: jnp.dtype | type = jnp.float32) -> jax.Array:
    """Returns (x / 255 - mean) / std for each channel, computed in float32 and given in `dtype`.

    Shapes:
        x: uint8 [B, H, W, C].
        mean: float32 [C], in units of [0, 1].
        std: float32 [C].
        return: `dtype` [B, H, W, C].
    """
    mean, std = (jnp.asarray(value, jnp.float32).reshape(1, 1, 1, -1) for value in (mean, std))
    return ((x.astype(jnp.float32) / 255 - mean) / std).astype(dtype)


def num_eval_steps(num_images: int, batch_size: int) -> int:
    """Returns how many batches cover `num_images`, the last one padded."""
    return -(-num_images // batch_size)


def eval_batch(
    x: jax.Array, y: jax.Array, step: int | jax.Array, batch_size: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns batch number `step` in the split's own order: images, labels and a mask, false for padding.

    The last batch is padded with images from the start of the split: real images keep what is computed over a
    whole batch (a rank, a scale) as it is for the others.

    Args:
        x: all images of the split.
        y: their labels.
        step: 0 to `num_eval_steps` - 1, may be traced.
        batch_size: static; may exceed N.

    Shapes:
        x: uint8 [N, H, W, C].
        y: int32 [N].
        return: uint8 [batch_size, H, W, C], int32 [batch_size], bool [batch_size].
    """
    ids = step * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    wrapped = ids % len(x)
    return _take(x, wrapped), _take(y, wrapped), ids < len(x)


def _take(array: jax.Array, ids: jax.Array) -> jax.Array:
    return jnp.take(array, ids, axis=0, mode="clip")  # the default would fill in zeros for a wrong id
