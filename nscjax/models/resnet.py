"""Residual networks of basic blocks in the form for 32x32 images: a 3x3 stem and no max-pooling.

Source: He et al., arXiv 1512.03385. A block that changes the shape has a projection (1x1 convolution) beside
it. ResNet-18 and ResNet-34 have the blocks and widths of the ImageNet networks, as is customary on CIFAR.
"""

from flax import linen as nn
from jax.typing import DTypeLike

from nscjax.models.layers import ConvNorm, ConvNormRelu, Head
from nscjax.models.stages import Stages
from nscjax.types import Array


class BasicBlock(nn.Module):
    """Two 3x3 convolutions added to their input, and ReLU after the sum."""

    num_features: int
    norm: str
    dtype: DTypeLike
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array, is_training: bool) -> Array:
        """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), num_features]."""
        y = ConvNormRelu(self.num_features, self.norm, self.dtype, self.stride)(x, is_training)
        y = ConvNorm(self.num_features, self.norm, self.dtype)(y, is_training)
        if x.shape != y.shape:
            projection = ConvNorm(self.num_features, self.norm, self.dtype, self.stride, kernel_size=1)
            x = projection(x, is_training)
        return nn.relu(x + y)


class BlockStage(nn.Module):
    """Basic blocks of equal width; `stride` is that of the first."""

    num_blocks: int
    num_features: int
    norm: str
    dtype: DTypeLike
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array, is_training: bool) -> Array:
        """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), num_features]."""
        for i in range(self.num_blocks):
            stride = self.stride if i == 0 else 1
            x = BasicBlock(self.num_features, self.norm, self.dtype, stride)(x, is_training)
        return x


class Pool(nn.Module):
    """Mean over the image."""

    @nn.compact
    def __call__(self, x: Array, is_training: bool) -> Array:  # noqa: ARG002 - the same call for every stage
        """Maps [B, H, W, C] to [B, C]."""
        return x.mean(axis=(1, 2))


def resnet8(*, width: int, num_classes: int, norm: str, dtype: DTypeLike) -> Stages:
    """Stages of 1, 1, 1 blocks with `width` (usually 16) to ``4 * width`` channels."""
    return _resnet((1, 1, 1), width, num_classes, norm, dtype)


def resnet18(*, width: int, num_classes: int, norm: str, dtype: DTypeLike) -> Stages:
    """Stages of 2, 2, 2, 2 blocks with `width` (usually 64) to ``8 * width`` channels."""
    return _resnet((2, 2, 2, 2), width, num_classes, norm, dtype)


def resnet34(*, width: int, num_classes: int, norm: str, dtype: DTypeLike) -> Stages:
    """Stages of 3, 4, 6, 3 blocks with `width` (usually 64) to ``8 * width`` channels."""
    return _resnet((3, 4, 6, 3), width, num_classes, norm, dtype)


def _resnet(num_blocks: tuple[int, ...], width: int, num_classes: int, norm: str, dtype: DTypeLike) -> Stages:
    """``stem stage1 stage2 ... pool head``: from stage2 on each doubles the channels and halves the image."""
    blocks = [
        (f"stage{i + 1}", BlockStage(num, width * 2**i, norm, dtype, stride=1 if i == 0 else 2))
        for i, num in enumerate(num_blocks)
    ]
    return (
        ("stem", ConvNormRelu(width, norm, dtype)),
        *blocks,
        ("pool", Pool()),
        ("head", Head(num_classes)),
    )
