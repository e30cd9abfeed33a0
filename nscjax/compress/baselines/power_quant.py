"""PowerQuant: uniform quantisation of sign(x) |x|^a, the exponent fitted to the tensor.

Source: Yvinec et al. 2023, "PowerQuant: automorphism search for non-uniform quantization", arXiv 2301.09858: the power
function is the map that keeps products, its exponent minimises the reconstruction error, which has one minimum in a.
Departures: the paper quantises weights and activations once, after training; here every message is fitted, the exponent
the best of a few on at most 16,384 entries; levels are the centres of 2**b bins (the paper's are symmetric about a
level at zero), so that 1 bit is possible; the number of bits follows the budget.
"""

import jax
import jax.numpy as jnp

from nscjax.compress.base import Compressor
from nscjax.compress.scalar import num_cells, scalar

EXPONENTS = (1.0, 0.85, 0.7, 0.6, 0.5, 0.42, 0.35, 0.28, 0.2)
"""Exponents tried."""

SAMPLE = 1 << 14
"""Entries that the exponent is fitted to."""


def power_quant(*, bits: int | None = None) -> Compressor:
    """Returns the PowerQuant quantiser.

    Args:
        bits: of every entry, 1 to 8; by default as many as the budget affords.

    Raises:
        InputError: `bits` out of range.
    """

    def fit(x, bits):
        peak = jnp.max(jnp.abs(x))
        flat = x.reshape(-1)
        # An odd stride meets every channel of a power of two.
        sample = flat[:: max(1, flat.size // SAMPLE) | 1] / jnp.where(peak > 0, peak, 1.0)
        cells = num_cells(bits)

        def lost(exponent):
            params = jnp.stack([jnp.ones((), jnp.float32), exponent])
            codes = jnp.clip(jnp.floor(to_unit(sample, params) * cells), 0, cells - 1)
            return jnp.sum(jnp.square(from_unit((codes + 0.5) / cells, params) - sample))

        exponents = jnp.asarray(EXPONENTS, jnp.float32)
        return jnp.stack([peak, exponents[jnp.argmin(jax.lax.map(lost, exponents))]])

    def to_unit(x, params):
        peak, exponent = params
        unit = x / jnp.where(peak > 0, peak, 1.0)
        return (jnp.sign(unit) * jnp.abs(unit) ** exponent + 1) / 2

    def from_unit(values, params):
        peak, exponent = params
        power = 2 * values - 1
        return peak * jnp.sign(power) * jnp.abs(power) ** (1 / exponent)

    return scalar(fit, to_unit, from_unit, bits)
