"""AQ-SGD: quantise the change of every sample's activations since it was last seen.

Source: Wang et al. 2022, "Fine-tuning language models over slow networks using activation quantization with
guarantees", arXiv 2206.01299, and DS3Lab/AC-SGD (`compress/delta_modules.py`, `compress/fixpoint.py`): both ends keep
what the receiver holds of every sample, the sender sends Q(x - held). Q has a scale for every feature, the largest
magnitude over samples and places, and the levels k / 2**(b - 1), zero among them; gradients go through Q as they are.
Departures: the first visit is compressed as all others are (the source sends it whole, over any budget); scales are
float32 (half precision there); the number of bits follows the budget; the caches are not compressed. Where images are
augmented, as in `cifar10_bench`, the caches hold another view of a sample than the one that follows (text has one
alone). With the 12,800
samples of `cifar10_bench` a message takes longer than the training step (`benchmarks/device_part.py`): the caches,
whole cut tensors of every sample, are copied inside a step that may be undone.
"""

import jax.numpy as jnp

from nscjax.compress.base import Compressor
from nscjax.compress.feedback import delta
from nscjax.compress.scalar import WITH_ZERO, scalar


def aq_sgd(*, num_samples: int = 1024, bits: int | None = None) -> Compressor:
    """Returns the AQ-SGD compressor; `SideInfo.sample_ids` is needed where samples are kept.

    Args:
        num_samples: how many training samples there are; the caches hold as many cut tensors of one sample. 0 keeps
            none: tensors are quantised as they are, as the source does with gradients.
        bits: of every entry, 1 to 8; by default as many as the budget affords.

    Raises:
        InputError: an argument out of range, or no sample ids (when tracing).
    """

    def fit(x, bits):
        del bits
        return jnp.max(jnp.abs(x), axis=(0, 1))

    def to_unit(x, scale):
        return (x / jnp.where(scale > 0, scale, 1.0)[None, None] + 1) / 2

    def from_unit(values, scale):
        return scale[None, None] * (2 * values - 1)

    quantiser = scalar(fit, to_unit, from_unit, bits, place=WITH_ZERO, by_feature=True)
    return delta(quantiser, num_samples) if num_samples else quantiser
