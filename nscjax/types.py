"""Array aliases used in signatures; the ground floor imports nothing of ours."""

from typing import Any

import jax

Array = jax.Array
Key = jax.Array
"""A PRNG key made by ``jax.random.key``."""
PyTree = Any
Shape = tuple[int, ...]
