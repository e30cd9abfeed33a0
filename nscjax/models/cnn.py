"""Small convolutional network for images of about 8x8 to 32x32 pixels with any number of channels."""

from jax.typing import DTypeLike

from nscjax.models.layers import ConvNormRelu, Head
from nscjax.models.stages import Stages


def cnn(*, width: int, num_classes: int, norm: str, dtype: DTypeLike) -> Stages:
    """Three 3x3 convolutions of `width` to ``4 * width`` channels: ``conv1 conv2 conv3 head``.

    The second and the third halve the image by their stride, which is cheaper than pooling, both ways.
    The head sees where each feature is: an 8x8 image is 2x2 by then, and the mean of that would say little.
    """
    return (
        ("conv1", ConvNormRelu(width, norm, dtype)),
        ("conv2", ConvNormRelu(2 * width, norm, dtype, stride=2)),
        ("conv3", ConvNormRelu(4 * width, norm, dtype, stride=2)),
        ("head", Head(num_classes)),
    )
