"""Subspace iteration for low-rank approximation: matrix products and k x k factorisations only.

Letters in names: a matrix is [m, n]; `l` is its longer side, `s` its shorter one. A factor holds one component a row,
[k, l] or [k, s]: rank-leading factors keep every product in a layout that runs fast, and on the wire a factor is cut
to the rank without moving anything. The basis that is carried from message to message lives on the short side, where
keeping it orthonormal costs next to nothing.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from nscjax.types import Array, Key

NOISE_FLOOR = 1e-6
"""Share of the largest energy below which a component of a float32 Gram matrix is rounding noise."""


def product(a: Array, b: Array) -> Array:
    """Returns a @ b in full float32: accelerators would round the operands to fewer bits."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def to_long(matrix_mn: Array, rows_ks: Array) -> Array:
    """Returns [k, l]: the image of `k` vectors of the matrix's short side on its long side."""
    m, n = matrix_mn.shape
    # For a tall matrix the result is transposed and not the matrix, which would be copied.
    return product(rows_ks, matrix_mn) if m < n else product(matrix_mn, rows_ks.T).T


def to_short(matrix_mn: Array, rows_kl: Array) -> Array:
    """Returns [k, s]: the image of `k` vectors of the matrix's long side on its short side."""
    m, n = matrix_mn.shape
    if m >= n:
        return product(rows_kl, matrix_mn)
    # The barrier keeps XLA from transposing the matrix rather than the small result: 2 to 3 times faster on CPU.
    return jax.lax.optimization_barrier(product(matrix_mn, rows_kl.T)).T


def energy(matrix: Array) -> Array:
    """Returns the squared Frobenius norm, a float32 scalar."""
    return jnp.sum(jnp.square(matrix.astype(jnp.float32)))


def orthonormal_rows(rows_ks: Array, key: Key) -> Array:
    """Returns orthonormal rows [k, s] that span the given ones, by Cholesky QR on rows scaled to unit length.

    Scaling first makes a Gram matrix of nearly orthogonal rows (those of a warm basis, whose lengths are singular
    values) well conditioned. A row that has vanished is drawn anew: a basis that lost a direction while the matrix was
    of low rank must be able to find it again.

    Args:
        rows_ks: [k, s] float32 with k <= s.
        key: for the rows drawn anew.
    """
    k, s = rows_ks.shape
    norms_k1 = jnp.linalg.norm(rows_ks, axis=1, keepdims=True)
    is_lost = norms_k1 <= jnp.sqrt(NOISE_FLOOR) * 1e-3 * jnp.max(norms_k1)
    unit_ks = jnp.where(is_lost, 0.0, rows_ks / jnp.where(is_lost, 1.0, norms_k1))

    def redrawn():
        return jnp.where(is_lost, jax.random.normal(key, (k, s), rows_ks.dtype) / s**0.5, unit_ks)

    # Random numbers cost more than all the rest here, and are hardly ever needed.
    unit_ks = jax.lax.cond(jnp.any(is_lost), redrawn, lambda: unit_ks)
    # Two passes: the first leaves an error of eps times the squared condition, the second squares that away.
    return _whiten_rows(_whiten_rows(unit_ks, shift=1e-5), shift=0.0)


def nearly_orthonormal_rows(rows_ks: Array) -> Array:
    """Returns orthonormal rows [k, s] that span the given ones, in their order; what nearly depends is shrunk away.

    A row that lies within a hundredth of its length in the span of those before it is noise, and is made short instead
    of being blown up: a smooth function of the rows, so that two machines that round differently agree. No row of the
    result is longer than 1, and no projection rows.T @ rows more than 1e-4 longer than what is projected. Zero rows
    stay zero.

    Args:
        rows_ks: [k, s] float32 with k <= s.
    """
    norms_k1 = jnp.linalg.norm(rows_ks, axis=1, keepdims=True)
    shift = 1e-4
    # Rows that are orthonormal already stay as long as they are.
    return (1 + shift) ** 0.5 * _whiten_rows(rows_ks / jnp.where(norms_k1 > 0, norms_k1, 1.0), shift)


def dct_matrix(n: int) -> Array:
    """Returns the orthonormal DCT-II as a float32 matrix [n, n]: row k is the k-th cosine."""
    k, i = jnp.arange(n, dtype=jnp.float32)[:, None], jnp.arange(n, dtype=jnp.float32)[None, :]
    scale = jnp.where(k == 0, (1 / n) ** 0.5, (2 / n) ** 0.5)
    return (scale * jnp.cos(jnp.pi * (2 * i + 1) * k / (2 * n))).astype(jnp.float32)


def cosines(sizes: Sequence[int], kept: Sequence[int]) -> Array:
    """Returns the cosine transform along several axes, orthonormal rows, float32 [prod(kept), prod(sizes)].

    Args:
        sizes: of the axes.
        kept: how many of the cosines along each, the slowest.
    """
    return functools.reduce(jnp.kron, (dct_matrix(size)[:slow] for size, slow in zip(sizes, kept, strict=True)))


def _whiten_rows(rows_ks: Array, shift: float) -> Array:
    """Returns inverse(L) @ rows where L L.T = rows rows.T + shift; the small inverse makes it one product."""
    identity_kk = jnp.eye(rows_ks.shape[0], dtype=rows_ks.dtype)
    cholesky_kk = jnp.linalg.cholesky(product(rows_ks, rows_ks.T) + shift * identity_kk)
    return product(jax.scipy.linalg.solve_triangular(cholesky_kk, identity_kk, lower=True), rows_ks)


def rayleigh_ritz(matrix_mn: Array, basis_ks: Array) -> tuple[Array, Array]:
    """Returns the best basis inside the image of `basis_ks`, on the long side, ordered by energy.

    With Y [k, l] the image and Y Y.T = W diag(energies) W.T, the rows of diag(energies)^(-1/2) W.T Y are orthonormal
    and energies are the squared Ritz values, in falling order: estimates, from below, of the squared singular values.

    Args:
        matrix_mn: [m, n] float32.
        basis_ks: orthonormal rows.

    Returns:
        (rows_kl, energies_k). Components below the noise floor are zero, in both.
    """
    image_kl = to_long(matrix_mn, basis_ks)
    rising_k, vectors_kk = jnp.linalg.eigh(product(image_kl, image_kl.T))
    energies_k = rising_k[::-1]
    is_signal_k = energies_k > NOISE_FLOOR * jnp.maximum(energies_k[0], 0.0)
    energies_k = jnp.where(is_signal_k, energies_k, 0.0)
    inverse_lengths_k = jnp.where(is_signal_k, jax.lax.rsqrt(jnp.where(is_signal_k, energies_k, 1.0)), 0.0)
    return product((vectors_kk[:, ::-1] * inverse_lengths_k[None, :]).T, image_kl), energies_k


def subspace_iteration(matrix_mn: Array, basis_ks: Array, key: Key, iterations: int) -> tuple[Array, Array]:
    """Returns an energy-ordered orthonormal basis of the long side by alternating orthogonal iteration.

    Every iteration takes the basis to the long side and back: P <- orth(Q M^T), Q <- orth(P M) for a tall M. The last
    one stops on the long side, at the Rayleigh-Ritz step; the caller's own product completes it, so that `iterations`
    of them read the matrix 2 * iterations times in all.

    Args:
        matrix_mn: [m, n] float32.
        basis_ks: orthonormal rows, warm from the message before.
        key: for directions drawn anew.
        iterations: at least 1.

    Returns:
        (rows_kl, energies_k), see `rayleigh_ritz`.
    """
    for _ in range(iterations - 1):
        rows_kl, _ = rayleigh_ritz(matrix_mn, basis_ks)
        basis_ks = orthonormal_rows(to_short(matrix_mn, rows_kl), key)
    return rayleigh_ritz(matrix_mn, basis_ks)
