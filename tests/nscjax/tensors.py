"""Tensors made for tests, and what NumPy says about them."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np

from nscjax import compress

PLENTY = 1 << 20
"""A budget, in bytes, that every tensor here fits."""


class Counted:
    """A function that counts how often JAX traces it.

    The cache of a jitted function says less: all of them share one, which forgets in as long a run as the suite's.
    """

    def __init__(self, function):
        self.function, self.num_traces = function, 0

    def __call__(self, *args):
        self.num_traces += 1
        return self.function(*args)


def normal(shape, dtype=jnp.float32, seed=0):
    """NumPy draws, for JAX would compile a generator for every shape."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def side(budget_bytes=PLENTY, seed=0, sample_ids=None):
    return compress.SideInfo(jax.random.key(seed), jnp.int32(budget_bytes), sample_ids)


def spec(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def rank_one(shape, seed=0):
    """An outer product along all axes: of rank one in every view."""
    rng = np.random.default_rng(seed)
    tensor = np.ones(())
    for size in shape:
        tensor = np.multiply.outer(tensor, rng.normal(size=size))
    return jnp.asarray(tensor, jnp.float32)


def with_spectrum(m, n, decay, seed=0):
    """A float32 matrix whose singular values fall as i ** -decay, as those of activations do."""
    rng = np.random.default_rng(seed)
    k = min(m, n)
    left, _ = np.linalg.qr(rng.normal(size=(m, k)))
    right, _ = np.linalg.qr(rng.normal(size=(n, k)))
    return jnp.asarray((left * np.arange(1, k + 1.0) ** -decay) @ right.T, jnp.float32)


def of_rank(m, n, rank, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(m, rank)) @ rng.normal(size=(rank, n)), jnp.float32)


def sealed(body):
    """A frame up to its checksum, whatever it holds, with the right one."""
    return bytes(body) + zlib.crc32(bytes(body)).to_bytes(4, "little")


def distortion(x, x_hat):
    """Relative squared error in float64, so that nothing in float32's range overflows or vanishes."""
    x, x_hat = np.asarray(x, np.float64), np.asarray(x_hat, np.float64)
    lost = np.sum((x - x_hat) ** 2)
    return lost / np.sum(x**2) if lost else 0.0


def truncated_svd_distortion(matrix, rank):
    """The least distortion that any matrix of this rank has (Eckart and Young)."""
    energies = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False) ** 2
    return np.sum(energies[rank:]) / np.sum(energies)
