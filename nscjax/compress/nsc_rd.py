"""NSC-RD: an adaptive subspace along places and along features, one step for all coefficients, entropy coding.

The cut tensor is seen as [B, S, C]: samples, places (pixels or tokens; 1 for vectors), features. Its coefficients are

    Y[b, k, j] = sum_s sum_c P[k, s] Q[j, c] X[b, s, c]

with orthonormal rows in P [K, S] and Q [J, C]: what the paper's adaptive subspace is, along two axes. They come from
orthogonal iterations with a warm start, and cross when they are worth their bytes, as many rows as the budget affords;
until then P is a cosine transform and Q the identity, which every receiver knows. Places may be the slowest quarter of
the cosines along every axis instead of pixels: of images S is a sixteenth then, and a row of P hardly costs a byte. All
coefficients are rounded with one step, which is reverse water-filling: groups of coefficients that lie below it vanish,
and that is the adaptive rank. A group is a pair (k, j) of the whole batch; its class, its deviation in steps, and the
spread of the sample pick the table of the entropy coder (`nscjax.compress.entropy`). The step is the finest whose frame
fits the budget, by a search over the very costs that the coder will have.

The gradient crosses in the subspace of its uplink, in the groups that the uplink sent: what is outside has no effect on
the loss, for the server never saw it. No basis crosses a second time.

Source: the transform is a Tucker decomposition by orthogonal iteration (De Lathauwer, De Moor and Vandewalle 2000, "On
the best rank-1 and rank-(R1, ..., RN) approximation of higher-order tensors"); step, dead zone and centroids as in
Sullivan 1996, "Efficient scalar quantization of exponential and Laplacian random variables". Their use here is ours.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nscjax import check, layout, linalg
from nscjax.compress import entropy
from nscjax.compress import view as views
from nscjax.compress.base import Compressor
from nscjax.types import Array, Key, Shape

STEPS_AN_OCTAVE = 32
"""Choices of the quantisation step between one and its double."""

NUM_STEPS = 11 * STEPS_AN_OCTAVE
"""Choices of the step, from the largest coefficient down to where that is the largest symbol."""

PLACES = ("learned", "slow", "cosines")
"""Kinds of the basis along places: learned, learned among the slowest quarter of the cosines, the slowest cosines."""

ROUNDING = 2.0**-16
"""Share that is set aside for float32's rounding of a sum of costs."""

OVERSAMPLE = 4
"""Rows of a warm basis beyond those that are used."""

AFFORDABLE = 0.7
"""Share of a budget that a new basis may take."""

PATIENCE = 1.0
"""How many times its price a new basis must have been missed before it is sent. Who pays for what stays good when as
much as its price is lost pays at most twice what hindsight would have."""

NEGLIGIBLE = 2.0**-16
"""Share of a tensor's energy for which no basis crosses, were its bytes free."""

WHILE = 8
"""Messages within which a row of a basis must be worth its bytes."""

LOWEST_LEVEL = 2.0**-20
"""Share of the largest variance below which no error is looked for: there the finest step ends."""

DWINDLING = 2.0**-64
"""Share of a tensor's energy below which a group's is not looked at: float32 has no number for the inverse's square."""

WEAK = 0.02
"""Share of the strongest group's energy at which a group counts half in a sample's spread."""

SHIFT = 1e-3
"""Multiple of the identity that is added to a covariance, as a share of its largest eigenvalue."""

LOST = 1e-5
"""Share of the largest eigenvalue below which a row has lost the tensor."""

BASIS_MOST = 7
"""The largest code of a basis's entry, which has 4 bits."""


def coder_parts(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (classes, spreads, symbols) of a payload's groups, as `nscjax.compress.entropy.encode` takes them."""
    return groups[1:, :, 0].astype(np.uint8), groups[0, 0, 1:].astype(np.int8), groups[1:, :, 1:]


def _encode_groups(groups: np.ndarray) -> bytes:
    return entropy.encode(*coder_parts(groups))


def _decode_groups(data: bytes, shape: Shape) -> np.ndarray:
    rows, columns, width = shape
    groups = np.zeros(shape, np.int16)
    groups[1:, :, 0], groups[0, 0, 1:], groups[1:, :, 1:] = entropy.decode(data, rows - 1, columns, width - 1)
    return groups


@layout.payload(tag=15)
class Coded:
    """The entropy-coded coefficients of a cut tensor.

    Attributes:
        rank: int32 scalar, how many groups are sent.
        version: float32 scalar, a whole number: which basis they belong to, see `Basis`.
        moved: int32 scalar, the bytes of `basis` that cross: none, or some rows of that along features, or all of them
            and some rows of that along places.
        step: int32 scalar, which step: the largest coefficient over 2**(step / STEPS_AN_OCTAVE).
        size: int32 scalar, bytes of the coded groups.
        peak: float32 scalar, the largest coefficient.
        basis: uint8 [J ceil(C / 2) + K ceil(S / 2)], both bases before they are made orthonormal, two entries a byte:
            that along features, and that along places unless it is one of cosines.
        groups: int16 [1 + K, J, 1 + B], of every group its class and its symbols; first, in the place of a group's, the
            spreads of the samples.
        shape: the cut tensor's shape.
        dtype: its dtype's code in `layout.DTYPES`.
        places: the kind of the basis along places, one of `PLACES`.
    """

    rank: Array = layout.array()
    version: Array = layout.array()
    moved: Array = layout.array()
    step: Array = layout.array()
    size: Array = layout.array()
    peak: Array = layout.array()
    basis: Array = layout.ranked("moved")
    groups: Array = layout.coded("size", layout.Coder(_encode_groups, _decode_groups))
    shape: Shape = layout.static()
    dtype: int = layout.static()
    places: str = layout.static()

    def problem(self, max_bytes: int) -> str | None:
        """Returns what is wrong with a payload read from a frame's own header, or None."""
        if problem := layout.tensor_problem(self, max_bytes):
            return problem
        if len(self.shape) not in views.AXES:
            return f"its shape is {self.shape}"
        if self.places not in PLACES:
            return f"its places are {self.places!r}"
        _, s, c = three_axes(self.shape, self.places)
        k, j = (self.groups.shape[0] - 1, self.groups.shape[1]) if len(self.groups.shape) == 3 else (0, 0)
        if not (1 <= k <= s and 1 <= j <= c):
            return f"its groups are {self.groups.shape}; allowed: up to {s + 1} and {c} rows"
        return layout.arrays_problem(self, _empty(layout.tensor_spec(self), k, j, self.places))


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["places", "features", "is_sent"], meta_fields=["kind"]
)
@dataclasses.dataclass(frozen=True)
class Bases:
    """What an uplink fixes for the gradient.

    Attributes:
        places: float32 [K, S], orthonormal rows.
        features: float32 [J, C], orthonormal rows.
        is_sent: bool [K, J], the groups that the uplink sent.
        kind: of the basis along places, one of `PLACES`.
    """

    places: Array
    features: Array
    is_sent: Array
    kind: str


class Basis(NamedTuple):
    """A basis as both ends hold it.

    Attributes:
        places: float32 [K, S], orthonormal rows; of one that has crossed in part the rest are zeros.
        features: float32 [J, C], the same.
        version: float32 scalar, a whole number below 2**24: 0 of the first one, which every receiver knows, else a
            checksum of the codes that have crossed. (States travel as cotangents: floats.)
    """

    places: Array
    features: Array
    version: Array


class SenderState(NamedTuple):
    """What the sender carries.

    Attributes:
        held: what the receiver holds.
        places: float32 [K + some, S], the warm basis.
        features: float32 [J + some, C].
        missed: float32 scalar, by how much less messages would have lost in the warm basis, the sum of shares of their
            energy, at least 0, since a basis last crossed. Messages without room for one add nothing, and those without
            room for as much of one as is held take nothing off.
    """

    held: Basis
    places: Array
    features: Array
    missed: Array


def nsc_rd(
    *,
    max_rank: int = 16,
    max_features: int = 64,
    mean_bits: int = 2,
    places: str = "learned",
    energy: float = 1.0,
    weight: float = 0.0,
) -> Compressor:
    """Returns the NSC-RD compressor.

    No residual goes from message to message: measured at 1024x (`docs/results.md`), feedback across steps costs the
    uplink six points of accuracy and brings the downlink nothing. `error_feedback` and `delta` wrap it all the same.

    Args:
        max_rank: the most rows K of the basis along places, >= 1; clipped to them. Vectors have one place.
        max_features: the most rows J of the basis along features, >= 1; clipped to them.
        mean_bits: of a coefficient, with which a budget's rows of places are counted, >= 0; 0 allows all. As of
            `nsc_sl`, few rows well told train better than many with rounding noise; for the least error of a message it
            is 0 or 1.
        places: the basis along places: "learned"; "slow", learned among the slowest quarter of the cosines along every
            axis, beyond which nothing crosses; or "cosines", the slowest ones, which cost no bytes.
        energy: share of the tensor's squared norm that is enough, in (0, 1]: a frame is hardly larger than that takes.
            At 1 frames fill their budget. Of "slow" places it is the share of the slow part, of a gradient of what lies
            in the groups of its uplink.
        weight: of the rate penalty in the sender's own loss, >= 0, see `rate_penalty`; 0 leaves it out. Of activations
            alone: gradients have no such loss.

    Raises:
        InputError: an argument out of range.

    Example:
        >>> import jax, nscjax.compress as compress
        >>> c = compress.nsc_rd(max_rank=4)
        >>> x = jax.random.normal(jax.random.key(0), (8, 4, 4, 16))
        >>> enc, dec = c.init(jax.random.key(1), jax.ShapeDtypeStruct(x.shape, x.dtype))
        >>> side = compress.SideInfo(key=jax.random.key(2), budget_bytes=500)
        >>> payload, enc = jax.jit(c.compress)(x, enc, side)
        >>> bool(c.num_bytes(payload) <= 500)
        True
    """
    check.count("max_rank", max_rank, 1)
    check.count("max_features", max_features, 1)
    check.count("mean_bits", mean_bits, 0)
    check.one_of("places", places, PLACES)
    energy, weight = check.fraction("energy", energy), check.at_least("weight", weight, 0)

    def empty(spec: jax.ShapeDtypeStruct | Array) -> Coded:
        _, s, c = three_axes(spec.shape, places)
        return _empty(spec, min(max_rank, s), min(max_features, c), places)

    def init(key, spec):
        del key
        sizes = _sizes(empty(spec))
        held, spare = _first_basis(empty(spec)), OVERSAMPLE * (sizes.row_bytes > 0)
        rows = first_rows(spec.shape, places, min(sizes.k + spare, sizes.s))
        features = jnp.eye(min(sizes.j + OVERSAMPLE, sizes.c), sizes.c, dtype=jnp.float32)
        return SenderState(held, rows, features, jnp.zeros((), jnp.float32)), held

    def compress(x, enc_state, side):
        whole, peak = views.over_peak(x.astype(jnp.float32))
        budget = layout.within_int32(side.budget_bytes)
        if isinstance(side.support, Bases):
            known = side.support
            template = _empty(x, known.is_sent.shape[0], known.is_sent.shape[1], known.kind)
            coefficients = _analysis(_seen(whole, known.kind), known.places, known.features)
            enough = _enough(jnp.where(known.is_sent[..., None], coefficients, 0.0), energy)
            sent = _code(template, coefficients, known.is_sent, budget, enough)
            return _scaled(template, sent, peak), enc_state
        template, tensor = empty(x), _seen(whole, places)
        may_send = _affordable_rows(template, mean_bits, budget)
        state, basis, moved, codes = _next_basis(template, tensor, enc_state, may_send, budget, energy, side.key)
        coefficients = _analysis(tensor, basis.places, basis.features)
        sent = _code(template, coefficients, may_send[:, None], budget - moved, _enough(tensor, energy))
        # A message that is not finite, or that carries nothing, must not move what both ends hold.
        is_message = jnp.isfinite(peak) & (sent["rank"] > 0)
        state = _either(is_message, state, enc_state)
        moved = jnp.where(is_message, moved, 0)
        crossing = {"version": basis.version, "moved": moved, "basis": _crossing(codes, moved)}
        return _scaled(template, sent | crossing, peak), state

    def min_bytes(spec):
        return _least_bytes(empty(spec))

    def penalty(x, payload, enc_state):
        return weight * rate_penalty(x, payload, enc_state)

    return Compressor(init, compress, decompress, layout.num_bytes, min_bytes, support, penalty if weight > 0 else None)


def rate_penalty(x: Array, payload: Coded, state: SenderState) -> Array:
    """Returns the logarithm of a message's size as a differentiable function of the tensor, float32 scalar.

    The size is that of Gaussian coefficients y, in the rows of places that the message has, above the noise of its
    step, half a bit for every doubling of 1 + y^2 / noise with noise = step^2 / 12. As a logarithm it weighs shares of
    the bytes: with weight w, half of them are worth 0.7 w nats of the loss.

    Args:
        x: the cut tensor.
        payload: its message.
        state: the sender's after that message.

    Source: a rate term beside the loss as in Balle, Laparra and Simoncelli 2017, "End-to-end optimized image
    compression"; the size of a Gaussian is Cover and Thomas, "Elements of information theory", chapter 10.
    """
    tensor = _seen(x.astype(jnp.float32), payload.places)
    step = payload.peak * jnp.exp2(-payload.step.astype(jnp.float32) / STEPS_AN_OCTAVE)
    basis = _basis_of(payload, state.held)
    in_steps = _analysis(
        jnp.where(step > 0, tensor, 0.0) / jnp.where(step > 0, step, 1.0), basis.places, basis.features
    )
    has_row = jnp.any(payload.groups[1:, :, 0] > 0, axis=1)
    return jnp.log1p(jnp.sum(jnp.where(has_row[:, None, None], jnp.log2(1 + 12 * jnp.square(in_steps)), 0.0)) / 2)


def forget(state: SenderState, first: Basis) -> SenderState:
    """Returns a sender's state whose next message any receiver can read: for one that has missed a basis.

    It belongs to the first basis, which every receiver knows, until a new one is better and has room, and so crosses.

    Args:
        state: the sender's.
        first: the basis that every receiver knows, what `init` gives the receiver.
    """
    return state._replace(held=first, missed=jnp.full_like(state.missed, jnp.inf))


def support(payload: Coded, state: SenderState | Basis) -> Bases:
    """Returns what an uplink's message fixes for the gradient.

    Args:
        payload: of the uplink.
        state: either end's after that message.
    """
    basis = _basis_of(payload, state.held if isinstance(state, SenderState) else state)
    is_sent = payload.groups[1:, :, 0] > 0
    # A zero tensor sends no group, and a client whose units have all died would never hear of a gradient again.
    is_sent |= (payload.rank > 0) & ~jnp.any(is_sent)
    return Bases(basis.places, basis.features, is_sent, payload.places)


def _basis_of(payload: Coded, held: Basis) -> Basis:
    """Returns the basis of a message's coefficients: what both ends hold after it, or the first one."""
    return _either((payload.version == 0) & (payload.moved == 0), _first_basis(payload), held)


def decompress(payload: Coded, dec_state: Basis, side) -> tuple[Array, Basis]:
    """Returns `(x_hat, dec_state)`. Rank 0 gives zeros.

    A message that belongs to a basis that the receiver does not hold, or that has part of a row, gives NaN: it is an
    error, and a loud one.
    """
    known, new = side.support, dec_state
    is_known = jnp.asarray(True)
    if not isinstance(known, Bases):
        new = _either(payload.moved > 0, _received(payload, payload.moved, payload.basis), dec_state)
        known = _basis_of(payload, new)
        is_known = _is_whole(payload) & (payload.version == known.version)
        new = _either(is_known, new, dec_state)
    classes, spreads, symbols = _parts(payload.groups)
    step = jnp.clip(payload.step, 0, NUM_STEPS)
    values = _values(symbols, entropy.own_classes(classes, spreads), step)
    seen = _synthesis(jnp.where(payload.rank > 0, values, 0.0), known.places, known.features)
    spec = layout.tensor_spec(payload)
    # Times the peak at last: sums of huge coefficients would leave float32's range.
    x_hat = _whole(seen, payload.places, spec.shape) * payload.peak
    return views.narrowed(jnp.where(is_known | (payload.rank == 0), x_hat, jnp.nan), spec.dtype), new


def three_axes(shape: Shape, places: str) -> Shape:
    """Returns [B, S, C] of a cut tensor of `shape`: samples, places of the kind `places`, features."""
    views.names(shape)  # refuses what has no axes to name
    return shape[0], math.prod(_kept(shape, places)), shape[-1]


def first_rows(shape: Shape, places: str, num_rows: int) -> Array:
    """Returns the slowest cosines along the places of a cut tensor, orthonormal rows, float32 [num_rows, S]."""
    kept = _kept(shape, places)
    order = np.argsort(np.indices(kept).sum(0).reshape(-1), kind="stable")[:num_rows]
    if places == "slow":  # places are cosines already
        return jax.nn.one_hot(order, math.prod(kept), dtype=jnp.float32)
    along = (linalg.dct_matrix(size)[index] for size, index in zip(kept, np.unravel_index(order, kept)))
    return functools.reduce(lambda rows, more: (rows[:, :, None] * more[:, None]).reshape(num_rows, -1), along)


def _first_basis(payload: Coded) -> Basis:
    """Returns the basis that every receiver knows: the slowest cosines, and features as they are."""
    sizes = _sizes(payload)
    rows = first_rows(payload.shape, payload.places, sizes.k), jnp.eye(sizes.j, sizes.c, dtype=jnp.float32)
    return Basis(*rows, jnp.zeros((), jnp.float32))


def _either(condition: Array, one: Any, other: Any) -> Any:
    """Returns one tree or the other, of the same structure."""
    return jax.tree.map(lambda *pair: jnp.where(condition, *pair), one, other)


def _axes(shape: Shape) -> Shape:
    """Returns the sizes of the axes of places; vectors have one place."""
    return shape[1:-1] or (1,)


def _kept(shape: Shape, places: str) -> Shape:
    """Returns how many places there are along every axis: where they are cosines, slow ones."""
    return views.slow_sizes(_axes(shape)) if places == "slow" else _axes(shape)


def _cosines(shape: Shape, places: str) -> Array:
    """Returns the cosines that are the places, orthonormal rows [S, pixels or tokens]."""
    return linalg.cosines(_axes(shape), _kept(shape, places))


def _seen(x: Array, places: str) -> Array:
    """Returns a float32 cut tensor as [B, S, C]."""
    tensor = x.reshape(x.shape[0], -1, x.shape[-1])
    return _einsum("bxc,sx->bsc", tensor, _cosines(x.shape, places)) if places == "slow" else tensor


def _whole(tensor_bsc: Array, places: str, shape: Shape) -> Array:
    """Returns the cut tensor of `shape` that is seen as [B, S, C]; of what is not seen there is nothing in it."""
    if places == "slow":
        tensor_bsc = _einsum("bsc,sx->bxc", tensor_bsc, _cosines(shape, places))
    return tensor_bsc.reshape(shape)


_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def _analysis(tensor_bsc: Array, places_ks: Array, features_jc: Array) -> Array:
    """Returns the coefficients [K, J, B]."""
    return _einsum("kbc,jc->kjb", _einsum("bsc,ks->kbc", tensor_bsc, places_ks), features_jc)


def _synthesis(coefficients_kjb: Array, places_ks: Array, features_jc: Array) -> Array:
    """Returns the tensor [B, S, C] of the coefficients."""
    return _einsum("kbc,ks->bsc", _einsum("kjb,jc->kbc", coefficients_kjb, features_jc), places_ks)


def _follow(tensor_bsc: Array, state: SenderState, learns: bool, key: Key) -> SenderState:
    """Returns the state with its warm bases one orthogonal iteration further; features are those of the places."""
    places = state.places
    image_kbc = _einsum("bsc,ks->kbc", tensor_bsc, places)
    if learns:
        places = _moved_on(_einsum("kbc,bsc->ks", image_kbc, tensor_bsc), places, key)
    image_jkb = _einsum("kbc,jc->jkb", image_kbc, state.features)
    features = _moved_on(_einsum("jkb,kbc->jc", image_jkb, image_kbc), state.features, key)
    # Zeros say nothing of what comes after them.
    is_zero = ~jnp.any(tensor_bsc)
    places, features = jnp.where(is_zero, state.places, places), jnp.where(is_zero, state.features, features)
    return state._replace(places=places, features=features)


def _moved_on(images: Array, rows: Array, key: Key) -> Array:
    """Returns orthonormal rows from the images of such rows under a covariance.

    A little of the rows themselves is left in: the covariance plus a multiple of the identity has the same
    eigenvectors, and full rank where there are more rows than the tensor has directions. A row that the tensor has
    nothing of (a dead unit's) would stay for ever; one at random is in its place. The rows are ordered by their images'
    lengths: the first ones are used.
    """
    lengths = jnp.linalg.norm(images, axis=1)
    largest = jnp.max(lengths)
    drawn = jax.random.normal(key, rows.shape, rows.dtype) / rows.shape[1] ** 0.5
    left_in = jnp.where((lengths <= LOST * largest)[:, None], drawn, rows)
    return linalg.orthonormal_rows((images + SHIFT * largest * left_in)[jnp.argsort(-lengths)], key)


class Filled(NamedTuple):
    """What bytes are good for in a basis, by reverse water-filling.

    Attributes:
        level: float32 scalar, the mean squared error of coefficients that have more than it.
        lost: float32 scalar, the share of the tensor's energy that is not told.
        num_bytes: float32 scalar, what that takes.
    """

    level: Array
    lost: Array
    num_bytes: Array


def _filled(coefficients_kjb: Array, whole: Array, num_bytes: Array, energy: float = 1.0) -> Filled:
    """Returns to what so many bytes come.

    Args:
        coefficients_kjb: float32 [K, J, B], Gaussian as far as this goes.
        whole: float32, the energy of the tensor: what the coefficients do not have of it is lost.
        num_bytes: float32.
        energy: share of the tensor's energy that is enough, in (0, 1].
    """
    variance, samples = -jnp.sort(-_variances(coefficients_kjb).reshape(-1)), coefficients_kjb.shape[-1]
    peak = jnp.maximum(variance[0], DWINDLING * whole)
    peak = jnp.where(peak > 0, peak, 1.0)
    unit, whole, most_bits = variance / peak, whole / peak / samples, 8 * num_bytes / samples
    octaves = jnp.log2(jnp.maximum(unit, LOWEST_LEVEL))
    outside = jnp.maximum(whole - jnp.sum(unit), 0.0)

    def level_by(levels: Array) -> Array:
        """Returns the level, given what it is if the first n groups are above it: that of the last that is."""
        num = jnp.sum(unit >= levels)
        return jnp.clip(jnp.where(num > 0, levels[num - 1], 1.0), LOWEST_LEVEL, 1.0)

    num = jnp.arange(1, unit.size + 1, dtype=jnp.float32)
    level = level_by(jnp.exp2((jnp.cumsum(octaves) - 2 * most_bits) / num))
    if energy < 1:
        beyond = jnp.sum(unit) - jnp.cumsum(unit)
        level = jnp.maximum(level, level_by(((1 - energy) * whole - outside - beyond) / num))
    lost = outside + jnp.sum(jnp.minimum(unit, level))
    bits = jnp.sum(jnp.maximum(octaves - jnp.log2(level), 0.0)) / 2
    return Filled(level * peak, lost / jnp.maximum(whole, jnp.finfo(jnp.float32).tiny), samples * bits / 8)


def _worth(coefficients_kjb: Array, level: Array) -> Array:
    """Returns what sending every group is worth, float32 bytes [K, J].

    A group of variance v above the level D costs log2(v / D) / 2 bits a coefficient and lowers its error from v to D;
    where a budget is spent best, an error of 2 ln(2) D is worth a bit. So it gains ((v / D - 1) - ln(v / D)) / (2 ln 2)
    bits.
    """
    above = jnp.maximum(_variances(coefficients_kjb) / jnp.where(level > 0, level, 1.0), 1.0)
    return coefficients_kjb.shape[-1] * (above - 1 - jnp.log(above)) / (16 * math.log(2))


def _variances(coefficients_kjb: Array) -> Array:
    return jnp.mean(jnp.square(coefficients_kjb), axis=-1)


class Sizes(NamedTuple):
    """Of a payload: rows of both bases, what they are rows of, and bytes.

    Attributes:
        k: rows of the basis along places.
        j: rows of that along features.
        s: places.
        c: features.
        row_bytes: of a row along places, 0 where none is learned.
        feature_row_bytes: of a row along features.
    """

    k: int
    j: int
    s: int
    c: int
    row_bytes: int
    feature_row_bytes: int

    @property
    def feature_bytes(self) -> int:
        """Bytes of all rows along features."""
        return self.j * self.feature_row_bytes


def _worthy_rows(worth_kj: Array, axis: int, row_bytes: int) -> Array:
    """Returns how many rows along an axis of the groups are worth their bytes within a while, int32."""
    return jnp.sum(jnp.sum(worth_kj, axis=1 - axis) * WHILE >= row_bytes, dtype=jnp.int32)


def _sizes_of(shape: Shape, k: int, j: int, places: str) -> Sizes:
    _, s, c = three_axes(shape, places)
    learns = places != "cosines" and s > 1
    return Sizes(k, j, s, c, -(-s // 2) * learns, -(-c // 2))


def _sizes(payload: Coded) -> Sizes:
    return _sizes_of(payload.shape, payload.groups.shape[0] - 1, payload.groups.shape[1], payload.places)


class Candidate(NamedTuple):
    """A part of the warm basis that may cross.

    Attributes:
        moved: int32 scalar, its bytes.
        lost: float32 scalar, the share of a message's energy that is lost in it.
        price: float32 scalar, by how much more where its bytes cross in the same message.
    """

    moved: Array
    lost: Array
    price: Array


def _next_basis(
    template: Coded, tensor_bsc: Array, state: SenderState, may_send_k: Array, budget: Array, energy: float, key: Key
) -> tuple[SenderState, Basis, Array, Array]:
    """Chooses the basis of a message: the held one, the first one, which costs nothing, or a new one if it is due.

    What is missed is told by the warm basis as it was before the message: the newest one has learned the message's own
    noise, and would always be the better of the two.

    Args:
        template: the payload's layout.
        tensor_bsc: float32 [B, S, C].
        state: the sender's.
        may_send_k: bool [K], the rows along places that may be sent.
        budget: int32, the largest frame.
        energy: share of the energy that is enough.
        key: for rows that have lost the tensor.

    Returns:
        (state, the basis of the message, the bytes of it that cross, the codes of all rows).
    """
    sizes, first = _sizes(template), _first_basis(template)
    whole = jnp.sum(jnp.square(tensor_bsc))

    def seen_in(basis: Basis) -> Array:
        return jnp.where(may_send_k[:, None, None], _analysis(tensor_bsc, basis.places, basis.features), 0.0)

    room = (budget - _least_bytes(template)).astype(jnp.float32)
    in_held, in_first = seen_in(state.held), seen_in(first)
    of_held, of_first = (_filled(seen, whole, room, energy) for seen in (in_held, in_first))
    is_first_better = _is_better(of_first, of_held, energy)
    now = _either(is_first_better, of_first, of_held)
    if energy < 1:
        room = now.num_bytes  # it has no use for more

    most = _affordable_bytes(template, jnp.sum(may_send_k, dtype=jnp.int32), budget)
    warm = _received(template, most, _codes(template, state))

    def candidate(seen: Array, moved: Array) -> Candidate:
        alone, beside = (_filled(seen, whole, num_bytes).lost for num_bytes in (room, room - moved.astype(jnp.float32)))
        return Candidate(moved, jnp.where(moved > 0, alone, jnp.inf), jnp.maximum(beside - alone, NEGLIGIBLE))

    seen = seen_in(_in_part(template, warm, jnp.minimum(most, sizes.feature_bytes)))
    rows = _worthy_rows(_worth(seen, _filled(seen, whole, room).level), 1, sizes.feature_row_bytes)
    moved = jnp.minimum(most, rows * sizes.feature_row_bytes)
    best = candidate(_leading(seen, moved // sizes.feature_row_bytes, axis=1), moved)
    if sizes.row_bytes:
        seen = seen_in(warm)
        rows = _worthy_rows(_worth(seen, _filled(seen, whole, room).level), 0, sizes.row_bytes)
        rows = jnp.minimum(rows, _num_rows(sizes, most)[1])
        both = candidate(_leading(seen, rows), jnp.where(rows > 0, sizes.feature_bytes + rows * sizes.row_bytes, 0))
        best = _either(_within_a_while(both) < _within_a_while(best), both, best)

    gain = jnp.where(best.moved > 0, now.lost - best.lost, 0.0)
    # A budget without room for as much as the held one says nothing against the warm one.
    is_fair = most >= _crossed_bytes(sizes, state.held, first)
    missed = jnp.maximum(state.missed + jnp.where(is_fair, gain, jnp.maximum(gain, 0.0)), 0.0)
    is_due = (gain > 0) & (missed >= PATIENCE * best.price)

    newest = _follow(tensor_bsc, state, sizes.row_bytes > 0, key)
    codes = _codes(template, newest)
    held = _either(is_due, _received(template, best.moved, codes), state.held)
    basis = _either(is_first_better & ~is_due, first, held)
    state = newest._replace(held=held, missed=jnp.where(is_due, 0.0, missed))
    return state, basis, jnp.where(is_due, best.moved, 0), codes


def _is_better(one: Filled, other: Filled, energy: float) -> Array:
    """Returns whether less is lost in one basis, as far as it counts, or as much with fewer bytes."""
    one_lost, other_lost = (jnp.maximum(of.lost, (1 + ROUNDING) * (1 - energy)) for of in (one, other))
    return (one_lost < other_lost) | ((one_lost == other_lost) & (one.num_bytes < other.num_bytes))


def _crossed_bytes(sizes: Sizes, basis: Basis, first: Basis) -> Array:
    """Returns the bytes of a basis that have crossed, int32."""
    num_places, num_features = (jnp.sum(jnp.any(rows != 0, axis=1), dtype=jnp.int32) for rows in basis[:2])
    of_places = jnp.where(jnp.any(basis.places != first.places), num_places * sizes.row_bytes, 0)
    return jnp.where(basis.version == 0, 0, num_features * sizes.feature_row_bytes + of_places)


def _within_a_while(candidate: Candidate) -> Array:
    """Returns what a message loses in a candidate that is sent once in a while."""
    return candidate.lost + candidate.price / WHILE


def _affordable_bytes(template: Coded, num_rows: Array, budget: Array) -> Array:
    """Returns how many bytes of a basis a budget affords, int32: whole rows, of places only after all of features.

    Args:
        template: the payload's layout.
        num_rows: int32, the rows along places that may be sent.
        budget: int32, the largest frame.
    """
    sizes = _sizes(template)
    room = jnp.minimum((AFFORDABLE * budget.astype(jnp.float32)).astype(jnp.int32), budget - _least_bytes(template))
    room = jnp.maximum(room, 0)
    moved = jnp.minimum(room // sizes.feature_row_bytes, sizes.j) * sizes.feature_row_bytes
    if not sizes.row_bytes:
        return moved
    num_rows = jnp.minimum(num_rows, jnp.maximum(room - sizes.feature_bytes, 0) // sizes.row_bytes)
    return moved + num_rows * sizes.row_bytes


def _codes(template: Coded, state: SenderState) -> Array:
    """Returns the codes of the warm bases, uint8, see `Coded.basis`."""
    sizes = _sizes(template)
    codes = _row_codes(state.features[: sizes.j])
    return jnp.concatenate([codes, _row_codes(state.places[: sizes.k])]) if sizes.row_bytes else codes


def _row_codes(rows: Array) -> Array:
    """Returns rows in 4 bits an entry, uint8 [k ceil(n / 2)]; their lengths do not matter."""
    peak = jnp.max(jnp.abs(rows), axis=1, keepdims=True)
    codes = jnp.round(rows / jnp.where(peak > 0, peak, 1.0) * BASIS_MOST).astype(jnp.int32) + BASIS_MOST
    pairs = jnp.pad(codes, ((0, 0), (0, codes.shape[1] % 2))).reshape(-1, 2)
    return (pairs[:, 0] * 16 + pairs[:, 1]).astype(jnp.uint8)


def _rows_of(codes: Array, num_rows: int, length: int, num_sent: Array | int) -> Array:
    """Returns the orthonormal rows [k, length] that codes stand for; both ends make them of the same codes.

    Those that were not sent are zeros.
    """
    codes = jnp.stack([codes // 16, codes % 16], axis=-1).reshape(num_rows, -1)[:, :length]
    return linalg.nearly_orthonormal_rows(_leading(codes.astype(jnp.float32) - BASIS_MOST, num_sent))


def _leading(array: Array, num: Array | int, axis: int = 0) -> Array:
    """Returns an array with zeros for what is beyond the first `num` along an axis."""
    index = jnp.arange(array.shape[axis]).reshape(-1, *(1,) * (array.ndim - axis - 1))
    return jnp.where(index < num, array, 0.0)


def _received(payload: Coded, moved: Array, codes: Array) -> Basis:
    """Returns the basis of which `moved` bytes of the codes have crossed; without rows along places the first ones."""
    sizes, places = _sizes(payload), _first_basis(payload).places
    num_features, num_places = _num_rows(sizes, moved)
    features = _rows_of(codes[: sizes.feature_bytes], sizes.j, sizes.c, num_features)
    if sizes.row_bytes:
        learned = _rows_of(codes[sizes.feature_bytes :], sizes.k, sizes.s, num_places)
        places = jnp.where(num_places > 0, learned, places)
    return Basis(places, features, _checksum(_crossing(codes, moved), moved))


def _in_part(template: Coded, basis: Basis, moved: Array) -> Basis:
    """Returns a basis as it would be if only `moved` bytes of it had crossed."""
    num_features, num_places = _num_rows(_sizes(template), moved)
    places = jnp.where(num_places > 0, _leading(basis.places, num_places), _first_basis(template).places)
    return basis._replace(places=places, features=_leading(basis.features, num_features))


def _num_rows(sizes: Sizes, moved: Array) -> tuple[Array, Array]:
    """Returns how many rows along features and along places are among the first `moved` bytes of a basis, int32."""
    num_places = jnp.maximum(moved - sizes.feature_bytes, 0) // max(sizes.row_bytes, 1)
    return jnp.minimum(moved // sizes.feature_row_bytes, sizes.j), num_places


def _crossing(codes: Array, moved: Array) -> Array:
    """Returns the codes with zeros for those beyond the first `moved`."""
    return jnp.where(jnp.arange(codes.size) < moved, codes, 0)


def _checksum(codes: Array, moved: Array) -> Array:
    """Returns a whole number from 1 to 2**24 - 1 that tells bases apart, float32: a polynomial of the codes sent."""
    powers = np.multiply.accumulate(np.full(codes.shape, 0x01000193, np.uint32))
    total = jnp.sum(codes.astype(jnp.uint32) * powers, dtype=jnp.uint32)
    total += moved.astype(jnp.uint32) * np.uint32(0x9E3779B1)
    return ((total >> 8) % (2**24 - 1) + 1).astype(jnp.float32)


def _is_whole(payload: Coded) -> Array:
    """Returns whether only whole rows of a basis have crossed, or none: a stranger's frame may hold half a row."""
    sizes = _sizes(payload)
    beyond = payload.moved - sizes.feature_bytes
    of_places = (beyond % sizes.row_bytes == 0) if sizes.row_bytes else beyond == 0
    return jnp.where(beyond > 0, of_places, payload.moved % sizes.feature_row_bytes == 0)


def _empty(spec: jax.ShapeDtypeStruct | Array, k: int, j: int, places: str) -> Coded:
    """Returns the payload's layout for cut tensors of `spec` with K and J rows."""
    sizes, dtype = _sizes_of(spec.shape, k, j, places), layout.dtype_code(spec.dtype)
    arrays: dict[str, Any] = {
        **dict.fromkeys(("rank", "moved", "step", "size"), jax.ShapeDtypeStruct((), jnp.int32)),
        **dict.fromkeys(("version", "peak"), jax.ShapeDtypeStruct((), jnp.float32)),
        "basis": jax.ShapeDtypeStruct((sizes.feature_bytes + k * sizes.row_bytes,), jnp.uint8),
        "groups": jax.ShapeDtypeStruct((1 + k, j, 1 + spec.shape[0]), jnp.int16),
    }
    return Coded(**arrays, shape=tuple(spec.shape), dtype=dtype, places=places)


def _code(
    template: Coded, coefficients_kjb: Array, may_send_kj: Array, room: Array, enough: Array | None
) -> dict[str, Array]:
    """Returns the fields of the finest frame that fits, and is no finer than is enough.

    Args:
        template: the payload's layout.
        coefficients_kjb: float32 [K, J, B].
        may_send_kj: bool, broadcasts to [K, J], the groups that may be sent.
        room: int32, the largest frame without a new basis.
        enough: float32, the energy of the coefficients that it is enough to hold, or None.
    """
    coefficients = jnp.where(may_send_kj[..., None], coefficients_kjb, 0.0)
    peak = jnp.max(jnp.abs(coefficients))
    unit = coefficients / jnp.where(peak > 0, peak, 1.0)
    room_bytes = jnp.minimum(room - layout.frame_bytes(template), layout.most_coded(template.groups))

    spreads = _spreads(unit)
    log_deviation = _log_deviation(unit, spreads)
    total = jnp.sum(jnp.square(unit))

    def halve(_, carry):
        low, high, best = carry
        middle = (low + high) // 2
        tried = _quantised(unit, middle, spreads, log_deviation)
        fits = (middle >= 0) & (tried.size <= room_bytes)
        if enough is not None:
            fits &= total - _lost(unit, tried, middle) <= enough / jnp.where(peak > 0, jnp.square(peak), 1.0)
        # What was counted is what is sent: made anew, it might be rounded in another way.
        return jnp.where(fits, middle, low), jnp.where(fits, high, middle), _either(fits, tried, best)

    first = jnp.int32(-1), jnp.int32(NUM_STEPS + 1), _strongest(unit, room_bytes)
    step, _, sent = jax.lax.fori_loop(0, math.ceil(math.log2(NUM_STEPS + 2)), halve, first)
    step, (classes, spreads, symbols, size) = jnp.maximum(step, 0), sent
    is_message = room >= _least_bytes(template)
    rank = jnp.maximum(jnp.sum(classes > 0, dtype=jnp.int32), 1)
    groups = jnp.zeros(template.groups.shape, jnp.int32).at[0, 0, 1:].set(spreads)
    groups = groups.at[1:, :, 0].set(classes).at[1:, :, 1:].set(symbols).astype(template.groups.dtype)
    return {
        "rank": jnp.where(is_message, rank, 0),
        "step": step,
        "size": jnp.where(is_message, size, 0),
        "peak": peak,
        "groups": jnp.where(is_message, groups, 0),
    }


class Quantised(NamedTuple):
    """Coefficients in steps.

    Attributes:
        classes: int32 [K, J].
        spreads: int32 [B].
        symbols: int32 [K, J, B].
        size: int32 scalar, the bytes that the coder needs for all of them.
    """

    classes: Array
    spreads: Array
    symbols: Array
    size: Array


def _quantised(unit_kjb: Array, step: Array | int, spreads_b: Array, log_deviation_kj: Array) -> Quantised:
    """Returns the coefficients, at most 1 in magnitude, in steps."""
    classes = _nearest_classes(log_deviation_kj, step)
    symbols = _symbols(unit_kjb, step, entropy.own_classes(classes, spreads_b))
    classes = jnp.where(jnp.any(symbols != 0, axis=-1), classes, 0)
    return Quantised(classes, spreads_b, symbols, _size(_cost(classes, spreads_b, symbols)))


def _strongest(unit_kjb: Array, room_bytes: Array) -> Quantised:
    """Returns the groups with the most energy that fit at the coarsest step: for where not all of them do."""
    # What they cost at most is known where samples do not differ.
    spreads = jnp.zeros(unit_kjb.shape[-1], jnp.int32)
    log_deviation = _log_deviation(unit_kjb, spreads)
    classes, _, symbols, _ = _quantised(unit_kjb, 0, spreads, log_deviation)
    group_bits = _group_costs(classes, spreads, symbols) + 2 * np.max(entropy.class_bits())
    order = jnp.argsort(-log_deviation.reshape(-1))
    spent = jnp.cumsum(group_bits.reshape(-1)[order].astype(jnp.float32)) / entropy.COST_UNIT
    fits = _size(spent + _empty_map_bits(classes.size) + _spread_bits(spreads)) <= room_bytes
    keeps = jnp.zeros(classes.size, bool).at[order].set(fits).reshape(classes.shape)
    classes, symbols = jnp.where(keeps, classes, 0), jnp.where(keeps[..., None], symbols, 0)
    return Quantised(classes, spreads, symbols, _size(_cost(classes, spreads, symbols)))


def _affordable_rows(template: Coded, mean_bits: int, budget: Array) -> Array:
    """Returns which rows of places a budget affords, bool [K]: the first ones, at least one."""
    rows, j, width = template.groups.shape
    row_bytes = min(max(mean_bits * j * (width - 1) // 8, 1), np.iinfo(np.int32).max)
    most = jnp.maximum((budget - layout.frame_bytes(template)) // row_bytes, 1)
    return jnp.arange(rows - 1) < (most if mean_bits else rows)


def _parts(groups: Array) -> tuple[Array, Array, Array]:
    """Returns (classes [K, J], spreads [B], symbols [K, J, B]), int32."""
    groups = groups.astype(jnp.int32)
    return groups[1:, :, 0], groups[0, 0, 1:], groups[1:, :, 1:]


def _spreads(unit_kjb: Array) -> Array:
    """Returns by how many classes the samples differ from the mean one, int32 [B]: half octaves of their deviation."""
    squares = jnp.square(unit_kjb)
    energies = jnp.mean(squares, axis=-1, keepdims=True)
    # Groups count by how far they are above the level at which they vanish.
    level = WEAK * jnp.max(energies) + jnp.finfo(jnp.float32).tiny
    weight = jnp.sum(energies / (energies + level))
    relative = jnp.sum(squares / (energies + level), axis=(0, 1)) / jnp.where(weight > 0, weight, 1.0)
    nearest = jnp.round(jnp.log2(relative + jnp.finfo(jnp.float32).tiny))
    most = entropy.MOST_SPREAD
    return jnp.clip(jnp.nan_to_num(nearest), -most, most).astype(jnp.int32)


def _log_deviation(unit_kjb: Array, spreads_b: Array) -> Array:
    """Returns log2 of the groups' deviations in a sample without spread, float32 [K, J]."""
    squares = jnp.square(unit_kjb) * jnp.exp2(-spreads_b.astype(jnp.float32))[None, None]
    return 0.5 * jnp.log2(jnp.mean(squares, axis=-1) + jnp.finfo(jnp.float32).tiny)


def _nearest_classes(log_deviation_kj: Array, step: Array | int) -> Array:
    """Returns the class of every group, int32, at least 1: the deviation in steps."""
    nearest = jnp.round(2 * (log_deviation_kj + jnp.float32(step) / STEPS_AN_OCTAVE)) + entropy.CLASS_OF_ONE
    return jnp.clip(jnp.nan_to_num(nearest), 1, entropy.NUM_CLASSES - 1).astype(jnp.int32)


def _symbols(unit_kjb: Array, step: Array | int, own_kjb: Array) -> Array:
    """Returns the coefficients, at most 1 in magnitude, in steps, int32."""
    scale = jnp.exp2(jnp.float32(step) / STEPS_AN_OCTAVE)
    magnitude = jnp.floor(jnp.abs(unit_kjb) * scale + (1 - jnp.asarray(entropy.dead_zones())[own_kjb]))
    magnitude = jnp.minimum(jnp.nan_to_num(magnitude), jnp.asarray(entropy.limits(), jnp.float32)[own_kjb])
    return (jnp.sign(unit_kjb) * magnitude).astype(jnp.int32)


def _values(symbols_kjb: Array, own_kjb: Array, step: Array) -> Array:
    """Returns what the symbols stand for, as shares of the peak: the mean of their step by the class's distribution."""
    symbols = symbols_kjb.astype(jnp.float32)
    beyond = jnp.asarray(entropy.centroids())[own_kjb]
    values = jnp.where(symbols == 0, 0.0, symbols + jnp.sign(symbols) * beyond)
    return values * jnp.exp2(-step.astype(jnp.float32) / STEPS_AN_OCTAVE)


def _enough(whole: Array, energy: float) -> Array | None:
    """Returns so large a share of an array's energy, float32 scalar, or None for all of it."""
    return energy * jnp.sum(jnp.square(whole)) if energy < 1 else None


def _lost(unit_kjb: Array, sent: Quantised, step: Array) -> Array:
    """Returns the energy of what the symbols do not tell of the coefficients, float32."""
    values = _values(sent.symbols, entropy.own_classes(sent.classes, sent.spreads), step)
    return jnp.sum(jnp.square(unit_kjb - values))


def _cost(classes_kj: Array, spreads_b: Array, symbols_kjb: Array) -> Array:
    """Returns what the coder needs for all groups, float32 bits."""
    above = jnp.concatenate([jnp.zeros_like(classes_kj[:1]), classes_kj[:-1]])
    of_map = jnp.sum(jnp.asarray(entropy.class_bits())[above, classes_kj])
    of_groups = jnp.sum(_group_costs(classes_kj, spreads_b, symbols_kjb).astype(jnp.float32))
    return _spread_bits(spreads_b) + (of_map.astype(jnp.float32) + of_groups) / entropy.COST_UNIT


def _spread_bits(spreads_b: Array) -> Array:
    """Returns what the spreads cost, float32 bits."""
    costs = jnp.asarray(entropy.symbol_bits()[entropy.SPREAD_CLASS])[jnp.abs(spreads_b)]
    return jnp.sum(costs).astype(jnp.float32) / entropy.COST_UNIT


def _group_costs(classes_kj: Array, spreads_b: Array, symbols_kjb: Array) -> Array:
    """Returns the cost of every group's symbols, int32 [K, J]."""
    costs = jnp.asarray(entropy.symbol_bits())[entropy.own_classes(classes_kj, spreads_b), jnp.abs(symbols_kjb)]
    return jnp.sum(costs, axis=-1, dtype=jnp.int32)


def _size(bits: Array | float) -> Array:
    """Returns the bytes that are set aside for so many bits, int32; float32's rounding of the sum is allowed for."""
    return jnp.ceil(jnp.asarray(bits, jnp.float32) / 8 * (1 + ROUNDING)).astype(jnp.int32) + entropy.SLACK_BYTES


def _empty_map_bits(num_groups: int) -> float:
    """Returns what the classes of so many empty groups cost."""
    return num_groups * float(entropy.class_bits()[0, 0]) / entropy.COST_UNIT


def _least_bytes(template: Coded) -> int:
    """Returns the length of the least frame in which some group has its place, whatever the values are."""
    rows, j, width = template.groups.shape
    # At the coarsest step symbols are 0 and 1; as many are 1 as the class's deviation allows.
    costs = entropy.symbol_bits()[1 : entropy.CLASS_OF_ONE + 1]
    deviations = 2.0 ** ((np.arange(1, len(costs) + 1) - entropy.CLASS_OF_ONE + 0.5) / 2)
    ones = np.minimum((deviations / entropy.dead_zones()[1 : len(costs) + 1]) ** 2, 1.0)
    worst = np.max(ones * costs[:, 1] + (1 - ones) * costs[:, 0]) + entropy.symbol_bits()[entropy.SPREAD_CLASS, 0]
    bits = _empty_map_bits((rows - 1) * j)
    bits += (worst * (width - 1) + 2 * np.max(entropy.class_bits())) / entropy.COST_UNIT
    return layout.frame_bytes(template) + math.ceil(bits / 8 * (1 + ROUNDING)) + entropy.SLACK_BYTES + 1


def _scaled(template: Coded, fields: dict[str, Array], peak: Array) -> Coded:
    """Returns the payload with the tensor's own scale; what is not given is 0."""
    rest: dict[str, Any] = {
        field.name: jnp.zeros(spec.shape, spec.dtype)
        for field, spec in layout.array_specs(template)
        if field.name not in fields
    }
    # Coefficients may be larger than any entry: where float32 has no such number, its largest one stands for it.
    largest = jnp.where(jnp.isfinite(peak), jnp.minimum(fields["peak"] * peak, jnp.finfo(jnp.float32).max), peak)
    return dataclasses.replace(template, **rest | fields | {"peak": largest})
