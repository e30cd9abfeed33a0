"""A learned bottleneck at the cut: BottleNet++, an encoder as the client's last stage, a decoder as the server's first.

Source: Shao and Zhang 2020, "BottleNet++: an end-to-end approach for feature compression in device-edge co-inference
systems", arXiv 1910.14315, read through WesleyHsieh0806/C3-SL's re-implementation (`CIFAR10/BottleNet++/model.py`): a
2x2 convolution of stride 2, batch norm and sigmoid; a transposed one, batch norm and ReLU; trained end to end, the
gradient of the bottleneck goes back. Departures: no channel noise; its other encoder there, a 3x3 convolution that
shrinks channels alone, is left out. What crosses is an ordinary cut tensor and may be
compressed by any method; its float32 size is that of the bottleneck.
"""

from flax import linen as nn
from jax.typing import DTypeLike

from nscjax import check
from nscjax.models.layers import HE_NORMAL, ConvNormRelu, Norm
from nscjax.models.resnet import BlockStage
from nscjax.models.stages import Stages
from nscjax.types import Array

SIDE = 2
"""Factor by which height and width shrink."""


class Encoder(nn.Module):
    """To fewer and smaller channels with entries in (0, 1)."""

    num_features: int
    norm: str
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, is_training: bool) -> Array:
        """Maps [B, H, W, C] to [B, H / 2, W / 2, num_features], rounded down."""
        window = (SIDE, SIDE)
        x = nn.Conv(self.num_features, window, window, "VALID", kernel_init=HE_NORMAL, dtype=self.dtype)(x)
        return nn.sigmoid(Norm(self.norm, self.dtype)(x, is_training))


class Decoder(nn.Module):
    """Back to the channels and the size at the cut."""

    num_features: int
    norm: str
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, is_training: bool) -> Array:
        """Maps [B, h, w, c] to [B, 2 h, 2 w, num_features]."""
        window = (SIDE, SIDE)
        x = nn.ConvTranspose(self.num_features, window, window, "VALID", kernel_init=HE_NORMAL, dtype=self.dtype)(x)
        return nn.relu(Norm(self.norm, self.dtype)(x, is_training))


def bottlenet(client: Stages, channels: int, norm: str, dtype: DTypeLike) -> tuple[Stages, Stages]:
    """Returns (encoder, decoder) as stages, to come after the client's stages and before the server's.

    Args:
        client: the client's stages; the last one makes images.
        channels: of the bottleneck, >= 1.
        norm: as in `nscjax.models.build`.
        dtype: as in `nscjax.models.build`.

    Raises:
        InputError: the client has no stage that makes images.
    """
    last = client[-1][1] if client else None
    if not isinstance(last, ConvNormRelu | BlockStage):
        raise check.error(
            "bottleneck", channels, "None for a cut that is not made of images", "Cut after a convolutional stage."
        )
    return (("encoder", Encoder(channels, norm, dtype)),), (("decoder", Decoder(last.num_features, norm, dtype)),)
