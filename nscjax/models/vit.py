"""Small vision transformer: patches of 4x4 pixels, layer normalisation first in each half of a block.

Source: Dosovitskiy et al., arXiv 2010.11929. The class comes from the mean of the tokens instead of a class
token, and attention has no biases: a key's would have no effect.
"""

from flax import linen as nn
from jax.typing import DTypeLike

from nscjax.check import error
from nscjax.models.layers import Head
from nscjax.models.stages import Stages
from nscjax.types import Array

PATCH_SIZE = 4
NUM_BLOCKS = 6
NUM_HEADS = 4


class Embed(nn.Module):
    """Cuts the image into patches, maps each to a token and adds a learned embedding of its position."""

    width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, is_training: bool) -> Array:  # noqa: ARG002 - the same call for every stage
        """Maps [B, H, W, C] to [B, H * W / 16, width].

        Raises:
            InputError: the height or the width of the image is not a multiple of 4.
        """
        size = x.shape[1:3]
        if size[0] % PATCH_SIZE or size[1] % PATCH_SIZE:
            raise error("image size", size, f"multiples of {PATCH_SIZE}", "Pad or resize the images.")
        patch = (PATCH_SIZE, PATCH_SIZE)
        x = nn.Conv(self.width, patch, strides=patch, padding="VALID", dtype=self.dtype)(x)
        x = x.reshape(len(x), -1, self.width)
        position = self.param("position", nn.initializers.normal(0.02), x.shape[1:])
        return x + position[None].astype(self.dtype)


class Block(nn.Module):
    """Self-attention, then a two-layer perceptron, each on normalised tokens and added to its input."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, is_training: bool) -> Array:  # noqa: ARG002 - the same call for every stage
        """Maps [B, T, D] to [B, T, D]."""
        xavier = nn.initializers.xavier_uniform()
        y = nn.LayerNorm(dtype=self.dtype)(x)
        x = x + nn.MultiHeadDotProductAttention(
            NUM_HEADS, dtype=self.dtype, kernel_init=xavier, use_bias=False, force_fp32_for_softmax=True
        )(y)
        y = nn.LayerNorm(dtype=self.dtype)(x)
        y = nn.gelu(nn.Dense(4 * x.shape[-1], kernel_init=xavier, dtype=self.dtype)(y))
        return x + nn.Dense(x.shape[-1], kernel_init=xavier, dtype=self.dtype)(y)


class Pool(nn.Module):
    """Normalises the tokens and takes their mean."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, is_training: bool) -> Array:  # noqa: ARG002 - the same call for every stage
        """Maps [B, T, D] to [B, D]."""
        return nn.LayerNorm(dtype=self.dtype)(x).mean(axis=1)


def vit(*, width: int, num_classes: int, norm: str, dtype: DTypeLike) -> Stages:
    """Six blocks of four attention heads: ``embed block1 ... block6 pool head``.

    Args:
        width: dimension of a token, a multiple of 4 (the number of heads).
        num_classes: number of logits.
        norm: has no effect: a transformer normalises each token.
        dtype: of the computation.

    Raises:
        InputError: `width` is not a multiple of 4.
    """
    del norm
    if width % NUM_HEADS:
        raise error("width", width, f"multiples of {NUM_HEADS}, the number of attention heads")
    blocks = [(f"block{i + 1}", Block(dtype)) for i in range(NUM_BLOCKS)]
    return (("embed", Embed(width, dtype)), *blocks, ("pool", Pool(dtype)), ("head", Head(num_classes)))
