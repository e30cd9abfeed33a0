"""NSC-SL: adaptive low-rank compression of the cut (Fang et al., arXiv 2602.02696)."""

from nscjax.compress import rank
from nscjax.compress.base import Compressor
from nscjax.compress.low_rank import low_rank


def nsc_sl(
    *,
    max_rank: int = 16,
    energy: float = 0.95,
    factor_bits: int = 8,
    iterations: int = 1,
    view: str = "auto",
) -> Compressor:
    """Returns the NSC-SL compressor.

    The rank follows the singular values and the byte budget, r = min(r_E, r_B, max_rank): at most the fewest components
    that hold `energy` of the tensor, and of these as many as earn a bit when `SideInfo.budget_bytes` are spent where
    they take off most of the error. The factors come from an alternating orthogonal iteration with a warm start and are
    compensated for each other's quantisation. The paper's public text is its abstract; all that it leaves open is our
    choice by measurement (`docs/results.md`).
    A gradient in the subspace of its uplink (`low_rank.Subspace`) has that rank; of the settings its budget and
    `factor_bits` apply. Residual feedback across messages is a wrapper: `nscjax.compress.error_feedback`,
    `nscjax.compress.delta`.

    Args:
        max_rank: the most components a frame may hold, >= 1; clipped to the matrix.
        energy: share of the squared norm to keep where the budget allows, in (0, 1].
        factor_bits: the most bits of a factor entry, 4, 8 or 16.
        iterations: alternating iterations a message, >= 1.
        view: "auto" or a view's name, such as "BH,WC".

    Raises:
        InputError: an argument out of range.

    Example:
        >>> import jax, nscjax.compress as compress
        >>> c = compress.nsc_sl(max_rank=4)
        >>> x = jax.random.normal(jax.random.key(0), (8, 4, 4, 16))
        >>> enc, dec = c.init(jax.random.key(1), jax.ShapeDtypeStruct(x.shape, x.dtype))
        >>> side = compress.SideInfo(key=jax.random.key(2), budget_bytes=500)
        >>> payload, enc = jax.jit(c.compress)(x, enc, side)
        >>> bool(c.num_bytes(payload) <= 500)
        True
    """
    return low_rank(
        rank.by_energy(energy),
        max_rank=max_rank,
        factor_bits=factor_bits,
        iterations=iterations,
        view=view,
    )
