"""Sizes of a model without computing anything."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from nscjax import models


def cut_shapes(name, image_shape, **options):
    """Returns the shape of the cut tensor, without the batch, at every cut of a model."""
    params, state = _init_spec(name, image_shape, **options)

    def cut_shape(cut):
        apply = models.build(name, cut=cut, num_classes=10, **options).client_apply
        smashed, _ = jax.eval_shape(partial(apply, is_training=False), params, state, _spec(image_shape))
        return smashed.shape[1:]

    return {cut: cut_shape(cut) for cut in models.cut_names(name)}


def count_parameters(name, image_shape, **options):
    """Returns the number of parameters of the whole network."""
    params, _ = _init_spec(name, image_shape, **options)
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def _init_spec(name, image_shape, **options):
    make = partial(models.init, name, x_spec=_spec(image_shape), cut=None, num_classes=10, **options)
    _, whole = jax.eval_shape(make, jax.random.key(0))
    return whole


def _spec(image_shape):
    return jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
