"""AQ-SGD: quantise the change of every sample's activations since it was last seen.

Source: Wang et al. 2022, "Fine-tuning language models over slow networks using activation quantization with
guarantees", arXiv 2206.01299, and DS3Lab/AC-SGD (`compress/delta_modules.py`, `compress/fixpoint.py`): both ends keep
what the receiver holds of every sample, the sender sends Q(x - held), Q cuts [-max, max] evenly. Departures: the first
visit is compressed as all others are (the source sends it whole, over any budget); one scale a message, not one a
token; the number of bits follows the budget; the caches are not compressed. It is meant for activations: gradients are
compressed as they are, by `uniform` for one.
"""

import jax.numpy as jnp

from nscjax.compress.base import Compressor
from nscjax.compress.feedback import delta
from nscjax.compress.scalar import scalar


def aq_sgd(*, num_samples: int = 1024, bits: int | None = None) -> Compressor:
    """Returns the AQ-SGD compressor; `SideInfo.sample_ids` is needed.

    Args:
        num_samples: how many training samples there are; the caches hold as many cut tensors of one sample.
        bits: of every entry, 1 to 8; by default as many as the budget affords.

    Raises:
        InputError: an argument out of range, or no sample ids (when tracing).
    """

    def fit(x, bits):
        del bits
        return jnp.stack([jnp.max(jnp.abs(x)), jnp.zeros((), jnp.float32)])

    def to_unit(x, params):
        return (x / jnp.where(params[0] > 0, params[0], 1.0) + 1) / 2

    def from_unit(values, params):
        return params[0] * (2 * values - 1)

    return delta(scalar(fit, to_unit, from_unit, bits), num_samples)
