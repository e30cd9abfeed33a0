"""What a message cost and what it lost: bytes, rank, distortion."""

import math

import jax.numpy as jnp

from nscjax import linalg
from nscjax.types import Array, PyTree, Shape


def distortion(x: Array, x_hat: Array) -> Array:
    """Returns ||x - x_hat||^2 / ||x||^2, a float32 scalar.

    It is 0 where nothing was lost and not finite where, and only where, `x` or `x_hat` is not: beside a zero `x` it is
    at most float32's largest number.
    """
    x, x_hat = x.astype(jnp.float32), x_hat.astype(jnp.float32)
    # Squares of numbers about 1 stay within float32's range.
    peak = jnp.maximum(jnp.max(jnp.abs(x)), jnp.max(jnp.abs(x_hat)))
    unit = jnp.where(peak > 0, peak, 1.0)
    lost = linalg.energy(x / unit - x_hat / unit)
    limits = jnp.finfo(jnp.float32)
    return jnp.where(lost == 0, 0.0, jnp.minimum(lost / jnp.maximum(linalg.energy(x / unit), limits.tiny), limits.max))


def rank(payload: PyTree) -> Array | None:
    """Returns how many components the payload sends, an int32 scalar, or None for a method that has no rank."""
    return getattr(payload, "rank", None)


def is_skipped(payload: PyTree) -> Array:
    """Returns whether the payload carries nothing because the budget did not afford one component; a bool scalar."""
    components = rank(payload)
    return jnp.asarray(False) if components is None else components == 0


def raw_bytes(shape: Shape) -> int:
    """Returns the bytes of a cut tensor of `shape` in float32, without any header: the measure of every ratio."""
    return 4 * math.prod(shape)
