"""Networks for tests: initialised quickly, or their shapes alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from nscjax import models

quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""For what runs once or twice: compiles several times as fast, runs more slowly."""


def spec(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def init(name, x_spec, *, cut=None, key=0, **options):
    """Returns (params, state) of client and server, as `models.init` does."""
    make = partial(models.init, name, x_spec=x_spec, cut=cut, num_classes=10, **options)
    return quick_jit(make)(jax.random.key(key))


def init_spec(name, x_spec, *, cut=None, **options):
    """Returns the shapes and dtypes of what `init` returns."""
    make = partial(models.init, name, x_spec=x_spec, cut=cut, num_classes=10, **options)
    return jax.eval_shape(make, jax.random.key(0))


def apply_spec(apply, params, state, x_spec):
    """Returns the shapes and dtypes of the output and the new state in training."""
    return jax.eval_shape(partial(apply, is_training=True), params, state, x_spec)


def cut_shapes(name, image_shape, **options):
    """Returns the shape of the cut tensor, without the batch, at every cut of a model."""
    x_spec = spec(2, *image_shape)
    _, whole = init_spec(name, x_spec, **options)

    def cut_shape(cut):
        client_apply = models.build(name, cut=cut, num_classes=10, **options).client_apply
        return apply_spec(client_apply, *whole, x_spec)[0].shape[1:]

    return {cut: cut_shape(cut) for cut in models.cut_names(name)}


def count_parameters(name, image_shape, **options):
    """Returns the number of parameters of the whole network."""
    _, (params, _) = init_spec(name, spec(2, *image_shape), **options)
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
