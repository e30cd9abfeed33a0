"""Low-rank compression: alternating orthogonal iteration, quantised factors, in-step error compensation.

The matrix view M [m, n] of the cut tensor is sent as `rank` components, M ~ left.T @ diag(scale) @ right, both factors
in 16, 8 or 4 bits. Three ideas make that good and cheap:

- the basis is warm: it comes from the message before, so that one iteration (two products with M) is enough;
- the components are ordered by energy, so that a rank rule can cut them anywhere, inside jit;
- each factor is fitted by least squares to the other one *as quantised*, in turn, so that the error of the one is made
  good by the next (the error-compensated factorisation of NSC-SL, arXiv 2602.02696; the concrete form is ours).
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nscjax import check, layout, linalg
from nscjax.compress import view as views
from nscjax.compress.base import Compressor
from nscjax.compress.quantise import BITS, levels, pack, packed_dtype, packed_width, quantise_rows, unpack
from nscjax.compress.rank import RankRule
from nscjax.types import Array, Shape

OVERSAMPLE = 4
"""Columns of the warm basis beyond `max_rank`: they let the last sent components converge (see
`benchmarks/factorise.py`)."""


@layout.payload(tag=2)
class LowRank:
    """Quantised factors of a cut tensor's matrix view.

    Attributes:
        rank: int32 scalar, how many components are sent.
        scale: float32 [max_rank], the length of each component.
        left: packed codes [max_rank, width of m], uint8 or float16.
        right: packed codes [max_rank, width of n], uint8 or float16.
        shape: the cut tensor's shape.
        dtype: its dtype's code in `layout.DTYPES`.
        view: the view's name.
        bits: bits of a code.
    """

    rank: Array = layout.array()
    scale: Array = layout.ranked()
    left: Array = layout.ranked()
    right: Array = layout.ranked()
    shape: Shape = layout.static()
    dtype: int = layout.static()
    view: str = layout.static()
    bits: int = layout.static()

    def problem(self, max_bytes: int) -> str | None:
        """Returns what is wrong with a payload read from a frame's own header, or None."""
        if problem := layout.tensor_problem(self, max_bytes):
            return problem
        if len(self.shape) not in views.VIEWS or self.view not in views.VIEWS[len(self.shape)]:
            return f"its shape {self.shape} has no view {self.view!r}"
        if type(self.bits) is not int or self.bits not in BITS:
            return f"it has {self.bits!r} bits"
        most = min(views.matrix_shape(self.view, self.shape))
        if len(self.scale.shape) != 1 or not 1 <= self.scale.shape[0] <= most:
            return f"its scale has shape {self.scale.shape}; allowed: (1,) to ({most},)"
        return layout.arrays_problem(self, empty(layout.tensor_spec(self), self.view, self.bits, self.scale.shape[0]))


class LowRankState(NamedTuple):
    """What the sender carries from message to message.

    Attributes:
        basis: float32 [k, s], orthonormal rows on the matrix's short side s = min(m, n): the warm basis, `max_rank`
            rows and some oversampling.
    """

    basis: Array


def low_rank(
    rank_rule: RankRule,
    *,
    max_rank: int,
    factor_bits: int,
    iterations: int = 1,
    view: str = "auto",
    refits: int = 2,
    oversample: int = OVERSAMPLE,
) -> Compressor:
    """Returns a compressor that sends a low-rank factorisation; its frames decode alone, with no receiver state.

    Args:
        rank_rule: how many components to send, see `nscjax.compress.rank`.
        max_rank: the most components, >= 1; clipped to min(m, n).
        factor_bits: 4, 8 or 16.
        iterations: alternating orthogonal iterations a message, >= 1.
        view: a view's name or "auto", see `nscjax.compress.view`.
        refits: how often the short factor is fitted anew to the long one as quantised, >= 0; before each time but the
            first the long one is fitted to the short one. 0 leaves out the error compensation; 2 costs two more
            products with M than 1 and takes off 4 to 5 % of the error (`benchmarks/distortion.py`).
        oversample: rows of the basis beyond `max_rank`, >= 0.

    Raises:
        InputError: an argument out of range, or a tensor that has no such view (when tracing).
    """
    for name, value, least in (
        ("max_rank", max_rank, 1),
        ("iterations", iterations, 1),
        ("refits", refits, 0),
        ("oversample", oversample, 0),
    ):
        check.count(name, value, least)
    packed_dtype(factor_bits)

    def template_of(spec: jax.ShapeDtypeStruct) -> LowRank:
        return empty(spec, view, factor_bits, max_rank)

    def init(key, spec):
        short = min(views.matrix_shape(template_of(spec).view, spec.shape))
        width = min(max_rank + oversample, short)
        return LowRankState(linalg.orthonormal_rows(jax.random.normal(key, (width, short)), key)), ()

    def compress(x, enc_state, side):
        template = template_of(x)
        top = template.scale.shape[0]
        matrix = views.matricise(x, template.view)
        # Energies are squares: of numbers about 1 they stay within float32's range.
        peak = jnp.max(jnp.abs(matrix))
        matrix = jax.lax.optimization_barrier(matrix / jnp.where(peak > 0, peak, 1.0))
        rows, energies = linalg.subspace_iteration(matrix, enc_state.basis, side.key, iterations)
        affordable = layout.affordable_rank(template, side.budget_bytes)
        rank = rank_rule(energies[:top], linalg.energy(matrix), affordable)
        factors, images = _quantised_factors(matrix, rows, rank, top, factor_bits, refits)
        payload = dataclasses.replace(template, rank=rank, **factors | {"scale": peak * factors["scale"]})
        # A message that is not finite must not spoil the basis for all that follow.
        basis = jnp.where(jnp.isfinite(peak), linalg.orthonormal_rows(images, side.key), enc_state.basis)
        return payload, LowRankState(basis)

    def min_bytes(spec):
        return layout.frame_bytes(template_of(spec), rank=1)

    return Compressor(init, compress, decompress, layout.num_bytes, min_bytes)


def decompress(payload: LowRank, dec_state: tuple, side) -> tuple[Array, tuple]:
    """Returns `(x_hat, dec_state)`: a `LowRank` payload carries all that is needed. Rank 0 gives zeros."""
    del side
    spec = layout.tensor_spec(payload)
    m, n = views.matrix_shape(payload.view, payload.shape)
    left = levels(unpack(payload.left, payload.bits, m), payload.bits)
    right = levels(unpack(payload.right, payload.bits, n), payload.bits)
    is_sent = jnp.arange(payload.scale.shape[0]) < payload.rank
    scale = jnp.where(is_sent, payload.scale, 0.0)
    return views.tensorise(linalg.product((left * scale[:, None]).T, right), payload.view, spec), dec_state


def empty(spec: jax.ShapeDtypeStruct | Array, view: str, bits: int, max_rank: int) -> LowRank:
    """Returns the payload's layout for cut tensors of `spec`: `jax.ShapeDtypeStruct`s in the place of arrays.

    Args:
        spec: of a cut tensor.
        view: a view's name or "auto".
        bits: 4, 8 or 16.
        max_rank: the most components, clipped to min(m, n).
    """
    name = views.resolve(view, spec.shape)
    m, n = views.matrix_shape(name, spec.shape)
    top = min(max_rank, m, n)
    arrays: dict[str, Any] = {
        "rank": jax.ShapeDtypeStruct((), jnp.int32),
        "scale": jax.ShapeDtypeStruct((top,), jnp.float32),
        "left": jax.ShapeDtypeStruct((top, packed_width(m, bits)), packed_dtype(bits)),
        "right": jax.ShapeDtypeStruct((top, packed_width(n, bits)), packed_dtype(bits)),
    }
    return LowRank(**arrays, shape=tuple(spec.shape), dtype=layout.DTYPES.index(str(spec.dtype)), view=name, bits=bits)


def _quantised_factors(matrix, rows, rank, top, bits, refits):
    """Returns the payload's arrays, and the rows' images on the short side [k, s], which make the next warm basis.

    One factor is fitted to the other as quantised, S = (L L.T)^-1 L M, and quantised in its turn. Rows beyond the rank
    are carried along unquantised: they cost nothing extra and keep the basis whole.
    """
    is_sent = jnp.arange(top) < rank
    long_codes, long, long_scale = _quantised(rows[:top], is_sent, bits)
    known = jnp.where(is_sent[:, None], long, rows[:top]) if refits else rows[:top]
    images = linalg.to_short(matrix, rows.at[:top].set(known))
    short = _least_squares(long, images[:top], is_sent) if refits else images[:top]
    short_codes, short, short_scale = _quantised(short, is_sent, bits)
    for _ in range(refits - 1):
        long = _least_squares(short, linalg.to_long(matrix, short), is_sent)
        long_codes, long, long_scale = _quantised(long, is_sent, bits)
        short = _least_squares(long, linalg.to_short(matrix, long), is_sent)
        short_codes, short, short_scale = _quantised(short, is_sent, bits)
    is_wide = matrix.shape[0] < matrix.shape[1]
    left, right = (short_codes, long_codes) if is_wide else (long_codes, short_codes)
    return {"scale": long_scale * short_scale, "left": pack(left, bits), "right": pack(right, bits)}, images


def _quantised(rows, is_sent, bits):
    """Returns (codes, values, scale) of the rows; those that are not sent are zero."""
    rows = jnp.where(is_sent[:, None], rows, 0.0)
    codes, scale = quantise_rows(rows, bits)
    return codes, levels(codes, bits) * scale[:, None], scale


def _least_squares(basis_kl, images_ks, is_sent):
    """Returns G^-1 images, G = basis basis.T over the rows sent, scaled to a unit diagonal, slightly regularised."""
    gram = linalg.product(basis_kl, basis_kl.T)
    lengths = jnp.sqrt(jnp.diagonal(gram))
    is_used = is_sent & (lengths > 0)
    inverse_lengths = jnp.where(is_used, 1.0 / jnp.where(is_used, lengths, 1.0), 0.0)
    identity = jnp.eye(gram.shape[0], dtype=gram.dtype)
    unit_gram = gram * inverse_lengths[:, None] * inverse_lengths[None, :] + jnp.diag(jnp.where(is_used, 1e-6, 1.0))
    solution = jax.scipy.linalg.solve(unit_gram, identity, assume_a="pos")
    inverse_gram = solution * inverse_lengths[:, None] * inverse_lengths[None, :]
    return linalg.product(inverse_gram, jnp.where(is_sent[:, None], images_ks, 0.0))
