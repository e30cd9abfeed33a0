"""Pieces that several architectures share: normalisation, normalised convolution, the classifying head.

Every module here is called as ``module(x, is_training)``, where `is_training` is a Python bool. Arrays are
channels last. Computation is in the module's `dtype`; parameters and running statistics are float32.
"""

import math

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from nscjax.types import Array

NORMS = ("batch", "group")
HE_NORMAL = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")
"""Keeps the variance of gradients through convolution and ReLU (He et al., arXiv 1502.01852, section 2.2)."""


class Norm(nn.Module):
    """Normalises channels: over the batch, with running statistics, or by groups of channels in each sample.

    A group has 16 channels where 16 divides their number (the best size in Wu & He, arXiv 1803.08494,
    table 3), else more, up to all of them: in groups of one channel the mean of a channel would be lost.

    Attributes:
        kind: ``"batch"`` (collection ``batch_stats``, momentum 0.9) or ``"group"`` (no state).
        dtype: of the result; statistics are always computed in float32.
    """

    kind: str
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, is_training: bool) -> Array:
        """Returns `x`, [B, ..., C], with its channels normalised, scaled and shifted."""
        if self.kind == "batch":
            return nn.BatchNorm(not is_training, momentum=0.9, epsilon=1e-5, dtype=self.dtype)(x)
        num_channels = x.shape[-1]
        num_groups = math.gcd(num_channels, max(num_channels // 16, 1))
        return nn.GroupNorm(num_groups, epsilon=1e-5, dtype=self.dtype)(x)


class ConvNorm(nn.Module):
    """Square convolution, then `Norm`, whose shift stands in for the bias.

    The padding is the same on all sides, so a stride of 2 turns a side of n into ceil(n / 2).
    """

    num_features: int
    norm: str
    dtype: DTypeLike
    stride: int = 1
    kernel_size: int = 3

    @nn.compact
    def __call__(self, x: Array, is_training: bool) -> Array:
        """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), num_features]."""
        x = nn.Conv(
            self.num_features,
            kernel_size=(self.kernel_size, self.kernel_size),
            strides=self.stride,
            padding=self.kernel_size // 2,
            use_bias=False,
            kernel_init=HE_NORMAL,
            dtype=self.dtype,
        )(x)
        return Norm(self.norm, self.dtype)(x, is_training)


class ConvNormRelu(nn.Module):
    """3x3 `ConvNorm`, then ReLU."""

    num_features: int
    norm: str
    dtype: DTypeLike
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array, is_training: bool) -> Array:
        """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), num_features]."""
        return nn.relu(ConvNorm(self.num_features, self.norm, self.dtype, self.stride)(x, is_training))


class Head(nn.Module):
    """Linear classifier of the flattened features; always in float32."""

    num_classes: int

    @nn.compact
    def __call__(self, x: Array, is_training: bool) -> Array:  # noqa: ARG002 - the same call for every stage
        """Maps [B, ...] to logits, float32 [B, num_classes]."""
        return nn.Dense(self.num_classes, dtype=jnp.float32)(x.reshape(len(x), -1))
