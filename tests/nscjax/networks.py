"""Tiny networks in two halves, as pure functions, with batches for them."""

import jax
import jax.numpy as jnp
import numpy as np

from nscjax import split

NUM_CLASSES = 3


def _normal(rng, *shape):
    return jnp.asarray(rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1])), jnp.float32)


def _convolve(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def convolutional():
    """Returns (model, client parameters, server parameters): 6 x 6 images, one convolution on either side."""

    def client(params, x):
        return jax.nn.relu(_convolve(x, params["kernel"]))

    def server(params, smashed):
        pooled = jnp.mean(jax.nn.relu(_convolve(smashed, params["kernel"])), axis=(1, 2))
        return pooled @ params["head"]

    rng = np.random.default_rng(0)
    client_params = {"kernel": _normal(rng, 3, 3, 2, 6)}
    server_params = {"kernel": _normal(rng, 3, 3, 6, 5), "head": _normal(rng, 5, NUM_CLASSES)}
    return split.SplitModel(client, server), client_params, server_params


def perceptron():
    """Returns (model, client parameters, server parameters): 10 features, 16 units at the cut."""

    def client(params, x):
        return jnp.tanh(x @ params["in"])

    def server(params, smashed):
        return jnp.tanh(smashed @ params["hidden"]) @ params["out"]

    rng = np.random.default_rng(1)
    client_params = {"in": _normal(rng, 10, 16)}
    server_params = {"hidden": _normal(rng, 16, 12), "out": _normal(rng, 12, NUM_CLASSES)}
    return split.SplitModel(client, server), client_params, server_params


def counting():
    """Returns the perceptron with running states: how often each half ran in training, and a mean of what it saw."""
    model, client_params, server_params = perceptron()

    def counted(apply):
        def with_state(params, state, inputs, is_training):
            if is_training:
                mean = 0.9 * state["mean"] + 0.1 * jnp.mean(inputs)
                state = {"count": state["count"] + 1, "mean": mean}
            return apply(params, inputs), state

        return with_state

    stateful = split.SplitModel(counted(model.client_apply), counted(model.server_apply), stateful=True)
    return stateful, client_params, server_params


def u_shaped():
    """Returns (model, client parameters, server parameters): the perceptron with its last layer at the client.

    The running state counts how often layers ran in training: one number at the server, two at the client.
    """
    rng = np.random.default_rng(1)
    client_params = {"in": _normal(rng, 10, 16), "out": _normal(rng, 12, NUM_CLASSES)}

    def layer(name, squash):
        def apply(params, state, x, is_training):
            state = state | {name: state[name] + 1} if is_training else state
            y = x @ params[name]
            return jnp.tanh(y) if squash else y, state

        return apply

    model = split.SplitModel(layer("in", True), layer("hidden", True), stateful=True, tail_apply=layer("out", False))
    return model, client_params, {"hidden": _normal(rng, 16, 12)}


FRESH = {"count": jnp.int32(0), "mean": jnp.float32(0)}
"""The running state of either half of the counting perceptron."""


def batch(input_shape, step=0, size=6):
    rng = np.random.default_rng(100 + step)
    inputs = jnp.asarray(rng.normal(size=(size, *input_shape)), jnp.float32)
    return inputs, jnp.asarray(rng.integers(0, NUM_CLASSES, size), jnp.int32)


def loss_fn(logits, labels):
    log_probabilities = jax.nn.log_softmax(logits)
    loss = -jnp.mean(jnp.take_along_axis(log_probabilities, labels[:, None], axis=1))
    return loss, {"accuracy": jnp.mean(jnp.argmax(logits, axis=1) == labels, dtype=jnp.float32)}
