"""Quantised bands: rows of a matrix (channels, frequencies) in groups, every group with its own range and bits.

What the rows are, how they are grouped and how bits are allotted is the method's affair. The rate knob is the number of
bit planes in all; where it does not suffice for a whole group, its first rows get one bit more than the rest. A row of
0 bits is sent as its group's mean.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nscjax import layout, linalg
from nscjax.compress import planes, water_filling
from nscjax.compress.base import Compressor
from nscjax.compress.planes import MOST_BITS
from nscjax.types import Array, PyTree, Shape

LAST_LEVEL = (0.0, 0.707, 1.63, 2.56, 3.42, 4.34, 5.25, 6.3, 7.3)
"""Outermost level of the best uniform quantiser of 0 to 8 bits for a Laplace distribution of standard deviation 1.

Source: Jayant and Noll 1984, "Digital coding of waveforms", chapter 4.
"""

RANGES = ("low", "high", "mean", "deviation")
"""What is sent of every group."""

MOST_GROUPS = 256
"""The most groups: a row's group crosses as one byte."""


class Bands(NamedTuple):
    """How a method sees cut tensors of one shape.

    Attributes:
        size: (n, w), rows and their width.
        num_groups: g, at most `MOST_GROUPS`.
        forward: cut tensor as float32 -> rows [n, w].
        inverse: rows [n, w] -> cut tensor, float32.
        group: `(rows, state) -> (int32 [n] in [0, g), state)`, or int [n] where it follows from the shape and need not
            cross.
        bits: `(rows, groups) -> (t -> int32 [n] in [0, 8])`, rising with the scalar t in [-1, 1].
        state: the first state of `group`.
    """

    size: tuple[int, int]
    num_groups: int
    forward: Callable[[Array], Array]
    inverse: Callable[[Array], Array]
    group: Callable[[Array, PyTree], tuple[Array, PyTree]] | np.ndarray
    bits: Callable[[Array, Array], water_filling.BitsRule]
    state: PyTree = ()


@layout.payload(tag=6)
class Banded:
    """The quantised rows of a transformed cut tensor.

    Attributes:
        rank: int32 scalar, how many planes are sent.
        group: uint8 [n], the group of every row, or [0] where both ends know it.
        bits: uint8 [n], the bits of every row.
        low: float32 [g], least entry of every group.
        high: float32 [g], its largest.
        mean: float32 [g], its mean, which stands for rows of 0 bits.
        deviation: float32 [g], its standard deviation.
        planes: uint8 [8 n, ceil(w / 8)], bit planes of the rows (`nscjax.compress.planes`).
        shape: the cut tensor's shape.
        dtype: its dtype's code in `layout.DTYPES`.
        width: w.
    """

    rank: Array = layout.array()
    group: Array = layout.array()
    bits: Array = layout.array()
    low: Array = layout.array()
    high: Array = layout.array()
    mean: Array = layout.array()
    deviation: Array = layout.array()
    planes: Array = layout.ranked()
    shape: Shape = layout.static()
    dtype: int = layout.static()
    width: int = layout.static()

    def problem(self, max_bytes: int) -> str | None:
        """Returns what is wrong with a payload read from a frame's own header, or None."""
        if problem := layout.tensor_problem(self, max_bytes):
            return problem
        size = math.prod(self.shape)
        if type(self.width) is not int or not 1 <= self.width <= size or size % self.width:
            return f"its rows have {self.width!r} of {size} entries"
        if len(self.low.shape) != 1 or not 1 <= self.low.shape[0] <= MOST_GROUPS:
            return f"its ranges have shape {self.low.shape}; allowed: (1,) to ({MOST_GROUPS},)"
        n = self.bits.shape[0] if len(self.bits.shape) == 1 else 0
        if not 1 <= n <= size // self.width:
            return f"its bits have shape {self.bits.shape}; allowed: (1,) to ({size // self.width},)"
        sends_group = self.group.shape != (0,)
        return layout.arrays_problem(
            self, _empty(layout.tensor_spec(self), (n, self.width), self.low.shape[0], sends_group)
        )


def banded(see: Callable[[Shape], Bands]) -> Compressor:
    """Returns the compressor that quantises a tensor's bands; its frames decode alone.

    Args:
        see: from a cut tensor's shape to its bands; may raise an `InputError`.
    """

    def template_of(spec):
        bands = see(tuple(spec.shape))
        return _empty(spec, bands.size, bands.num_groups, callable(bands.group))

    def init(key, spec):
        del key
        return see(tuple(spec.shape)).state, ()

    def compress(x, enc_state, side):
        bands, template = see(x.shape), template_of(x)
        rows = bands.forward(x.astype(jnp.float32))
        group, new_state = bands.group(rows, enc_state) if callable(bands.group) else (_known(bands.group), enc_state)
        # A message that is not finite must not spoil the state for all that follow.
        is_sound = jnp.all(jnp.isfinite(rows))
        enc_state = jax.tree.map(lambda new, old: jnp.where(is_sound, new, old), new_state, enc_state)
        affordable = layout.affordable_rank(template, side.budget_bytes)
        bits_n = water_filling.most_that_fit(
            bands.bits(rows, group), lambda bits_n: jnp.sum(bits_n, dtype=jnp.int32) <= affordable
        )
        ranges = _ranges(rows, group, bands.num_groups)
        low, high, _ = _levels(ranges, group, bits_n)
        last = planes.last_code(bits_n)[:, None]
        unit = (rows - low) / jnp.where(high > low, high - low, 1.0)
        codes = jnp.clip(jnp.round(unit * last), 0, last).astype(jnp.uint8)
        fields = {
            # A tensor of constants needs no plane: one crosses all the same, for it is a message and not a skipped one.
            "rank": jnp.maximum(jnp.sum(bits_n, dtype=jnp.int32), jnp.minimum(affordable, 1)),
            "group": group.astype(jnp.uint8) if callable(bands.group) else jnp.zeros(0, jnp.uint8),
            "bits": bits_n.astype(jnp.uint8),
            "planes": planes.pack(codes, bits_n, MOST_BITS),
            **ranges,
        }
        return Banded(**fields, shape=template.shape, dtype=template.dtype, width=template.width), enc_state

    def decompress(payload, dec_state, side):
        del side
        bands, bits_n = see(payload.shape), payload.bits.astype(jnp.int32)
        group = payload.group.astype(jnp.int32) if callable(bands.group) else _known(bands.group)
        codes = planes.unpack(payload.planes, bits_n, MOST_BITS, payload.width).astype(jnp.float32)
        ranges = {name: getattr(payload, name) for name in RANGES}
        low, high, mean = _levels(ranges, group, bits_n)
        last = planes.last_code(bits_n)[:, None]
        rows = jnp.where(bits_n[:, None] > 0, low + (high - low) * (codes / last), mean)
        x_hat = bands.inverse(jnp.where(payload.rank > 0, rows, 0.0))
        return x_hat.astype(layout.DTYPES[payload.dtype]), dec_state

    def min_bytes(spec):
        return layout.frame_bytes(template_of(spec), rank=1)

    return Compressor(init, compress, decompress, layout.num_bytes, min_bytes)


def mean_squares(rows: Array) -> Array:
    """Returns the mean square of every row, [n], over the square of the largest entry: it never overflows."""
    return jnp.mean(jnp.square(rows / jnp.maximum(jnp.max(jnp.abs(rows)), jnp.finfo(jnp.float32).tiny)), axis=1)


def frequencies(
    shape: Shape, most: int | None = None
) -> tuple[Callable[[Array], Array], Callable[[Array], Array], np.ndarray, tuple[int, int]]:
    """Returns (forward, inverse, order, (n, w)) of the DCT along the axes that have frequencies.

    Images [B, H, W, C] have them along H and W, tokens [B, T, D] along T, vectors [B, D] along D. `forward` gives rows
    [n, w], one a frequency, from low to high (zigzag: by the sum of both indices); `order` is int [n], that sum.

    Args:
        shape: a cut tensor's.
        most: leaves out the frequencies of an order of this and above.
    """
    batch, *rest = shape
    height, width, channels = {1: (1, rest[0], 1), 2: (rest[0], 1, rest[-1])}.get(len(rest), tuple(rest))  # type: ignore[misc]
    # No index of a frequency is larger than the sum of both.
    rows, columns = (min(size, most or size) for size in (height, width))
    order = np.add.outer(np.arange(rows), np.arange(columns)).reshape(-1)
    zigzag = np.argsort(order, kind="stable")
    zigzag = zigzag[: None if most is None else int(np.sum(order < most))]
    vertical, horizontal = linalg.dct_matrix(height)[:rows], linalg.dct_matrix(width)[:columns]
    exact = jax.lax.Precision.HIGHEST

    def forward(x):
        x = x.reshape(batch, height, width, channels)
        x = jnp.einsum("uh,vw,bhwc->uvbc", vertical, horizontal, x, precision=exact)
        return x.reshape(rows * columns, batch * channels)[zigzag]

    def inverse(sent):
        whole = jnp.zeros((rows * columns, batch * channels), sent.dtype).at[zigzag].set(sent)
        whole = whole.reshape(rows, columns, batch, channels)
        return jnp.einsum("uh,vw,uvbc->bhwc", vertical, horizontal, whole, precision=exact).reshape(shape)

    return forward, inverse, order[zigzag], (len(zigzag), batch * channels)


def by_group(values: Array, group: Array, num_groups: int) -> Array:
    """Returns the mean of the values [n] over every group, [g]; 0 for a group without rows."""
    counts = jax.ops.segment_sum(jnp.ones(group.shape, jnp.float32), group, num_groups)
    return jax.ops.segment_sum(values, group, num_groups) / jnp.maximum(counts, 1)


def _known(group: np.ndarray) -> Array:
    return jnp.asarray(group, jnp.int32)


def _ranges(rows: Array, group: Array, num_groups: int) -> dict[str, Array]:
    """Returns least and largest entry, mean and standard deviation of every group; zeros for a group without rows."""
    mean = by_group(jnp.mean(rows, axis=1), group, num_groups)
    # Squares of numbers about 1 never overflow.
    peak = jnp.maximum(jnp.max(jnp.abs(rows)), jnp.finfo(jnp.float32).tiny)
    squares = jnp.mean(jnp.square((rows - mean[group][:, None]) / peak), axis=1)
    low = jax.ops.segment_min(jnp.min(rows, axis=1), group, num_groups)
    high = jax.ops.segment_max(jnp.max(rows, axis=1), group, num_groups)
    is_used = jax.ops.segment_sum(jnp.ones(group.shape, jnp.float32), group, num_groups) > 0
    return {
        "low": jnp.where(is_used, low, 0.0),
        "high": jnp.where(is_used, high, 0.0),
        "mean": mean,
        "deviation": peak * jnp.sqrt(by_group(squares, group, num_groups)),
    }


def _levels(ranges: dict[str, Array], group: Array, bits_n: Array) -> tuple[Array, Array, Array]:
    """Returns (first level, last level, mean) of every row, [n, 1].

    The levels are those of the best uniform quantiser of a Laplace distribution about the group's mean, as far as the
    group's entries reach: between least and largest entry, few bits would leave no level where most entries are.
    """
    low, high, mean, deviation = (ranges[name][group] for name in RANGES)
    reach = deviation * jnp.asarray(LAST_LEVEL, jnp.float32)[bits_n]
    return jnp.maximum(low, mean - reach)[:, None], jnp.minimum(high, mean + reach)[:, None], mean[:, None]


def _empty(spec: jax.ShapeDtypeStruct | Array, size: tuple[int, int], num_groups: int, sends_group: bool) -> Banded:
    (n, width), limits = size, jax.ShapeDtypeStruct((num_groups,), jnp.float32)
    arrays: dict[str, Any] = {
        "rank": jax.ShapeDtypeStruct((), jnp.int32),
        "group": jax.ShapeDtypeStruct((n * sends_group,), jnp.uint8),
        "bits": jax.ShapeDtypeStruct((n,), jnp.uint8),
        "planes": jax.ShapeDtypeStruct((MOST_BITS * n, -(-width // 8)), jnp.uint8),
        **dict.fromkeys(RANGES, limits),
    }
    return Banded(**arrays, shape=tuple(spec.shape), dtype=layout.dtype_code(spec.dtype), width=width)
