from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nscjax import models
from nscjax.check import InputError
from tests.nscjax.models.networks import count_parameters, cut_shapes, init, quick_jit, spec

SIZES = {"width": 8, "cut": None, "num_classes": 10}


@pytest.mark.parametrize(("image_shape", "num_tokens"), [((32, 32, 3), 64), ((28, 28, 1), 49), ((8, 12, 1), 6)])
def test_cuts_are_tokens_until_pooled(image_shape, num_tokens):
    tokens = {name: (num_tokens, 64) for name in ("embed", *(f"block{i}" for i in range(1, 7)))}
    assert cut_shapes("vit", image_shape, width=64) == tokens | {"pool": (64,)}


def test_number_of_parameters():
    embed = 4 * 4 * 3 * 64 + 64 + 64 * 64
    block = 4 * 64 * 64 + (64 * 256 + 256) + (256 * 64 + 64) + 2 * 2 * 64
    assert count_parameters("vit", (32, 32, 3), width=64) == embed + 6 * block + 2 * 64 + 650


def test_order_of_patches_matters():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 1)), jnp.float32)
    swapped = jnp.concatenate([x[:, 4:], x[:, :4]], axis=1)
    _, (params, state) = init("vit", spec(*x.shape), width=8)
    apply = quick_jit(partial(models.build("vit", **SIZES).server_apply, is_training=False))
    assert np.abs(apply(params, state, x)[0] - apply(params, state, swapped)[0]).max() > 1e-3
    # Only because of the embedding of positions: without it the network sees a set of patches.
    embed = params["embed"] | {"position": jnp.zeros_like(params["embed"]["position"])}
    params = params | {"embed": embed}
    np.testing.assert_allclose(apply(params, state, x)[0], apply(params, state, swapped)[0], rtol=1e-3, atol=1e-4)


def test_images_that_are_not_whole_patches_are_refused():
    with pytest.raises(InputError) as caught:
        models.init("vit", jax.random.key(0), spec(2, 30, 32, 3), **SIZES)
    assert str(caught.value) == "image size is (30, 32); allowed: multiples of 4. Pad or resize the images."


def test_width_must_be_shared_by_the_heads():
    with pytest.raises(InputError) as caught:
        models.build("vit", **SIZES | {"width": 30})
    assert str(caught.value) == "width is 30; allowed: multiples of 4, the number of attention heads."
