from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nscjax.models.layers import HE_NORMAL, ConvNorm, Head, Norm
from tests.nscjax.models.networks import spec

KEY = jax.random.key(0)


def samples(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(3, 2, shape), jnp.float32)


def test_batch_norm_uses_the_batch_in_training_and_running_statistics_in_evaluation():
    x = samples(8, 5, 5, 6)
    norm = Norm("batch", jnp.float32)
    variables = norm.init(KEY, x, False)
    y, updated = norm.apply(variables, x, True, mutable=["batch_stats"])
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(variance + 1e-5), rtol=1e-4, atol=1e-4)
    statistics = updated["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(statistics["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * variance, rtol=1e-4)
    y = norm.apply(variables | updated, x, False)
    np.testing.assert_allclose(y, (x - statistics["mean"]) / np.sqrt(statistics["var"] + 1e-5), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("num_channels", "num_groups"), [(7, 1), (40, 2), (64, 4)])
def test_group_norm_has_groups_of_at_least_16_channels_at_any_width(num_channels, num_groups):
    x = samples(3, 4, 4, num_channels)
    norm = Norm("group", jnp.float32)
    y = norm.apply(norm.init(KEY, x, False), x, True)
    grouped = x.reshape(3, 16, num_groups, -1)
    mean, variance = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
    expected = ((grouped - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("side", "stride", "expected"), [(8, 1, 8), (8, 2, 4), (7, 2, 4), (1, 2, 1)])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_convolution_rounds_sides_up(side, stride, expected, kernel_size):
    conv = ConvNorm(5, "group", jnp.float32, stride, kernel_size)
    y, _ = jax.eval_shape(partial(conv.init_with_output, is_training=False), KEY, spec(2, side, side, 3))
    assert y.shape == (2, expected, expected, 5)


def test_convolution_pads_evenly():
    # So turning the image and the kernel upside down turns the result upside down.
    conv = ConvNorm(5, "group", jnp.float32, stride=2)
    x = samples(2, 7, 7, 3)
    y, variables = conv.init_with_output(KEY, x, False)
    turned = jax.tree.map(lambda leaf: leaf[::-1] if leaf.ndim == 4 else leaf, variables)
    np.testing.assert_allclose(conv.apply(turned, x[:, ::-1], False)[:, ::-1], y, rtol=1e-4, atol=1e-4)


def test_convolutions_keep_the_variance_of_gradients():
    kernel = HE_NORMAL(KEY, (3, 3, 16, 256), jnp.float32)
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 256)), rtol=0.02)


def test_head_flattens_and_computes_in_float32():
    x = samples(4, 2, 2, 3).astype(jnp.bfloat16)
    head = Head(10)
    params = head.init(KEY, x, False)["params"]
    logits = head.apply({"params": params}, x, False)
    assert logits.dtype == jnp.float32
    expected = x.astype(jnp.float32).reshape(4, 12) @ params["Dense_0"]["kernel"]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
