"""Multilayer perceptron on flattened inputs."""

from flax import linen as nn
from jax.typing import DTypeLike

from nscjax.models.layers import Head, Norm
from nscjax.models.stages import Stages
from nscjax.types import Array

NUM_HIDDEN = 3


class Hidden(nn.Module):
    """Flattens, then a linear layer, normalisation and ReLU."""

    num_features: int
    norm: str
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, is_training: bool) -> Array:
        """Maps [B, ...] to [B, num_features]."""
        dense = nn.Dense(self.num_features, use_bias=False, kernel_init=nn.initializers.he_normal(), dtype=self.dtype)
        return nn.relu(Norm(self.norm, self.dtype)(dense(x.reshape(len(x), -1)), is_training))


def mlp(*, width: int, num_classes: int, norm: str, dtype: DTypeLike) -> Stages:
    """Three hidden layers of `width` units, for inputs of any shape: ``hidden1 hidden2 hidden3 head``."""
    hidden = [(f"hidden{i + 1}", Hidden(width, norm, dtype)) for i in range(NUM_HIDDEN)]
    return (*hidden, ("head", Head(num_classes)))
