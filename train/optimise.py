"""The optimiser of both halves: each half's owner runs its own, with the same settings."""

import jax
import jax.numpy as jnp
import optax

from nscjax.types import Array, PyTree
from train.config import TrainConfig


def direction(config: TrainConfig) -> optax.GradientTransformation:
    """Returns the optimiser without its learning rate: what it returns is multiplied by -`learning_rate(step)`.

    Weight decay touches matrices and kernels only, not biases and norm scales.
    """

    def is_kernel(params: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    decay = optax.add_decayed_weights(config.weight_decay, mask=is_kernel)
    if config.optimizer == "sgd":
        return optax.chain(decay, optax.trace(decay=0.9, nesterov=True))
    if config.optimizer == "adam":
        return optax.chain(decay, optax.scale_by_adam())
    return optax.chain(optax.scale_by_adam(), decay)


def learning_rate(config: TrainConfig, num_steps: int) -> optax.Schedule:
    """Returns step -> learning rate: a linear warm-up from 0, then the schedule down to 0 at `num_steps`."""
    num_warmup = round(config.warmup * num_steps)
    num_rest = max(1, num_steps - num_warmup)
    peak = config.learning_rate
    schedule = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, num_rest),
        "linear": optax.linear_schedule(peak, 0.0, num_rest),
    }[config.schedule]
    # The first step of a warm-up already moves.
    warmup = optax.linear_schedule(peak / (num_warmup + 1), peak, num_warmup)
    return optax.join_schedules([warmup, schedule], [num_warmup])


def apply(params: PyTree, directions: PyTree, rate: Array) -> PyTree:
    """Returns params - rate * directions."""
    return jax.tree.map(lambda param, step: param - jnp.asarray(rate, param.dtype) * step, params, directions)
