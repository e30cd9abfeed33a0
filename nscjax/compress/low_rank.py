"""Low-rank compression: alternating orthogonal iteration, bits by energy, in-step error compensation.

The matrix view M [m, n] of the cut tensor is sent as `rank` components, M ~ left.T @ diag(scale) @ right, the factors'
rows in as many bits as their component's energy earns. Four ideas make that good and cheap:

- the basis is warm: it comes from the message before, so that one iteration (two products with M) is enough;
- the components are ordered by energy, so that a rank rule can cut them anywhere, inside jit;
- the budget affords as many components as may have `MEAN_BITS` an entry, and is spent on them by reverse water-filling:
  singular values and budget together fix the bits of each;
- the second factor is fitted by least squares to the first one *as quantised*, so that it makes good the error of that
  (the error-compensated factorisation of NSC-SL, arXiv 2602.02696; the concrete form is ours).
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nscjax import check, layout, linalg
from nscjax.compress import planes, water_filling
from nscjax.compress import view as views
from nscjax.compress.base import Compressor
from nscjax.compress.quantise import levels, quantise_rows
from nscjax.compress.rank import RankRule
from nscjax.types import Array, Key, PyTree, Shape

BITS = (4, 8, 16)
"""The choices of the most bits of a factor's entry."""

MEAN_BITS = 4
"""Bits of an entry, on average, with which a budget's components are counted. More components with fewer bits lose less
of a message, and yet training ends lower: a network learns to do without what never crosses, and has no defence against
rounding noise (`docs/results.md`, table of settings)."""

LEAST_BITS = 2
"""Bits of an entry of the longer row below which a component alone is no message. With one bit a unit has the same
magnitude in every sample: batch normalisation behind the cut divides by a spread of next to nothing, the client's
gradient is tens of times too long, and one such message in an outage ruins a run (`docs/results.md`)."""

OVERSAMPLE = 4
"""Columns of the warm basis beyond `max_rank`: they let the last sent components converge (see
`benchmarks/factorise.py`)."""


@layout.payload(tag=11)
class LowRank:
    """Quantised factors of a cut tensor's matrix view.

    Attributes:
        rank: int32 scalar, how many components are sent.
        left_planes: int32 scalar, the bits of all rows of `left` together.
        right_planes: int32 scalar, those of `right`.
        scale: float32 [max_rank], the length of each component.
        bits: uint8 [max_rank], the bits of an entry of each component's longer row; the shorter one's follow from it.
        left: uint8 [max_rank * most_bits, ceil(m / 8)], bit planes (`nscjax.compress.planes`).
        right: uint8 [max_rank * most_bits, ceil(n / 8)].
        shape: the cut tensor's shape.
        dtype: its dtype's code in `layout.DTYPES`.
        view: the view's name.
        most_bits: the most bits of an entry.
    """

    rank: Array = layout.array()
    left_planes: Array = layout.array()
    right_planes: Array = layout.array()
    scale: Array = layout.ranked()
    bits: Array = layout.ranked()
    left: Array = layout.ranked("left_planes")
    right: Array = layout.ranked("right_planes")
    shape: Shape = layout.static()
    dtype: int = layout.static()
    view: str = layout.static()
    most_bits: int = layout.static()

    def problem(self, max_bytes: int) -> str | None:
        """Returns what is wrong with a payload read from a frame's own header, or None."""
        return _problem(self, max_bytes) or layout.arrays_problem(
            self, empty(layout.tensor_spec(self), self.view, self.most_bits, self.scale.shape[0])
        )


@layout.payload(tag=14)
class Coefficients:
    """The longer rows of components whose shorter rows the other direction has sent: `Subspace`.

    Attributes:
        rank: int32 scalar, how many components are sent.
        planes: int32 scalar, the bits of all rows together.
        scale: float32 [k], the scale of each row.
        bits: uint8 [k], its bits.
        rows: uint8 [k * most_bits, ceil(l / 8)], bit planes of the rows.
        shape: the cut tensor's shape.
        dtype: its dtype's code in `layout.DTYPES`.
        view: the view's name.
        most_bits: the most bits of an entry.
    """

    rank: Array = layout.array()
    planes: Array = layout.array()
    scale: Array = layout.ranked()
    bits: Array = layout.ranked()
    rows: Array = layout.ranked("planes")
    shape: Shape = layout.static()
    dtype: int = layout.static()
    view: str = layout.static()
    most_bits: int = layout.static()

    def problem(self, max_bytes: int) -> str | None:
        """Returns what is wrong with a payload read from a frame's own header, or None."""
        return _problem(self, max_bytes) or layout.arrays_problem(
            self, _empty_coefficients(layout.tensor_spec(self), self.view, self.most_bits, self.scale.shape[0])
        )


@functools.partial(jax.tree_util.register_dataclass, data_fields=["basis"], meta_fields=["view"])
@dataclasses.dataclass(frozen=True)
class Subspace:
    """What an uplink fixes for the gradient: the forward pass sees x in this subspace alone, and so does its gradient.

    Attributes:
        basis: float32 [k, s], orthonormal rows that span the shorter ones as received, zeros beyond the rank.
        view: the view of which they are rows.
    """

    basis: Array
    view: str


class LowRankState(NamedTuple):
    """What the sender carries from message to message.

    Attributes:
        basis: float32 [k, s], orthonormal rows on the matrix's short side s = min(m, n): the warm basis, `max_rank`
            rows and some oversampling.
    """

    basis: Array


Components = tuple[Array, Array]
"""Orthonormal rows [k, l] on the matrix's long side l = max(m, n), and their energies [k], falling."""


def low_rank(
    rank_rule: RankRule,
    *,
    max_rank: int,
    factor_bits: int,
    iterations: int = 1,
    view: str = "auto",
    compensates: bool = True,
    oversample: int = OVERSAMPLE,
) -> Compressor:
    """Returns a compressor that sends a low-rank factorisation; its frames decode alone, with no receiver state.

    Args:
        rank_rule: the most components worth sending, see `nscjax.compress.rank`.
        max_rank: the most components, >= 1; clipped to min(m, n).
        factor_bits: the most bits of a factor's entry, 4, 8 or 16.
        iterations: alternating orthogonal iterations a message, >= 1.
        view: a view's name or "auto", see `nscjax.compress.view`.
        compensates: whether the short factor is fitted to the long one as quantised; what it costs and is worth:
            `benchmarks/distortion.py`.
        oversample: rows of the basis beyond `max_rank`, >= 0.

    Raises:
        InputError: an argument out of range, or a tensor that has no such view (when tracing).
    """
    for name, value, least in (
        ("max_rank", max_rank, 1),
        ("iterations", iterations, 1),
        ("oversample", oversample, 0),
    ):
        check.count(name, value, least)
    check.one_of("factor_bits", factor_bits, BITS)

    def init(key, spec):
        short = min(views.matrix_shape(views.resolve(view, spec.shape), spec.shape))
        width = min(max_rank + oversample, short)
        return LowRankState(linalg.orthonormal_rows(jax.random.normal(key, (width, short), jnp.float32), key)), ()

    def find(matrix, state, key):
        return linalg.subspace_iteration(matrix, state.basis, key, iterations)

    def carry(images, key):
        return LowRankState(linalg.orthonormal_rows(images, key))

    return factorised(
        init,
        find,
        carry,
        rank_rule,
        max_rank=max_rank,
        factor_bits=factor_bits,
        view=view,
        compensates=compensates,
        shares=True,
    )


def factorised(
    init: Callable,
    find: Callable[[Array, PyTree, Key], Components],
    carry: Callable[[Array, Key], PyTree],
    rank_rule: RankRule,
    *,
    max_rank: int,
    factor_bits: int,
    view: str,
    compensates: bool,
    shares: bool,
) -> Compressor:
    """Returns the compressor that sends the components which `find` finds.

    Args:
        init: `(key, spec) -> (enc_state, ())`.
        find: `(matrix [m, n], enc_state, key) -> components`, at least min(max_rank, m, n) of them.
        carry: `(images [k, s] of the components on the short side, key) -> enc_state` for the next message.
        rank_rule: the most components worth sending.
        max_rank: as of `low_rank`.
        factor_bits: as of `low_rank`.
        view: as of `low_rank`.
        compensates: as of `low_rank`.
        shares: whether the gradient crosses in the subspace of its uplink.
    """

    def compress(x, enc_state, side):
        if shares and isinstance(side.support, Subspace) and side.support.view == views.resolve(view, x.shape):
            return _within(x, side.support, rank_rule, max_rank, factor_bits, side.budget_bytes), enc_state
        template = empty(x, view, factor_bits, max_rank)
        top = template.scale.shape[0]
        matrix, peak = views.normalised(x, template.view)
        rows, energies = find(matrix, enc_state, side.key)
        affordable = _affordable(template, _bytes_of_one(template, MEAN_BITS), side.budget_bytes)
        energies = _worth_sending(energies[:top], rank_rule, linalg.energy(matrix), affordable)
        counts_of = functools.partial(_counts, template)
        bits, counts = _spend(template, energies, counts_of, _bytes_of_one(template, LEAST_BITS), side.budget_bytes)
        factors, images = _quantised_factors(matrix, rows, bits, template, compensates)
        payload = dataclasses.replace(template, **counts, **factors | {"scale": peak * factors["scale"]})
        # A message that is not finite must not spoil the state for all that follow.
        new_state = carry(images, side.key)
        return payload, jax.tree.map(lambda new, old: jnp.where(jnp.isfinite(peak), new, old), new_state, enc_state)

    def min_bytes(spec):
        return _bytes_of_one(empty(spec, view, factor_bits, max_rank), LEAST_BITS)

    return Compressor(init, compress, decompress, layout.num_bytes, min_bytes, support=subspace if shares else None)


def subspace(payload: LowRank, _state: PyTree = None) -> Subspace:
    """Returns what an uplink's payload fixes for the gradient.

    A zero tensor spans nothing; the slowest cosines stand in for it, or a client whose units have all died would never
    hear of a gradient again. An empty message (rank 0) fixes nothing: there is nothing to answer.
    """
    left, right = _factors(payload)
    m, n = views.matrix_shape(payload.view, payload.shape)
    top = payload.scale.shape[0]
    sent = jnp.where((jnp.arange(top) < payload.rank)[:, None], left if m < n else right, 0.0)
    is_zero = (payload.rank > 0) & ~jnp.any(sent)
    rows = jax.lax.cond(is_zero, lambda: linalg.dct_matrix(min(m, n))[:top], lambda: sent)
    return Subspace(linalg.nearly_orthonormal_rows(rows), payload.view)


def decompress(payload: LowRank | Coefficients, dec_state: tuple, side) -> tuple[Array, tuple]:
    """Returns `(x_hat, dec_state)`. Rank 0 gives zeros.

    A `LowRank` payload carries all that is needed, `Coefficients` need the subspace in `side.support`.
    """
    spec, (m, n) = layout.tensor_spec(payload), views.matrix_shape(payload.view, payload.shape)
    scale = jnp.where(jnp.arange(payload.scale.shape[0]) < payload.rank, payload.scale, 0.0)
    if isinstance(payload, Coefficients):
        bits = _sent_bits(payload)
        long = levels(planes.unpack(payload.rows, bits, payload.most_bits, max(m, n)), bits) * scale[:, None]
        left, right = (side.support.basis, long) if m < n else (long, side.support.basis)
    else:
        left, right = _factors(payload)
        left = left * scale[:, None]
    return views.tensorise(linalg.product(left.T, right), payload.view, spec), dec_state


def _sent_bits(payload: LowRank | Coefficients) -> Array:
    """Returns the bits of the longer rows, int32, 0 beyond the rank.

    A stranger's frame may claim any bits; what has no planes decodes to something, and to nothing beyond the arrays.
    """
    is_sent = jnp.arange(payload.scale.shape[0]) < payload.rank
    return jnp.where(is_sent, jnp.minimum(payload.bits, payload.most_bits), 0).astype(jnp.int32)


def _factors(payload: LowRank) -> tuple[Array, Array]:
    """Returns the rows of both factors, [max_rank, m] and [max_rank, n], before scaling."""
    left_bits, right_bits = _sides(payload, _sent_bits(payload))
    m, n = views.matrix_shape(payload.view, payload.shape)
    left = levels(planes.unpack(payload.left, left_bits, payload.most_bits, m), left_bits)
    return left, levels(planes.unpack(payload.right, right_bits, payload.most_bits, n), right_bits)


def empty(spec: jax.ShapeDtypeStruct | Array, view: str, most_bits: int, max_rank: int) -> LowRank:
    """Returns the payload's layout for cut tensors of `spec`: `jax.ShapeDtypeStruct`s in the place of arrays.

    Args:
        spec: of a cut tensor.
        view: a view's name or "auto".
        most_bits: 4, 8 or 16.
        max_rank: the most components, clipped to min(m, n).
    """
    name = views.resolve(view, spec.shape)
    m, n = views.matrix_shape(name, spec.shape)
    top = min(max_rank, m, n)
    arrays: dict[str, Any] = {
        **dict.fromkeys(("rank", "left_planes", "right_planes"), jax.ShapeDtypeStruct((), jnp.int32)),
        "scale": jax.ShapeDtypeStruct((top,), jnp.float32),
        "bits": jax.ShapeDtypeStruct((top,), jnp.uint8),
        "left": jax.ShapeDtypeStruct((top * most_bits, -(-m // 8)), jnp.uint8),
        "right": jax.ShapeDtypeStruct((top * most_bits, -(-n // 8)), jnp.uint8),
    }
    dtype = layout.dtype_code(spec.dtype)
    return LowRank(**arrays, shape=tuple(spec.shape), dtype=dtype, view=name, most_bits=most_bits)


def _empty_coefficients(spec: jax.ShapeDtypeStruct | Array, view: str, most_bits: int, max_rank: int) -> Coefficients:
    name = views.resolve(view, spec.shape)
    long = max(views.matrix_shape(name, spec.shape))
    arrays: dict[str, Any] = {
        **dict.fromkeys(("rank", "planes"), jax.ShapeDtypeStruct((), jnp.int32)),
        "scale": jax.ShapeDtypeStruct((max_rank,), jnp.float32),
        "bits": jax.ShapeDtypeStruct((max_rank,), jnp.uint8),
        "rows": jax.ShapeDtypeStruct((max_rank * most_bits, -(-long // 8)), jnp.uint8),
    }
    dtype = layout.dtype_code(spec.dtype)
    return Coefficients(**arrays, shape=tuple(spec.shape), dtype=dtype, view=name, most_bits=most_bits)


def _problem(payload: LowRank | Coefficients, max_bytes: int) -> str | None:
    """Returns what is wrong with the static fields and the room of a payload from a frame's own header, or None."""
    if problem := layout.tensor_problem(payload, max_bytes):
        return problem
    if type(payload.most_bits) is not int or payload.most_bits not in BITS:
        return f"it has {payload.most_bits!r} bits"
    return views.problem(payload.view, payload.shape, payload.scale.shape)


def _within(
    x: Array, known: Subspace, rank_rule: RankRule, max_rank: int, most_bits: int, budget_bytes: Array | int
) -> Coefficients:
    """Returns x in a known subspace: its coefficients there, in as many bits as each earns."""
    basis, template = known.basis, _empty_coefficients(x, known.view, most_bits, known.basis.shape[0])
    matrix, peak = views.normalised(x, template.view)
    rows = linalg.to_long(matrix, basis)
    # The order is that of the other direction's energies: those of this one fall in another.
    energies = jnp.sum(jnp.square(rows), axis=1)
    order = jnp.argsort(-energies)
    affordable = _affordable(template, layout.frame_bytes(template, rank=1, planes=MEAN_BITS), budget_bytes)
    most = jnp.minimum(affordable, max_rank)
    falling = _worth_sending(energies[order], rank_rule, linalg.energy(matrix), most)
    energies = jnp.zeros_like(falling).at[order].set(falling)

    def counts_of(bits):
        last = jnp.max(jnp.where(bits > 0, jnp.arange(1, len(bits) + 1), 0))
        return {"rank": last.astype(jnp.int32), "planes": jnp.sum(bits, dtype=jnp.int32)}

    least_bytes = layout.frame_bytes(template, rank=1, planes=1)
    bits, counts = _spend(template, energies, counts_of, least_bytes, budget_bytes)
    codes, scale = quantise_rows(rows, bits, most_bits)
    return dataclasses.replace(
        template,
        # Where the other direction sent nothing there is nothing to answer.
        **counts | {"rank": jnp.where(jnp.any(basis), counts["rank"], 0)},
        scale=peak * scale,
        bits=bits.astype(jnp.uint8),
        rows=planes.pack(codes, bits, most_bits),
    )


def _worth_sending(energies: Array, rank_rule: RankRule, total: Array, most: Array) -> Array:
    """Returns the falling energies [k] of the components that the rule finds worth sending, 0 for the others.

    Args:
        energies: float32 [k].
        rank_rule: as of `low_rank`.
        total: float32 scalar, the matrix's energy.
        most: int32 scalar, the most components.
    """
    return jnp.where(jnp.arange(len(energies)) < jnp.minimum(rank_rule(energies, total), most), energies, 0.0)


def _affordable(template: LowRank | Coefficients, bytes_of_one: int, budget_bytes: Array | int) -> Array:
    """Returns how many components a budget affords, int32, at least 1.

    Args:
        template: the payload's layout.
        bytes_of_one: length of the frame with one component.
        budget_bytes: the largest frame allowed.
    """
    fixed = layout.frame_bytes(template)
    return jnp.maximum((layout.within_int32(budget_bytes) - fixed) // (bytes_of_one - fixed), 1)


def _more_bits(payload: LowRank) -> int:
    """Returns how many bits more the entries of a component's shorter row have than those of its longer one.

    An error of either row weighs the same, but a bit of the shorter one costs less: by the rule of equal gain a byte it
    has log2(l / s) / 2 bits more.
    """
    sides = views.matrix_shape(payload.view, payload.shape)
    return round(0.5 * math.log2(max(sides) / min(sides)))


def _short_bits(payload: LowRank, long_bits: Array) -> Array:
    """Returns the bits of the shorter row of every component."""
    return jnp.where(long_bits > 0, jnp.minimum(long_bits + _more_bits(payload), payload.most_bits), 0)


def _sides(payload: LowRank, long_bits: Array) -> tuple[Array, Array]:
    """Returns the bits of the left and of the right rows."""
    m, n = views.matrix_shape(payload.view, payload.shape)
    short_bits = _short_bits(payload, long_bits)
    return (short_bits, long_bits) if m < n else (long_bits, short_bits)


def _counts(payload: LowRank, long_bits: Array) -> dict[str, Any]:
    """Returns what the payload counts where its components have these bits."""
    left_bits, right_bits = _sides(payload, long_bits)
    return {
        "rank": jnp.sum(long_bits > 0, dtype=jnp.int32),
        "left_planes": jnp.sum(left_bits, dtype=jnp.int32),
        "right_planes": jnp.sum(right_bits, dtype=jnp.int32),
    }


def _bytes_of_one(template: LowRank, bits: int) -> int:
    """Returns the length of the frame with one component of so many bits."""
    m, n = views.matrix_shape(template.view, template.shape)
    short = min(bits + _more_bits(template), template.most_bits)
    left, right = (short, bits) if m < n else (bits, short)
    return layout.frame_bytes(template, rank=1, left_planes=left, right_planes=right)


def _spend(
    template: LowRank | Coefficients,
    energies: Array,
    counts_of: Callable[[Array], dict[str, Any]],
    least_bytes: int,
    budget_bytes: Array | int,
) -> tuple[Array, dict[str, Any]]:
    """Returns the bits of every component's longer row, int32 [k], and the counts of the largest frame that fits.

    A zero tensor is a message like any other: it has one component, of 0 bits.

    Args:
        template: the payload's layout.
        energies: float32 [k].
        counts_of: from such bits to what the payload then counts.
        least_bytes: the least frame that carries anything.
        budget_bytes: the largest allowed.
    """
    budget_bytes = layout.within_int32(budget_bytes)

    def fits(bits):
        return layout.num_bytes(dataclasses.replace(template, **counts_of(bits))) <= budget_bytes

    is_message = budget_bytes >= least_bytes
    bits = water_filling.most_that_fit(water_filling.by_energy(energies, template.most_bits), fits)
    bits = jnp.where(is_message, bits, 0)
    counts = counts_of(bits)
    return bits, counts | {"rank": jnp.maximum(counts["rank"], is_message.astype(jnp.int32))}


def _quantised_factors(matrix, rows, long_bits, template, compensates):
    """Returns the payload's arrays, and the rows' images on the short side [k, s], for the next message's basis.

    The short factor is fitted to the long one as quantised, S = (L L.T)^-1 L M, and quantised in its turn; then the
    lengths of the components to both. Rows that are not sent are carried along unquantised: they cost nothing extra
    and keep the basis whole.
    """
    top, most = long_bits.shape[0], template.most_bits
    short_bits, is_sent = _short_bits(template, long_bits), long_bits > 0
    long_codes, long, long_scale = _quantised(rows[:top], long_bits, most)
    known = jnp.where(is_sent[:, None], long, rows[:top]) if compensates else rows[:top]
    images = linalg.to_short(matrix, rows.at[:top].set(known))
    short = _least_squares(long, images[:top], is_sent) if compensates else images[:top]
    short_codes, short, short_scale = _quantised(short, short_bits, most)
    lengths = _best_lengths(long, short, images[:top], is_sent) if compensates else 1.0
    packed = planes.pack(long_codes, long_bits, most), planes.pack(short_codes, short_bits, most)
    left, right = packed[::-1] if matrix.shape[0] < matrix.shape[1] else packed
    scale = lengths * long_scale * short_scale
    return {"scale": scale, "bits": long_bits.astype(jnp.uint8), "left": left, "right": right}, images


def _quantised(rows, bits, most):
    """Returns (codes, values, scale) of the rows; those of 0 bits are zero."""
    codes, scale = quantise_rows(rows, bits, most)
    return codes, levels(codes, bits) * scale[:, None], scale


def _least_squares(basis_kl: Array, images_ks: Array, is_sent: Array) -> Array:
    """Returns G^-1 images over the rows sent, G = basis basis.T: what the other factor should be."""
    gram = linalg.product(basis_kl, basis_kl.T)
    inverse = _ridge_solve(gram, jnp.eye(gram.shape[0], dtype=gram.dtype), is_sent)
    return linalg.product(inverse, jnp.where(is_sent[:, None], images_ks, 0.0))


def _best_lengths(long_kl: Array, short_ks: Array, images_ks: Array, is_sent: Array) -> Array:
    """Returns d [k] with the least ||M - sum_i d_i long_i short_i.T||, images = long M.

    Of rows as quantised: whatever they have become, no message is worse than a zero one.
    """
    gram = linalg.product(long_kl, long_kl.T) * linalg.product(short_ks, short_ks.T)
    return _ridge_solve(gram, jnp.sum(images_ks * short_ks, axis=1, keepdims=True), is_sent)[:, 0]


def _ridge_solve(gram: Array, right: Array, is_sent: Array) -> Array:
    """Returns G^-1 right over the rows sent, zero elsewhere; G is scaled to a unit diagonal and slightly regularised.

    Rows that are nearly collinear would otherwise get huge coefficients of both signs, which quantisation makes worse.
    """
    lengths = jnp.sqrt(jnp.diagonal(gram))
    is_used = is_sent & (lengths > 0)
    inverse_lengths = jnp.where(is_used, 1.0 / jnp.where(is_used, lengths, 1.0), 0.0)[:, None]
    unit_gram = gram * inverse_lengths * inverse_lengths.T + jnp.diag(jnp.where(is_used, 1e-4, 1.0))
    return inverse_lengths * jax.scipy.linalg.solve(unit_gram, inverse_lengths * right, assume_a="pos")
