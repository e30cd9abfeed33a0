import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train.data_files import made_images
from train.data.batches import (
    augment,
    epoch_key,
    epoch_order,
    eval_batch,
    normalise,
    num_eval_steps,
    take_batch,
)


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


def test_order_is_a_permutation_that_follows_from_seed_and_epoch():
    orders = {(seed, epoch): np.asarray(epoch_order(epoch_key(seed, epoch), 50)) for seed in (0, 1) for epoch in (0, 1)}
    for order in orders.values():
        assert order.dtype == np.int32
        np.testing.assert_array_equal(np.sort(order), np.arange(50))
    for one, other in itertools.combinations(orders.values(), 2):
        assert (one != other).any()
    again = jax.jit(lambda seed, epoch: epoch_order(epoch_key(seed, epoch), 50))(1, 0)
    np.testing.assert_array_equal(again, orders[1, 0])


def test_an_epoch_takes_every_sample_once():
    x, y = jnp.asarray(made_images(24, 2, 2, 1)), jnp.arange(24, dtype=jnp.int32) % 5
    order = epoch_order(epoch_key(0, 0), 24)
    traced = []

    @jax.jit
    def taken(step):
        traced.append(step)
        return take_batch(x, y, order, step, batch_size=8)

    seen = []
    for step in range(3):
        images, labels, ids = taken(step)
        assert images.dtype == jnp.uint8
        assert labels.dtype == ids.dtype == jnp.int32
        np.testing.assert_array_equal(images, np.asarray(x)[ids])
        np.testing.assert_array_equal(labels, np.asarray(y)[ids])
        seen += ids.tolist()
    assert sorted(seen) == list(range(24))
    assert seen == order.tolist()
    assert len(traced) == 1


def test_batches_can_be_taken_inside_a_scan():
    x, y = jnp.asarray(made_images(12, 2, 2, 1)), jnp.arange(12, dtype=jnp.int32)
    order = epoch_order(epoch_key(0, 0), 12)
    ids = jax.lax.map(lambda step: take_batch(x, y, order, step, 4)[2], jnp.arange(3, dtype=jnp.int32))
    np.testing.assert_array_equal(ids.reshape(-1), order)


def _all_variants(image, shift):
    """Returns every image that augmentation may make of one, by (is mirrored, rows down, columns right)."""
    variants = {}
    for is_mirrored, row, column in itertools.product((False, True), range(2 * shift + 1), range(2 * shift + 1)):
        padded = np.pad(image, ((shift, shift), (shift, shift), (0, 0)))
        moved = padded[row : row + image.shape[0], column : column + image.shape[1]]
        variants[is_mirrored, row, column] = (moved[:, ::-1] if is_mirrored else moved).tobytes()
    return variants


@pytest.mark.parametrize("flip", [True, False])
def test_augmentation_makes_all_shifts_and_mirrorings_equally_often(flip):
    image = made_images(1, 8, 6, 3)[0]
    num_images = 3600
    made = jax.jit(augment, static_argnames="flip")(
        jax.random.key(0), jnp.asarray(np.repeat(image[None], num_images, axis=0)), flip=flip
    )
    names = {content: name for name, content in _all_variants(image, shift=1).items()}
    counts = dict.fromkeys(names.values(), 0)
    for image in np.asarray(made):
        counts[names[image.tobytes()]] += 1
    expected = [name for name in counts if flip or not name[0]]
    assert [name for name, count in counts.items() if count] == expected
    share = num_images / len(expected)
    assert all(abs(counts[name] - share) < 5 * share**0.5 for name in expected)


@pytest.mark.parametrize(("size", "shift"), [(32, 4), (28, 3), (8, 1), (5, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_augmentation_of_each_image_is_one_of_its_own_variants(size, shift, dtype):
    images = made_images(16, size, size, 1).astype(dtype)
    made = jax.jit(augment)(jax.random.key(1), jnp.asarray(images))
    assert made.dtype == dtype
    assert made.shape == images.shape
    used = set()
    for before, after in zip(images, np.asarray(made)):
        variants = {content: name for name, content in _all_variants(before, shift).items()}
        used.add(variants[after.tobytes()])
    assert len(used) > 8


def test_augmentation_follows_from_its_key():
    images = jnp.asarray(made_images(8, 16, 16, 3))
    jitted = jax.jit(augment)
    once, again, other = (jitted(jax.random.key(seed), images) for seed in (0, 0, 1))
    np.testing.assert_array_equal(once, again)
    assert (once != other).any()
    np.testing.assert_array_equal(once, augment(jax.random.key(0), images))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_normalised_images_have_mean_0_and_standard_deviation_1(dtype):
    images = made_images(64, 8, 8, 3)
    images[..., 1] //= 3
    mean, std = images.mean(axis=(0, 1, 2)) / 255, images.std(axis=(0, 1, 2)) / 255
    normalised = normalise(jnp.asarray(images), jnp.asarray(mean), jnp.asarray(std), dtype)
    assert normalised.dtype == dtype
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    np.testing.assert_allclose(np.asarray(normalised, np.float64).mean(axis=(0, 1, 2)), 0, atol=tolerance)
    np.testing.assert_allclose(np.asarray(normalised, np.float64).std(axis=(0, 1, 2)), 1, atol=tolerance)
    np.testing.assert_allclose(
        np.asarray(normalised, np.float64), (images / 255 - mean) / std, rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("batch_size", [1, 4, 5, 10, 16, 25])
def test_evaluation_shows_every_image_once_and_masks_the_rest(batch_size):
    x, y = made_images(10, 2, 2, 1), np.arange(10, dtype=np.int32)
    arrays = jnp.asarray(x), jnp.asarray(y)
    batches = [eval_batch(*arrays, step, batch_size) for step in range(num_eval_steps(10, batch_size))]
    assert all(images.shape == (batch_size, 2, 2, 1) for images, _, _ in batches)
    images, labels, mask = (np.concatenate(arrays) for arrays in zip(*batches))
    np.testing.assert_array_equal(images[mask], x)
    np.testing.assert_array_equal(labels[mask], y)
    np.testing.assert_array_equal(mask, np.arange(len(mask)) < 10)
    np.testing.assert_array_equal(labels, np.arange(len(mask)) % 10)


def test_evaluation_compiles_once():
    x, y = jnp.asarray(made_images(10, 2, 2, 1)), jnp.arange(10, dtype=jnp.int32)
    traced = []

    @jax.jit
    def taken(step):
        traced.append(step)
        return eval_batch(x, y, step, batch_size=4)

    masks = [taken(step)[2].tolist() for step in range(3)]
    assert masks == [[True] * 4, [True] * 4, [True, True, False, False]]
    assert len(traced) == 1
